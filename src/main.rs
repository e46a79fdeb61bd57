//! The `kscope` command: parse, call one verb, turn its result into an exit code.

mod cli;
mod exit;
mod gdb_index;
mod screen;
mod target;
mod ui;
mod verbs;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("kscope: error: {error:#}");
            ExitCode::from(exit::code_of(&error))
        }
    }
}
