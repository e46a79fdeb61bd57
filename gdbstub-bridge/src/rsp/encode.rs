//! The bytes of a packet: framing, checksum, escapes, run lengths.
//!
//! GDB manual, "Overview" of the remote protocol: `$BODY#SUM`, where `#`, `$`, `*` and `}` in the body stand behind a
//! `}` and are XORed with 0x20, and where a stub may shorten runs as `CHARACTER * COUNT`.

/// Whether a byte of a reply has to be escaped.
fn is_special(byte: u8) -> bool {
    matches!(byte, b'#' | b'$' | b'}' | b'*')
}

/// The digits of one byte in hexadecimal.
const fn digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[(byte >> 4) as usize], DIGITS[(byte & 0xf) as usize]]
}

/// The digits of every byte.
const DIGITS: [[u8; 2]; 256] = {
    let mut all = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = digits(byte as u8);
        byte += 1;
    }
    all
};

/// The first run of bytes with one digit that is worth shortening: where it is and how long.
fn next_run(bytes: &[u8]) -> Option<(usize, usize)> {
    const SHORTEST: usize = 4;
    let is_run = |window: &[u8]| {
        window.first().is_some_and(|&first| {
            first >> 4 == first & 0xf && window.iter().all(|&byte| byte == first)
        })
    };
    let start = bytes.windows(SHORTEST).position(is_run)?;
    let run = bytes.get(start..)?;
    let first = run.first()?;
    Some((start, run.iter().take_while(|&byte| byte == first).count()))
}

/// A packet from the stub, in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply(Vec<u8>);

impl Default for Reply {
    /// The reply to what is not supported: an empty one.
    fn default() -> Self {
        Self(vec![b'$'])
    }
}

impl Reply {
    /// `OK`.
    pub(crate) fn ok() -> Self {
        Self::text("OK")
    }

    /// `E NN`.
    pub(crate) fn error(errno: u8) -> Self {
        Self::text(&format!("E{errno:02x}"))
    }

    /// Text, escaped where necessary.
    pub(crate) fn text(text: &str) -> Self {
        let mut reply = Self::default();
        reply.escaped(text.as_bytes());
        reply
    }

    /// A body that has its escapes.
    pub(crate) fn raw(body: &[u8]) -> Self {
        let mut reply = Self::default();
        reply.0.extend_from_slice(body);
        reply
    }

    /// Text for the client's user, while the client waits for the guest to stop: GDB manual, "Stop Reply Packets", `O`.
    pub(crate) fn console(text: &[u8]) -> Self {
        let mut reply = Self::text("O");
        reply.hex(text);
        reply
    }

    /// Appends bytes as they are but for escapes.
    pub(crate) fn escaped(&mut self, bytes: &[u8]) {
        self.0.reserve(bytes.len() + bytes.len() / 32);
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|&byte| is_special(byte)) {
            let (plain, from) = rest.split_at(at);
            self.0.extend_from_slice(plain);
            if let Some((&special, after)) = from.split_first() {
                self.0.extend([b'}', special ^ 0x20]);
                rest = after;
            }
        }
        self.0.extend_from_slice(rest);
    }

    /// Appends bytes in hexadecimal, with runs of the same digit shortened.
    pub(crate) fn hex(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((start, len)) = next_run(rest) {
            let (plain, from) = rest.split_at(start);
            self.plain_hex(plain);
            let (run, after) = from.split_at(len);
            if let Some(&byte) = run.first() {
                self.run(digits(byte)[0], 2 * len);
            }
            rest = after;
        }
        self.plain_hex(rest);
    }

    /// Appends bytes in hexadecimal.
    pub(crate) fn plain(&mut self, bytes: &[u8]) {
        self.plain_hex(bytes);
    }

    /// Appends what has its escapes.
    pub(crate) fn append(&mut self, escaped: &[u8]) {
        self.0.extend_from_slice(escaped);
    }

    fn plain_hex(&mut self, bytes: &[u8]) {
        let start = self.0.len();
        self.0.resize(start + 2 * bytes.len(), 0);
        let space = self.0.get_mut(start..).unwrap_or_default();
        for (place, &byte) in space.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *place = DIGITS[usize::from(byte)];
        }
    }

    /// Appends one character, which needs no escape, `count` times.
    fn run(&mut self, character: u8, mut count: usize) {
        /// The longest run: its count has to be printable.
        const LONGEST: usize = 98;
        while count > 0 {
            self.0.push(character);
            let mut repeats = (count - 1).min(LONGEST - 1);
            // Counts that would be `#` or `$`, and those that are not worth it.
            match repeats {
                0..=2 => repeats = 0,
                6 | 7 => repeats = 5,
                _ => {}
            }
            if repeats > 0 {
                self.0.extend([b'*', repeats as u8 + 29]);
            }
            count -= repeats + 1;
        }
    }

    /// The body, as it is sent.
    pub(crate) fn body(&self) -> &[u8] {
        &self.0[1..]
    }

    /// The packet, with its checksum.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let sum = digits(checksum(self.body()));
        self.0.push(b'#');
        self.0.extend(sum);
        self.0
    }
}

/// The body of a packet, with its escapes.
pub(crate) fn body(packet: &[u8]) -> Option<&[u8]> {
    let (body, _) = split(packet.strip_prefix(b"$")?, b'#')?;
    Some(body)
}

/// The sum of a body's bytes.
pub(crate) fn checksum(body: &[u8]) -> u8 {
    body.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// A body without its escapes. None when it ends in the middle of one.
pub(crate) fn unescape(body: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.iter().position(|&byte| byte == b'}') {
        let (plain, from) = rest.split_at(at);
        bytes.extend_from_slice(plain);
        let [_, escaped, after @ ..] = from else {
            return None;
        };
        bytes.push(escaped ^ 0x20);
        rest = after;
    }
    bytes.extend_from_slice(rest);
    Some(bytes)
}

/// A number in hexadecimal, with nothing else. More than 64 bits are none.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |number, &digit| {
        Some(number << 4 | u64::from(nibble(digit)?))
    })
}

/// `ADDRESS,LENGTH`.
pub(crate) fn address_and_length(text: &[u8]) -> Option<(u64, u64)> {
    let (address, length) = split(text, b',')?;
    Some((number(address)?, number(length)?))
}

/// What is before and behind the first `separator`.
pub(crate) fn split(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Bytes from hexadecimal.
pub(crate) fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|&[high, low]| Some(nibble(high)? << 4 | nibble(low)?))
        .collect()
}

/// The value of a hexadecimal digit.
pub(crate) fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a client expands a body: run lengths first.
    fn expand(body: &[u8]) -> Vec<u8> {
        let mut out: Vec<u8> = Vec::new();
        let mut bytes = body.iter();
        while let Some(&byte) = bytes.next() {
            if byte == b'*' {
                let count = bytes.next().expect("a count") - 29;
                let last = *out.last().expect("a character");
                out.extend(std::iter::repeat_n(last, count.into()));
            } else {
                out.push(byte);
            }
        }
        out
    }

    #[test]
    fn packets_have_their_checksum() {
        assert_eq!(Reply::ok().finish(), b"$OK#9a");
        assert_eq!(Reply::error(14).finish(), b"$E0e#da");
        assert_eq!(Reply::default().finish(), b"$#00");
        assert_eq!(Reply::console(b"a\n").body(), b"O610a");
    }

    #[test]
    fn runs_avoid_what_a_count_must_not_be() {
        for len in 0..300 {
            let mut reply = Reply::default();
            reply.hex(&vec![0; len]);
            assert_eq!(expand(reply.body()), vec![b'0'; 2 * len], "{len}");
            assert!(
                !reply.body().contains(&b'#') && !reply.body().contains(&b'$'),
                "{len}"
            );
        }
        let mut reply = Reply::default();
        reply.hex(&[0; 4096]);
        assert!(reply.body().len() < 300);
    }

    #[test]
    fn numbers_are_numbers_alone() {
        assert_eq!(number(b"ffffffffffffffff"), Some(u64::MAX));
        for bad in [&b""[..], b"10000000000000000", b"+1", b"0x1", b"g"] {
            assert_eq!(number(bad), None);
        }
        assert_eq!(address_and_length(b"60,10"), Some((0x60, 0x10)));
        assert_eq!(address_and_length(b"60"), None);
        assert_eq!(from_hex(b"0aF"), None);
        assert_eq!(from_hex(b"0aFf"), Some(vec![10, 255]));
        assert_eq!(unescape(b"a}"), None);
    }

    proptest! {
        #[test]
        fn escaped_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut reply = Reply::default();
            reply.escaped(&bytes);
            prop_assert!(!reply.body().iter().any(|byte| matches!(byte, b'#' | b'$' | b'*')));
            prop_assert_eq!(unescape(reply.body()), Some(bytes));
        }

        #[test]
        fn hexadecimal_comes_back(bytes in proptest::collection::vec(0_u8..3, 0..300)) {
            let mut reply = Reply::default();
            reply.hex(&bytes);
            prop_assert_eq!(from_hex(&expand(reply.body())), Some(bytes));
        }
    }
}
