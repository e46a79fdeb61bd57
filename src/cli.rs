//! The command line: one subcommand per verb.

use clap::{Parser, Subcommand};

use crate::{exit, verbs};

/// A scope into the Linux kernel: boot it as a process, debug it, profile it, cover it.
#[derive(Debug, Parser)]
#[command(name = "kscope", version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Build(verbs::build::Args),
    Run(verbs::run::Args),
    Record(verbs::record::Args),
    Report(verbs::report::Args),
    Coverage(verbs::coverage::Args),
    List(verbs::list::Args),
    Dmesg(verbs::dmesg::Args),
    Files(verbs::files::Args),
    Gdb(verbs::gdb::Args),
    Gdbserver(verbs::gdbserver::Args),
    Dump(verbs::dump::Args),
    Config(verbs::config::Args),
    Irq(verbs::irq::Args),
    Lsmod(verbs::lsmod::Args),
    Maps(verbs::maps::Args),
    Mounts(verbs::mounts::Args),
    Net(verbs::net::Args),
    Print(verbs::print::Args),
    Ps(verbs::ps::Args),
    Runq(verbs::runq::Args),
    Slab(verbs::slab::Args),
    Timers(verbs::timers::Args),
    Why(verbs::why::Args),
    Bt(verbs::bt::Args),
    Types(verbs::types::Args),
    /// Becomes a guest's kernel; started by kscope itself.
    #[command(name = kscope_guest::launcher::VERB, hide = true)]
    Launch,
    /// Cleans up after a killed kscope; started by kscope itself.
    #[command(name = kscope_guest::janitor::VERB, hide = true)]
    Janitor,
}

/// Parses the command line and runs the verb.
///
/// # Errors
///
/// Whatever the verb reports; [`exit::code_of`] gives its exit code.
pub fn run() -> anyhow::Result<u8> {
    match Cli::parse().verb {
        Verb::Build(args) => verbs::build::run(args),
        Verb::Run(args) => verbs::run::run(args),
        Verb::Record(args) => verbs::record::run(args),
        Verb::Report(args) => verbs::report::run(args),
        Verb::Coverage(args) => verbs::coverage::run(args),
        Verb::List(args) => verbs::list::run(args),
        Verb::Dmesg(args) => verbs::dmesg::run(args),
        Verb::Files(args) => verbs::files::run(args),
        Verb::Gdb(args) => verbs::gdb::run(args),
        Verb::Gdbserver(args) => verbs::gdbserver::run(args),
        Verb::Dump(args) => verbs::dump::run(args),
        Verb::Config(args) => verbs::config::run(args),
        Verb::Irq(args) => verbs::irq::run(args),
        Verb::Lsmod(args) => verbs::lsmod::run(args),
        Verb::Maps(args) => verbs::maps::run(args),
        Verb::Mounts(args) => verbs::mounts::run(args),
        Verb::Net(args) => verbs::net::run(args),
        Verb::Print(args) => verbs::print::run(args),
        Verb::Ps(args) => verbs::ps::run(args),
        Verb::Runq(args) => verbs::runq::run(args),
        Verb::Slab(args) => verbs::slab::run(args),
        Verb::Timers(args) => verbs::timers::run(args),
        Verb::Why(args) => verbs::why::run(args),
        Verb::Bt(args) => verbs::bt::run(args),
        Verb::Types(args) => verbs::types::run(args),
        Verb::Launch => Ok(kscope_guest::launcher::main()),
        Verb::Janitor => Ok(kscope_guest::janitor::main()),
    }
}
