//! `kscope ps`: the processes and threads.

use kscope_kernel::views::ps::PsOptions;

use crate::target::{JSON_HELP, ViewArgs};
use crate::verbs::pid_args::{PID_HELP, PidArgs};

const EXAMPLES: &str = "\
Examples:
  kscope ps
  kscope ps --tree
  kscope ps --threads web 340
  kscope ps --format json | jq -r '.ps[] | select(.state == \"D\") | .comm'

Columns: S is the state as in ps(1), with `*` for what a CPU runs at this moment; CPU the
one it runs on or did last; RUN how long it has run, DELAY how long it was ready to run
and waited for its CPU, both with all threads of a process; WCHAN the kernel function it
sleeps in. Kernel threads, and processes without a command line, are in [brackets].";

const FIELDS: &str = "\
In JSON, each has: pid, tid, ppid, uid (effective), ruid (real), state, running, cpu,
threads, runtime_ns, run_delay_ns (null when the kernel does not count it), wchan (null
when it does not sleep), comm, cmdline (an array, empty when there is none),
kernel_thread, task (the address of its task_struct).";

/// List the processes.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{PID_HELP}\n\n{FIELDS}\n\n{JSON_HELP}"))]
pub struct Args {
    #[command(flatten)]
    pids: PidArgs,

    /// Draw the tree of parents and children
    #[arg(long)]
    tree: bool,

    /// List every thread
    #[arg(long)]
    threads: bool,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let chosen = args.pids.chosen()?;
    let options = PsOptions {
        pids: chosen.pids,
        threads: args.threads,
        tree: args.tree,
    };
    args.view
        .show(chosen.guest, "ps", |reader| reader.processes(&options))
}
