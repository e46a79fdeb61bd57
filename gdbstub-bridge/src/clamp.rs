//! Bounds what a client can ask for at once.
//!
//! A read of memory may be answered with less than was asked for, but `gdbstub` answers it in full: with a length of
//! gigabytes the answer grows until the memory is used up, and neither an interrupt nor the client's end is noticed
//! meanwhile. So the length is cut before `gdbstub` sees the request.

use std::mem;

/// Where in the stream the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Between packets.
    #[default]
    Outside,
    /// Behind the `$`.
    Start,
    /// In a packet that reads memory, which is kept.
    Read,
    /// In the checksum of one, of which so many digits are to come.
    ReadSum(u8),
    /// In another packet.
    Other,
    /// In the checksum of one.
    OtherSum(u8),
}

/// Passes a client's bytes on, with the lengths of its reads cut.
#[derive(Debug)]
pub(crate) struct Clamp {
    state: State,
    kept: Vec<u8>,
    most: u64,
}

impl Clamp {
    /// Reads are cut to `most` bytes.
    pub(crate) fn new(most: u64) -> Self {
        Self {
            state: State::Outside,
            kept: Vec::new(),
            most,
        }
    }

    /// Takes bytes as they come; `out` gets those to pass on.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        /// More than any sane read has: two numbers of 16 digits.
        const LONGEST: usize = 256;
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (State::Outside, b'$') => State::Start,
                (State::Outside, _) => State::Outside,
                (State::Start, b'm') => {
                    // The `$` is through already.
                    self.kept.push(byte);
                    self.state = State::Read;
                    continue;
                }
                (State::Start | State::Other, b'#') => State::OtherSum(2),
                (State::Start | State::Other, _) => State::Other,
                (State::OtherSum(2), _) => State::OtherSum(1),
                (State::OtherSum(_), _) => State::Outside,
                (State::Read, _) if byte == b'#' || self.kept.len() < LONGEST => {
                    self.kept.push(byte);
                    self.state = match byte {
                        b'#' => State::ReadSum(2),
                        _ => State::Read,
                    };
                    continue;
                }
                // Zeros without end in front of a length: no request that anybody understands.
                (State::Read, _) => {
                    self.kept.clear();
                    out.push(b'?');
                    State::Other
                }
                (State::ReadSum(left), _) => {
                    self.kept.push(byte);
                    self.state = match left {
                        2.. => State::ReadSum(1),
                        _ => {
                            let kept = mem::take(&mut self.kept);
                            out.extend(self.cut(&kept).unwrap_or(kept));
                            State::Outside
                        }
                    };
                    continue;
                }
            };
            out.push(byte);
        }
    }

    /// `m ADDRESS , LENGTH # SUM` with another length. None where nothing is to be changed.
    fn cut(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let (body, sum) = packet.split_at_checked(packet.len().checked_sub(3)?)?;
        let body = std::str::from_utf8(body).ok()?;
        let sum = std::str::from_utf8(sum.get(1..)?).ok()?;
        if u8::from_str_radix(sum, 16).ok()? != checksum(body) {
            // To be asked for again.
            return None;
        }
        let (start, len) = body.split_once(',')?;
        let digits = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits || u64::from_str_radix(len, 16).is_ok_and(|len| len <= self.most) {
            return None;
        }
        let body = format!("{start},{:x}", self.most);
        let sum = checksum(&body);
        Some(format!("{body}#{sum:02x}").into_bytes())
    }
}

fn checksum(body: &str) -> u8 {
    body.bytes().fold(0, u8::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::packet;

    fn pass(bytes: &[u8]) -> Vec<u8> {
        // However the bytes are cut up.
        let mut whole = Vec::new();
        Clamp::new(0x1000).push(bytes, &mut whole);
        let (mut single, mut clamp) = (Vec::new(), Clamp::new(0x1000));
        for byte in bytes {
            clamp.push(&[*byte], &mut single);
        }
        assert_eq!(whole, single);
        whole
    }

    #[test]
    fn long_reads_are_cut() {
        let asked = packet("m60000000,100000000");
        assert_eq!(pass(&asked), packet("m60000000,1000"));
        // More than fits 64 bits.
        let asked = packet("m60000000,fffffffffffffffff");
        assert_eq!(pass(&asked), packet("m60000000,1000"));
    }

    #[test]
    fn all_else_is_left_alone() {
        let mut stream = b"+".to_vec();
        for body in [
            "m60000000,1000",
            "mfoo",
            "qSupported:m1,ffffff",
            "m,",
            "",
            "?",
        ] {
            stream.extend(packet(body));
        }
        stream.extend(b"\x03$m60000000,100000000#00-$vCont;c#a8\x03");
        assert_eq!(pass(&stream), stream);
    }

    #[test]
    fn endless_digits_are_not_kept() {
        let asked = packet(&format!("m60000000,{}100000000", "0".repeat(1000)));
        let passed = pass(&asked);
        assert!(passed.starts_with(b"$?0") && passed.len() < asked.len());
        // The next one is understood.
        let mut stream = asked;
        stream.extend(packet("m0,2000"));
        assert!(pass(&stream).ends_with(&packet("m0,1000")));
    }
}
