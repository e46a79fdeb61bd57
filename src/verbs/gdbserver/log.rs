//! What the stub logs, on standard error: gdbserver's debugging output.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use kscope_gdbstub_bridge::{DebugFormat, debug_format, set_debug_format};

/// What is logged, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Tell on standard error what is done.
    #[arg(long)]
    debug: bool,

    /// What the lines of that begin with: all, none or timestamp.
    #[arg(long, value_name = "OPTIONS", value_parser = DebugFormat::parse)]
    debug_format: Option<DebugFormat>,

    /// Tell on standard error what is said between the debugger and this.
    #[arg(long)]
    remote_debug: bool,

    /// As --debug.
    #[arg(long, hide = true)]
    event_loop_debug: bool,
}

impl Args {
    pub(super) fn begin(&self) -> anyhow::Result<()> {
        log::set_logger(&Stderr).map_err(|error| anyhow!("cannot log: {error}"))?;
        set_debug_format(self.debug_format.unwrap_or_default());
        let debug = self.debug || self.event_loop_debug;
        log::set_max_level(match (self.remote_debug, debug) {
            (true, _) => log::LevelFilter::Trace,
            (false, true) => log::LevelFilter::Debug,
            (false, false) => log::LevelFilter::Error,
        });
        Ok(())
    }
}

/// Writes to standard error what is logged.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("kscope")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let time = match debug_format() {
            DebugFormat::Plain => String::new(),
            DebugFormat::Timestamps => {
                let time = SystemTime::now().duration_since(UNIX_EPOCH);
                let time = time.unwrap_or_default();
                format!("{}:{:06} ", time.as_secs(), time.subsec_micros())
            }
        };
        // Where nobody reads it, nobody needs it.
        let _ = writeln!(
            io::stderr(),
            "{time}{}: {}",
            record.level().as_str().to_lowercase(),
            record.args()
        );
    }

    fn flush(&self) {}
}
