//! `kscope why`: what blocked tasks wait for.

use anyhow::bail;

use super::pid_args::{PID_HELP, PidArgs};
use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope why 1234                  what task 1234 waits for, who has that, and whom that
                                   one waits for
  kscope why --all                 deadlocks first, then every task
  kscope why --all --format json | jq '.why.deadlocks[].links[].task'";

const WHY_HELP: &str = "\
A task's own stack says what it waits for: a mutex, rwsem, semaphore, completion, wait
queue, futex, pipe, socket, file, child, ... No lockdep is needed. Owners are told where
the kernel keeps them. `b[13]?` is an owner that is inferred: of a mutex in user space,
or of a lock that is held for reading. A circle with such an owner in it is a probable
deadlock. Times are at least (SINCE) and at most: an idle guest's clock stands still.

JSON: \"why\" has \"deadlocks\" (each \"certain\" and \"links\", a circle) and \"tasks\"
(each with \"wait\": \"reason\" with its \"kind\", \"object\", \"wakers\"; \"chain\",
\"stuck\", \"deadlock\", \"since\", \"stack\").";

/// Tell what tasks wait for, who could end it, and which wait for each other.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{PID_HELP}\n\n{WHY_HELP}\n\n{JSON_HELP}"))]
pub struct Args {
    #[command(flatten)]
    pids: PidArgs,

    /// Every task
    #[arg(short, long)]
    all: bool,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let chosen = args.pids.chosen()?;
    match (args.all, chosen.pids.is_empty()) {
        (false, true) => bail!("which task? give its pid (`kscope ps` lists them), or --all"),
        (true, false) => bail!("either pids or --all"),
        _ => {}
    }
    args.view
        .show(chosen.guest, "why", |reader| reader.why(&chosen.pids))
}
