//! Every view, shown into nothing.

use std::cell::RefCell;
use std::fmt::{self, Display, Write};

use kscope_kernel::views::bt::{BtOptions, BtTasks, Cpus};
use kscope_kernel::views::net::NetOptions;
use kscope_kernel::views::print::PrintOptions;
use kscope_kernel::views::ps::PsOptions;
use kscope_kernel::{
    Core, GuestPid, Kernel, Memory, Reader, RunningCpu, Style, Unwinder, ViewError,
};
use serde::Serialize;

/// The views, and what they are asked for. `{pid}` is a process.
pub const VIEWS: &[&str] = &[
    "ps",
    "ps threads",
    "ps tree",
    "bt",
    "bt locals",
    "dmesg",
    "lsmod",
    "mounts",
    "mounts {pid}",
    "net",
    "maps {pid}",
    "files {pid}",
    "slab",
    "irq",
    "timers",
    "runq",
    "why",
    "config",
    "print init_task",
    "print init_task.tasks",
    "print list(init_task.tasks)->mm",
    "print list(slab_caches, struct kmem_cache, list)->name",
    "print *current->mm",
    "print $task({pid})->files->fdt->fd[0]->f_path.dentry->d_name",
    "print user({pid}, (char *)$task({pid})->mm->arg_start)",
    "print $per_cpu(runqueues, 0)",
    "print list(init_task.children)->comm",
    "print *init_task.nsproxy->mnt_ns",
    "print $lx_current()",
    "print init_pid_ns",
];

/// Where the CPUs of a core are.
pub struct CpusOf<'c, M> {
    /// What runs them.
    pub kernel: &'c Kernel<M>,
    /// The core.
    pub core: &'c Core,
    /// Knows its kernel and its libraries. It can be had once.
    pub unwinder: RefCell<Option<Unwinder>>,
}

impl<M: Memory> Cpus for CpusOf<'_, M> {
    fn running(&self) -> Result<Vec<RunningCpu>, ViewError> {
        let running = |&(cpu, registers): &(_, _)| RunningCpu {
            cpu,
            registers,
            task: self.kernel.current(cpu).ok().map(|task| task.addr),
            stacks: Vec::new(),
        };
        Ok(self.core.cpus().iter().map(running).collect())
    }

    fn unwinder(&self) -> Result<Unwinder, ViewError> {
        let unwinder = self.unwinder.take();
        unwinder.ok_or_else(|| ViewError::Invalid("one view, one unwinder".to_owned()))
    }
}

/// Shows one of [`VIEWS`] for people and as JSON. What it could not show is an error, or among the
/// warnings: how many characters there are of all.
pub fn show<M: Memory>(
    cpus: &CpusOf<'_, M>,
    view: &str,
    pid: GuestPid,
) -> Result<usize, ViewError> {
    let reader = Reader::new(cpus.kernel);
    let view = view.replace("{pid}", &pid.to_string());
    let (verb, argument) = view.split_once(' ').unwrap_or((&view, ""));
    let out = |length: Result<usize, ViewError>| {
        let warnings: usize = reader.warnings().iter().map(String::len).sum();
        length.map(|length| length + warnings)
    };
    out(match verb {
        "ps" => {
            let options = PsOptions {
                pids: Vec::new(),
                threads: argument == "threads",
                tree: argument == "tree",
            };
            reader.processes(&options).map(both)
        }
        "bt" => {
            let options = BtOptions {
                tasks: BtTasks::All,
                arguments: true,
                locals: argument == "locals",
            };
            reader.stacks(&options, cpus).map(both)
        }
        "dmesg" => reader.log().map(both),
        "lsmod" => reader.modules().map(both),
        "mounts" => reader
            .mounts((!argument.is_empty()).then_some(pid))
            .map(both),
        "maps" => reader.maps(pid).map(both),
        "files" => reader.files(pid).map(both),
        "net" => reader.sockets(&NetOptions::default()).map(both),
        "slab" => reader.slab_caches().map(both),
        "irq" => reader.interrupts().map(both),
        "timers" => reader.timers().map(both),
        "runq" => reader.run_queues().map(both),
        "why" => reader.why(&[]).map(both),
        "config" => reader.config().map(both),
        "print" => {
            let options = PrintOptions {
                style: Style {
                    depth: 8,
                    elements: 200,
                    text: 200,
                    ..Style::default()
                },
                ..PrintOptions::default()
            };
            reader.print(argument, &options).map(both)
        }
        _ => panic!("no view {verb}"),
    })
}

/// Counts what is written.
#[derive(Default)]
struct Sink(usize);

impl Write for Sink {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

fn both<V: Serialize + Display>(view: V) -> usize {
    let mut sink = Sink::default();
    write!(sink, "{view}").expect("a sink takes all");
    let json = serde_json::to_vec(&view).expect("views are JSON");
    sink.0 + json.len()
}
