//! Stepping one thread while the others are held.
//!
//! Stepping has to keep out of the kernel's interrupt handlers, which are host signal handlers: a signal that arrives
//! between two steps is held back and sent again when the guest runs freely. Where that is impossible, because the
//! instruction itself faults or is a system call that waits for the signal, the handler is run as a whole, up to the
//! return from the signal (an [`Excursion`]), and stepping goes on behind it.

use std::ops::Range;
use std::time::Duration;

use kscope_kernel::{CpuId, KernelAddr, Memory, MemoryExt};

use super::breakpoints::Owner;
use super::engine::{Engine, STOP_TIMEOUT, failed};
use super::running::{Job, is_fatal, is_fault, stops_group};
use super::sys;
use super::threads::Thread;
use super::{Action, ControlError, HostTid, Step, StopReason};

/// The most bytes of the code that a signal handler returns to: `mov $15, %eax; syscall`.
const RESTORER_LEN: u64 = 16;

/// The instruction with which the kernel calls the host.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

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
pub(super) enum Goal {
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

impl Stepping {
    /// Whether a breakpoint there is the engine's own, at which it takes a handler's return.
    pub(super) fn returns_at(&self, addr: KernelAddr) -> bool {
        matches!(self.excursion, Some(Excursion::Handler { restorer, .. }) if restorer == addr)
    }
}

impl Engine {
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
        self.wait_while(PATIENCE, |engine| matches!(engine.job, Job::Stepping(_)))
    }

    pub(super) fn start_step(&mut self, tid: HostTid, goal: Goal) -> Result<(), ControlError> {
        let origin = next_instruction(&registers(tid)?);
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

    /// Whether a signal that comes to the thread now has to wait.
    pub(super) fn holds_back(&self, tid: HostTid) -> bool {
        match &self.job {
            Job::Stepping(stepping) if stepping.tid == tid => match stepping.excursion {
                // The system call may be waiting for just this signal.
                None => !self.takes_interrupts(stepping) && !self.at_syscall(tid, stepping.origin),
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

    fn at_syscall(&self, tid: HostTid, pc: u64) -> bool {
        let mut code = [0; 2];
        self.space_of(tid).is_some_and(|space| {
            space.memory.read(KernelAddr(pc), &mut code).is_ok() && code == SYSCALL
        })
    }

    /// The stepping thread may have stopped: takes it one step on.
    pub(super) fn advance(&mut self, mut stepping: Stepping) -> Result<(), ControlError> {
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
                let pc = registers(tid)?.rip;
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

    /// An instruction has been executed.
    fn after_step(&mut self, mut stepping: Stepping) -> Result<(), ControlError> {
        let tid = stepping.tid;
        if stepping.goal == Goal::Over {
            self.stepped_over(tid);
            self.job = Job::Free;
            return self.settle_free();
        }
        let regs = registers(tid)?;
        let (pc, next) = (regs.rip, next_instruction(&regs));
        if next != pc {
            // A signal has interrupted the system call, which has not happened yet.
            stepping.origin = next;
            self.job = Job::Stepping(stepping);
            return self.step_thread(tid);
        }
        let goes_on = matches!(&stepping.goal, Goal::Range(range) if range.contains(&pc));
        let space = self.space_of(tid);
        if space.is_some_and(|space| space.breakpoints.is_debuggers(KernelAddr(pc))) {
            // At a step's end the debugger looks for itself.
            if !goes_on || !self.is_filtered_out(tid, KernelAddr(pc), &regs) {
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
        let regs = registers(tid)?;
        let frame = regs.rsp;
        let space = self.space_of(tid).ok_or(ControlError::Ended)?;
        let Ok(restorer) = space.memory.read_addr(KernelAddr(frame)) else {
            // No frame: an ignored signal, and an ordinary step.
            stepping.excursion = None;
            return self.after_step(stepping);
        };
        if regs.rip == stepping.origin || !self.is_restorer(tid, restorer) {
            // Likewise.
            stepping.excursion = None;
            return self.after_step(stepping);
        }
        let space = self.space_mut(self.pid_of(tid))?;
        space.breakpoints.insert(restorer, Owner::Engine);
        stepping.excursion = Some(Excursion::Handler { restorer, frame });
        self.job = Job::Stepping(stepping);
        self.run_handler()
    }

    /// Whether the code at `addr` is `mov $15, %eax` or `%rax`, as every return from a signal begins.
    fn is_restorer(&self, tid: HostTid, addr: KernelAddr) -> bool {
        let mut code = [0; 9];
        self.space_of(tid).is_some_and(|space| {
            space.memory.read(addr, &mut code).is_ok()
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
            .filter(|thread| thread.stop().is_some() && thread.action != Action::Hold)
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
        let regs = registers(tid)?;
        // As it was, so that stopping the others leaves it alone.
        self.stop_all(STOP_TIMEOUT)?;
        self.lift();
        stepping.excursion = Some(if regs.rsp < frame {
            Excursion::Nested { restorer, frame }
        } else {
            let space = self.space_mut(self.pid_of(tid))?;
            space.remove(restorer, Owner::Engine)?;
            Excursion::Leaving { restorer }
        });
        self.job = Job::Stepping(stepping);
        self.step_thread(tid)
    }

    /// Takes the engine's own breakpoint of an excursion out.
    pub(super) fn end_excursion(&mut self) {
        let Job::Stepping(stepping) = &self.job else {
            return;
        };
        let (Some(Excursion::Handler { restorer, .. }) | Some(Excursion::Nested { restorer, .. })) =
            stepping.excursion
        else {
            return;
        };
        let pid = self.pid_of(stepping.tid);
        if let Some(space) = self.processes.space_mut(pid)
            && let Err(error) = space.remove(restorer, Owner::Engine)
        {
            log::warn!("breakpoint at a signal's return: {error}");
        }
    }
}

/// The registers of a stopped thread.
fn registers(tid: HostTid) -> Result<libc::user_regs_struct, ControlError> {
    sys::registers(tid).map_err(|error| failed("reading the registers", tid, error))
}

/// Where a thread's next instruction is. A system call that was interrupted before it had done anything is done again:
/// the host sets the program counter back only on the way to it (`arch_do_signal_or_restart`).
fn next_instruction(regs: &libc::user_regs_struct) -> u64 {
    /// `ERESTARTSYS`, `ERESTARTNOINTR`, `ERESTARTNOHAND`, `ERESTART_RESTARTBLOCK` (include/linux/errno.h).
    const RESTARTS: [i64; 4] = [-512, -513, -514, -516];
    let in_call = regs.orig_rax.cast_signed() >= 0;
    match in_call && RESTARTS.contains(&regs.rax.cast_signed()) {
        true => regs.rip.wrapping_sub(SYSCALL.len() as u64),
        false => regs.rip,
    }
}
