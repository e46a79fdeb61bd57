//! `qMemoryRegionInfo`: what is mapped where, for LLDB.
//!
//! LLDB, "GDB Remote Protocol Extensions": `qMemoryRegionInfo:ADDR`. Told is the map of the kernel's process, in which
//! the kernel is; what a task of the guest has behind it is not part of that.

use super::encode::{Reply, number};
use super::{EINVAL, hex};
use crate::target::GuestTarget;

pub(super) fn answer(target: &mut GuestTarget, packet: &[u8]) -> Option<Reply> {
    let addr = packet.strip_prefix(b"qMemoryRegionInfo:")?;
    let Some(addr) = number(addr) else {
        return Some(Reply::error(EINVAL));
    };
    let pid = target.pid();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    Some(Reply::text(&region(&maps, addr)))
}

/// The mapping, or the hole, that an address is in.
fn region(maps: &str, addr: u64) -> String {
    let mut start = 0;
    for line in maps.lines() {
        let mut rest = line;
        let [range, mode, ..] = std::array::from_fn::<_, 5, _>(|_| {
            let (field, after) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = after;
            field
        });
        let ends = range.split_once('-').and_then(|(from, to)| {
            let hex = |digits| u64::from_str_radix(digits, 16).ok();
            Some((hex(from)?, hex(to)?))
        });
        let Some((from, to)) = ends else {
            continue;
        };
        if addr < from {
            return format!("start:{start:x};size:{:x};", from - start);
        }
        if addr < to {
            let permissions: String = mode.chars().filter(|c| "rwx".contains(*c)).collect();
            let name = match rest.trim_start() {
                "" => String::new(),
                name => format!("name:{};", hex(name.as_bytes())),
            };
            let size = to - from;
            return format!("start:{from:x};size:{size:x};permissions:{permissions};{name}");
        }
        start = to;
    }
    format!("start:{start:x};size:{:x};", u64::MAX - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_and_holes_are_told() {
        let maps = "1000-3000 r-xp 00000000 fe:00 12   /bin/x y\n5000-6000 rw-p 00000000 00:00 0\n";
        assert_eq!(region(maps, 0), "start:0;size:1000;");
        assert_eq!(
            region(maps, 0x2fff),
            "start:1000;size:2000;permissions:rx;name:2f62696e2f782079;"
        );
        assert_eq!(region(maps, 0x3000), "start:3000;size:2000;");
        assert_eq!(region(maps, 0x5000), "start:5000;size:1000;permissions:rw;");
        assert_eq!(region(maps, u64::MAX), "start:6000;size:ffffffffffff9fff;");
        assert_eq!(region("", 5), "start:0;size:ffffffffffffffff;");
    }
}
