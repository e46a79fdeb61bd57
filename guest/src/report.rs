//! Where a guest is when something went wrong: every CPU, with source lines.

use std::fmt::Write;
use std::time::Duration;

use kscope_kernel::{CpuId, Image, Kernel, Unwinder, format_backtrace_with};

use crate::control::{Control, HostTid, Stopped};
use crate::kernel_log::PANIC;
use crate::mem::ProcMem;

/// How long the guest's CPUs may take to stop.
const STOP: Duration = Duration::from_secs(5);
/// Sleeping processes shown.
const MAX_SLEEPERS: usize = 16;
/// Functions shown for each.
const MAX_CALLERS: usize = 6;
/// Frames shown per CPU.
const MAX_LINES: usize = 64;

/// What there is to say about a guest that did not end well.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// In a few words.
    pub reason: String,
    /// Where each CPU was, or why that is not known.
    pub cpus: Result<Vec<CpuReport>, String>,
    /// Where the guest's processes sleep, one per line.
    pub sleepers: Vec<String>,
    /// The kernel's last messages.
    pub log: Vec<String>,
}

/// What a stopped guest tells.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) cpus: Vec<CpuReport>,
    pub(crate) sleepers: Vec<String>,
}

/// Where one CPU was.
#[derive(Debug)]
pub struct CpuReport {
    /// Which.
    pub cpu: CpuId,
    /// The task it ran, as `comm[pid]`, if that could be found out.
    pub task: Option<String>,
    /// The call chain, innermost first.
    pub backtrace: Vec<String>,
}

impl Report {
    pub(crate) fn new(reason: String) -> Report {
        Report {
            reason,
            cpus: Ok(Vec::new()),
            sleepers: Vec::new(),
            log: Vec::new(),
        }
    }

    /// Adds the kernel's last messages, and what they say about the reason.
    pub(crate) fn with_log(mut self, log: Vec<String>) -> Report {
        // SIGBUS: a page of the memory file could not be had.
        if log.iter().any(|line| line.contains("Bus error - the host")) {
            self.reason.push_str(
                ": the host ran out of memory for the guest; free some, or give it less with -m",
            );
        }
        self.log = log;
        self
    }

    /// The report as text, for a terminal. `log_lines` limits the kernel's
    /// messages.
    pub fn render(&self, log_lines: usize) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        match &self.cpus {
            Ok(cpus) => {
                for cpu in cpus {
                    let _ = match &cpu.task {
                        Some(task) => writeln!(text, "CPU {} in {task}:", cpu.cpu),
                        None => writeln!(text, "CPU {}:", cpu.cpu),
                    };
                    for line in &cpu.backtrace {
                        let _ = writeln!(text, "  {line}");
                    }
                }
            }
            Err(reason) => {
                let _ = writeln!(text, "No backtrace: {reason}");
            }
        }
        if !self.sleepers.is_empty() {
            let _ = writeln!(text, "Processes asleep:");
            for line in &self.sleepers {
                let _ = writeln!(text, "  {line}");
            }
        }
        if !self.log.is_empty() && log_lines > 0 {
            let _ = writeln!(text, "Last kernel messages:");
            // What comes after a panic is the kernel's own backtrace.
            let end = self
                .log
                .iter()
                .position(|line| line.contains(PANIC))
                .map_or(self.log.len(), |at| at + 1);
            for line in &self.log[end.saturating_sub(log_lines)..end] {
                let _ = writeln!(text, "  {line}");
            }
        }
        text
    }
}

/// Stops the guest and unwinds each of its CPUs.
pub(crate) fn scene(control: &Control) -> Result<Scene, String> {
    let image = control.image().map_err(|e| e.to_string())?.clone();
    let pid = control.pid();
    control
        .with_stopped(STOP, move |stopped| unwind_all(&image, pid, stopped))
        .map_err(|e| e.to_string())?
}

fn unwind_all(image: &Image, pid: HostTid, stopped: &mut Stopped<'_>) -> Result<Scene, String> {
    let mut unwinder = Unwinder::new(image).map_err(|e| e.to_string())?;
    let cpus: Vec<_> = stopped
        .cpus()
        .into_iter()
        .map(|vcpu| (vcpu.cpu, stopped.registers(vcpu.cpu)))
        .collect();
    let memory = stopped.memory();
    if let Ok(maps) = std::fs::read_to_string(format!("/proc/{pid}/maps")) {
        // Without libc a chain may end at a signal frame; better than nothing.
        for error in unwinder.add_modules_from_maps(&maps, memory) {
            log::debug!("{error}");
        }
    }
    // Without DWARF there are no tasks, but the chain of calls still is.
    let kernel = Kernel::new(image.clone(), memory).ok();
    let mut reports = Vec::new();
    for (cpu, registers) in cpus {
        let backtrace = match registers {
            Ok(registers) => {
                let stacks: Vec<_> = kernel
                    .as_ref()
                    .zip(registers.sp())
                    .map(|(kernel, sp)| kernel.stack_around(sp))
                    .into_iter()
                    .collect();
                let backtrace = unwinder.unwind(&registers, memory, &stacks);
                let mut lines = format_backtrace_with(image, &unwinder, &backtrace);
                lines.truncate(MAX_LINES);
                lines
            }
            Err(e) => vec![format!("registers cannot be read: {e}")],
        };
        let task = kernel
            .as_ref()
            .and_then(|kernel| kernel.current(cpu).ok())
            .map(|task| format!("{}[{}]", task.comm, task.pid));
        reports.push(CpuReport {
            cpu,
            task,
            backtrace,
        });
    }
    let sleepers = kernel
        .map(|kernel| sleepers(image, &kernel, &mut unwinder))
        .unwrap_or_default();
    Ok(Scene {
        cpus: reports,
        sleepers,
    })
}

/// Where each process of the guest (not the kernel's own threads) sleeps.
fn sleepers(image: &Image, kernel: &Kernel<&ProcMem>, unwinder: &mut Unwinder) -> Vec<String> {
    // Every sleeper is in the scheduler; what called it is of interest.
    const SCHEDULER: [&str; 6] = [
        "switch_threads",
        "__switch_to",
        "context_switch",
        "__schedule",
        "__schedule_loop",
        "schedule",
    ];
    let running: Vec<_> = kernel
        .cpus()
        .into_iter()
        .filter_map(|cpu| kernel.current(cpu).ok())
        .map(|task| task.addr)
        .collect();
    let mut lines = Vec::new();
    for task in kernel.tasks().map_while(Result::ok) {
        if task.kernel_thread || running.contains(&task.addr) || task.pid.0 <= 1 {
            continue;
        }
        if lines.len() == MAX_SLEEPERS {
            lines.push("...".to_owned());
            break;
        }
        let Ok(registers) = kernel.saved_registers(&task) else {
            continue;
        };
        let backtrace = unwinder.unwind(&registers, &kernel, &kernel.stacks_of(&task));
        let names: Vec<_> = backtrace
            .frames
            .iter()
            .flat_map(|frame| image.locate(frame.lookup()))
            .map(|place| place.function)
            .skip_while(|name| SCHEDULER.contains(&name.as_str()))
            .take(MAX_CALLERS)
            .collect();
        lines.push(format!(
            "{}[{}] {}: {}",
            task.comm,
            task.pid,
            task.state,
            names.join(" < ")
        ));
    }
    lines
}
