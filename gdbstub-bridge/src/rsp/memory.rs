//! `m`, `x`, `X`: memory read in hexadecimal and in binary, and written in binary.
//!
//! GDB manual, "Packets", `m`, `x` and `X`; LLDB's form of `x` is in its "gdb-remote protocol extensions". A read may
//! be answered with less than was asked for. What cannot be read from its first byte on is an error.

use super::encode::{Reply, address_and_length, split, unescape};
use super::link::PACKET_SIZE;
use super::{Client, EFAULT, EINVAL};
use crate::target::GuestTarget;

/// The most bytes of memory that one reply has: in hexadecimal they fill a packet.
const MOST: usize = (PACKET_SIZE - 16) / 2;

pub(super) fn answer(client: &Client, target: &mut GuestTarget, packet: &[u8]) -> Option<Reply> {
    let (&kind, rest) = packet.split_first()?;
    match kind {
        b'm' => Some(read(client, target, rest, false)),
        b'x' => Some(read(client, target, rest, true)),
        b'X' => Some(write(client, target, rest)),
        _ => None,
    }
}

/// `ADDRESS,LENGTH`.
fn read(client: &Client, target: &mut GuestTarget, request: &[u8], binary: bool) -> Reply {
    let Some((addr, len)) = address_and_length(request) else {
        return Reply::error(EINVAL);
    };
    let marks = binary && client.marks_binary;
    if len == 0 {
        return match (binary, marks) {
            // Whether there is such a packet.
            (true, false) => Reply::ok(),
            (true, true) => Reply::text("b"),
            (false, _) => Reply::default(),
        };
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(MOST).min(MOST)];
    let read = target.read_memory(client.thread, addr, &mut bytes);
    if read == 0 {
        return Reply::error(EFAULT);
    }
    let bytes = bytes.get(..read).unwrap_or_default();
    let mut reply = Reply::text(if marks { "b" } else { "" });
    if binary {
        reply.escaped(bytes);
    } else {
        reply.hex(bytes);
    }
    reply
}

/// `ADDRESS,LENGTH:BYTES`.
fn write(client: &Client, target: &mut GuestTarget, request: &[u8]) -> Reply {
    let parsed = split(request, b':').and_then(|(place, bytes)| {
        let (addr, len) = address_and_length(place)?;
        Some((addr, len, unescape(bytes)?))
    });
    match parsed {
        Some((addr, len, bytes)) if len == bytes.len() as u64 => {
            // Of no length, it asks whether there is such a packet.
            match bytes.is_empty() || target.write_bytes(client.thread, addr, &bytes) {
                true => Reply::ok(),
                false => Reply::error(EFAULT),
            }
        }
        _ => Reply::error(EINVAL),
    }
}
