//! `kscope runq`: who wants each CPU, and who gets it next.

use std::time::Duration;

use crate::target::{JSON_HELP, ViewArgs, parse_every};

const EXAMPLES: &str = "\
Examples:
  kscope runq
  kscope runq web --watch               redraw it every second, until q or Ctrl-C
  kscope runq web --watch 0.1 | less    one after the other
  kscope runq web --stop                of one moment, however busy the guest is
  kscope runq --format json | jq '.runq[0].fair.entities[] | {(.task.comm): .eevdf.lag}'";

const COLUMNS: &str = "\
The classes come in the order in which the scheduler asks them: stop, deadline, realtime,
fair. `>` is what runs, `*` is what the scheduler would take if it were called now, with
the numbers as they are (it brings those of the running task up to date first, so it may
decide otherwise when that has run for a while).

Fair tasks since Linux 6.6 (EEVDF: earliest eligible virtual deadline first), in the order
of the queue, the running one before it. Times are in milliseconds; virtual time is the
time of a task of nice 0, that of others goes faster or slower by 1024 / WEIGHT:
  WEIGHT    1024 for nice 0, and a quarter more for each step below
  VRUNTIME  how long it has run, in virtual time (where that starts says nothing)
  LAG       what it is owed: how far its VRUNTIME is behind the average of the queue, which
            is printed as the queue's virtual time; negative when it had more than others
  ELIGIBLE  whether it may be taken: its lag is not negative
  DEADLINE  when it will have had its slice, in virtual time; of the eligible the earliest
            is taken
  SLICE     the time it asks for at once; with `!` it has chosen that itself
  RAN       how long it has run altogether
  STATE     runs; waits; delayed (sleeps, but stays in the queue until its lag is made up
            for, from 6.12); leaving (runs, and goes to sleep); throttled (cpu.max)
Before 6.6 (CFS) the least VRUNTIME is taken, and AHEAD is how far it is ahead of the
queue's lowest.

Groups of tasks (CONFIG_FAIR_GROUP_SCHED) are entities of their own, with their tasks
below them and lags as of their own queue; from 7.3 on all tasks are in one queue, with
the weight that their groups leave to them.";

/// Show the run queues: who wants each CPU, and in which order.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{COLUMNS}\n\n{JSON_HELP}"))]
pub struct Args {
    /// The guest. [default: the only one]
    name: Option<String>,

    /// Show it again every so many seconds: redrawn on a terminal (q or Ctrl-C ends it), one
    /// after the other elsewhere, as JSON one per line.
    #[arg(long, value_name = "SECS", value_parser = parse_every, num_args = 0..=1,
          default_missing_value = "1", conflicts_with = "core")]
    watch: Option<Duration>,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let name = args.name.as_deref();
    match args.watch {
        Some(every) => args
            .view
            .watch(name, "runq", every, |reader| reader.run_queues()),
        None => args.view.show(name, "runq", |reader| reader.run_queues()),
    }
}
