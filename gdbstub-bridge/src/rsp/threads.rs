//! `qXfer:threads:read`: every task, with its name and its CPU.
//!
//! GDB manual, "Thread List Format". Those that are on a CPU come first, in the order of their CPUs: on the first
//! connection GDB numbers threads in the order of the list, and the kernel's own gdb scripts take thread N for CPU N-1.

use std::fmt::Write;

use super::Client;
use super::xfer::xml;
use crate::target::GuestTarget;

pub(super) fn document(client: &Client, target: &mut GuestTarget) -> String {
    let mut text = String::from("<?xml version=\"1.0\"?>\n<threads>\n");
    let ids = match target.threads() {
        Ok(threads) => threads.ids().to_vec(),
        Err(error) => {
            // The guest has died at this moment: the client hears of it when it resumes it.
            log::debug!("{error}");
            Vec::new()
        }
    };
    for tid in ids {
        let Some(description) = target.describe(tid) else {
            continue;
        };
        let process = match (target.process.is_some(), client.multiprocess) {
            (_, false) => String::new(),
            (true, true) => format!("p{:x}.", target.process_of(Some(tid)).0),
            (false, true) => "p1.".to_owned(),
        };
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "<thread id=\"{process}{tid:x}\" name=\"{}\"",
            xml(&description.name)
        );
        let _ = match description.cpu {
            Some(cpu) if target.process.is_none() => {
                writeln!(text, " core=\"{0}\">on CPU {0}</thread>", cpu.0)
            }
            _ => writeln!(text, "/>"),
        };
    }
    text += "</threads>\n";
    text
}
