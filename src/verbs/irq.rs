//! `kscope irq`: the interrupts and who handles them.

use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope irq
  kscope irq web --format json | jq '.irq.softirqs[] | select(.name == \"TIMER\")'

Interrupts have their number, how often they occurred on each CPU, the chip they come
from, the kernel's function that they go through, the device and its handler (and the
function of its thread, if there is one). What interrupts leave for later, the soft
interrupts, follows. The counts are those of /proc/interrupts and /proc/softirqs.";

/// List the interrupts, how often they occurred, and who handles them.
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
        .show(args.name.as_deref(), "irq", |reader| reader.interrupts())
}
