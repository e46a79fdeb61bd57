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
  monitor phys ADDR [LEN] physical memory
  monitor step-irq on|off whether interrupts are taken while stepping (off)
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

    fn phys(&self, addr: &str, len: &str) -> Result<String, String> {
        const MOST: u64 = 4096;
        const LINE: u64 = 16;
        let start = number(addr).ok_or_else(|| format!("{addr} is no address"))?;
        let len = number(len)
            .ok_or_else(|| format!("{len} is no number"))?
            .min(MOST);
        let size = self.space.physical_size();
        let end = start.saturating_add(len).min(size);
        if start >= end {
            return Err(format!("physical memory has {size:#x} bytes"));
        }
        let mut text = String::new();
        for at in (start..end).step_by(LINE as usize) {
            let mut bytes = vec![0; (end - at).min(LINE) as usize];
            let place = self.space.physical(at);
            if place.is_none_or(|place| !self.space.read_here(place, &mut bytes)) {
                return Err(format!("physical memory at {at:#x} cannot be read"));
            }
            let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let shown = |byte: &u8| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '.',
            };
            let plain: String = bytes.iter().map(shown).collect();
            let _ = writeln!(text, "{at:#010x}: {:<48} {plain}", hex.join(" "));
        }
        Ok(text)
    }

    fn set_step_irq(&mut self, on: bool) -> Result<String, String> {
        self.debugger
            .set_step_interrupts(on)
            .map_err(|error| error.to_string())?;
        self.step_irq = on;
        Ok(format!("step-irq is {}\n", on_or_off(on)))
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

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A number, in hexadecimal behind `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
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
            ["phys", addr] => self.phys(addr, "64"),
            ["phys", addr, len] => self.phys(addr, len),
            ["step-irq"] => Ok(format!("step-irq is {}\n", on_or_off(self.step_irq))),
            ["step-irq", word @ ("on" | "off")] => self.set_step_irq(word == "on"),
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
