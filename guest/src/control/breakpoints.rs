//! Software breakpoints: which are wanted, and which are in the guest's text at this moment.

use std::collections::BTreeMap;

use kscope_kernel::{KernelAddr, Memory};

use super::ControlError;
use crate::mem::{ProcMem, WriteError};

/// The `int3` instruction.
pub(super) const INT3: u8 = 0xcc;

/// Who wants a breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The debugger.
    Debugger,
    /// The engine, for itself.
    Engine,
}

#[derive(Clone, Copy, Debug, Default)]
struct Breakpoint {
    debugger: bool,
    engine: bool,
    /// The byte that `int3` has taken the place of, while it is in the text.
    replaced: Option<u8>,
}

impl Breakpoint {
    /// Whether anybody wants it. One that nobody does is known only for as long as it cannot be taken out.
    fn is_wanted(&self) -> bool {
        self.debugger || self.engine
    }

    /// Takes it out of the text, if it is in. What is there instead, because the guest has written or mapped something
    /// else over it, stays.
    fn restore(&mut self, memory: &ProcMem, addr: KernelAddr) -> Result<(), WriteError> {
        let Some(byte) = self.replaced else {
            return Ok(());
        };
        let mut now = [0];
        // When the page is gone, so is the breakpoint.
        if memory.read(addr, &mut now).is_ok() && now == [INT3] {
            memory.write(addr, &[byte])?;
        }
        self.replaced = None;
        Ok(())
    }
}

/// The breakpoints of one address space.
#[derive(Clone, Debug, Default)]
pub(super) struct Breakpoints {
    all: BTreeMap<KernelAddr, Breakpoint>,
    planted: bool,
}

impl Breakpoints {
    /// Wants a breakpoint; it comes into the text with the next [`Breakpoints::plant`].
    pub(super) fn insert(&mut self, addr: KernelAddr, owner: Owner) {
        let breakpoint = self.all.entry(addr).or_default();
        match owner {
            Owner::Debugger => breakpoint.debugger = true,
            Owner::Engine => breakpoint.engine = true,
        }
        self.planted = false;
    }

    /// Drops a breakpoint, and takes it out of the text if nobody else wants it.
    pub(super) fn remove(
        &mut self,
        memory: &ProcMem,
        addr: KernelAddr,
        owner: Owner,
    ) -> Result<(), WriteError> {
        let Some(breakpoint) = self.all.get_mut(&addr) else {
            return Ok(());
        };
        match owner {
            Owner::Debugger => breakpoint.debugger = false,
            Owner::Engine => breakpoint.engine = false,
        }
        if breakpoint.is_wanted() {
            return Ok(());
        }
        breakpoint.restore(memory, addr)?;
        self.all.remove(&addr);
        Ok(())
    }

    /// Whether the debugger wants a breakpoint at `addr`.
    pub(super) fn is_debuggers(&self, addr: KernelAddr) -> bool {
        self.all
            .get(&addr)
            .is_some_and(|breakpoint| breakpoint.debugger)
    }

    /// Whether the debugger wants a breakpoint at `addr`, and nobody else.
    pub(super) fn is_debuggers_alone(&self, addr: KernelAddr) -> bool {
        self.all
            .get(&addr)
            .is_some_and(|breakpoint| breakpoint.debugger && !breakpoint.engine)
    }

    /// Puts the guest's own bytes where `bytes`, which were read at `addr`, have an `int3` of ours.
    pub(super) fn mask(&self, addr: KernelAddr, bytes: &mut [u8]) {
        let end = KernelAddr(addr.get().saturating_add(bytes.len() as u64));
        for (at, breakpoint) in self.all.range(addr..end) {
            let index = (at.get() - addr.get()) as usize;
            if let (Some(replaced), Some(byte)) = (breakpoint.replaced, bytes.get_mut(index)) {
                *byte = replaced;
            }
        }
    }

    /// Where they are, with the byte that each is in the place of if it is in the text now.
    pub(super) fn places(&self) -> impl Iterator<Item = (KernelAddr, Option<u8>)> {
        let place = |(&addr, breakpoint): (&KernelAddr, &Breakpoint)| (addr, breakpoint.replaced);
        self.all.iter().map(place)
    }

    /// Whether anybody wants a breakpoint at `addr`.
    pub(super) fn contains(&self, addr: KernelAddr) -> bool {
        self.all.get(&addr).is_some_and(Breakpoint::is_wanted)
    }

    /// Whether an `int3` of ours is at `addr` now.
    pub(super) fn is_planted(&self, addr: KernelAddr) -> bool {
        self.all
            .get(&addr)
            .is_some_and(|breakpoint| breakpoint.replaced.is_some())
    }

    /// Brings all breakpoints into the text. One whose address is not mapped (yet) is left out until the next time.
    pub(super) fn plant(&mut self, memory: &ProcMem) {
        if self.planted {
            return;
        }
        for (&addr, breakpoint) in &mut self.all {
            if breakpoint.replaced.is_some() || !breakpoint.is_wanted() {
                continue;
            }
            let mut byte = [0];
            if memory.read(addr, &mut byte).is_err() {
                log::debug!("breakpoint at {addr}: not mapped");
            } else if let Err(error) = memory.write(addr, &[INT3]) {
                log::warn!("breakpoint at {addr}: {error}");
            } else {
                breakpoint.replaced = Some(byte[0]);
            }
        }
        self.planted = true;
    }

    /// Takes all breakpoints out of the text.
    pub(super) fn lift(&mut self, memory: &ProcMem) {
        self.all.retain(|&addr, breakpoint| {
            if let Err(error) = breakpoint.restore(memory, addr) {
                log::warn!("breakpoint at {addr} stays: {error}");
            }
            breakpoint.is_wanted() || breakpoint.replaced.is_some()
        });
        self.planted = false;
    }

    /// The address space is another: nothing is in its text.
    pub(super) fn forget_planted(&mut self) {
        for breakpoint in self.all.values_mut() {
            breakpoint.replaced = None;
        }
        self.planted = false;
    }

    /// Drops all of the debugger's breakpoints, which have been lifted.
    pub(super) fn drop_debuggers(&mut self) {
        self.all.retain(|_, breakpoint| {
            breakpoint.debugger = false;
            breakpoint.engine || breakpoint.replaced.is_some()
        });
    }

    /// Writes guest memory around what is in the text: the bytes under breakpoints are those that come back.
    pub(super) fn write(
        &mut self,
        memory: &ProcMem,
        addr: KernelAddr,
        bytes: &[u8],
    ) -> Result<(), ControlError> {
        let mut bytes = bytes.to_vec();
        let end = KernelAddr(addr.get().saturating_add(bytes.len() as u64));
        for (at, breakpoint) in self.all.range_mut(addr..end) {
            if let Some(replaced) = &mut breakpoint.replaced {
                let index = (at.get() - addr.get()) as usize;
                *replaced = std::mem::replace(&mut bytes[index], INT3);
            }
        }
        Ok(memory.write(addr, &bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::HostTid;

    /// This process's own memory, and a piece of it to play with.
    fn fixture() -> (ProcMem, Box<[u8; 4]>, KernelAddr) {
        let memory = ProcMem::open(HostTid(std::process::id() as i32)).unwrap();
        let mut text = Box::new([0x55, 0x48, 0x89, 0xe5]);
        let addr = KernelAddr(text.as_mut_ptr() as u64);
        (memory, text, addr)
    }

    fn bytes(memory: &ProcMem, addr: KernelAddr) -> [u8; 4] {
        let mut bytes = [0; 4];
        memory.read(addr, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn planting_and_lifting_restores_every_byte() {
        let (memory, _text, addr) = fixture();
        let mut breakpoints = Breakpoints::default();
        breakpoints.insert(addr, Owner::Debugger);
        breakpoints.insert(addr + 2, Owner::Debugger);
        breakpoints.insert(KernelAddr(8), Owner::Debugger);
        breakpoints.plant(&memory);
        assert_eq!(bytes(&memory, addr), [0xcc, 0x48, 0xcc, 0xe5]);
        assert!(breakpoints.is_planted(addr) && !breakpoints.is_planted(KernelAddr(8)));
        breakpoints.lift(&memory);
        assert_eq!(bytes(&memory, addr), [0x55, 0x48, 0x89, 0xe5]);
    }

    #[test]
    fn writes_go_under_breakpoints() {
        let (memory, _text, addr) = fixture();
        let mut breakpoints = Breakpoints::default();
        breakpoints.insert(addr + 1, Owner::Debugger);
        breakpoints.plant(&memory);
        breakpoints.write(&memory, addr, &[1, 2, 3]).unwrap();
        assert_eq!(bytes(&memory, addr), [1, 0xcc, 3, 0xe5]);
        breakpoints.lift(&memory);
        assert_eq!(bytes(&memory, addr), [1, 2, 3, 0xe5]);
    }

    #[test]
    fn a_breakpoint_stays_until_nobody_wants_it() {
        let (memory, _text, addr) = fixture();
        let mut breakpoints = Breakpoints::default();
        breakpoints.insert(addr, Owner::Debugger);
        breakpoints.insert(addr, Owner::Engine);
        breakpoints.plant(&memory);
        breakpoints.remove(&memory, addr, Owner::Engine).unwrap();
        assert_eq!(bytes(&memory, addr)[0], 0xcc);
        breakpoints.remove(&memory, addr, Owner::Debugger).unwrap();
        assert_eq!(bytes(&memory, addr)[0], 0x55);
        assert!(!breakpoints.contains(addr));
    }

    #[test]
    fn what_has_come_in_its_place_stays() {
        let (memory, _text, addr) = fixture();
        let mut breakpoints = Breakpoints::default();
        for offset in 0..2 {
            breakpoints.insert(addr + offset, Owner::Debugger);
        }
        breakpoints.plant(&memory);
        // The guest patches its text.
        memory.write(addr, &[0x90, 0x91]).unwrap();
        breakpoints.remove(&memory, addr, Owner::Debugger).unwrap();
        breakpoints.lift(&memory);
        assert_eq!(bytes(&memory, addr), [0x90, 0x91, 0x89, 0xe5]);
        assert!(!breakpoints.is_planted(addr + 1));
    }
}
