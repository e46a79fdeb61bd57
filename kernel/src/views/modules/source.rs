//! The file that a module is being loaded from.

use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::Reader;
use crate::tasks::Task;

/// finit_module(2) on x86-64: the first argument is the file's number.
const FINIT_MODULE: u64 = 313;

/// Where a system call's number and its first argument are in what a task has saved: the host's
/// `struct user_regs_struct` (asm/user_64.h), in units of a register.
const ORIG_RAX: u64 = 15;
const RDI: u64 = 14;

impl<M: Memory> Reader<'_, M> {
    /// The path of the file from which a task is loading a module at this moment, as the task sees
    /// it. None when it is in another system call, also in one that loads a module from memory.
    pub fn module_source(&self, task: KernelAddr) -> Option<String> {
        let object = self.task(task);
        let register = |at| object.u64(&format!("thread.regs.regs.gp[{at}]")).ok();
        let fd = register(RDI).filter(|_| register(ORIG_RAX) == Some(FINIT_MODULE))?;
        let Task { pid, .. } = self.kernel().task_at(task).ok()?;
        let mut files = self.files(pid).ok()?.files.into_iter();
        // The system call takes an `int`.
        let file = files.find(|file| file.fd == fd as u32)?;
        (!file.deleted).then_some(file.path)
    }
}
