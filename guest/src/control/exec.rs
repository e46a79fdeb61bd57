//! An exec: the process becomes another program, mostly the kernel.

use std::fs;
use std::os::unix::fs::MetadataExt;

use kscope_kernel::Image;

use super::HostTid;
use super::breakpoints::Owner;
use super::engine::Engine;
use super::threads::Stop;
use crate::mem::ProcMem;

impl Engine {
    /// The address space is another, and of the process's threads only the leader is left.
    pub(super) fn after_exec(&mut self, tid: HostTid) -> Stop {
        self.threads
            .retain(|&other, thread| other == tid || thread.pid != tid);
        let memory = ProcMem::open(tid)
            .inspect_err(|error| log::warn!("after an exec of guest {}: {error}", self.pid))
            .ok();
        if self.is_process() {
            return self.after_process_exec(tid, memory);
        }
        if let Some(space) = self.processes.space_mut(self.pid) {
            space.memory = memory.unwrap_or_else(|| space.memory.clone());
            space.breakpoints.forget_planted();
        }
        if let Some(start) = &self.start
            && !start.reached
            && let (Some(addr), Some(image)) = (start.addr, self.image.clone())
            && self.runs_the_image(&image)
        {
            if let Some(space) = self.processes.space_mut(self.pid) {
                space.breakpoints.insert(addr, Owner::Engine);
            }
            self.silence_gcov(&image);
        }
        Stop::default()
    }

    /// Keeps a kernel with `GCOV_KERNEL` from announcing its compiler's version: `__gcov_init` does so when it is called
    /// for the first time, which in User Mode Linux is in a constructor, before there is a `current`. 6.12's `printk`
    /// does not survive that. The version that it has announced is kept in a static variable.
    fn silence_gcov(&self, image: &Image) {
        if image.symbol("gcov_info_head").is_none() {
            return;
        }
        let announced = image.symbols().find(|symbol| {
            let suffix = symbol.name.strip_prefix("gcov_version");
            symbol.size == 4 && suffix.is_some_and(|s| s.is_empty() || s.starts_with('.'))
        });
        if let (Some(announced), Ok(memory)) = (announced, self.memory())
            && let Err(error) = memory.write(announced.addr, &1_u32.to_le_bytes())
        {
            log::warn!("gcov_version of guest {}: {error}", self.pid);
        }
    }

    /// Whether the process has the kernel as its program by now.
    fn runs_the_image(&self, image: &Image) -> bool {
        let running = fs::metadata(format!("/proc/{}/exe", self.pid));
        match (running, fs::metadata(image.path())) {
            (Ok(running), Ok(image)) => {
                (running.dev(), running.ino()) == (image.dev(), image.ino())
            }
            // Its own mount namespace may hide the file; its address would then not be mapped elsewhere anyway.
            _ => true,
        }
    }
}
