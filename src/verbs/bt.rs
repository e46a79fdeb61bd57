//! `kscope bt`: call stacks of tasks.

use kscope_kernel::views::bt::{BtOptions, BtTasks};

use crate::target::{JSON_HELP, ViewArgs};
use crate::verbs::pid_args::{PID_HELP, PidArgs};

const EXAMPLES: &str = "\
Examples:
  kscope bt                       what the CPUs run
  kscope bt 340 web               task 340 of the guest web
  kscope bt --all | less
  kscope bt 2 --locals
  kscope bt --all --format json | jq -r '.bt[] | [.tid, .comm, .kernel[3].function] | @tsv'

Frames are numbered from the inside. Functions that the compiler inlined have frames of
their own; `<interrupt>` is where an interrupt (a signal of the host) came in between; what
is `in libc.so.6` and the like is the host's library, which the kernel calls. Below
`-- program --` is the stack of the task's program, from where it entered the kernel.
Variables that have no value at that place are `<optimized out>`.";

const FIELDS: &str = "\
In JSON, each task has: pid (of its process), tid, comm, state, cpu (null when none ran
it), kernel_thread, task (the address of its task_struct), kernel and user (arrays of
frames, the innermost first), kernel_end and user_end (why the rest is not known, or
null). A frame has pc, function, offset (bytes from the function's start; null for an
inlined one) and object (null for the kernel itself); one of the kernel also inlined,
file, line, interrupt, arguments and, with --locals, locals, and symbol where the
compiler has put a part of the function elsewhere (\"panic.cold\": offset counts from
there); one of a program also signal.
Arguments and locals are {name, value}, without value when it is optimized out.";

/// Print the call stacks of tasks, through the kernel and their programs.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{PID_HELP}\n\n{FIELDS}\n\n{JSON_HELP}"))]
pub struct Args {
    #[command(flatten)]
    pids: PidArgs,

    /// All tasks
    #[arg(short, long, conflicts_with = "running")]
    all: bool,

    /// What the CPUs run: the default without pids
    #[arg(short, long)]
    running: bool,

    /// Print the local variables, too
    #[arg(short, long)]
    locals: bool,

    /// Do not print the arguments
    #[arg(long)]
    no_args: bool,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let chosen = args.pids.chosen()?;
    let tasks = match (args.all, args.running, chosen.pids) {
        (false, false, pids) if !pids.is_empty() => BtTasks::Pids(pids),
        (true, ..) => BtTasks::All,
        _ => BtTasks::Running,
    };
    let options = BtOptions {
        tasks,
        arguments: !args.no_args,
        locals: args.locals,
    };
    args.view.show_with(chosen.guest, "bt", |look| {
        look.reader().stacks(&options, look)
    })
}
