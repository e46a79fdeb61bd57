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

/// The watchpoints of one guest; every thread gets the same.
#[derive(Debug, Default)]
pub(super) struct Watchpoints {
    slots: [Option<Watchpoint>; SLOTS],
}

impl Watchpoints {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    pub(super) fn insert(
        &mut self,
        addr: KernelAddr,
        len: u64,
        kind: WatchKind,
    ) -> Result<(), ControlError> {
        let error = |reason| ControlError::Watchpoint { addr, len, reason };
        if !matches!(len, 1 | 2 | 4 | 8) {
            return Err(error("the processor watches 1, 2, 4 or 8 bytes"));
        }
        if !addr.get().is_multiple_of(len) {
            return Err(error("the address is not aligned to the length"));
        }
        let wanted = Watchpoint { addr, len, kind };
        if self.slots.contains(&Some(wanted)) {
            return Ok(());
        }
        match self.slots.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(wanted),
            None => return Err(error("all four debug registers are in use")),
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, addr: KernelAddr, len: u64, kind: WatchKind) {
        let unwanted = Some(Watchpoint { addr, len, kind });
        for slot in &mut self.slots {
            if *slot == unwanted {
                *slot = None;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.slots = Default::default();
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
                .insert(KernelAddr(65), 2, WatchKind::Write)
                .is_err()
        );
        assert!(
            watchpoints
                .insert(KernelAddr(66), 3, WatchKind::Write)
                .is_err()
        );
    }
}
