//! `monitor` commands.

use std::fmt::Write;

use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd};
use kscope_kernel::{GuestPid, Task, Unwinder, describe_end, format_backtrace_with};

use crate::target::{Fatal, GuestTarget};
use crate::threads::MAX_THREADS;

const HELP: &str = "\
monitor commands of kscope:
  monitor help            this text
  monitor info version    the stub's version
  monitor ps              the guest's tasks
  monitor bt [PID|all]    kernel stack of a task, of every task, or of the running ones
";

/// Tasks that a list had, and that could not be read.
#[derive(Default)]
struct Broken {
    count: usize,
    first: String,
}

impl Broken {
    fn add(&mut self, error: &dyn std::fmt::Display) {
        if self.count == 0 {
            self.first = error.to_string();
        }
        self.count += 1;
    }

    /// What to say of them; nothing if there is none.
    fn line(&self) -> String {
        match self.count {
            0 => String::new(),
            count => format!("{count} not readable, the first: {}\n", self.first),
        }
    }
}

impl GuestTarget {
    fn ps(&mut self) -> Result<String, String> {
        self.threads().map_err(|error| error.to_string())?;
        let kernel = self.kernel.as_ref().ok_or_else(no_types)?;
        let mut text = String::from("     PID    TGID S CPU  NAME\n");
        // Once: it is the same for every task.
        let running: Vec<_> = kernel
            .cpus()
            .into_iter()
            .filter_map(|cpu| Some((kernel.current(cpu).ok()?.addr, cpu)))
            .collect();
        let mut broken = Broken::default();
        for task in kernel.tasks().take(MAX_THREADS) {
            let task = match task {
                Ok(task) => task,
                Err(error) => {
                    broken.add(&error);
                    continue;
                }
            };
            let cpu = running.iter().find(|(addr, _)| *addr == task.addr);
            let cpu = cpu.map_or_else(|| "-".to_owned(), |(_, cpu)| cpu.to_string());
            let name = if task.kernel_thread {
                format!("[{}]", task.comm)
            } else {
                task.comm
            };
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{:>8}{:>8} {} {cpu:>3}  {name}",
                task.pid.0, task.tgid.0, task.state
            );
        }
        text += &broken.line();
        Ok(text)
    }

    fn bt(&mut self, which: Option<&str>) -> Result<String, String> {
        let mut broken = Broken::default();
        let tasks: Vec<Task> = {
            let kernel = self.kernel.as_ref().ok_or_else(no_types)?;
            match which {
                None => kernel
                    .cpus()
                    .into_iter()
                    .filter_map(|cpu| kernel.current(cpu).ok())
                    .collect(),
                Some("all") => kernel
                    .tasks()
                    .take(MAX_THREADS)
                    .filter_map(|task| task.map_err(|error| broken.add(&error)).ok())
                    .collect(),
                Some(pid) => {
                    let pid: i32 = pid.parse().map_err(|_| format!("{pid} is no pid"))?;
                    let task = kernel
                        .find_task(GuestPid(pid))
                        .map_err(|error| error.to_string())?;
                    vec![task.ok_or_else(|| format!("no task has pid {pid}"))?]
                }
            }
        };
        if self.unwinder.is_none() {
            self.unwinder = Some(self.load_unwinder()?);
        }
        let mut text = String::new();
        for task in tasks {
            let _ = writeln!(text, "{} {} [{}]", task.pid, task.comm, task.state);
            text += &self
                .stack(&task)
                .unwrap_or_else(|error| format!("  {error}\n"));
        }
        text += &broken.line();
        Ok(text)
    }

    fn load_unwinder(&self) -> Result<Unwinder, String> {
        let mut unwinder = Unwinder::new(&self.image).map_err(|error| error.to_string())?;
        let pid = self.debugger.control().pid();
        if let (Ok(maps), Some(kernel)) = (
            std::fs::read_to_string(format!("/proc/{pid}/maps")),
            &self.kernel,
        ) {
            for error in unwinder.add_modules_from_maps(&maps, kernel) {
                log::debug!("{error}");
            }
        }
        Ok(unwinder)
    }

    fn stack(&mut self, task: &Task) -> Result<String, String> {
        // Which CPU it is on, if it is.
        let cpu = {
            let threads = self.running().map_err(|error| error.to_string())?;
            threads.ids().iter().find_map(|&tid| {
                let thread = threads.get(tid)?;
                (thread.task.as_ref()?.addr == task.addr).then_some(thread.cpu?)
            })
        };
        let kernel = self.kernel.as_ref().ok_or_else(no_types)?;
        let registers = match cpu {
            Some(vcpu) => self
                .debugger
                .registers(vcpu.cpu)
                .map_err(|error| error.to_string())?,
            None => kernel
                .saved_registers(task)
                .map_err(|error| error.to_string())?,
        };
        let unwinder = self.unwinder.as_mut().ok_or("no unwinder")?;
        let backtrace = unwinder.unwind(&registers, kernel, &kernel.stacks_of(task));
        let mut text = String::new();
        for line in format_backtrace_with(&self.image, unwinder, &backtrace) {
            let _ = writeln!(text, "  {line}");
        }
        if let Some(reason) = describe_end(&backtrace.end) {
            let _ = writeln!(text, "  (cut off: {reason})");
        }
        Ok(text)
    }
}

fn no_types() -> String {
    "the kernel has no debugging information: build it with CONFIG_DEBUG_INFO".to_owned()
}

impl MonitorCmd for GuestTarget {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Fatal> {
        let command = String::from_utf8_lossy(command);
        let words: Vec<_> = command.split_whitespace().collect();
        let text = match words[..] {
            [] | ["help"] => Ok(HELP.to_owned()),
            // The kernel's own gdb scripts take a non-empty answer for QEMU, whose thread N+1 is CPU N: as here.
            ["info", "version"] | ["version"] => Ok(format!(
                "kscope {}, {}\n",
                env!("CARGO_PKG_VERSION"),
                self.image.path().display()
            )),
            ["ps"] => self.ps(),
            ["bt"] => self.bt(None),
            ["bt", which] => self.bt(Some(which)),
            _ => Err(format!("no such command: {command} (see `monitor help`)")),
        };
        let text = text.unwrap_or_else(|error| format!("{error}\n"));
        // In pieces: a packet has to fit the client's buffer.
        const PIECE: usize = 1024;
        for piece in text.as_bytes().chunks(PIECE) {
            out.write_raw(piece);
        }
        Ok(())
    }
}
