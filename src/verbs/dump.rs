//! `kscope dump`: a guest's memory in a core file.
//!
//! `--format json` prints one document, version 1; members may be added:
//! `guest` (null for a core that does not tell), `core` (the file), `size` (bytes that it
//! takes), `content` (bytes when decompressed), `threads` and `stopped_ms` (of a guest),
//! `warnings`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use kscope_guest::dump::{self, DumpError, Dumped, Target};
use kscope_guest::hostjob::Cancel;
use kscope_guest::progress::{Progress, Silent};
use kscope_kernel::{Core, printable};
use serde_json::json;

use crate::exit;
use crate::target::{Format, RunningGuest, millis};
use crate::ui::{Ui, size, tell};

const EXAMPLES: &str = "\
Examples:
  kscope dump -o web.core.zst               the one guest that is running
  kscope dump web -o web.core               plain, for other tools
  kscope lsmod --core web.core.zst          every verb that looks at a guest reads it
  gdb ./linux web.core                      every task of the guest is a thread
  drgn -c web.core -s ./linux
  kscope dump --core web.core.zst -o web.core

The core is an ELF core file with the kernel's memory and the registers of every task. A
name that ends in .zst is compressed, in frames, so that it can be read as it is. The
guest stands still while its memory is copied; one that is stopped, panicked or wedged
can be dumped as well. Pages of zeros are not stored.

The file is there when it is whole, or not at all. One that exists is left alone without
--force. docs/cores.md describes the format.

Exit codes: 0; 1 when something of the kernel was corrupt (the core has all the memory
nevertheless); 2 and 96 as everywhere.";

/// Write a guest's memory into a core file.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The guest. [default: the only one]
    #[arg(conflicts_with = "core")]
    name: Option<String>,

    /// The file; compressed when its name ends in .zst.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Replace the file when it exists.
    #[arg(long)]
    force: bool,

    /// Write this core anew, in place of a guest: compressed, or not any more.
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,

    /// The form of the result.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

/// Runs the verb.
///
/// # Errors
///
/// There is no such guest or core, or the file cannot be written.
pub fn run(args: Args) -> anyhow::Result<u8> {
    // Before the bar's thread: the signals are blocked in later threads too.
    let cancel = Cancel::on_signals().context("cannot wait for signals")?;
    let target = Target {
        path: &args.output,
        force: args.force,
    };
    let mut ui = Ui::new();
    let mut silent = Silent;
    let progress: &mut dyn Progress = match io::stderr().is_terminal() {
        true => &mut ui,
        false => &mut silent,
    };
    let (guest, result) = match &args.core {
        Some(core) => {
            let core = Core::open(core)?;
            let guest = core.guest().map(str::to_owned);
            (guest, dump::convert(&core, target, progress, &cancel))
        }
        None => {
            let mut guest = RunningGuest::open(args.name.as_deref())?;
            let dumped = dump::dump(
                &mut guest.connection,
                &guest.image,
                None,
                target,
                progress,
                &cancel,
            );
            // Only time is lost when this fails.
            let _ = guest.image.save();
            (Some(guest.name), dumped)
        }
    };
    ui.clear();
    match result {
        Ok(dumped) => tell_of(&args, guest.as_deref(), &dumped),
        Err(error @ DumpError::Cancelled) => {
            tell(&format!("kscope: {error}"));
            cancel.reraise();
            Ok(130)
        }
        Err(error) => Err(error.into()),
    }
}

fn tell_of(args: &Args, guest: Option<&str>, dumped: &Dumped) -> anyhow::Result<u8> {
    let file = args.output.display();
    if let Some(stood) = dumped.stood {
        let guest = guest.unwrap_or("the guest");
        tell(&match dumped.debugged {
            true => format!("kscope: {guest} was stopped before, and waits for its debugger"),
            false => format!("kscope: {guest} stood still for {}", millis(stood)),
        });
    }
    match args.format {
        Format::Human => {
            let threads = dumped.threads.map(|count| format!(", {count} threads"));
            tell(&format!(
                "kscope: {file}: {}{}",
                size(dumped.size),
                threads.unwrap_or_default()
            ));
        }
        Format::Json => {
            let stopped = dumped.stood.map(|stood| stood.as_secs_f64() * 1000.0);
            let document = json!({
                "version": 1,
                "guest": guest,
                "core": args.output,
                "size": dumped.size,
                "content": dumped.content,
                "threads": dumped.threads,
                "stopped_ms": stopped,
                "warnings": dumped.warnings,
            });
            writeln!(io::stdout(), "{document:#}").context("cannot write to stdout")?;
        }
    }
    for warning in &dumped.warnings {
        tell(&format!("kscope: warning: {}", printable(warning)));
    }
    Ok(match dumped.warnings.is_empty() {
        true => exit::OK,
        false => exit::PARTIAL,
    })
}
