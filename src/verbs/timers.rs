//! `kscope timers`: what waits for a time to come.

use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope timers
  kscope timers web --stop
  kscope timers --format json | jq '.timers.cpus[0].clocks[].timers[].owner.task'

For each CPU: the device that interrupts for the next timer; the timers that are counted
in nanoseconds, by their clock (nanosleep and poll, alarm, the tick itself); and the timer
wheels, counted in ticks (jiffies): timeouts, most of which never come. Times are seconds
from now, negative when overdue. `now` is when the kernel last brought its clock up to
date, which an idle guest may not do for seconds. FOR is the task that sleeps until then
or gets a signal, or the work that is to be done.";

/// List the timers: when they are due, what is called, and for whom.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub struct Args {
    /// The guest. [default: the only one]
    name: Option<String>,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    args.view
        .show(args.name.as_deref(), "timers", |reader| reader.timers())
}
