//! `kscope maps`: the memory of a process.

use super::pid_args::{PID_HELP, PidArgs};
use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope maps 1
  kscope maps web 20 --format json | jq '[.maps.mappings[].resident] | add'

SIZE and RSS are in KiB; RSS is what of a mapping is in memory, counted in the process's
page tables. The rest is as in the guest's /proc/PID/maps.

In JSON, \"maps\" is {\"pid\", \"comm\", \"mm\", \"mappings\": [{\"start\", \"end\", \"perms\", \"offset\"
and \"resident\" (bytes), \"device\" (\"0:21\"), \"inode\", \"name\" (a path, \"[heap]\", ..., or
\"\"), \"deleted\" (the path leads there no longer), \"addr\" (the vm_area_struct)}]}.";

/// Show the memory mappings of a process.
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
    let (guest, pid) = args.pid.one()?;
    args.view.show(guest, "maps", |reader| reader.maps(pid))
}
