//! `kscope files`: what a process has open.

use super::pid_args::{PID_HELP, PidArgs};
use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope files 1
  kscope files web 20 --format json | jq -r '.files.files[] | select(.deleted) | .name'
  kscope files web 20 --format json | jq -r '.files.files[].socket | select(. != null)'

Names are paths as the process sees them, ` (deleted)` behind those that lead to the file
no longer, or socket:[INODE], pipe:[INODE] and anon_inode:KIND, as in the guest's
/proc/PID/fd. Behind socket:[INODE] is what the socket is and whom it is connected to;
`kscope net` tells more.

In JSON, \"files\" is {\"pid\", \"comm\", \"cwd\", \"root\", \"exe\" ({\"path\", \"deleted\"} or null),
\"files\": [{\"fd\", \"type\" (file, dir, char, block, fifo, socket, link, anon), \"access\" (r,
w, rw, path), \"flags\" (of open(2), lower case, without O_), \"pos\" and \"size\" (bytes),
\"name\", \"deleted\", \"device\" (\"0:21\"), \"inode\", \"rdev\" (of a device, or null),
\"socket\" (\"tcp 127.0.0.1:80 listen\", or null), \"mount\" (its id), \"addr\" (the
struct file)}]}.";

/// Show the open files of a process.
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
    args.view.show(guest, "files", |reader| reader.files(pid))
}
