//! `QThreadSuffixSupported`: packets about registers that say themselves whose.
//!
//! LLDB, "GDB Remote Protocol Extensions": with this, `g`, `G`, `p` and `P` end with `;thread:TID;`, in place of an `Hg`
//! before each.

use gdbstub::common::Tid;

use super::encode::number;

/// The thread that a packet names at its end, and the packet without that.
pub(super) fn split(packet: &[u8]) -> Option<(Tid, &[u8])> {
    if !matches!(packet.first(), Some(b'g' | b'G' | b'p' | b'P')) {
        return None;
    }
    const SUFFIX: &[u8] = b";thread:";
    let at = packet
        .windows(SUFFIX.len())
        .position(|window| window == SUFFIX)?;
    let (plain, suffix) = packet.split_at(at);
    let tid = suffix.strip_prefix(SUFFIX)?;
    let tid = tid.strip_suffix(b";").unwrap_or(tid);
    Some((Tid::new(usize::try_from(number(tid)?).ok()?)?, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_at_the_end_are_found() {
        let seven = Tid::new(7).unwrap();
        assert_eq!(split(b"g;thread:0007;"), Some((seven, &b"g"[..])));
        assert_eq!(split(b"p10;thread:7;"), Some((seven, &b"p10"[..])));
        assert_eq!(split(b"P0=00;thread:7"), Some((seven, &b"P0=00"[..])));
        for other in [
            &b"g"[..],
            b"p10",
            b"m10;thread:7;",
            b"g;thread:",
            b"g;thread:0;",
            b"",
        ] {
            assert_eq!(split(other), None);
        }
    }
}
