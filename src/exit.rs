//! Exit codes: stable, documented, one per situation.
//!
//! `kscope run` passes the guest command's own code through; everything that
//! kscope itself has to report is told apart by the codes below.

use std::fmt;

/// The job was done.
pub const OK: u8 = 0;
/// A view was printed, and something of it was corrupt or changed while it was read.
pub const PARTIAL: u8 = 1;
/// Wrong command line, as clap has it.
pub const USAGE: u8 = 2;
/// Usage or environment: a missing kernel, no DWARF, an occupied address, a full disk.
pub const SETUP: u8 = 96;
/// The kernel did not build.
pub const BUILD: u8 = 101;
/// The guest panicked.
pub const PANIC: u8 = 102;
/// `--timeout` passed before the command ended.
pub const TIMEOUT: u8 = 103;
/// The guest did not come up before the boot deadline.
pub const BOOT: u8 = 104;
/// The guest's process was killed by a host signal.
pub const KILLED: u8 = 105;
/// The guest was killed by its debugger: gdb's `kill`.
pub const DEBUGGER: u8 = 106;

/// The table shown at the end of `kscope --help`.
pub const HELP: &str = "\
Exit codes:
  0     done; `run`, `record` and `coverage` pass the command's own code through
        (128+N when signal N killed it)
  1     a view (`ps`, `bt`, ...) with something corrupt, or changed while it was read
  2     wrong command line
  96    setup: missing kernel, not a User Mode Linux kernel, no DWARF, no room, ...
  101   the kernel did not build
  102   the guest panicked
  103   --timeout passed
  104   the guest did not boot
  105   the guest's process was killed from outside
  106   the debugger killed the guest";

/// An error that ends the command with a code other than [`SETUP`].
#[derive(Debug)]
pub struct Coded {
    /// The exit code.
    pub code: u8,
    /// What is told to the user.
    pub error: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:#}` keeps the chain of causes on one line.
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Coded {}

/// The exit code for an error that reached `main`.
pub fn code_of(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Coded>().map_or(SETUP, |c| c.code)
}
