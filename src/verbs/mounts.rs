//! `kscope mounts`: what is mounted where.

use anyhow::bail;

use super::pid_args::{PID_HELP, PidArgs};
use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope mounts
  kscope mounts 20 --format json | jq -r '.mounts[] | select(.fstype == \"tmpfs\") | .target'

Shown is what the first process sees, or the one with the given PID, as in the guest's
/proc/PID/mounts. `,...` behind options says that the file system has options of its own
which kscope does not know.

In JSON, \"mounts\" is [{\"id\", \"parent\" (another one's id), \"source\", \"target\", \"fstype\",
\"options\" (a list), \"complete\" (false for `...`), \"root\" (the directory that is mounted),
\"device\" (\"0:21\"), \"addr\" (the struct mount)}].";

/// Show what is mounted where.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{PID_HELP}\n\n{JSON_HELP}"))]
pub struct Args {
    #[command(flatten)]
    pid: PidArgs,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let chosen = args.pid.chosen()?;
    let pid = match *chosen.pids {
        [] => None,
        [pid] => Some(pid),
        _ => bail!("one task at a time: {} pids are given", chosen.pids.len()),
    };
    args.view
        .show(chosen.guest, "mounts", |reader| reader.mounts(pid))
}
