//! `kscope dmesg`: the kernel's log.

use kscope_kernel::views::dmesg::Levels;

use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope dmesg
  kscope dmesg web --level err+
  kscope dmesg --format json | jq -r '.dmesg[] | select(.caller == \"T1\") | .text'

It is read from the kernel's own buffer, not from a console: it is all there, whatever
`quiet` or `loglevel=` say, before there is a console and after a panic.

In JSON, \"dmesg\" is [{\"seq\", \"time_ns\" (since boot), \"level\", \"facility\", \"caller\" (T and a
pid, or C and a CPU in an interrupt), \"text\" (of several lines at times), \"continued\"
(the line of the one before goes on), \"subsystem\" and \"device\" (of messages about one)}].";

/// Print the kernel's log.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub struct Args {
    /// The guest. [default: the only one]
    name: Option<String>,

    /// Only messages of these levels: emerg, alert, crit, err, warn, notice, info, debug.
    ///
    /// A list such as `err,warn`. `warn+` is warn and all that is more important.
    #[arg(short, long, value_name = "LIST")]
    level: Option<Levels>,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    args.view.show(args.name.as_deref(), "dmesg", |reader| {
        let log = reader.log()?;
        Ok(match &args.level {
            Some(levels) => log.only(levels),
            None => log,
        })
    })
}
