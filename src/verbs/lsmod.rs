//! `kscope lsmod`: the loaded modules.

use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope lsmod
  kscope lsmod web --format json | jq -r '.lsmod[].name'";

/// List the loaded modules.
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
        .show(args.name.as_deref(), "lsmod", |reader| reader.modules())
}
