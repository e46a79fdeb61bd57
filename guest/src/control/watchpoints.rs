//! Watchpoints in the processor's debug registers.

use std::io;

use kscope_kernel::KernelAddr;

use super::{ControlError, HostTid, WatchKind, sys};

/// How many the processor has.
const SLOTS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watchpoint {
    addr: KernelAddr,
    len: u64,
    kind: WatchKind,
}

impl Watchpoint {
    /// What the processor can watch, which is up to eight bytes, aligned to their length.
    fn pieces(self) -> impl Iterator<Item = Watchpoint> {
        let (mut at, mut left) = (self.addr.get(), self.len);
        std::iter::from_fn(move || {
            let fits = |len: &u64| *len <= left && at.is_multiple_of(*len);
            let len = [8, 4, 2, 1].into_iter().find(fits)?;
            let piece = Watchpoint {
                addr: KernelAddr(at),
                len,
                kind: self.kind,
            };
            at = at.checked_add(len)?;
            left -= len;
            Some(piece)
        })
    }
}

/// The watchpoints of one process; every thread gets the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Watchpoints {
    /// As they were asked for.
    all: Vec<Watchpoint>,
    /// What is in the debug registers.
    slots: [Option<Watchpoint>; SLOTS],
}

impl Watchpoints {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Watches `len` bytes; in as many debug registers as their alignment takes.
    pub(super) fn insert(
        &mut self,
        addr: KernelAddr,
        len: u64,
        kind: WatchKind,
    ) -> Result<(), ControlError> {
        let error = |reason| ControlError::Watchpoint { addr, len, reason };
        if !(1..=8 * SLOTS as u64).contains(&len) {
            return Err(error("the processor watches up to 32 bytes"));
        }
        if addr.get().checked_add(len).is_none() {
            return Err(error("there are no such addresses"));
        }
        let wanted = Watchpoint { addr, len, kind };
        if self.all.contains(&wanted) {
            return Ok(());
        }
        let mut slots = self.slots;
        for piece in wanted.pieces() {
            if slots.contains(&Some(piece)) {
                continue;
            }
            let free = slots.iter_mut().find(|slot| slot.is_none());
            *free.ok_or_else(|| error("all four debug registers are in use"))? = Some(piece);
        }
        self.slots = slots;
        self.all.push(wanted);
        Ok(())
    }

    pub(super) fn remove(&mut self, addr: KernelAddr, len: u64, kind: WatchKind) {
        self.all
            .retain(|watchpoint| *watchpoint != Watchpoint { addr, len, kind });
        for slot in &mut self.slots {
            let is_wanted = |piece: &Watchpoint| {
                self.all
                    .iter()
                    .any(|watchpoint| watchpoint.pieces().any(|other| other == *piece))
            };
            *slot = slot.filter(is_wanted);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The control register: for each slot an enable bit, two bits of kind, two of length.
    fn control(&self) -> u64 {
        let bits = |(index, slot): (usize, &Option<Watchpoint>)| {
            slot.map_or(0, |watchpoint| {
                let kind = match watchpoint.kind {
                    WatchKind::Write => 0b01,
                    WatchKind::Access => 0b11,
                };
                let len = match watchpoint.len {
                    1 => 0b00,
                    2 => 0b01,
                    8 => 0b10,
                    _ => 0b11,
                };
                1 << (2 * index) | (kind | len << 2) << (16 + 4 * index)
            })
        };
        self.slots.iter().enumerate().map(bits).sum()
    }

    /// Gives the watchpoints to a stopped thread.
    pub(super) fn apply(&self, tid: HostTid) -> io::Result<()> {
        // Off first: the host checks each address together with what the control register says of it.
        sys::set_debug_register(tid, 7, 0)?;
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some(watchpoint) = slot {
                sys::set_debug_register(tid, index, watchpoint.addr.get())?;
            }
        }
        if !self.is_empty() {
            sys::set_debug_register(tid, 7, self.control())?;
        }
        Ok(())
    }

    /// The watched address whose access stopped the thread, if that did.
    pub(super) fn triggered(&self, tid: HostTid) -> Option<KernelAddr> {
        if self.is_empty() {
            return None;
        }
        let status = sys::debug_register(tid, 6).ok()?;
        let hit = (0..SLOTS).find(|index| status & 1 << index != 0)?;
        // The processor never clears it.
        if let Err(error) = sys::set_debug_register(tid, 6, 0) {
            log::debug!("clearing the debug status of {tid}: {error}");
        }
        self.slots[hit].map(|watchpoint| watchpoint.addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_register_is_intels() {
        let mut watchpoints = Watchpoints::default();
        watchpoints
            .insert(KernelAddr(0x1000), 8, WatchKind::Write)
            .unwrap();
        watchpoints
            .insert(KernelAddr(0x2000), 4, WatchKind::Access)
            .unwrap();
        assert_eq!(watchpoints.control(), 0b1111_1001 << 16 | 0b0101);
    }

    #[test]
    fn four_and_no_more() {
        let mut watchpoints = Watchpoints::default();
        for index in 0..4 {
            watchpoints
                .insert(KernelAddr(index * 8), 8, WatchKind::Write)
                .unwrap();
        }
        watchpoints
            .insert(KernelAddr(0), 8, WatchKind::Write)
            .unwrap();
        let error = watchpoints
            .insert(KernelAddr(64), 8, WatchKind::Write)
            .unwrap_err();
        assert!(error.to_string().contains("0x40"), "{error}");
        watchpoints.remove(KernelAddr(8), 8, WatchKind::Write);
        watchpoints
            .insert(KernelAddr(64), 8, WatchKind::Write)
            .unwrap();
        assert!(
            watchpoints
                .insert(KernelAddr(65), 1, WatchKind::Write)
                .is_err()
        );
    }

    #[test]
    fn what_is_not_aligned_takes_several_registers() {
        let mut watchpoints = Watchpoints::default();
        let slots = |watchpoints: &Watchpoints| {
            let slots = watchpoints.slots.iter().flatten();
            slots
                .map(|slot| (slot.addr.get(), slot.len))
                .collect::<Vec<_>>()
        };
        watchpoints
            .insert(KernelAddr(0x1001), 7, WatchKind::Write)
            .unwrap();
        assert_eq!(slots(&watchpoints), [(0x1001, 1), (0x1002, 2), (0x1004, 4)]);
        // In common with the first.
        watchpoints
            .insert(KernelAddr(0x1004), 4, WatchKind::Write)
            .unwrap();
        assert!(
            watchpoints
                .insert(KernelAddr(0x2000), 16, WatchKind::Write)
                .is_err()
        );
        watchpoints.remove(KernelAddr(0x1001), 7, WatchKind::Write);
        assert_eq!(slots(&watchpoints), [(0x1004, 4)]);
        watchpoints
            .insert(KernelAddr(0x2000), 16, WatchKind::Write)
            .unwrap();
        let whole = [(0x2000, 8), (0x2008, 8), (0x1004, 4)];
        assert_eq!(slots(&watchpoints), whole);
        for (addr, len) in [(0, 0), (0, 33), (u64::MAX, 8)] {
            assert!(
                watchpoints
                    .insert(KernelAddr(addr), len, WatchKind::Write)
                    .is_err()
            );
        }
    }
}
