//! Continuing and stepping: from GDB's actions per thread to the engine's per CPU.
//!
//! A thread is a task, and a task that sleeps is on no CPU. Stepping one means to let the guest run until it is
//! scheduled: a breakpoint at the address where every task comes back to its own stack, which counts only for this one.

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::multithread::{
    MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};
use kscope_guest::control::{ControlError, Hit, Step, StopReason, Verdict};
use kscope_kernel::{CpuId, KernelAddr, Reg};

use crate::signals::to_gdb;
use crate::target::{Fatal, GuestTarget};

/// What the next resumption does, and what the present one waits for.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    step: Option<(Tid, Step)>,
    /// The task that is being stepped.
    stepping: Option<(Tid, Step)>,
    /// The signal that the client wants to have delivered.
    signal: Option<Signal>,
    awaited: Option<Awaited>,
    /// The client has asked for a stop since.
    pub(crate) interrupted: bool,
}

/// A sleeping task that is to be stepped when it is scheduled.
#[derive(Debug)]
struct Awaited {
    tid: Tid,
    /// Where it comes back.
    addr: KernelAddr,
    step: Step,
    /// The client has a breakpoint there, too.
    shared: bool,
}

impl Plan {
    /// The step that the present resumption is, if it is one, and of which task.
    pub(crate) fn step_under_way(&self) -> Option<(Tid, Step)> {
        let stepping = self.stepping.as_ref();
        stepping.filter(|_| self.awaited.is_none()).cloned()
    }
}

impl GuestTarget {
    fn resume_guest(&mut self) -> Result<(), ControlError> {
        if self.modules.pending.is_some() {
            // The client is to hear of a breakpoint of its own first.
            return Ok(());
        }
        if self.process.is_some() {
            return self.resume_process();
        }
        // Unless the client says so, a signal that it was told of is not delivered.
        if let Some((cpu, signal)) = self.signal.take()
            && self.plan.signal != Some(to_gdb(signal))
        {
            self.debugger.discard_signal(cpu)?;
        }
        let Some((tid, step)) = self.plan.step.take() else {
            self.forget();
            return self.debugger.cont();
        };
        self.step_task(tid, step)
    }

    /// Steps a task, when it is scheduled if it sleeps.
    pub(crate) fn step_task(&mut self, tid: Tid, step: Step) -> Result<(), ControlError> {
        if let Some(vcpu) = self.thread(tid)?.and_then(|thread| thread.cpu) {
            self.forget();
            self.plan.stepping = Some((tid, step.clone()));
            return self.debugger.step(vcpu.cpu, step);
        }
        if !self.await_task(tid, step)? {
            // A thread that is no more: the client will notice at the next stop, which comes at once.
            self.forget();
            return self.debugger.step(CpuId(0), Step::Instruction);
        }
        Ok(())
    }

    /// Lets the guest run until a sleeping task is scheduled, to be stepped then. False when it does not sleep.
    fn await_task(&mut self, tid: Tid, step: Step) -> Result<bool, ControlError> {
        let thread = self.thread(tid)?;
        let place = thread
            .filter(|thread| thread.cpu.is_none())
            .and_then(|thread| {
                let kernel = self.kernel.as_ref()?;
                // One that has exited never comes back.
                let task = thread
                    .task
                    .as_ref()
                    .filter(|task| !matches!(task.state.0, 'X' | 'Z'))?;
                let pc = kernel.saved_registers(task).ok()?.pc()?;
                Some((KernelAddr(pc), kernel.stack_of(task)))
            });
        let Some((addr, stack)) = place else {
            return Ok(false);
        };
        let shared = self.client_breakpoints.contains(&addr);
        if !shared {
            // All tasks come back there; whose stack it is says which one does.
            let is_its = move |hit: &Hit<'_>| match stack.contains(&hit.register(Reg::Rsp)) {
                true => Verdict::Stop,
                false => Verdict::Continue,
            };
            self.debugger
                .insert_filtered_breakpoint(addr, Box::new(is_its))?;
        }
        self.forget();
        self.plan.stepping = None;
        self.plan.awaited = Some(Awaited {
            tid,
            addr,
            step,
            shared,
        });
        self.debugger.cont()?;
        Ok(true)
    }

    /// A step is done. If it has taken the CPU to another task, the one that was to be stepped now sleeps: it is stepped
    /// on when it is scheduled again, and the client need not hear of this.
    fn has_left(&mut self, cpu: CpuId) -> Result<bool, ControlError> {
        let Some((tid, step)) = self.plan.stepping.clone() else {
            return Ok(false);
        };
        if self.plan.interrupted || self.running()?.on(cpu) == Some(tid) {
            return Ok(false);
        }
        self.await_task(tid, step)
    }

    /// What the client waits for no longer matters: there is something else to tell.
    pub(crate) fn give_up_waiting(&mut self) -> Result<(), ControlError> {
        match self.plan.awaited.take() {
            Some(awaited) if !awaited.shared => self.debugger.remove_breakpoint(awaited.addr),
            _ => Ok(()),
        }
    }

    /// Whether a stop is at a breakpoint that only a step of a sleeping task has set.
    pub(crate) fn is_awaited(&self, reason: StopReason) -> bool {
        let awaited = self.plan.awaited.as_ref();
        awaited.is_some_and(|awaited| {
            !awaited.shared && reason == StopReason::Breakpoint(awaited.addr)
        })
    }

    /// Whether the client is to hear of a stop. If not, the guest runs on.
    pub(crate) fn is_for_client(
        &mut self,
        cpu: CpuId,
        reason: StopReason,
    ) -> Result<bool, ControlError> {
        let Some(awaited) = self.plan.awaited.take() else {
            return Ok(reason != StopReason::Step || !self.has_left(cpu)?);
        };
        let here = reason == StopReason::Breakpoint(awaited.addr);
        let arrived = here && self.running()?.on(cpu) == Some(awaited.tid);
        if here && !awaited.shared && self.plan.interrupted {
            // What the client waits for is its interrupt, and there is no other stop to come for it.
            self.debugger.remove_breakpoint(awaited.addr)?;
            return Ok(true);
        }
        if here && !arrived && !awaited.shared {
            self.plan.awaited = Some(awaited);
            self.forget();
            self.debugger.cont()?;
            return Ok(false);
        }
        if !awaited.shared {
            self.debugger.remove_breakpoint(awaited.addr)?;
        }
        if !arrived {
            return Ok(true);
        }
        self.forget();
        self.plan.stepping = Some((awaited.tid, awaited.step.clone()));
        self.debugger.step(cpu, awaited.step)?;
        Ok(false)
    }
}

impl MultiThreadResume for GuestTarget {
    fn resume(&mut self) -> Result<(), Fatal> {
        match self.resume_guest() {
            // The end is an event, too, and is reported as such.
            Ok(()) | Err(ControlError::Ended) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn clear_resume_actions(&mut self) -> Result<(), Fatal> {
        self.plan = Plan::default();
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _: Tid, signal: Option<Signal>) -> Result<(), Fatal> {
        self.plan.signal = signal.or(self.plan.signal);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for GuestTarget {
    fn set_resume_action_step(&mut self, tid: Tid, signal: Option<Signal>) -> Result<(), Fatal> {
        self.plan.signal = signal.or(self.plan.signal);
        self.plan.step = Some((tid, Step::Instruction));
        Ok(())
    }
}

impl MultiThreadRangeStepping for GuestTarget {
    fn set_resume_action_range_step(
        &mut self,
        tid: Tid,
        start: u64,
        end: u64,
    ) -> Result<(), Fatal> {
        self.plan.step = Some((tid, Step::Range(KernelAddr(start)..KernelAddr(end))));
        Ok(())
    }
}

/// A step holds the other CPUs in any case. Tasks cannot be held: which one runs is the guest's own decision.
impl MultiThreadSchedulerLocking for GuestTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Fatal> {
        // Threads of an ordinary process are no tasks.
        if self.kernel.is_some() && self.plan.step.is_none() && !self.told_of_locking {
            self.told_of_locking = true;
            self.console.print(
                b"kscope: which task runs is up to the guest's scheduler, whatever scheduler-locking is; \
                  only a step holds the other CPUs\n",
            );
        }
        Ok(())
    }
}
