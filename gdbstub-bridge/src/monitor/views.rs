//! The kernel views of [`kscope_kernel::views`] as `monitor` commands: what the verbs of the same
//! names print, in any client.

use std::fmt::{Display, Write};

use kscope_guest::mem::ProcMem;
use kscope_kernel::views::bt::{BtOptions, BtTasks, Cpus};
use kscope_kernel::views::net::NetOptions;
use kscope_kernel::views::print::PrintOptions;
use kscope_kernel::views::ps::PsOptions;
use kscope_kernel::{GuestPid, Reader, RunningCpu, Style, Unwinder, ViewError, printable};

use crate::target::GuestTarget;

/// Every view, as `monitor help` lists it: the command, its arguments, and what it tells.
pub(super) const VIEWS: [(&str, &str, &str); 16] = [
    ("ps", "[PID...]", "processes, and where they sleep"),
    (
        "bt",
        "[PID...|all]",
        "call stacks: kernel, then program; of what runs",
    ),
    ("user-bt", "PID...", "the program's part of it alone"),
    ("why", "[PID...]", "what blocked tasks wait for; deadlocks"),
    ("runq", "", "the run queues"),
    ("dmesg", "", "the kernel's log"),
    ("lsmod", "", "the loaded modules"),
    ("mounts", "[PID]", "what is mounted where"),
    ("net", "[PID...]", "the sockets, and who has them open"),
    ("maps", "PID", "a process's memory mappings"),
    ("files", "PID", "a process's open files"),
    ("slab", "", "the slab caches"),
    ("irq", "", "the interrupts and their handlers"),
    ("timers", "", "the timers"),
    ("config", "[PATTERN...]", "the kernel's build configuration"),
    ("print", "EXPR", "a value; lists are followed"),
];

/// Where the CPUs of the stopped guest are.
struct Stopped<'t>(&'t GuestTarget);

impl Cpus for Stopped<'_> {
    fn running(&self) -> Result<Vec<RunningCpu>, ViewError> {
        let registers = self.0.debugger.all_registers();
        let registers = registers.map_err(|error| ViewError::NoRegisters(error.to_string()))?;
        let kernel = self.0.kernel.as_ref();
        Ok(registers
            .into_iter()
            .map(|(vcpu, registers)| RunningCpu {
                cpu: vcpu.cpu,
                registers,
                task: kernel
                    .and_then(|kernel| kernel.task_on(vcpu.cpu, &registers))
                    .map(|task| task.addr),
                stacks: Vec::new(),
            })
            .collect())
    }

    fn unwinder(&self) -> Result<Unwinder, ViewError> {
        let invalid = |error: &dyn Display| ViewError::Invalid(error.to_string());
        let image = self.0.image.as_ref();
        let image = image.ok_or_else(|| invalid(&super::no_types()))?;
        let mut unwinder = Unwinder::new(image).map_err(|error| invalid(&error))?;
        let pid = self.0.debugger.control().pid();
        if let (Ok(maps), Some(kernel)) = (
            std::fs::read_to_string(format!("/proc/{pid}/maps")),
            &self.0.kernel,
        ) {
            for error in unwinder.add_modules_from_maps(&maps, kernel) {
                log::debug!("{error}");
            }
        }
        Ok(unwinder)
    }
}

impl GuestTarget {
    /// What a view tells, with its warnings. None when no view has this name.
    pub(super) fn view_command(&self, words: &[&str]) -> Option<Result<String, String>> {
        let (&name, arguments) = words.split_first()?;
        VIEWS.iter().find(|(view, ..)| *view == name)?;
        Some(match &self.kernel {
            None => Err(super::no_types()),
            Some(kernel) => {
                let reader = Reader::new(kernel);
                self.show(&reader, name, arguments)
                    .map(|text| with_warnings(text, &reader))
            }
        })
    }

    fn show(
        &self,
        reader: &Reader<'_, ProcMem>,
        name: &str,
        arguments: &[&str],
    ) -> Result<String, String> {
        match (name, arguments) {
            ("ps", pids) => {
                let options = PsOptions {
                    pids: parse(pids)?,
                    ..PsOptions::default()
                };
                text(reader.processes(&options))
            }
            ("bt", []) => self.stacks(reader, BtTasks::Running),
            ("bt", ["all"]) => self.stacks(reader, BtTasks::All),
            ("bt", pids) => self.stacks(reader, BtTasks::Pids(parse(pids)?)),
            ("user-bt", [_, ..]) => {
                let options = options(BtTasks::Pids(parse(arguments)?));
                let stacks = reader.stacks(&options, &Stopped(self));
                text(stacks.map(|mut stacks| {
                    for task in &mut stacks.0 {
                        task.kernel.clear();
                        task.kernel_end = None;
                    }
                    stacks
                }))
            }
            ("why", pids) => text(reader.why(&parse(pids)?)),
            ("runq", []) => text(reader.run_queues()),
            ("dmesg", []) => text(reader.log()),
            ("lsmod", []) => text(reader.modules()),
            ("mounts", []) => text(reader.mounts(None)),
            ("mounts", [pid]) => text(reader.mounts(Some(parse_pid(pid)?))),
            ("net", pids) => {
                let options = NetOptions {
                    pids: parse(pids)?,
                    ..NetOptions::default()
                };
                text(reader.sockets(&options))
            }
            ("maps", [pid]) => text(reader.maps(parse_pid(pid)?)),
            ("files", [pid]) => text(reader.files(parse_pid(pid)?)),
            ("slab", []) => text(reader.slab_caches()),
            ("irq", []) => text(reader.interrupts()),
            ("timers", []) => text(reader.timers()),
            ("config", patterns) => {
                let patterns: Vec<_> = patterns.iter().map(|&word| word.to_owned()).collect();
                let mut config = reader.config().map_err(|error| error.to_string())?;
                if !patterns.is_empty() {
                    for pattern in config.filter(&patterns) {
                        reader.warn(format!("no option of this kernel matches `{pattern}`"));
                    }
                }
                Ok(config.to_string())
            }
            ("print", [_, ..]) => {
                let options = PrintOptions {
                    ty: None,
                    pid: None,
                    style: Style::default(),
                };
                text(reader.print(&arguments.join(" "), &options))
            }
            _ => Err(usage(name)),
        }
    }

    fn stacks(&self, reader: &Reader<'_, ProcMem>, tasks: BtTasks) -> Result<String, String> {
        text(reader.stacks(&options(tasks), &Stopped(self)))
    }
}

fn options(tasks: BtTasks) -> BtOptions {
    BtOptions {
        tasks,
        arguments: true,
        locals: false,
    }
}

fn text(view: Result<impl Display, ViewError>) -> Result<String, String> {
    match view {
        Ok(view) => Ok(view.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn with_warnings(mut text: String, reader: &Reader<'_, ProcMem>) -> String {
    for warning in reader.warnings() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "warning: {}", printable(&warning));
    }
    text
}

fn usage(name: &str) -> String {
    let view = VIEWS.iter().find(|(view, ..)| *view == name);
    let arguments = view.map_or("", |(_, arguments, _)| arguments);
    format!("usage: monitor {name} {arguments}")
}

fn parse(words: &[&str]) -> Result<Vec<GuestPid>, String> {
    words.iter().map(|word| parse_pid(word)).collect()
}

fn parse_pid(word: &str) -> Result<GuestPid, String> {
    let pid = word.parse().ok().filter(|&pid: &i32| pid >= 0);
    pid.map(GuestPid)
        .ok_or_else(|| format!("`{word}` is no pid; `monitor ps` lists them"))
}
