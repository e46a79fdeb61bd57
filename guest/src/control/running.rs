//! What happens while the guest runs: its signals, our traps, and what to do after each stop. Steps are in
//! [`super::stepping`].

use std::time::Duration;

use kscope_kernel::{KernelAddr, MemoryExt};

use super::attach::block_sigchld_in;
use super::engine::{Engine, STOP_TIMEOUT, failed};
use super::stepping::{Goal, Stepping};
use super::sys::{self, SigInfo};
use super::threads::{State, Stop, Thread};
use super::{Action, ControlError, Event, HostTid, StopReason};

/// What the engine is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// All threads run, if any is attached.
    Free,
    /// One thread steps, the others are held.
    Stepping(Stepping),
    /// All threads are stopped, until somebody says otherwise.
    Held,
}

/// Signals that an instruction causes itself: holding them back would only cause them again.
pub(super) fn is_fault(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL
    )
}

/// Signals that no running kernel means to get, so that a debugger wants to know: the first is how it dies.
pub(super) fn is_fatal(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGABRT | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGSYS | libc::SIGQUIT
    )
}

pub(super) fn stops_group(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
    )
}

impl Engine {
    /// A thread is about to be given a signal: decides what the stop means.
    pub(super) fn on_signal(&mut self, tid: HostTid, signal: i32) -> std::io::Result<Stop> {
        // A group stop is announced by such a stop first, and has no description then.
        let info = sys::signal_info(tid)?;
        let info = self.restore_resent(tid, info)?;
        let mut stop = Stop {
            deliver: signal,
            ..Stop::default()
        };
        if signal == libc::SIGTRAP {
            return self.on_trap(tid, &info);
        }
        if self.is_process() {
            return Ok(self.on_process_signal(tid, info));
        }
        if let Some(addr) = self.breakpoint_out_of_text(tid, &info)? {
            stop.deliver = 0;
            stop.cause = Some(StopReason::Breakpoint(addr));
            return Ok(stop);
        }
        let debugged = self.has_debugger();
        let holds_back = self.holds_back(tid);
        let Some(thread) = self.threads.get_mut(&tid) else {
            return Ok(stop);
        };
        if signal == libc::SIGCHLD && thread.sigchld_blocked {
            // The mask was restored by the return from a handler that had begun before we attached.
            thread.sigchld_blocked = false;
            block_sigchld_in(thread);
            stop.deliver = 0;
        } else if is_fatal(signal) && debugged {
            stop.cause = Some(StopReason::Signal(signal));
        } else if holds_back && !is_fault(signal) && !stops_group(signal) {
            thread.hold_back(info);
            stop.deliver = 0;
        }
        Ok(stop)
    }

    /// The breakpoint, if this is a fault that one has caused where nothing can be executed, not even `int3`: on a
    /// stack, to which a function that a debugger calls returns.
    fn breakpoint_out_of_text(
        &self,
        tid: HostTid,
        info: &SigInfo,
    ) -> std::io::Result<Option<KernelAddr>> {
        let is_planted = |addr: &KernelAddr| {
            let space = self.space_of(tid);
            space.is_some_and(|space| space.breakpoints.is_planted(*addr))
        };
        let Some(addr) = info.fault().filter(is_planted) else {
            return Ok(None);
        };
        let regs = sys::registers(tid)?;
        Ok((regs.rip == addr.get()).then_some(addr))
    }

    /// If this is a signal that was held back and sent again, gives it back the description it came with.
    fn restore_resent(&mut self, tid: HostTid, info: SigInfo) -> std::io::Result<SigInfo> {
        let Some(thread) = self.threads.get_mut(&tid) else {
            return Ok(info);
        };
        if thread.resent.is_empty() || !info.is_own() {
            return Ok(info);
        }
        let same = |resent: &SigInfo| resent.signal() == info.signal();
        let Some(index) = thread.resent.iter().position(same) else {
            return Ok(info);
        };
        let original = thread.resent.remove(index);
        sys::set_signal_info(tid, &original)?;
        Ok(original)
    }

    /// A SIGTRAP: ours, or the guest's own.
    fn on_trap(&mut self, tid: HostTid, info: &SigInfo) -> std::io::Result<Stop> {
        /// What an `int3` is told with. `TRAP_BRKPT`, in spite of its name, is a single-step trap on x86: that of a
        /// system call (the host's `user_single_step_report`).
        const SI_KERNEL: i32 = 0x80;
        let mut stop = Stop {
            by_signal: true,
            ..Stop::default()
        };
        let stepping = self.threads.get(&tid).is_some_and(|thread| thread.stepping);
        let process = self.processes.get(self.pid_of(tid));
        if let Some(addr) = process.and_then(|process| process.watchpoints.triggered(tid)) {
            stop.cause = Some(StopReason::Watchpoint(addr));
            return Ok(stop);
        }
        match info.code() {
            SI_KERNEL => {
                let mut regs = sys::registers(tid)?;
                let addr = KernelAddr(regs.rip.wrapping_sub(1));
                let space = self.space_of(tid);
                let ours = space.is_some_and(|space| space.breakpoints.is_planted(addr));
                // One of ours that was taken out after the thread had run into it.
                let was_ours = !ours && !self.is_int3(tid, addr);
                if !ours && !was_ours && self.is_process() && self.has_debugger() {
                    // Its own is a breakpoint like any other to its debugger.
                    regs.rip = addr.get();
                    sys::set_registers(tid, &regs)?;
                    stop.cause = Some(StopReason::Breakpoint(addr));
                } else if ours || was_ours {
                    regs.rip = addr.get();
                    let passes = ours && self.is_filtered_out(tid, addr, &regs);
                    let passed = passes && self.emulate(tid, &mut regs);
                    sys::set_registers(tid, &regs)?;
                    if passes && !passed && matches!(self.job, Job::Free | Job::Held) {
                        self.pass(tid, addr);
                    } else if passed && self.is_stepped(tid) {
                        stop.cause = Some(StopReason::Step);
                    } else if ours && !passed {
                        // In the middle of a step there is no going over it: the debugger looks for itself.
                        stop.cause = Some(StopReason::Breakpoint(addr));
                    }
                } else {
                    stop.deliver = libc::SIGTRAP;
                    stop.cause = self
                        .has_debugger()
                        .then_some(StopReason::Signal(libc::SIGTRAP));
                }
            }
            // Sent by another process: none of our business.
            libc::SI_USER | libc::SI_TKILL | libc::SI_QUEUE if self.is_process() => {
                stop = self.on_process_signal(tid, *info);
            }
            libc::SI_USER | libc::SI_TKILL | libc::SI_QUEUE => stop.deliver = libc::SIGTRAP,
            // Single-step traps, of which a stale one means nothing.
            _ => stop.cause = stepping.then_some(StopReason::Step),
        }
        Ok(stop)
    }

    pub(super) fn is_int3(&self, tid: HostTid, addr: KernelAddr) -> bool {
        self.space_of(tid)
            .is_some_and(|space| space.memory.read_u8(addr) == Ok(0xcc))
    }

    /// Brings all threads into the state that the present job wants, after anything has stopped some of them.
    pub(super) fn settle(&mut self) {
        if self.has_ended() || self.threads.is_empty() || self.holds > 0 {
            return;
        }
        let result = match self.job.clone() {
            Job::Held => Ok(()),
            Job::Free => self.settle_free(),
            Job::Stepping(stepping) => self.advance(stepping),
        };
        if let Err(error) = result {
            // Killed at this moment: the next wait tells.
            log::debug!("guest {}: {error}", self.pid);
        }
    }

    pub(super) fn settle_free(&mut self) -> Result<(), ControlError> {
        if self.holds > 0 {
            // What is to be told or resumed waits: the main loop comes back to it.
            return Ok(());
        }
        while let Some((tid, reason)) = self.take_cause() {
            if self.debugger_cares(tid, reason) {
                return self.report(tid, reason);
            }
            // Others may have something to tell.
        }
        if let Some((tid, reason)) = self.take_halted() {
            return self.report(tid, reason);
        }
        if !self.ends.is_empty() {
            return self.report_end();
        }
        if let Some(tid) = self.take_passed()? {
            // The others stand still meanwhile: the breakpoint is not in the text.
            self.stop_all(STOP_TIMEOUT)?;
            self.lift();
            return self.start_step(tid, Goal::Over);
        }
        self.plant();
        let stopped: Vec<_> = self
            .threads
            .values()
            .filter(|thread| thread.stop().is_some() && thread.action != Action::Hold)
            .map(|thread| (thread.tid, matches!(thread.action, Action::Step(_))))
            .collect();
        stopped
            .into_iter()
            .try_for_each(|(tid, step)| self.go(tid, step))?;
        self.tell_if_none_runs();
        Ok(())
    }

    /// A cause that is yet to be told, if any thread has one: first of all that of one that steps, as nobody would know
    /// later what for.
    pub(super) fn take_cause(&mut self) -> Option<(HostTid, StopReason)> {
        let mut of = |wanted: fn(&Action) -> bool| {
            let mut threads = self.threads.values_mut();
            threads.find_map(|thread| {
                if !wanted(&thread.action) {
                    return None;
                }
                let tid = thread.tid;
                let cause = thread.stop_mut()?.cause.take()?;
                Some((tid, cause))
            })
        };
        of(|action| matches!(action, Action::Step(_)))
            .or_else(|| of(|action| *action == Action::Run))
    }

    /// Whether a cause means a stop for the debugger (or, at its start, a hold).
    pub(super) fn debugger_cares(&mut self, tid: HostTid, reason: StopReason) -> bool {
        match reason {
            StopReason::Breakpoint(addr) => {
                let space = self.space_of(tid);
                let set = space.is_some_and(|space| space.breakpoints.is_debuggers(addr));
                let debuggers = self.has_debugger() && (set || self.has_own_int3(tid, addr));
                let own = self.on_own_breakpoint(addr);
                if !(debuggers || own) {
                    // Nobody wants it any more: the instruction was never executed, and is when the thread runs on.
                    log::debug!("guest thread {tid}: stale breakpoint at {addr}");
                }
                debuggers || own
            }
            // Not stepping any more: the step was cut short.
            StopReason::Step => self.has_stepped(tid),
            // It may have been killed since.
            StopReason::Fork(child) | StopReason::Vfork(child) => {
                self.has_debugger() && self.processes.contains(child)
            }
            _ => self.has_debugger(),
        }
    }

    /// Puts the breakpoints in, unless somebody holds the guest, who wants to read it as it is.
    pub(super) fn plant(&mut self) {
        if self.holds > 0 {
            return;
        }
        let lenders = self.lenders();
        self.processes.plant(&lenders);
    }

    pub(super) fn lift(&mut self) {
        self.processes.lift();
    }

    /// Stops everything, or, in non-stop, this thread, and tells the debugger.
    pub(super) fn report(&mut self, tid: HostTid, reason: StopReason) -> Result<(), ControlError> {
        self.end_excursion();
        if self.non_stop {
            self.job = Job::Free;
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.action = Action::Hold;
                thread.halt = None;
            }
        } else {
            self.hold_all()?;
        }
        if let StopReason::Fork(child) | StopReason::Vfork(child) = reason {
            self.processes.told(child, !self.non_stop);
            self.cpus.clear();
        }
        if let StopReason::Signal(_) = reason
            && let Some(stop) = self.threads.get_mut(&tid).and_then(Thread::stop_mut)
        {
            stop.told = true;
        }
        if let StopReason::Breakpoint(addr) = reason
            && let Some(thread) = self.threads.get_mut(&tid)
        {
            thread.reported_at = Some(addr.get());
        }
        let cpu = self.cpu_of(tid);
        let registers = match self.non_stop {
            true => Vec::new(),
            // One that was killed at this moment is asked for, and found out, later.
            false => self.stopped()?.all_registers().unwrap_or_default(),
        };
        self.tell_debugger(Event::Stopped {
            cpu,
            reason,
            registers,
        });
        match self.non_stop {
            true => self.settle_free(),
            false => Ok(()),
        }
    }

    /// Stops everything, for the debugger.
    fn hold_all(&mut self) -> Result<(), ControlError> {
        let stopped = self.stop_all(STOP_TIMEOUT);
        self.clock_stops();
        self.job = Job::Held;
        self.lift();
        if let Err(error) = stopped {
            self.alive()?;
            log::error!("guest {}: {error}", self.pid);
        }
        Ok(())
    }

    /// Stops everything, but not in non-stop, and tells the debugger that one of several processes has ended.
    fn report_end(&mut self) -> Result<(), ControlError> {
        if !self.non_stop {
            self.hold_all()?;
        }
        if let Some((pid, status)) = self.ends.pop_front() {
            self.tell_debugger(Event::ProcessExited { pid, status });
        }
        match self.non_stop {
            true => self.settle_free(),
            false => Ok(()),
        }
    }

    /// Lets one stopped thread run.
    pub(super) fn resume(&mut self, tid: HostTid) -> Result<(), ControlError> {
        self.go(tid, false)
    }

    /// Lets one stopped thread execute one instruction.
    pub(super) fn step_thread(&mut self, tid: HostTid) -> Result<(), ControlError> {
        self.go(tid, true)
    }

    fn go(&mut self, tid: HostTid, step: bool) -> Result<(), ControlError> {
        if self.holds > 0 {
            // It stays stopped, and is gone on with when the last hold has ended.
            return Ok(());
        }
        self.clock_goes();
        // In a process they are the debugger's business, unless the step is the engine's own.
        let holds_back = step && (!self.is_process() || self.job != Job::Free);
        let Some(thread) = self.threads.get_mut(&tid) else {
            return Ok(());
        };
        let Some(stop) = thread.stop().copied() else {
            return Ok(());
        };
        let request = |error| failed("resuming", tid, error);
        if stop.group && stop.deliver == 0 {
            sys::listen(tid).map_err(request)?;
            thread.state = State::Listening;
            return Ok(());
        }
        if thread.watchpoints_stale {
            thread.watchpoints_stale = false;
            if let Some(process) = self.processes.get(thread.pid)
                && let Err(error) = process.watchpoints.apply(tid)
            {
                log::warn!("watchpoints of guest thread {tid}: {error}");
            }
        }
        thread.reported_at = None;
        thread.stepping = step;
        if !holds_back {
            release_held(thread);
        }
        let resumed = match step {
            true => sys::step(tid, stop.deliver),
            false => sys::cont(tid, stop.deliver),
        };
        match resumed {
            // Killed at this moment, by the one that was let run before it, perhaps: it says so in the end.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            resumed => resumed.map_err(request)?,
        }
        thread.state = State::Running;
        Ok(())
    }

    // What the debugger asks for.

    pub(super) fn debug_stop(&mut self, timeout: Duration) -> Result<(), ControlError> {
        self.alive()?;
        if self.is_held() {
            return Ok(());
        }
        if let Err(error) = self.stop_all(timeout) {
            self.settle();
            return Err(error);
        }
        let job = self.job.clone();
        // A breakpoint that was hit on the way is the better reason; a half-done step is none.
        while let Some((tid, reason)) = self.take_cause() {
            let excursion = matches!(
                (&job, reason),
                (Job::Stepping(stepping), StopReason::Breakpoint(addr)) if stepping.returns_at(addr)
            );
            if !excursion && self.debugger_cares(tid, reason) {
                return self.report(tid, reason);
            }
        }
        if !self.ends.is_empty() {
            return self.report_end();
        }
        self.report(self.interrupted(), StopReason::Interrupt)
    }

    pub(super) fn debug_cont(&mut self) -> Result<(), ControlError> {
        self.held()?;
        self.run_on()
    }

    /// Lets everything run that is not to be held.
    pub(super) fn run_on(&mut self) -> Result<(), ControlError> {
        // What several CPUs ran into at once is told one by one.
        while let Some((tid, reason)) = self.take_cause() {
            if self.debugger_cares(tid, reason) {
                return self.report(tid, reason);
            }
        }
        self.job = Job::Free;
        self.settle_free()
    }

    pub(super) fn held(&self) -> Result<(), ControlError> {
        self.alive()?;
        if self.is_held() {
            Ok(())
        } else {
            Err(ControlError::Running)
        }
    }
}

/// Sends the signals again that were held back from a stopped thread. They come when it runs.
fn release_held(thread: &mut Thread) {
    for info in std::mem::take(&mut thread.held) {
        match sys::tgkill(thread.pid, thread.tid, info.signal()) {
            Ok(()) => thread.resent.push(info),
            Err(error) => log::debug!("sending signal {} again: {error}", info.signal()),
        }
    }
}
