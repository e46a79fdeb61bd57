//! Process ids in packets. To gdbstub every process is number 1; a client of an ordinary process is told the real one.
//!
//! GDB manual, "Packets", "thread-id syntax": `pPID.TID`.

use super::encode::{Reply, body};

/// gdbstub's process.
const THEIRS: &[u8] = b"p01.";

/// The packet as gdbstub is to read it.
pub(super) fn incoming(packet: &[u8], pid: i32) -> Vec<u8> {
    let pid = format!("{pid:x}");
    match packet {
        [b'H' | b'T', ..] => replace(packet, format!("p{pid}.").as_bytes(), "p1."),
        _ if packet.starts_with(b"qThreadExtraInfo,") => {
            replace(packet, format!("p{pid}.").as_bytes(), "p1.")
        }
        _ if packet == format!("D;{pid}").as_bytes() => b"D;1".to_vec(),
        _ => packet.to_vec(),
    }
}

/// What gdbstub has written, as the client is to read it.
pub(crate) fn outgoing(packet: Vec<u8>, pid: i32) -> Vec<u8> {
    let Some(body) = body(&packet) else {
        return packet;
    };
    if memchr::memmem::find(body, THEIRS).is_none() {
        return packet;
    }
    Reply::raw(&replace(body, THEIRS, &format!("p{pid:x}."))).finish()
}

fn replace(bytes: &[u8], from: &[u8], to: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, from) {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        out.extend_from_slice(to.as_bytes());
        rest = after.get(from.len()..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_exchanged_in_both_directions() {
        assert_eq!(incoming(b"Hgp1f.20", 0x1f), b"Hgp1.20");
        assert_eq!(incoming(b"D;1f", 0x1f), b"D;1");
        assert_eq!(incoming(b"m1f,20", 0x1f), b"m1f,20");
        let stop = Reply::text("T05thread:p01.20;").finish();
        let told = outgoing(stop, 0x1f);
        assert_eq!(body(&told), Some(&b"T05thread:p1f.20;"[..]));
    }
}
