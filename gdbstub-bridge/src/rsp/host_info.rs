//! `qHostInfo`, `qProcessInfo`, `qShlibInfoAddr`: what is debugged, for LLDB.
//!
//! LLDB, "GDB Remote Protocol Extensions": `qHostInfo`, `qProcessInfo`, `qShlibInfoAddr`. The guest is a program of
//! Linux to it, in whose dynamic linker it finds the libraries (with `qXfer:auxv` and `qXfer:libraries-svr4`).

use super::encode::Reply;
use super::{Client, hex};
use crate::target::GuestTarget;

/// As LLDB names it.
const TRIPLE: &str = "x86_64-pc-linux-gnu";

pub(super) fn answer(client: &mut Client, target: &GuestTarget, packet: &[u8]) -> Option<Reply> {
    let triple = hex(TRIPLE.as_bytes());
    match packet {
        b"qHostInfo" => {
            // No other client asks.
            client.is_lldb = true;
            Some(Reply::text(&format!(
                "triple:{triple};ptrsize:8;endian:little;watchpoint_exceptions_received:after;"
            )))
        }
        b"qProcessInfo" => {
            // Of a guest, the one that gdbstub knows, of which the tasks are threads.
            let pid = target.process.as_ref().map_or(1, |process| process.pid.0);
            Some(Reply::text(&format!(
                "pid:{pid:x};triple:{triple};ostype:linux;endian:little;ptrsize:8;"
            )))
        }
        b"qShlibInfoAddr" => Some(Reply::default()),
        _ => None,
    }
}
