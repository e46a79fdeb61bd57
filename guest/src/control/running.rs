//! What happens while the guest runs or steps: its signals, our traps, and what to do after each stop.
//!
//! Stepping has to keep out of the kernel's interrupt handlers, which are host signal handlers: a signal that arrives
//! between two steps is held back and sent again when the guest runs freely. Where that is impossible, because the
//! instruction itself faults or is a system call that waits for the signal, the handler is run as a whole, up to the
//! return from the signal (an [`Excursion`]), and stepping goes on behind it.

use std::ops::Range;
use std::time::{Duration, Instant};

use kscope_kernel::{CpuId, KernelAddr, Memory, MemoryExt};

use super::attach::block_sigchld_in;
use super::breakpoints::Owner;
use super::engine::{Engine, STOP_TIMEOUT, failed};
use super::sys::{self, SigInfo};
use super::threads::{State, Stop, Thread};
use super::{Action, ControlError, Event, HostTid, Step, StopReason};

/// The most bytes of the code that a signal handler returns to: `mov $15, %eax; syscall`.
const RESTORER_LEN: u64 = 16;

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

/// One thread's way through one or more steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stepping {
    tid: HostTid,
    goal: Goal,
    /// Where the present step began.
    origin: u64,
    excursion: Option<Excursion>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    /// Off a breakpoint, to run freely then.
    Over,
    /// One instruction.
    Instruction,
    /// Out of a range, or onto a breakpoint.
    Range(Range<u64>),
}

/// A signal handler that is run between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excursion {
    /// The next stop is the handler's first instruction.
    Entering,
    /// The handler runs, to the breakpoint at the code that it returns to.
    Handler { restorer: KernelAddr, frame: u64 },
    /// As `Handler`, but the thread first has to get off that breakpoint, which a nested handler's return hit.
    Nested { restorer: KernelAddr, frame: u64 },
    /// The return from the signal is being stepped through.
    Leaving { restorer: KernelAddr },
}

/// Signals that an instruction causes itself: holding them back would only cause them again.
pub(super) fn is_fault(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL
    )
}

/// Signals that no running kernel means to get, so that a debugger wants to know: the first is how it dies.
fn is_fatal(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGABRT | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGSYS | libc::SIGQUIT
    )
}

fn stops_group(signal: i32) -> bool {
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
        let Some(addr) = info
            .fault()
            .filter(|&addr| self.breakpoints.is_planted(addr))
        else {
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

    /// Whether a signal that comes to the thread now has to wait.
    pub(super) fn holds_back(&self, tid: HostTid) -> bool {
        match &self.job {
            Job::Stepping(stepping) if stepping.tid == tid => match stepping.excursion {
                // The system call may be waiting for just this signal.
                None => !self.takes_interrupts(stepping) && !self.at_syscall(stepping.origin),
                Some(Excursion::Handler { .. }) => false,
                Some(_) => true,
            },
            _ => false,
        }
    }

    /// Whether a step may end in the handler of an interrupt.
    fn takes_interrupts(&self, stepping: &Stepping) -> bool {
        self.step_irq && stepping.goal != Goal::Over
    }

    fn at_syscall(&self, pc: u64) -> bool {
        let mut code = [0; 2];
        self.memory().is_ok_and(|memory| {
            memory.read(KernelAddr(pc), &mut code).is_ok() && code == [0x0f, 0x05]
        })
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
        if let Some(addr) = self.watchpoints.triggered(tid) {
            stop.cause = Some(StopReason::Watchpoint(addr));
            return Ok(stop);
        }
        match info.code() {
            SI_KERNEL => {
                let mut regs = sys::registers(tid)?;
                let addr = KernelAddr(regs.rip.wrapping_sub(1));
                let ours = self.breakpoints.is_planted(addr);
                // One of ours that was taken out after the thread had run into it.
                let was_ours = !ours && !self.is_int3(addr);
                if !ours && !was_ours && self.is_process() && self.has_debugger() {
                    // Its own is a breakpoint like any other to its debugger.
                    regs.rip = addr.get();
                    sys::set_registers(tid, &regs)?;
                    stop.cause = Some(StopReason::Breakpoint(addr));
                } else if ours || was_ours {
                    regs.rip = addr.get();
                    let passes = ours && self.is_filtered_out(addr, &regs);
                    let passed = passes && self.emulate(&mut regs);
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

    pub(super) fn is_int3(&self, addr: KernelAddr) -> bool {
        self.memory()
            .is_ok_and(|memory| memory.read_u8(addr) == Ok(0xcc))
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

    fn settle_free(&mut self) -> Result<(), ControlError> {
        if self.holds > 0 {
            // What is to be told or resumed waits: the main loop comes back to it.
            return Ok(());
        }
        if let Some((tid, reason)) = self.take_cause() {
            if self.debugger_cares(tid, reason) {
                return self.report(tid, reason);
            }
            // Others may have something to tell.
            return self.settle_free();
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
            .try_for_each(|(tid, step)| self.go(tid, step))
    }

    /// A cause that is yet to be told, if any thread has one: first of all that of one that steps, as nobody would know
    /// later what for.
    fn take_cause(&mut self) -> Option<(HostTid, StopReason)> {
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
    fn debugger_cares(&mut self, tid: HostTid, reason: StopReason) -> bool {
        match reason {
            StopReason::Breakpoint(addr) => {
                let debuggers = self.has_debugger()
                    && (self.breakpoints.is_debuggers(addr) || self.has_own_int3(addr));
                let own = self.on_own_breakpoint(addr);
                if !(debuggers || own) {
                    // Nobody wants it any more: the instruction was never executed, and is when the thread runs on.
                    log::debug!("guest thread {tid}: stale breakpoint at {addr}");
                }
                debuggers || own
            }
            // Not stepping any more: the step was cut short.
            StopReason::Step => self.has_stepped(tid),
            _ => self.has_debugger(),
        }
    }

    /// Puts the breakpoints in, unless somebody holds the guest, who wants to read it as it is.
    pub(super) fn plant(&mut self) {
        if self.holds > 0 || self.borrowers > 0 {
            return;
        }
        if let Ok(memory) = self.memory().cloned() {
            self.breakpoints.plant(&memory);
        }
    }

    pub(super) fn lift(&mut self) {
        if let Ok(memory) = self.memory().cloned() {
            self.breakpoints.lift(&memory);
        }
    }

    /// Stops everything and tells the debugger.
    fn report(&mut self, tid: HostTid, reason: StopReason) -> Result<(), ControlError> {
        self.end_excursion();
        let stopped = self.stop_all(STOP_TIMEOUT);
        self.clock_stops();
        self.job = Job::Held;
        self.lift();
        if let Err(error) = stopped {
            self.alive()?;
            log::error!("guest {}: {error}", self.pid);
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
        // One that was killed at this moment is asked for, and found out, later.
        let registers = self.stopped()?.all_registers().unwrap_or_default();
        self.tell_debugger(Event::Stopped {
            cpu,
            reason,
            registers,
        });
        Ok(())
    }

    /// Lets one stopped thread run.
    fn resume(&mut self, tid: HostTid) -> Result<(), ControlError> {
        self.go(tid, false)
    }

    /// Lets one stopped thread execute one instruction.
    fn step_thread(&mut self, tid: HostTid) -> Result<(), ControlError> {
        self.go(tid, true)
    }

    fn go(&mut self, tid: HostTid, step: bool) -> Result<(), ControlError> {
        if self.holds > 0 {
            // It stays stopped, and is gone on with when the last hold has ended.
            return Ok(());
        }
        self.clock_goes();
        let pid = self.pid;
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
            if let Err(error) = self.watchpoints.apply(tid) {
                log::warn!("watchpoints of guest thread {tid}: {error}");
            }
        }
        thread.reported_at = None;
        thread.stepping = step;
        if !holds_back {
            release_held(pid, thread);
        }
        if step {
            sys::step(tid, stop.deliver).map_err(request)?;
        } else {
            sys::cont(tid, stop.deliver).map_err(request)?;
        }
        thread.state = State::Running;
        Ok(())
    }

    // Stepping.

    /// The stepping thread may have stopped: takes it one step on.
    fn advance(&mut self, mut stepping: Stepping) -> Result<(), ControlError> {
        let tid = stepping.tid;
        let Some(thread) = self.threads.get_mut(&tid) else {
            self.job = Job::Free;
            return Ok(());
        };
        let Some(stop) = thread.stop_mut() else {
            return self.advance_others(&stepping);
        };
        let cause = stop.cause.take();
        let deliver = stop.deliver;
        match (cause, stepping.excursion) {
            (Some(StopReason::Step), None) => self.after_step(stepping),
            (Some(StopReason::Step), Some(Excursion::Entering)) => self.enter_handler(stepping),
            (Some(StopReason::Step), Some(Excursion::Nested { restorer, frame })) => {
                stepping.excursion = Some(Excursion::Handler { restorer, frame });
                self.job = Job::Stepping(stepping);
                self.run_handler()
            }
            (Some(StopReason::Step), Some(Excursion::Leaving { restorer })) => {
                let pc = self.pc(tid)?;
                if (restorer.get()..restorer.get() + RESTORER_LEN).contains(&pc) {
                    return self.step_thread(tid);
                }
                stepping.excursion = None;
                if pc == stepping.origin {
                    // What the signal interrupted is still to be done.
                    self.job = Job::Stepping(stepping);
                    return self.step_thread(tid);
                }
                self.after_step(stepping)
            }
            (Some(StopReason::Breakpoint(addr)), Some(Excursion::Handler { restorer, frame }))
                if addr == restorer =>
            {
                self.handler_returns(stepping, restorer, frame)
            }
            (Some(reason), _) => {
                if self.debugger_cares(tid, reason) {
                    self.report(tid, reason)
                } else {
                    self.continue_stepping(stepping)
                }
            }
            (None, None)
                if deliver != 0 && !stops_group(deliver) && !self.takes_interrupts(&stepping) =>
            {
                stepping.excursion = Some(Excursion::Entering);
                self.job = Job::Stepping(stepping);
                self.step_thread(tid)
            }
            (None, _) => self.continue_stepping(stepping),
        }
    }

    /// Goes on with a step that something has come between.
    fn continue_stepping(&mut self, stepping: Stepping) -> Result<(), ControlError> {
        match stepping.excursion {
            Some(Excursion::Handler { .. }) => self.run_handler(),
            _ => self.step_thread(stepping.tid),
        }
    }

    /// While a handler runs, so do the other threads, which may hold a lock that it wants.
    fn advance_others(&mut self, stepping: &Stepping) -> Result<(), ControlError> {
        if !matches!(stepping.excursion, Some(Excursion::Handler { .. })) {
            return Ok(());
        }
        if let Some((tid, reason)) = self.take_cause()
            && self.debugger_cares(tid, reason)
        {
            return self.report(tid, reason);
        }
        self.run_handler()
    }

    fn pc(&self, tid: HostTid) -> Result<u64, ControlError> {
        let regs =
            sys::registers(tid).map_err(|error| failed("reading the registers", tid, error))?;
        Ok(regs.rip)
    }

    /// An instruction has been executed.
    fn after_step(&mut self, mut stepping: Stepping) -> Result<(), ControlError> {
        let tid = stepping.tid;
        let pc = self.pc(tid)?;
        if stepping.goal == Goal::Over {
            self.stepped_over(tid);
            self.job = Job::Free;
            return self.settle_free();
        }
        let goes_on = matches!(&stepping.goal, Goal::Range(range) if range.contains(&pc));
        if self.breakpoints.is_debuggers(KernelAddr(pc)) {
            // At a step's end the debugger looks for itself.
            let regs =
                sys::registers(tid).map_err(|error| failed("reading the registers", tid, error))?;
            if !goes_on || !self.is_filtered_out(KernelAddr(pc), &regs) {
                return self.report(tid, StopReason::Breakpoint(KernelAddr(pc)));
            }
        }
        if goes_on {
            stepping.origin = pc;
            self.job = Job::Stepping(stepping);
            return self.step_thread(tid);
        }
        self.report(tid, StopReason::Step)
    }

    /// The thread is at a handler's first instruction: has it run to its return.
    fn enter_handler(&mut self, mut stepping: Stepping) -> Result<(), ControlError> {
        let tid = stepping.tid;
        let regs =
            sys::registers(tid).map_err(|error| failed("reading the registers", tid, error))?;
        let frame = regs.rsp;
        let Ok(restorer) = self.memory()?.read_addr(KernelAddr(frame)) else {
            // No frame: an ignored signal, and an ordinary step.
            stepping.excursion = None;
            return self.after_step(stepping);
        };
        if regs.rip == stepping.origin || !self.is_restorer(restorer) {
            // Likewise.
            stepping.excursion = None;
            return self.after_step(stepping);
        }
        self.breakpoints.insert(restorer, Owner::Engine);
        stepping.excursion = Some(Excursion::Handler { restorer, frame });
        self.job = Job::Stepping(stepping);
        self.run_handler()
    }

    /// Whether the code at `addr` is `mov $15, %eax` or `%rax`, as every return from a signal begins.
    fn is_restorer(&self, addr: KernelAddr) -> bool {
        let mut code = [0; 9];
        self.memory().is_ok_and(|memory| {
            memory.read(addr, &mut code).is_ok()
                && (code.starts_with(&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05])
                    || code.starts_with(&[0xb8, 15, 0, 0, 0, 0x0f, 0x05]))
        })
    }

    /// Lets everything run while a handler does.
    fn run_handler(&mut self) -> Result<(), ControlError> {
        self.plant();
        let stopped: Vec<_> = self
            .threads
            .values()
            .filter(|thread| thread.stop().is_some())
            .map(|thread| thread.tid)
            .collect();
        stopped.into_iter().try_for_each(|tid| self.resume(tid))
    }

    /// A handler returns: ours, or one that interrupted it.
    fn handler_returns(
        &mut self,
        mut stepping: Stepping,
        restorer: KernelAddr,
        frame: u64,
    ) -> Result<(), ControlError> {
        let tid = stepping.tid;
        let regs =
            sys::registers(tid).map_err(|error| failed("reading the registers", tid, error))?;
        // As it was, so that stopping the others leaves it alone.
        self.stop_all(STOP_TIMEOUT)?;
        self.lift();
        stepping.excursion = Some(if regs.rsp < frame {
            Excursion::Nested { restorer, frame }
        } else {
            let memory = self.memory()?.clone();
            self.breakpoints.remove(&memory, restorer, Owner::Engine)?;
            Excursion::Leaving { restorer }
        });
        self.job = Job::Stepping(stepping);
        self.step_thread(tid)
    }

    /// Takes the engine's own breakpoint of an excursion out.
    fn end_excursion(&mut self) {
        let Job::Stepping(stepping) = &self.job else {
            return;
        };
        let (Some(Excursion::Handler { restorer, .. }) | Some(Excursion::Nested { restorer, .. })) =
            stepping.excursion
        else {
            return;
        };
        if let Ok(memory) = self.memory().cloned()
            && let Err(error) = self.breakpoints.remove(&memory, restorer, Owner::Engine)
        {
            log::warn!("breakpoint at a signal's return: {error}");
        }
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
                (
                    Job::Stepping(Stepping { excursion: Some(Excursion::Handler { restorer, .. }), .. }),
                    StopReason::Breakpoint(addr),
                ) if addr == *restorer
            );
            if !excursion && self.debugger_cares(tid, reason) {
                return self.report(tid, reason);
            }
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

    pub(super) fn debug_step(&mut self, cpu: CpuId, step: Step) -> Result<(), ControlError> {
        self.held()?;
        let tid = self.thread_of(cpu)?;
        let goal = match step {
            Step::Instruction => Goal::Instruction,
            Step::Range(range) => Goal::Range(range.start.get()..range.end.get()),
        };
        self.start_step(tid, goal)?;
        self.see_through()
    }

    /// Waits for the end of a step, if it is a quick one, as nearly all are: who has asked for it hears of both at once.
    fn see_through(&mut self) -> Result<(), ControlError> {
        const PATIENCE: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + PATIENCE;
        // Another command ends the wait, as does the host's answer or a tick.
        while matches!(self.job, Job::Stepping(_))
            && self.commands.is_empty()
            && Instant::now() < deadline
        {
            self.wait_for_threads(true)?;
            self.settle();
        }
        Ok(())
    }

    fn start_step(&mut self, tid: HostTid, goal: Goal) -> Result<(), ControlError> {
        let origin = self.pc(tid)?;
        self.job = Job::Stepping(Stepping {
            tid,
            goal,
            origin,
            excursion: None,
        });
        let Some(stop) = self.threads.get_mut(&tid).and_then(Thread::stop_mut) else {
            return Err(ControlError::Ended);
        };
        if stop.deliver == 0 {
            return self.step_thread(tid);
        }
        // A signal that was about to be delivered when the guest was stopped has to wait as any other.
        let info =
            sys::signal_info(tid).map_err(|error| failed("reading the signal", tid, error))?;
        let keep = is_fault(stop.deliver)
            || stops_group(stop.deliver)
            || is_fatal(stop.deliver)
            || stop.deliver == libc::SIGTRAP;
        if !keep && self.holds_back(tid) {
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.hold_back(info);
                if let Some(stop) = thread.stop_mut() {
                    stop.deliver = 0;
                }
            }
            return self.step_thread(tid);
        }
        self.settle();
        Ok(())
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
fn release_held(pid: HostTid, thread: &mut Thread) {
    for info in std::mem::take(&mut thread.held) {
        match sys::tgkill(pid, thread.tid, info.signal()) {
            Ok(()) => thread.resent.push(info),
            Err(error) => log::debug!("sending signal {} again: {error}", info.signal()),
        }
    }
}
