//! What the views look at, a guest or a core file, and how the answer is printed. One frame for
//! every verb that reads.

mod look;
mod open;
mod print;
mod watch;

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use kscope_kernel::{Memory, Reader, ViewError};
use serde::Serialize;

pub use look::Look;
pub(crate) use open::open_image;
pub use open::{RunningGuest, open_binary};
pub use print::{millis, print_facts};
pub use watch::parse_every;

/// The memory of whatever is looked at.
pub type Source = Arc<dyn Memory + Send + Sync>;

/// What `--help` of every view says of its JSON.
pub const JSON_HELP: &str = "\
JSON: {\"version\": 1, \"guest\" (name, null when a core does not tell), \"torn\" (true when
the guest changed what was being read), \"warnings\" (what was corrupt and left out), and
the view under the verb's name}; with --core also \"core\" (the file), with --stop also
\"stopped_ms\" (how long the guest stood still). Addresses are strings, \"0x60001000\".

Exit codes: 0; 1 when something was corrupt or torn (the rest is printed, warnings are
on stderr); 2 and 96 as everywhere.";

/// Options of every view.
#[derive(Clone, Debug, clap::Args)]
pub struct ViewArgs {
    /// Read a core file, plain or .zst, in place of a running guest.
    ///
    /// `kscope dump` makes them; gdb's gcore of a kernel process will do, too.
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,

    /// The binary of the core's kernel. [default: where it was, or wherever one
    /// with its build-id is found]
    #[arg(short, long, value_name = "LINUX", requires = "core")]
    kernel: Option<PathBuf>,

    /// Hold the guest while it is read, for a consistent view; says how long.
    #[arg(long, conflicts_with = "core")]
    stop: bool,

    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Human,
    /// For programs: one JSON object.
    Json,
}

impl ViewArgs {
    /// Whether a core file is looked at, and not a guest.
    pub fn is_core(&self) -> bool {
        self.core.is_some()
    }

    /// Opens the target, reads a view of it and prints that, under `key` in JSON.
    ///
    /// # Errors
    ///
    /// When the target cannot be opened, the kernel has no such view, or stdout cannot be written.
    pub fn show<V: Serialize + Display>(
        &self,
        guest: Option<&str>,
        key: &'static str,
        view: impl Fn(&Reader<'_, Source>) -> Result<V, ViewError>,
    ) -> anyhow::Result<u8> {
        self.show_with(guest, key, |look| view(look.reader()))
    }

    /// As [`show`](ViewArgs::show), for views that also want to know where the CPUs are.
    ///
    /// # Errors
    ///
    /// As `show`.
    pub fn show_with<V: Serialize + Display>(
        &self,
        guest: Option<&str>,
        key: &'static str,
        view: impl Fn(&Look<'_>) -> Result<V, ViewError>,
    ) -> anyhow::Result<u8> {
        let target = self.open(guest)?;
        let code = self.print(&target, key, &target.look(view)?)?;
        // Only time is lost when this fails.
        let _ = target.kernel.image().save();
        Ok(code)
    }
}
