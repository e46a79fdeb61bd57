//! The command line: one subcommand per verb.

use clap::{Parser, Subcommand};

use crate::exit;

/// A scope into the Linux kernel: boot it as a process, debug it, profile it, cover it.
#[derive(Debug, Parser)]
#[command(name = "kscope", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {}

/// Parses the command line and runs the verb.
///
/// # Errors
///
/// Whatever the verb reports; [`exit::code_of`] gives its exit code.
pub fn run() -> anyhow::Result<u8> {
    match Cli::parse().verb {}
}
