//! Breakpoints that do not always stop the guest: what decides is called on the engine's thread, at the hit.

use std::collections::BTreeMap;

use kscope_kernel::{KernelAddr, Memory, Reg};
use libc::user_regs_struct;

use super::breakpoints::Breakpoints;
use super::emulate::{Bus, LONGEST, emulate};
use super::engine::{Engine, failed};
use super::processes::Space;
use super::{Action, ControlError, HostTid, registers, sys};
use crate::mem::ProcMem;

/// What becomes of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The guest stops, and the debugger is told.
    Stop,
    /// The guest runs on.
    Continue,
}

/// Decides what becomes of a hit. The guest's thread waits for it, so it has to be quick; the other CPUs run on.
pub type Filter = Box<dyn FnMut(&Hit<'_>) -> Verdict + Send>;

/// A thread that has run into a breakpoint.
pub struct Hit<'e> {
    regs: &'e user_regs_struct,
    breakpoints: &'e Breakpoints,
}

impl Hit<'_> {
    /// The value of a register; the program counter is the breakpoint's address.
    pub fn register(&self, reg: Reg) -> u64 {
        registers::get(self.regs, reg)
    }

    /// Puts the guest's own bytes where `bytes`, which were read at `addr`, have breakpoints.
    pub fn mask(&self, addr: KernelAddr, bytes: &mut [u8]) {
        self.breakpoints.mask(addr, bytes);
    }
}

/// The filters of the breakpoints of one address space.
#[derive(Default)]
pub(super) struct Filters(BTreeMap<KernelAddr, Filter>);

impl Filters {
    /// Has the breakpoint at `addr` stop when `filter` says so; without one, always.
    pub(super) fn set(&mut self, addr: KernelAddr, filter: Option<Filter>) {
        match filter {
            Some(filter) => self.0.insert(addr, filter),
            None => self.0.remove(&addr),
        };
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Bus for ProcMem {
    fn load(&self, addr: u64, buf: &mut [u8]) -> bool {
        self.read(KernelAddr(addr), buf).is_ok()
    }

    fn store(&self, addr: u64, bytes: &[u8]) -> bool {
        self.write(KernelAddr(addr), bytes).is_ok()
    }
}

impl Engine {
    /// Whether a hit of the breakpoint at `addr`, which is the program counter in `regs`, stops nobody.
    pub(super) fn is_filtered_out(
        &mut self,
        tid: HostTid,
        addr: KernelAddr,
        regs: &user_regs_struct,
    ) -> bool {
        if !self.has_debugger() {
            return false;
        }
        let Some(Space {
            breakpoints,
            filters,
            ..
        }) = self.processes.space_mut(self.pid_of(tid))
        else {
            return false;
        };
        let Some(filter) = filters.0.get_mut(&addr) else {
            return false;
        };
        if !breakpoints.is_debuggers_alone(addr) {
            return false;
        }
        let hit = Hit { regs, breakpoints };
        filter(&hit) == Verdict::Continue
    }

    /// Executes the instruction under the breakpoint at the program counter, if it is one of those that can be without
    /// the processor. True when it was.
    pub(super) fn emulate(&self, tid: HostTid, regs: &mut user_regs_struct) -> bool {
        let pid = self.pid_of(tid);
        let (Some(process), Some(space)) = (self.processes.get(pid), self.processes.space(pid))
        else {
            return false;
        };
        // The processor has to see the accesses to what it watches.
        if !process.watchpoints.is_empty() {
            return false;
        }
        let addr = KernelAddr(regs.rip);
        let mut code = [0; LONGEST];
        let read = space.memory.read_some(addr, &mut code);
        let code = code.get_mut(..read).unwrap_or_default();
        space.breakpoints.mask(addr, code);
        emulate(regs, code, &space.memory).is_some()
    }

    /// A thread that is stopped at a breakpoint which does not count this time, and whose instruction takes the
    /// processor. Others are moved on.
    pub(super) fn take_passed(&mut self) -> Result<Option<HostTid>, ControlError> {
        let passed: Vec<_> = self
            .threads
            .values()
            .filter(|thread| thread.stop().is_some() && thread.action != Action::Hold)
            .filter_map(|thread| Some((thread.tid, thread.reported_at?)))
            .filter(|&(tid, addr)| {
                let space = self.space_of(tid);
                space.is_some_and(|space| space.breakpoints.contains(KernelAddr(addr)))
            })
            .collect();
        for (tid, addr) in passed {
            let registers = |error| failed("reading or setting the registers", tid, error);
            let mut regs = sys::registers(tid).map_err(registers)?;
            if regs.rip != addr {
                continue;
            }
            if !self.emulate(tid, &mut regs) {
                return Ok(Some(tid));
            }
            sys::set_registers(tid, &regs).map_err(registers)?;
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.reported_at = None;
            }
        }
        Ok(None)
    }

    /// The breakpoint at the thread's program counter does not count when it runs on.
    pub(super) fn pass(&mut self, tid: HostTid, addr: KernelAddr) {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.reported_at = Some(addr.get());
        }
    }
}
