//! The form of the packets that gdbstub reads, and of those that are about life and death.
//!
//! GDB manual, "Packets" and "General Query Packets". gdbstub takes what a packet begins with for all of it: `vContX`
//! resumes, `D;no` detaches, `M` writes as many bytes as come. A packet that is not what the manual says is an error
//! instead, and has no effect.

use gdbstub::common::Tid;
use kscope_guest::control::HostTid;

use super::encode::{address_and_length, from_hex, number, split};
use super::resume;

/// The number that GDB gives to the one process of a stub with which it has not agreed on processes (its
/// `magic_null_ptid`).
const UNNAMED: u64 = 42_000;

/// The processes that packets may name.
#[derive(Clone, Debug)]
pub(super) struct Processes {
    /// Their numbers.
    pub(super) pids: Vec<i32>,
    /// Thread ids have them in front.
    pub(super) multiprocess: bool,
}

/// Which threads a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// Any of them, or all.
    Any,
    /// Any of this process's, or all of them.
    Of(HostTid),
    /// This one.
    One(Tid),
}

impl Threads {
    /// The thread, if it is one.
    pub(super) fn one(self) -> Option<Tid> {
        match self {
            Threads::Any | Threads::Of(_) => None,
            Threads::One(tid) => Some(tid),
        }
    }
}

impl Processes {
    /// `PID`.
    pub(super) fn named(&self, digits: &[u8]) -> Option<HostTid> {
        let pid = number(digits)?;
        if !self.multiprocess && pid == UNNAMED {
            return self.pids.first().copied().map(HostTid);
        }
        let pid = i32::try_from(pid).ok()?;
        self.pids.contains(&pid).then_some(HostTid(pid))
    }

    /// `;PID`.
    fn is_named(&self, text: &[u8]) -> bool {
        text.strip_prefix(b";")
            .and_then(|digits| self.named(digits))
            .is_some()
    }

    /// `[pPID.]TID` or `pPID`, where 0 is any and -1 is all. None when it is something else, or of no process here.
    pub(super) fn threads(&self, text: &[u8]) -> Option<Threads> {
        let (all, tid) = match text.strip_prefix(b"p") {
            Some(text) => {
                let (pid, tid) = split(text, b'.').unwrap_or((text, b"-1"));
                let all = match pid {
                    b"0" | b"-1" => Threads::Any,
                    pid => Threads::Of(self.named(pid)?),
                };
                (all, tid)
            }
            None => (Threads::Any, text),
        };
        if tid == b"-1" {
            return Some(all);
        }
        let tid = usize::try_from(number(tid)?).ok()?;
        Some(Tid::new(tid).map_or(all, Threads::One))
    }
}

/// Whether a packet is as it should be. One that is checked where it is answered is taken to be.
pub(super) fn is_right(packet: &[u8], processes: &Processes) -> bool {
    if let Some(rest) = packet.strip_prefix(b"vKill") {
        return processes.is_named(rest);
    }
    if let Some(rest) = packet.strip_prefix(b"vCont") {
        let actions = rest.strip_prefix(b";");
        return rest == b"?"
            || actions.is_some_and(|list| resume::parse(list, processes).is_some());
    }
    if let Some(rest) = packet.strip_prefix(b"qAttached") {
        return rest.is_empty() || rest.strip_prefix(b":").and_then(number).is_some();
    }
    if let Some(rest) = packet.strip_prefix(b"qThreadExtraInfo") {
        let threads = rest.strip_prefix(b",").and_then(|id| processes.threads(id));
        return threads.and_then(Threads::one).is_some();
    }
    if let Some(rest) = packet.strip_prefix(b"qRcmd") {
        return rest.strip_prefix(b",").and_then(from_hex).is_some();
    }
    if let Some(rest) = packet.strip_prefix(b"qXfer:features:read") {
        let place = rest.strip_prefix(b":").and_then(|rest| split(rest, b':'));
        return place.is_some_and(|(_, place)| address_and_length(place).is_some());
    }
    let Some((&kind, rest)) = packet.split_first() else {
        return true;
    };
    match kind {
        b'D' => rest.is_empty() || processes.is_named(rest),
        b'H' => matches!(rest, [b'g' | b'c', id @ ..] if processes.threads(id).is_some()),
        b'T' => processes.threads(rest).and_then(Threads::one).is_some(),
        // From another address than where it is: no client does that.
        b'c' | b's' => rest.is_empty(),
        b'C' | b'S' => resume::signal(rest).is_some(),
        b'p' => number(rest).is_some(),
        b'P' => split(rest, b'=').is_some_and(|(register, value)| {
            number(register).is_some() && from_hex(value).is_some_and(|value| !value.is_empty())
        }),
        b'G' => from_hex(rest).is_some(),
        b'M' => split(rest, b':').is_some_and(|(place, bytes)| {
            let len = address_and_length(place).map(|(_, len)| len);
            from_hex(bytes).is_some_and(|bytes| Some(bytes.len() as u64) == len)
        }),
        b'Z' | b'z' => is_breakpoint(kind, rest),
        _ => true,
    }
}

/// `TYPE,ADDRESS,KIND`, behind which `Z0` and `Z1` have lists.
fn is_breakpoint(kind: u8, rest: &[u8]) -> bool {
    let [type_ @ b'0'..=b'9', b',', rest @ ..] = rest else {
        return false;
    };
    let place = match split(rest, b';') {
        Some((place, _)) if kind == b'Z' && matches!(type_, b'0' | b'1') => place,
        _ => rest,
    };
    address_and_length(place).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(multiprocess: bool) -> Processes {
        Processes {
            pids: vec![1],
            multiprocess,
        }
    }

    #[test]
    fn threads_are_named_in_full() {
        let guest = guest(true);
        let one = |number| Some(Threads::One(Tid::new(number).unwrap()));
        assert_eq!(guest.threads(b"p1.1f"), one(0x1f));
        assert_eq!(guest.threads(b"1f"), one(0x1f));
        for any in [&b"0"[..], b"-1", b"p0.0", b"p-1"] {
            assert_eq!(guest.threads(any), Some(Threads::Any));
        }
        for of in [&b"p1.0"[..], b"p1.-1", b"p1"] {
            assert_eq!(guest.threads(of), Some(Threads::Of(HostTid(1))));
        }
        for bad in [
            &b""[..],
            b"p",
            b"p.",
            b"p1.",
            b"p2.1f",
            b"p1.1f.2",
            b"p1.1f;",
            b"-2",
            b"x",
            b"xx",
            b"1f ",
            b"10000000000000000",
        ] {
            let shown = bad.escape_ascii();
            assert_eq!(guest.threads(bad), None, "{shown}");
        }
    }

    #[test]
    fn what_clients_send_is_right() {
        for good in [
            &b"vKill;1"[..],
            b"D",
            b"D;1",
            b"vCont?",
            b"vCont;c",
            b"vCont;s:p1.1;c",
            b"vCont;r60000000,60000010:p1.1f;c:p1.-1",
            b"vCont;C0b:1;t",
            b"Hgp0.0",
            b"Hc-1",
            b"T1f",
            b"c",
            b"S05",
            b"p10",
            b"P10=0000006000000000",
            b"M60000000,2:cc90",
            b"M60000000,0:",
            b"Z0,60000000,1;X1,27;cmds:0,X1,27",
            b"z0,60000000,1",
            b"Z2,60000000,4",
            b"qAttached:1",
            b"qThreadExtraInfo,p1.1f",
            b"qRcmd,68656c70",
            b"qXfer:features:read:target.xml:0,1000",
            b"qSupported:x",
            b"g",
            b"?",
            b"",
        ] {
            assert!(is_right(good, &guest(true)), "{}", good.escape_ascii());
        }
    }

    #[test]
    fn what_is_nearly_right_is_not() {
        for bad in [
            &b"vKill"[..],
            b"vKill;",
            b"vKill;JUNK",
            b"vKill;2",
            b"vKill;1;",
            b"vKill;a410",
            b"D1",
            b"D;",
            b"D;JUNK",
            b"D;2",
            b"vCont",
            b"vCont;",
            b"vContX",
            b"vCont;c;",
            b"vCont;cX",
            b"vCont;c:JUNK",
            b"vCont;c:p2.1",
            b"vCont;c:",
            b"vCont;s:p1.1:p1.2",
            b"vCont;C100",
            b"vCont;r10:1",
            b"H",
            b"Hx0",
            b"Hg",
            b"HgJUNK",
            b"Hgp1.1f.3",
            b"T",
            b"T0",
            b"T-1",
            b"c60000000",
            b"p",
            b"p10;",
            b"P10",
            b"P10=",
            b"P10=00=00",
            b"P10=xx",
            b"Gxx",
            b"M60000000,1:cc90",
            b"M60000000,2,cc90",
            b"M60000000,2:cc90;",
            b"Z,60000000,1",
            b"Z00,60000000,1",
            b"Z0,60000000",
            b"Z0,60000000,1,1",
            b"Z2,60000000,4;X1,27",
            b"z0,60000000,1;X1,27",
            b"z0,10000000000000000,1",
            b"qAttachedX",
            b"qRcmd",
            b"qRcmd,7",
            b"qXfer:features:readX:target.xml:0,10",
            b"qXfer:features:read:target.xml:0,10:9",
            b"qXfer:features:read:target.xml:0",
        ] {
            assert!(!is_right(bad, &guest(true)), "{}", bad.escape_ascii());
        }
        let alone = guest(false);
        assert!(is_right(b"vKill;a410", &alone) && !is_right(b"vKill;a411", &alone));
    }
}
