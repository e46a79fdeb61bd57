//! The processes whose threads are traced: a guest's kernel, which is one, or a program with what it has forked.
//!
//! A process has its debug registers to itself, and most have their memory, with the breakpoints in it. What `vfork` has
//! started uses its parent's until it execs or ends: what is set in the one is set in the other.

use std::collections::BTreeMap;

use kscope_kernel::{KernelAddr, Memory};

use super::breakpoints::{Breakpoints, Owner};
use super::filters::Filters;
use super::watchpoints::Watchpoints;
use super::{ControlError, HostTid};
use crate::mem::{ProcMem, WriteError};

/// An address space, and what of ours is in it.
pub(super) struct Space {
    pub(super) memory: ProcMem,
    pub(super) breakpoints: Breakpoints,
    pub(super) filters: Filters,
}

impl Space {
    fn new(memory: ProcMem, breakpoints: Breakpoints) -> Self {
        Self {
            memory,
            breakpoints,
            filters: Filters::default(),
        }
    }

    /// Takes the breakpoints out.
    pub(super) fn lift(&mut self) {
        self.breakpoints.lift(&self.memory);
    }

    /// Drops a breakpoint, and takes it out of the text if nobody else wants it.
    pub(super) fn remove(&mut self, addr: KernelAddr, owner: Owner) -> Result<(), WriteError> {
        self.breakpoints.remove(&self.memory, addr, owner)
    }

    /// Writes memory around what is in the text.
    pub(super) fn write(&mut self, addr: KernelAddr, bytes: &[u8]) -> Result<(), ControlError> {
        self.breakpoints.write(&self.memory, addr, bytes)
    }

    /// The bytes that the process itself has where breakpoints are wanted, or were and are still in the text.
    pub(super) fn own_bytes(&self) -> Vec<(KernelAddr, u8)> {
        let byte = |(addr, replaced): (KernelAddr, Option<u8>)| {
            let mut now = [0];
            let read = || self.memory.read(addr, &mut now).ok().map(|()| now[0]);
            Some((addr, replaced.or_else(read)?))
        };
        self.breakpoints.places().filter_map(byte).collect()
    }
}

/// A traced process.
pub(super) struct Process {
    /// The address space that it uses.
    space: usize,
    pub(super) watchpoints: Watchpoints,
    /// The process that has started it, as long as the debugger is yet to be told of that.
    pub(super) untold: Option<HostTid>,
}

/// All of them. There are none while nothing is attached.
#[derive(Default)]
pub(super) struct Processes {
    all: BTreeMap<HostTid, Process>,
    /// The address spaces, by numbers that are not used again.
    spaces: BTreeMap<usize, Space>,
    next_space: usize,
}

impl Processes {
    pub(super) fn get(&self, pid: HostTid) -> Option<&Process> {
        self.all.get(&pid)
    }

    pub(super) fn get_mut(&mut self, pid: HostTid) -> Option<&mut Process> {
        self.all.get_mut(&pid)
    }

    pub(super) fn contains(&self, pid: HostTid) -> bool {
        self.all.contains_key(&pid)
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = HostTid> {
        self.all.keys().copied()
    }

    /// The address space of a process.
    pub(super) fn space(&self, pid: HostTid) -> Option<&Space> {
        self.spaces.get(&self.all.get(&pid)?.space)
    }

    /// As [`Processes::space`].
    pub(super) fn space_mut(&mut self, pid: HostTid) -> Option<&mut Space> {
        self.spaces.get_mut(&self.all.get(&pid)?.space)
    }

    /// Whether two processes use the same address space.
    pub(super) fn share(&self, one: HostTid, other: HostTid) -> bool {
        let space = |pid| self.all.get(&pid).map(|process| process.space);
        space(one).is_some() && space(one) == space(other)
    }

    /// Puts all breakpoints in, but for those in the address spaces of the processes `but`.
    pub(super) fn plant(&mut self, but: &[HostTid]) {
        let all = &self.all;
        let but: Vec<_> = but
            .iter()
            .filter_map(|pid| Some(all.get(pid)?.space))
            .collect();
        for (number, space) in &mut self.spaces {
            if !but.contains(number) {
                space.breakpoints.plant(&space.memory);
            }
        }
    }

    /// Takes all breakpoints out.
    pub(super) fn lift(&mut self) {
        for space in self.spaces.values_mut() {
            space.lift();
        }
    }

    /// Those that `parent` has started, of which the debugger is yet to be told.
    pub(super) fn untold_of(&self, parent: HostTid) -> Vec<HostTid> {
        let is_its = |(_, process): &(&HostTid, &Process)| process.untold == Some(parent);
        self.all
            .iter()
            .filter(is_its)
            .map(|(&pid, _)| pid)
            .collect()
    }

    /// The debugger is told of a process. With `anew`, which is for when all breakpoints have been lifted, the process
    /// has those that its parent has by now.
    pub(super) fn told(&mut self, pid: HostTid, anew: bool) {
        let parent = self
            .all
            .get_mut(&pid)
            .and_then(|process| process.untold.take());
        let Some(parent) = parent.filter(|&parent| anew && !self.share(parent, pid)) else {
            return;
        };
        let breakpoints = self.space(parent).map(|space| space.breakpoints.clone());
        if let (Some(space), Some(breakpoints)) = (self.space_mut(pid), breakpoints) {
            space.breakpoints = breakpoints;
        }
        let watchpoints = self.get(parent).map(|process| process.watchpoints.clone());
        if let (Some(process), Some(watchpoints)) = (self.get_mut(pid), watchpoints) {
            process.watchpoints = watchpoints;
        }
    }

    /// Adds one with an address space that has nothing of ours.
    pub(super) fn add(&mut self, pid: HostTid, memory: ProcMem) {
        let space = self.add_space(Space::new(memory, Breakpoints::default()));
        let process = Process {
            space,
            watchpoints: Watchpoints::default(),
            untold: None,
        };
        self.all.insert(pid, process);
        self.drop_unused();
    }

    /// Adds a child of `parent`, with `memory`, which is a copy with all that was in the text, or with that of its parent.
    pub(super) fn add_child(&mut self, parent: HostTid, child: HostTid, memory: Option<ProcMem>) {
        let Some((of_parent, space)) = self.all.get(&parent).zip(self.space(parent)) else {
            return;
        };
        let watchpoints = of_parent.watchpoints.clone();
        let space = match memory {
            None => of_parent.space,
            Some(memory) => {
                let breakpoints = space.breakpoints.clone();
                self.add_space(Space::new(memory, breakpoints))
            }
        };
        let process = Process {
            space,
            watchpoints,
            untold: Some(parent),
        };
        self.all.insert(child, process);
    }

    /// The process has another address space, of which nothing is known.
    pub(super) fn exec(&mut self, pid: HostTid, memory: ProcMem) {
        let space = self.add_space(Space::new(memory, Breakpoints::default()));
        if let Some(process) = self.all.get_mut(&pid) {
            process.space = space;
            process.watchpoints.clear();
        }
        self.drop_unused();
    }

    pub(super) fn remove(&mut self, pid: HostTid) -> Option<Process> {
        let process = self.all.remove(&pid);
        self.drop_unused();
        process
    }

    /// Drops what the debugger has set; its breakpoints have been lifted.
    pub(super) fn forget_debugger(&mut self) {
        for space in self.spaces.values_mut() {
            space.breakpoints.drop_debuggers();
            space.filters.clear();
        }
        for process in self.all.values_mut() {
            process.watchpoints.clear();
            process.untold = None;
        }
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.spaces.clear();
    }

    fn add_space(&mut self, space: Space) -> usize {
        let number = self.next_space;
        self.next_space += 1;
        self.spaces.insert(number, space);
        number
    }

    fn drop_unused(&mut self) {
        let all = &self.all;
        let is_used = |number: usize| all.values().any(|process| process.space == number);
        self.spaces.retain(|&number, _| is_used(number));
    }
}
