//! Process and thread ids in packets. To gdbstub every process is number 1; a client of ordinary processes is told the
//! real ones.
//!
//! GDB manual, "Packets", "thread-id syntax": `pPID.TID`, No two threads of the host have
//! the same number, so that each names its process.

use gdbstub::common::Tid;

use super::encode::{Reply, body, number};
use super::form::{Processes, Threads};
use crate::target::GuestTarget;

/// gdbstub's process.
const THEIRS: &[u8] = b"p01.";

/// The packet as gdbstub is to read it.
pub(super) fn incoming(
    target: &mut GuestTarget,
    processes: &Processes,
    packet: &[u8],
) -> Option<Vec<u8>> {
    let prefix = [&b"Hg"[..], b"Hc", b"T", b"qThreadExtraInfo,"];
    let prefix = prefix
        .into_iter()
        .find(|&prefix| packet.starts_with(prefix))?;
    let tid = match processes.threads(packet.get(prefix.len()..)?)? {
        Threads::Any => return None,
        Threads::Of(pid) => target.first_of(pid)?,
        Threads::One(tid) => tid,
    };
    Some([prefix, format!("p1.{tid:x}").as_bytes()].concat())
}

/// What gdbstub has written, as the client is to read it.
pub(super) fn outgoing(target: &mut GuestTarget, packet: Vec<u8>) -> Vec<u8> {
    let Some(mut rest) = body(&packet) else {
        return packet;
    };
    let mut out = Vec::new();
    while let Some(at) = memchr::memmem::find(rest, THEIRS) {
        let (before, after) = rest.split_at(at);
        rest = after.get(THEIRS.len()..).unwrap_or_default();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let tid = rest.get(..digits.count()).and_then(number);
        let tid = tid.and_then(|tid| Tid::new(usize::try_from(tid).ok()?));
        let pid = target.process_of(tid);
        out.extend_from_slice(before);
        out.extend_from_slice(format!("p{:x}.", pid.0).as_bytes());
    }
    if out.is_empty() {
        return packet;
    }
    out.extend_from_slice(rest);
    Reply::raw(&out).finish()
}
