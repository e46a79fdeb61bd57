//! What handles ask of the engine, beyond running and stepping, which is in [`super::running`].

use std::time::Duration;

use crossbeam_channel::Sender;
use kscope_kernel::{CpuId, KernelAddr, Registers};

use super::attach::block_sigchld_in;
use super::breakpoints::Owner;
use super::debugger::EventSink;
use super::engine::{Engine, STOP_TIMEOUT, StartHold, failed};
use super::running::Job;
use super::threads::Thread;
use super::{ControlError, Event, Filter, VCpu, WatchKind, registers, sys};
use crate::mem::ProcMem;

impl Engine {
    pub(super) fn with_stopped<T>(
        &mut self,
        timeout: Duration,
        f: impl FnOnce(&mut Stopped<'_>) -> T,
    ) -> Result<T, ControlError> {
        self.attach()?;
        let result = self.with_attached_stopped(timeout, f);
        self.drop_attachment();
        result
    }

    fn with_attached_stopped<T>(
        &mut self,
        timeout: Duration,
        f: impl FnOnce(&mut Stopped<'_>) -> T,
    ) -> Result<T, ControlError> {
        if !self.is_held() {
            if let Err(error) = self.stop_all(timeout) {
                self.settle();
                return Err(error);
            }
            self.lift();
        }
        let memory = self.memory()?.clone();
        let result = f(&mut Stopped {
            engine: self,
            memory,
        });
        self.settle();
        Ok(result)
    }

    /// The stopped guest, if a debugger holds it.
    pub(super) fn stopped(&mut self) -> Result<Stopped<'_>, ControlError> {
        self.alive()?;
        if !self.is_held() && !self.non_stop {
            return Err(ControlError::Running);
        }
        let memory = self.memory()?.clone();
        Ok(Stopped {
            engine: self,
            memory,
        })
    }

    pub(super) fn is_held(&self) -> bool {
        self.job == Job::Held
    }

    pub(super) fn has_debugger(&self) -> bool {
        self.debugger.is_some()
    }

    pub(super) fn tell_debugger(&self, event: Event) {
        if let Some(debugger) = &self.debugger {
            debugger.send(event, self.is_visited);
        }
    }

    pub(super) fn begin_debug(&mut self, sink: EventSink) -> Result<(), ControlError> {
        self.alive()?;
        if self.debugger.is_some() {
            return Err(ControlError::Busy);
        }
        self.attach()?;
        self.debugger = Some(sink);
        Ok(())
    }

    pub(super) fn end_debug(&mut self) {
        if self.debugger.take().is_none() || self.has_ended() {
            return;
        }
        let stays = self.is_process() && !std::mem::take(&mut self.detaching);
        self.pass_signals.clear();
        self.end_non_stop();
        self.follows_forks = false;
        if !self.is_held()
            && let Err(error) = self.stop_all(STOP_TIMEOUT)
        {
            log::error!(
                "guest {}: the debugger's breakpoints stay: {error}",
                self.pid
            );
        }
        self.lift();
        self.processes.forget_debugger();
        self.step_irq = false;
        for thread in self.threads.values_mut() {
            thread.watchpoints_stale = true;
            thread.reported_at = None;
            if let Some(stop) = thread.stop_mut() {
                stop.cause = None;
            }
        }
        if stays {
            self.job = Job::Held;
            self.references = self.references.saturating_sub(1);
            return;
        }
        // A kernel held at its start has now been taken over and released.
        if self.start.as_ref().is_some_and(|start| start.reached) {
            self.start = None;
            self.references = self.references.saturating_sub(1);
        }
        self.job = Job::Free;
        self.drop_attachment();
    }

    pub(super) fn hold_at_start(&mut self) -> Result<(), ControlError> {
        const SYMBOL: &str = "start_kernel";
        let image = self
            .image
            .as_ref()
            .ok_or(ControlError::NoKernel(self.pid))?;
        let addr = image.symbol(SYMBOL).ok_or_else(|| ControlError::NoSymbol {
            image: image.path().display().to_string(),
            name: SYMBOL,
        })?;
        self.begin_hold_at(Some(addr), 0)
    }

    /// As soon as the process has become its program.
    pub(super) fn hold_at_exec(&mut self, execs: usize) -> Result<(), ControlError> {
        self.begin_hold_at(None, execs)
    }

    /// Where the process is.
    pub(super) fn hold_now(&mut self) -> Result<(), ControlError> {
        self.attach()?;
        if let Err(error) = self.stop_all(STOP_TIMEOUT) {
            self.drop_attachment();
            return Err(error);
        }
        self.job = Job::Held;
        self.start = Some(StartHold {
            addr: None,
            reached: true,
            execs: 0,
            waiters: Vec::new(),
        });
        Ok(())
    }

    fn begin_hold_at(
        &mut self,
        addr: Option<KernelAddr>,
        execs: usize,
    ) -> Result<(), ControlError> {
        self.alive()?;
        if self.threads.is_empty() {
            self.processes.add(self.pid, ProcMem::open(self.pid)?);
            self.seize_new()?;
        }
        self.references += 1;
        self.start = Some(StartHold {
            addr,
            reached: false,
            execs,
            waiters: Vec::new(),
        });
        Ok(())
    }

    pub(super) fn notify_start(&mut self, waiter: Sender<()>) {
        // Dropped, and so heard of, when there is nothing to wait for.
        if let Some(start) = &mut self.start {
            if start.reached {
                let _ = waiter.send(());
            } else {
                start.waiters.push(waiter);
            }
        }
    }

    /// The engine's own breakpoint at `addr` was hit. Tells whether the guest is to be held.
    pub(super) fn on_own_breakpoint(&mut self, addr: KernelAddr) -> bool {
        let Some(start) = &mut self.start else {
            return false;
        };
        if start.reached || start.addr != Some(addr) {
            return false;
        }
        start.reached = true;
        for waiter in start.waiters.drain(..) {
            let _ = waiter.send(());
        }
        if let Some(space) = self.processes.space_mut(self.pid)
            && let Err(error) = space.remove(addr, Owner::Engine)
        {
            log::warn!("breakpoint at start_kernel: {error}");
        }
        // Until the exec there was no telling what the program would do with it.
        if sys::has_default_action(self.pid, libc::SIGCHLD) {
            for thread in self.threads.values_mut() {
                block_sigchld_in(thread);
            }
        }
        true
    }

    pub(super) fn release(&mut self) -> Result<(), ControlError> {
        self.alive()?;
        if let Some(start) = self.start.take() {
            if let (false, Some(addr)) = (start.reached, start.addr) {
                self.space_mut(self.pid)?.remove(addr, Owner::Engine)?;
            } else if self.debugger.is_none() {
                self.job = Job::Free;
            }
            self.drop_attachment();
        }
        Ok(())
    }

    // What the debugger asks for, beyond running.

    pub(super) fn insert_breakpoint(
        &mut self,
        addr: KernelAddr,
        filter: Option<Filter>,
    ) -> Result<(), ControlError> {
        let space = self.space_mut(self.selected)?;
        // Now rather than when the guest runs on: this is when somebody is told.
        let mut byte = [0];
        if space.memory.read_some(addr, &mut byte) == 0 {
            return Err(ControlError::Unmapped { addr });
        }
        space.breakpoints.insert(addr, Owner::Debugger);
        space.filters.set(addr, filter);
        if self.job == Job::Free {
            self.plant();
        }
        Ok(())
    }

    pub(super) fn remove_breakpoint(&mut self, addr: KernelAddr) -> Result<(), ControlError> {
        let space = self.space_mut(self.selected)?;
        space.filters.set(addr, None);
        Ok(space.remove(addr, Owner::Debugger)?)
    }

    pub(super) fn insert_watchpoint(
        &mut self,
        addr: KernelAddr,
        len: u64,
        kind: WatchKind,
    ) -> Result<(), ControlError> {
        self.still()?;
        self.watchpoints_change();
        let process = self.processes.get_mut(self.selected);
        let watchpoints = &mut process.ok_or(ControlError::Ended)?.watchpoints;
        let before = watchpoints.clone();
        watchpoints.insert(addr, len, kind)?;
        // Now rather than when the guest runs on: this is when somebody is told.
        let is_its = |thread: &&Thread| thread.pid == self.selected;
        for thread in self.threads.values().filter(is_its) {
            match watchpoints.apply(thread.tid) {
                // Killed at this moment.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => {
                    *watchpoints = before;
                    return Err(failed("setting a watchpoint", thread.tid, error));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    pub(super) fn remove_watchpoint(
        &mut self,
        addr: KernelAddr,
        len: u64,
        kind: WatchKind,
    ) -> Result<(), ControlError> {
        self.still()?;
        self.watchpoints_change();
        if let Some(process) = self.processes.get_mut(self.selected) {
            process.watchpoints.remove(addr, len, kind);
        }
        Ok(())
    }

    /// Every thread stands still from here until the next settlement, if not for longer.
    pub(super) fn still(&mut self) -> Result<(), ControlError> {
        self.stopped()?;
        match self.non_stop {
            true => self.stop_all(STOP_TIMEOUT),
            false => Ok(()),
        }
    }

    fn watchpoints_change(&mut self) {
        for thread in self.threads.values_mut() {
            thread.watchpoints_stale = true;
        }
    }

    pub(super) fn write_memory(
        &mut self,
        addr: KernelAddr,
        bytes: &[u8],
    ) -> Result<(), ControlError> {
        self.space_mut(self.selected)?.write(addr, bytes)
    }

    pub(super) fn discard_signal(&mut self, cpu: CpuId) -> Result<(), ControlError> {
        self.stopped()?;
        let tid = self.thread_of(cpu)?;
        if let Some(stop) = self.threads.get_mut(&tid).and_then(Thread::stop_mut) {
            stop.deliver = 0;
        }
        Ok(())
    }
}

/// A guest whose every CPU is stopped.
pub struct Stopped<'e> {
    engine: &'e mut Engine,
    memory: ProcMem,
}

impl Stopped<'_> {
    /// The guest's CPUs.
    pub fn cpus(&mut self) -> Vec<VCpu> {
        self.engine.vcpus().to_vec()
    }

    /// The registers of a CPU.
    ///
    /// # Errors
    ///
    /// There is no such CPU, or its thread was killed at this moment.
    pub fn registers(&mut self, cpu: CpuId) -> Result<Registers, ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        self.engine
            .host_registers(tid)
            .map(registers::from_host)
            .map_err(|error| failed("reading the registers", tid, error))
    }

    /// The CPUs with their registers. Nothing is known of those of a thread that runs, as in non-stop it may.
    ///
    /// # Errors
    ///
    /// A thread was killed at this moment.
    pub fn all_registers(&mut self) -> Result<Vec<(VCpu, Registers)>, ControlError> {
        let cpus = self.cpus();
        cpus.into_iter()
            .map(|vcpu| match self.registers(vcpu.cpu) {
                // It runs.
                Err(_) if self.engine.non_stop => Ok((vcpu, Registers::default())),
                registers => Ok((vcpu, registers?)),
            })
            .collect()
    }

    /// Sets those registers of a CPU that are known in `registers`.
    ///
    /// # Errors
    ///
    /// There is no such CPU, or the host refuses a value.
    pub fn set_registers(&mut self, cpu: CpuId, registers: &Registers) -> Result<(), ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        let set = |error| failed("setting the registers", tid, error);
        let mut regs = sys::registers(tid).map_err(set)?;
        let pc = regs.rip;
        registers::into_host(registers, &mut regs);
        sys::set_registers(tid, &regs).map_err(set)?;
        if regs.rip != pc
            && let Some(thread) = self.engine.threads.get_mut(&tid)
        {
            thread.reported_at = None;
        }
        Ok(())
    }

    /// The x87 and SSE registers of a CPU, as FXSAVE lays them out.
    ///
    /// # Errors
    ///
    /// As [`Stopped::registers`].
    pub fn fp_registers(&mut self, cpu: CpuId) -> Result<Box<[u8; 512]>, ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        sys::fp_registers(tid)
            .map(Box::new)
            .map_err(|error| failed("reading the floating point registers", tid, error))
    }

    /// Sets the x87 and SSE registers of a CPU.
    ///
    /// # Errors
    ///
    /// As [`Stopped::set_registers`].
    pub fn set_fp_registers(&mut self, cpu: CpuId, area: &[u8; 512]) -> Result<(), ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        sys::set_fp_registers(tid, area)
            .map_err(|error| failed("setting the floating point registers", tid, error))
    }

    pub(super) fn signal_info(&mut self, cpu: CpuId) -> Result<Vec<u8>, ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        sys::signal_info(tid)
            .map(|info| info.bytes().to_vec())
            .map_err(|error| failed("reading the signal", tid, error))
    }

    pub(super) fn set_signal_info(
        &mut self,
        cpu: CpuId,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        let set = |error| failed("setting the signal", tid, error);
        let mut info = sys::signal_info(tid).map_err(set)?;
        if !info.patch(offset, bytes) {
            return Err(set(std::io::ErrorKind::InvalidInput.into()));
        }
        sys::set_signal_info(tid, &info).map_err(set)
    }

    /// The guest's memory, with its own bytes where breakpoints are.
    pub fn memory(&self) -> &ProcMem {
        &self.memory
    }

    /// Whether a debugger or a [`Hold`](super::Hold) holds the guest, so that it does not run on after this.
    pub fn is_held(&self) -> bool {
        self.engine.is_held() || self.engine.holds > 0
    }
}
