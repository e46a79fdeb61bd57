//! `qSearch:memory` and `qCRC`: `find` and `compare-sections` without moving the memory to the client.
//!
//! GDB manual, "General Query Packets". GDB computes the checksum of a section's contents, from the binary, with the
//! polynomial 0x04c11db7, from ones, without reflection or a final inversion.

use super::encode::{Reply, number, split, unescape};
use super::{Client, EFAULT, EINVAL};
use crate::target::GuestTarget;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// The most bytes that are searched or summed for one request, so that an interrupt or the client's end is noticed in
/// reasonable time: more memory than a guest has.
const MOST: u64 = 1 << 33;

pub(super) fn answer(client: &Client, target: &mut GuestTarget, packet: &[u8]) -> Option<Reply> {
    if let Some(request) = packet.strip_prefix(b"qSearch:memory:") {
        return Some(search(client, target, request));
    }
    let request = packet.strip_prefix(b"qCRC:")?;
    Some(crc(client, target, request))
}

/// `ADDRESS;LENGTH;PATTERN`, the last in binary.
fn search(client: &Client, target: &mut GuestTarget, request: &[u8]) -> Reply {
    let parsed = split(request, b';').and_then(|(addr, rest)| {
        let (len, pattern) = split(rest, b';')?;
        Some((number(addr)?, number(len)?, unescape(pattern)?))
    });
    let Some((addr, len, pattern)) = parsed else {
        return Reply::error(EINVAL);
    };
    if pattern.is_empty() || pattern.len() > PIECE / 2 {
        return Reply::error(EINVAL);
    }
    let mut read = |addr, buf: &mut [u8]| target.read_memory(client.thread, addr, buf);
    match find(&mut read, addr, len.min(MOST), &pattern) {
        Ok(Some(at)) => Reply::text(&format!("1,{at:x}")),
        Ok(None) => Reply::text("0"),
        Err(Unreadable) => Reply::error(EFAULT),
    }
}

/// The memory could not be read to its end.
#[derive(Debug, PartialEq, Eq)]
struct Unreadable;

/// Where `pattern` is first. What is found before a hole is found.
fn find(
    read: &mut dyn FnMut(u64, &mut [u8]) -> usize,
    addr: u64,
    len: u64,
    pattern: &[u8],
) -> Result<Option<u64>, Unreadable> {
    let finder = memchr::memmem::Finder::new(pattern);
    let overlap = pattern.len().saturating_sub(1);
    let mut piece = vec![0; PIECE];
    let mut kept = 0;
    let mut done = 0;
    while done < len {
        let want = usize::try_from(len - done)
            .unwrap_or(PIECE)
            .min(PIECE - kept);
        let Some(space) = piece.get_mut(kept..kept + want) else {
            return Err(Unreadable);
        };
        let at = addr.checked_add(done).ok_or(Unreadable)?;
        let got = read(at, space);
        let filled = kept + got;
        let bytes = piece.get(..filled).unwrap_or_default();
        if let Some(found) = finder.find(bytes) {
            return Ok(Some(at - kept as u64 + found as u64));
        }
        if got < want {
            return Err(Unreadable);
        }
        done += got as u64;
        // A match may begin at the end of this piece.
        let keep = filled.min(overlap);
        piece.copy_within(filled - keep..filled, 0);
        kept = keep;
    }
    Ok(None)
}

/// `ADDRESS,LENGTH`.
fn crc(client: &Client, target: &mut GuestTarget, request: &[u8]) -> Reply {
    let Some((addr, len)) = super::encode::address_and_length(request) else {
        return Reply::error(EINVAL);
    };
    if len > MOST {
        return Reply::error(EINVAL);
    }
    let mut crc = u32::MAX;
    let mut piece = vec![0; usize::try_from(len).unwrap_or(PIECE).min(PIECE)];
    let mut done = 0;
    while done < len {
        let want = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
        let space = piece.get_mut(..want).unwrap_or_default();
        let Some(at) = addr.checked_add(done) else {
            return Reply::error(EFAULT);
        };
        if target.read_memory(client.thread, at, space) < want {
            return Reply::error(EFAULT);
        }
        crc = crc32(crc, space);
        done += want as u64;
    }
    Reply::text(&format!("C{crc:x}"))
}

/// The remainders of every byte.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 != 0 {
                crc << 1 ^ 0x04c1_1db7
            } else {
                crc << 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |crc, &byte| {
        crc << 8 ^ TABLE[usize::from((crc >> 24) as u8 ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        // CRC-32/MPEG-2 of the usual check string.
        assert_eq!(crc32(u32::MAX, b"123456789"), 0x0376_e6e7);
    }

    /// Memory of `len` zeros from 0x1000 on, with `pattern` at `at`.
    fn found(
        len: usize,
        at: usize,
        pattern: &[u8],
        readable: usize,
    ) -> Result<Option<u64>, Unreadable> {
        let mut memory = vec![0; len];
        memory[at..at + pattern.len()].copy_from_slice(pattern);
        let mut read = |addr: u64, buf: &mut [u8]| {
            let start = (addr - 0x1000) as usize;
            let got = readable.saturating_sub(start).min(buf.len());
            buf[..got].copy_from_slice(&memory[start..start + got]);
            got
        };
        find(&mut read, 0x1000, len as u64, pattern)
    }

    #[test]
    fn patterns_are_found_across_pieces_and_before_holes() {
        let len = 3 * PIECE;
        for at in [0, 1, PIECE - 2, PIECE - 1, PIECE, 2 * PIECE - 3, len - 4] {
            assert_eq!(
                found(len, at, b"abcd", len),
                Ok(Some(0x1000 + at as u64)),
                "{at}"
            );
        }
        assert_eq!(found(100, 10, b"abcd", 20), Ok(Some(0x100a)));
        assert_eq!(found(100, 50, b"abcd", 20), Err(Unreadable));
    }
}
