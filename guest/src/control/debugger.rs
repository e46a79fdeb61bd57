//! The debugger's handle on the engine, and how it hears of what the guest does.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use kscope_kernel::{CpuId, KernelAddr, Registers};
use nix::sys::eventfd::{EfdFlags, EventFd};

#[cfg(doc)]
use super::StopReason;
use super::engine::Engine;
use super::{Control, ControlError, Event, Filter, HostTid, Resume, Step, VCpu, WatchKind};
use crate::mem::ProcMem;

/// Where the engine puts a debugger's events.
pub(super) struct EventSink {
    sender: Sender<Event>,
    ready: Arc<EventFd>,
}

impl EventSink {
    /// Gives the debugger an event, and a sign of it unless it is going to look for itself.
    pub(super) fn send(&self, event: Event, looks: bool) {
        // A failure means that the debugger is going; the engine will hear of it.
        let _ = self.sender.send(event);
        if !looks {
            let _ = self.ready.write(1);
        }
    }
}

impl Control {
    /// Becomes the guest's debugger, of which there can be one. The guest is attached and, unless it is held at its
    /// start already, runs on.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] when there is one; else as [`Control::attach`].
    pub fn debug(&self) -> Result<Debugger, ControlError> {
        let (sender, events) = unbounded();
        let ready = Arc::new(
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(std::io::Error::from)?,
        );
        let out = EventSink {
            sender,
            ready: Arc::clone(&ready),
        };
        self.call(move |engine| engine.begin_debug(out))??;
        Ok(Debugger {
            control: self.clone(),
            events,
            ready,
        })
    }
}

/// The guest's one debugger. When it is dropped, breakpoints are taken out and the guest runs on.
///
/// Everything but [`stop`](Debugger::stop) and the breakpoints needs a stopped guest.
#[derive(Debug)]
pub struct Debugger {
    control: Control,
    events: Receiver<Event>,
    ready: Arc<EventFd>,
}

impl Debugger {
    /// The handle this came from.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Events, oldest first. See [`Debugger::next_event`] for use with `poll`.
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// The oldest event, if there is one. When there is none, the descriptor that `as_fd` gives is not readable until
    /// there is. To be called after a [visit](Control::visit), during which events come without a sign.
    pub fn next_event(&self) -> Option<Event> {
        if let Ok(event) = self.events.try_recv() {
            return Some(event);
        }
        // Cleared first, looked at again then: an event in between leaves it readable for nothing, never the reverse.
        let _ = self.ready.read();
        self.events.try_recv().ok()
    }

    /// Stops the guest. [`Event::Stopped`] follows, with [`StopReason::Interrupt`] unless something else came first;
    /// none does when it is stopped already.
    ///
    /// # Errors
    ///
    /// The guest has ended or did not stop in time.
    pub fn stop(&self, timeout: Duration) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.debug_stop(timeout))?
    }

    /// Lets the guest run, from where it stopped: a breakpoint that it stopped at does not stop it again at once.
    ///
    /// # Errors
    ///
    /// The guest has ended or is not stopped.
    pub fn cont(&self) -> Result<(), ControlError> {
        self.control.call(Engine::debug_cont)?
    }

    /// Lets the threads of a process run as each is told; those that are not named are held.
    ///
    /// # Errors
    ///
    /// The process has ended or is not stopped.
    pub fn resume(&self, resumes: Vec<Resume>) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.debug_resume(&resumes))?
    }

    /// Has signals of a process go to it without a word, unless it is being stepped.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn pass_signals(&self, signals: Vec<i32>) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.pass_signals = signals)
    }

    /// Whether the debugger is told of what a process forks, with [`StopReason::Fork`], [`StopReason::Vfork`] and
    /// [`StopReason::VforkDone`]. The child is then debugged, too.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn follow_forks(&self, on: bool) -> Result<(), ControlError> {
        self.control.call(move |engine| engine.follows_forks = on)
    }

    /// Has memory, breakpoints and watchpoints be those of one of several processes from now on. Returns its memory.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn select(&self, pid: HostTid) -> Result<ProcMem, ControlError> {
        self.control.call(move |engine| engine.select(pid))?
    }

    /// Lets one of several processes go.
    ///
    /// # Errors
    ///
    /// The processes have ended or are not stopped.
    pub fn detach_process(&self, pid: HostTid) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.detach_process(pid))?
    }

    /// Kills one of several processes, and waits for its end.
    ///
    /// # Errors
    ///
    /// The processes have ended or are not stopped.
    pub fn kill_process(&self, pid: HostTid) -> Result<(), ControlError> {
        self.control.call(move |engine| engine.kill_process(pid))?
    }

    /// Lets a process run on, and the engine let go of it, when this is dropped. A kernel does so in any case.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn detach(&self) -> Result<(), ControlError> {
        self.control.call(Engine::debug_detach)
    }

    /// The host's description, a `siginfo_t`, of what a CPU's thread has stopped for.
    ///
    /// # Errors
    ///
    /// The guest has ended, is not stopped, has no such CPU, or nothing is described.
    pub fn signal_info(&self, cpu: CpuId) -> Result<Vec<u8>, ControlError> {
        self.control
            .call(move |engine| engine.stopped()?.signal_info(cpu))?
    }

    /// Changes that description: `bytes` take the place of those at `offset`.
    ///
    /// # Errors
    ///
    /// As [`Debugger::signal_info`].
    pub fn set_signal_info(
        &self,
        cpu: CpuId,
        offset: usize,
        bytes: Vec<u8>,
    ) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.stopped()?.set_signal_info(cpu, offset, &bytes))?
    }

    /// Forgets the signal that [`StopReason::Signal`] told of, which would be delivered on the way on.
    ///
    /// # Errors
    ///
    /// The guest has ended, is not stopped, or has no such CPU.
    pub fn discard_signal(&self, cpu: CpuId) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.discard_signal(cpu))?
    }

    /// Steps one CPU while the others are held. [`Event::Stopped`] follows, which [`Debugger::stop`] can hasten.
    ///
    /// The kernel's timer and device interrupts are held back meanwhile, so that a step does not end up in their
    /// handlers.
    ///
    /// # Errors
    ///
    /// The guest has ended, is not stopped, or has no such CPU.
    pub fn step(&self, cpu: CpuId, step: Step) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.debug_step(cpu, step))?
    }

    /// Whether the kernel takes its interrupts while it is stepped: a step may then end in their handlers. It does not
    /// unless told so.
    ///
    /// # Errors
    ///
    /// The guest has ended.
    pub fn set_step_interrupts(&self, on: bool) -> Result<(), ControlError> {
        self.control.call(move |engine| engine.step_irq = on)
    }

    /// Sets a breakpoint. Setting it twice has no effect, but that a filter is gone.
    ///
    /// # Errors
    ///
    /// The guest has ended, or the address is not mapped.
    pub fn insert_breakpoint(&self, addr: KernelAddr) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.insert_breakpoint(addr, None))?
    }

    /// Sets a breakpoint that stops the guest only when the filter says so. Setting it again changes the filter.
    ///
    /// # Errors
    ///
    /// As [`Debugger::insert_breakpoint`].
    pub fn insert_filtered_breakpoint(
        &self,
        addr: KernelAddr,
        filter: Filter,
    ) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.insert_breakpoint(addr, Some(filter)))?
    }

    /// Removes a breakpoint, if there is one.
    ///
    /// # Errors
    ///
    /// The guest has ended, or the instruction cannot be restored.
    pub fn remove_breakpoint(&self, addr: KernelAddr) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.remove_breakpoint(addr))?
    }

    /// Watches `len` bytes with the debug registers of the processor. There are four, and each watches 1, 2, 4 or 8
    /// bytes, aligned to their length. The guest has to be stopped.
    ///
    /// What the host kernel writes on behalf of a system call is not seen.
    ///
    /// # Errors
    ///
    /// The guest has ended or runs, or there are not enough registers.
    pub fn insert_watchpoint(
        &self,
        addr: KernelAddr,
        len: u64,
        kind: WatchKind,
    ) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.insert_watchpoint(addr, len, kind))?
    }

    /// Removes a watchpoint, if there is one.
    ///
    /// # Errors
    ///
    /// The guest has ended or runs.
    pub fn remove_watchpoint(
        &self,
        addr: KernelAddr,
        len: u64,
        kind: WatchKind,
    ) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.remove_watchpoint(addr, len, kind))?
    }

    /// The guest's CPUs.
    ///
    /// # Errors
    ///
    /// The guest has ended or is not stopped.
    pub fn cpus(&self) -> Result<Vec<VCpu>, ControlError> {
        self.control
            .call(|engine| engine.stopped().map(|mut stopped| stopped.cpus()))?
    }

    /// The guest's CPUs and their registers.
    ///
    /// # Errors
    ///
    /// The guest has ended or is not stopped.
    pub fn all_registers(&self) -> Result<Vec<(VCpu, Registers)>, ControlError> {
        self.control
            .call(|engine| engine.stopped()?.all_registers())?
    }

    /// The registers of a CPU.
    ///
    /// # Errors
    ///
    /// The guest has ended, is not stopped, or has no such CPU.
    pub fn registers(&self, cpu: CpuId) -> Result<Registers, ControlError> {
        self.control
            .call(move |engine| engine.stopped()?.registers(cpu))?
    }

    /// Sets those registers of a CPU that are known in `registers`.
    ///
    /// # Errors
    ///
    /// The guest has ended, is not stopped, has no such CPU, or the host refuses a value.
    pub fn set_registers(&self, cpu: CpuId, registers: Registers) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.stopped()?.set_registers(cpu, &registers))?
    }

    /// The x87 and SSE registers of a CPU, as FXSAVE lays them out.
    ///
    /// # Errors
    ///
    /// As [`Debugger::registers`].
    pub fn fp_registers(&self, cpu: CpuId) -> Result<Box<[u8; 512]>, ControlError> {
        self.control
            .call(move |engine| engine.stopped()?.fp_registers(cpu))?
    }

    /// Sets the x87 and SSE registers of a CPU.
    ///
    /// # Errors
    ///
    /// As [`Debugger::set_registers`].
    pub fn set_fp_registers(&self, cpu: CpuId, area: Box<[u8; 512]>) -> Result<(), ControlError> {
        self.control
            .call(move |engine| engine.stopped()?.set_fp_registers(cpu, &area))?
    }

    /// Writes guest memory; under a breakpoint, the instruction that comes back when it is removed.
    ///
    /// # Errors
    ///
    /// The guest has ended, or a byte is not mapped.
    pub fn write_memory(&self, addr: KernelAddr, bytes: &[u8]) -> Result<(), ControlError> {
        let bytes = bytes.to_vec();
        self.control
            .call(move |engine| engine.write_memory(addr, &bytes))?
    }

    /// Whether the guest is stopped.
    pub fn is_stopped(&self) -> bool {
        self.control.is_stopped_by_debugger()
    }
}

impl AsFd for Debugger {
    /// Readable when there may be an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        self.control.send(Engine::end_debug);
    }
}
