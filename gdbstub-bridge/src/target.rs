//! The guest that a client debugs: its threads, its memory, and what it has stopped for. What gdbstub makes of it is in
//! [`crate::ops`].

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::breakpoints::WatchKind;
use kscope_guest::control::{
    ControlError, Debugger, Event, ExitStatus, Filter, HostTid, StopReason, VCpu,
};
use kscope_guest::mem::ProcMem;
use kscope_kernel::{CpuId, Image, Kernel, KernelAddr, ModuleFile, Reg, Registers};

use crate::arch::Number;
use crate::console::Console;
use crate::modules::Modules;
use crate::process::{Process, name};
use crate::resume::Plan;
use crate::rsp::Threads as Named;
use crate::signals::to_gdb;
use crate::space::{Space, Unwritable, View};
use crate::threads::{Description, Thread, Threads, describe};
use crate::trouble::Trouble;

/// What ends a session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fatal {
    /// The engine could not do something that nothing works without.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// gdbstub cannot be set up.
    #[error("protocol: {0}")]
    Stub(String),
}

/// What `gdbstub` wants to be told of a stop.
pub(crate) type Stop = MultiThreadStopReason<u64>;

/// A watchpoint as the client has named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watchpoint {
    /// The process that it is in.
    pub(crate) pid: HostTid,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) kind: WatchKind,
}

/// A guest that a client debugs.
pub(crate) struct GuestTarget {
    pub(crate) debugger: Debugger,
    /// The kernel's; None for an ordinary process.
    pub(crate) image: Option<Image>,
    /// What is known of an ordinary process; None for a guest.
    pub(crate) process: Option<Process>,
    /// The threads of a process stop by themselves.
    pub(crate) non_stop: bool,
    /// None when the kernel has no types: then there are CPUs, but no tasks.
    pub(crate) kernel: Option<Kernel<ProcMem>>,
    pub(crate) space: Space,
    /// The threads at this stop, as far as anybody has asked.
    pub(crate) threads: Option<Threads>,
    /// The thread that the client was told of with the last stop, and its CPU.
    stopped: Option<(Tid, CpuId)>,
    /// What the next resumption does.
    pub(crate) plan: Plan,
    /// The signal that the guest is about to be given, with its CPU.
    pub(crate) signal: Option<(CpuId, i32)>,
    /// The watchpoints that are set.
    pub(crate) watchpoints: Vec<Watchpoint>,
    /// The breakpoints that the client has set.
    pub(crate) client_breakpoints: HashSet<KernelAddr>,
    /// The client knows what scheduler-locking does not do.
    pub(crate) told_of_locking: bool,
    /// Whether interrupts are taken while stepping.
    pub(crate) step_irq: bool,
    /// What stops the guest by itself.
    pub(crate) trouble: Trouble,
    /// The guest's modules.
    pub(crate) modules: Modules,
    /// What breakpoints print.
    pub(crate) console: Arc<Console>,
}

impl GuestTarget {
    pub(crate) fn new(debugger: Debugger) -> Result<Self, ControlError> {
        let control = debugger.control();
        let memory = control.memory()?;
        let image = control.image().ok().cloned();
        let process = image.is_none().then(|| Process::new(control.pid()));
        let kernel = image.clone().and_then(|image| {
            let kernel = Kernel::new(image, memory.clone());
            kernel
                .inspect_err(|error| log::warn!("threads are CPUs, not tasks: {error}"))
                .ok()
        });
        Ok(Self {
            debugger,
            image,
            process,
            non_stop: false,
            space: Space::new(memory, kernel.clone()),
            kernel,
            threads: None,
            stopped: None,
            plan: Plan::default(),
            signal: None,
            watchpoints: Vec::new(),
            client_breakpoints: HashSet::new(),
            told_of_locking: false,
            step_irq: false,
            trouble: Trouble::default(),
            modules: Modules::default(),
            console: Arc::new(Console::new().map_err(std::io::Error::from)?),
        })
    }

    /// The guest has run: what was known of its threads is void.
    pub(crate) fn forget(&mut self) {
        self.threads = None;
        self.signal = None;
    }

    /// The threads that are on a CPU.
    pub(crate) fn running(&mut self) -> Result<&Threads, ControlError> {
        if self.threads.is_none() {
            let registers = self.debugger.all_registers()?;
            self.set_running(registers);
        }
        self.threads.as_ref().ok_or(ControlError::Ended)
    }

    fn set_running(&mut self, registers: Vec<(VCpu, Registers)>) {
        let is_process = self.process.is_some();
        self.threads = Some(Threads::running(
            registers,
            self.kernel.as_ref(),
            is_process,
        ));
    }

    /// Sets a breakpoint of the client's.
    pub(crate) fn insert_for_client(
        &mut self,
        addr: KernelAddr,
        filter: Option<Filter>,
    ) -> Result<(), ControlError> {
        if self.modules.is_gone(addr) {
            // It cannot be hit, and what is there now is not its code.
            return Ok(());
        }
        let is_new = self.client_breakpoints.insert(addr);
        let set = self.set_breakpoint(addr, filter);
        if set.is_err() && is_new {
            self.client_breakpoints.remove(&addr);
        }
        set
    }

    /// All threads.
    pub(crate) fn threads(&mut self) -> Result<&Threads, ControlError> {
        self.running()?;
        let threads = self.threads.as_mut().ok_or(ControlError::Ended)?;
        if let Some(kernel) = &self.kernel {
            threads.complete(kernel);
        }
        Ok(threads)
    }

    /// A thread, without reading all of them where one that runs is meant.
    pub(crate) fn thread(&mut self, tid: Tid) -> Result<Option<Thread>, ControlError> {
        if let Some(thread) = self.running()?.get(tid) {
            return Ok(Some(thread.clone()));
        }
        Ok(self.threads()?.get(tid).cloned())
    }

    /// What a client is shown of a thread, if it is listed.
    pub(crate) fn describe(&self, tid: Tid) -> Option<Description> {
        let threads = self.threads.as_ref()?;
        let thread = threads.get(tid)?;
        if let (Some(_), Some(vcpu)) = (&self.process, thread.cpu) {
            return Some(Description {
                name: name(vcpu.pid, vcpu.tid),
                cpu: None,
            });
        }
        Some(match threads.kernel() {
            Some(kernel) => describe(Some(kernel), thread),
            None => describe(self.kernel.as_ref(), thread),
        })
    }

    /// Whether nothing is left over from the last stop.
    pub(crate) fn has_none_pending(&self) -> bool {
        self.modules.pending.is_none()
    }

    /// What has happened since, the oldest first.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let pending = self.modules.pending;
        match pending {
            Some((cpu, reason)) => Some(Event::Stopped {
                cpu,
                reason,
                // It has stood still since: they are asked for when they are wanted.
                registers: Vec::new(),
            }),
            None => self.debugger.next_event(),
        }
    }

    /// What to tell the client of an event. None for one that was only of interest here: the guest runs on.
    pub(crate) fn on_event(&mut self, event: Event) -> Result<Option<Stop>, ControlError> {
        self.forget();
        self.stopped = None;
        let (cpu, reason) = match event {
            Event::Exited(ExitStatus::Exited(code)) => {
                return Ok(Some(Stop::Exited(code as u8)));
            }
            Event::Exited(ExitStatus::Signaled(signal)) => {
                return Ok(Some(Stop::Terminated(to_gdb(signal))));
            }
            Event::Exited(ExitStatus::Unknown) => return Ok(Some(Stop::Exited(0))),
            // Told by the session.
            Event::ThreadExited { .. } | Event::NoneRuns => return Ok(None),
            Event::ProcessExited { pid, status } => {
                let tid = self.note_end(pid, status).unwrap_or(Tid::MIN);
                let signal = Signal::SIGTRAP;
                return Ok(Some(Stop::SignalWithThread { tid, signal }));
            }
            Event::Stopped {
                cpu,
                reason,
                registers,
            } => {
                if !registers.is_empty() {
                    self.set_running(registers);
                }
                (cpu, reason)
            }
        };
        if let Some(stop) = self.trouble_of(cpu, reason)? {
            return Ok(Some(stop));
        }
        let reason = match self.module_event(cpu, reason)? {
            ControlFlow::Break(stop) => return Ok(stop),
            ControlFlow::Continue(reason) => reason,
        };
        let own = self.is_awaited(reason);
        if !self.is_for_client(cpu, reason)? {
            return Ok(None);
        }
        // A breakpoint that the client has not set would be news to it.
        let reason = if own { StopReason::Interrupt } else { reason };
        let threads = self.running()?;
        let tid = threads
            .on(cpu)
            .or(threads.ids().first().copied())
            .unwrap_or(Tid::MIN);
        self.stopped = Some((tid, cpu));
        self.choose(Named::One(tid));
        self.note(reason);
        let with = |signal| Stop::SignalWithThread { tid, signal };
        Ok(Some(match reason {
            StopReason::Breakpoint(_) => Stop::SwBreak(tid),
            StopReason::Step
            | StopReason::Exec
            | StopReason::Created
            | StopReason::Fork(_)
            | StopReason::Vfork(_)
            | StopReason::VforkDone => with(Signal::SIGTRAP),
            StopReason::Halt => with(Signal::SIGZERO),
            StopReason::Interrupt => with(Signal::SIGINT),
            StopReason::Signal(signal) => {
                self.signal = Some((cpu, signal));
                with(to_gdb(signal))
            }
            StopReason::Watchpoint(addr) => {
                let pid = self.pid();
                let watchpoint = self.watchpoints.iter().find(|watchpoint| {
                    let Watchpoint {
                        addr: start, len, ..
                    } = **watchpoint;
                    watchpoint.pid == pid
                        && (start..start.saturating_add(len)).contains(&addr.get())
                });
                Stop::Watch {
                    tid,
                    kind: watchpoint.map_or(WatchKind::Write, |watchpoint| watchpoint.kind),
                    addr: addr.get(),
                }
            }
        }))
    }

    /// The thread that the client was told of with the last stop.
    pub(crate) fn stopped_thread(&self) -> Option<Tid> {
        self.stopped.map(|(tid, _)| tid)
    }

    /// The client is told that this thread has stopped, on account of this CPU.
    pub(crate) fn set_stopped(&mut self, tid: Tid, cpu: CpuId) {
        self.stopped = Some((tid, cpu));
    }

    /// The registers that go along with the news of a stop: those that a client would ask for first.
    pub(crate) fn expedited(&self) -> Vec<(Number, Vec<u8>)> {
        let registers = self.stopped.and_then(|(tid, cpu)| {
            let threads = self.threads.as_ref()?;
            // Not of a task that sleeps.
            threads
                .registers(cpu)
                .filter(|_| threads.on(cpu) == Some(tid))
        });
        let Some(registers) = registers else {
            return Vec::new();
        };
        let value = |reg| Some((Number::of(reg), registers.get(reg)?.to_le_bytes().to_vec()));
        [Reg::Rbp, Reg::Rsp, Reg::Rip]
            .into_iter()
            .filter_map(value)
            .collect()
    }

    /// What a thread sees; none: the one that stopped.
    fn view(&mut self, tid: Option<Tid>) -> View {
        if self.process.is_some() {
            return View::default();
        }
        let Some(tid) = tid.or_else(|| self.running().ok()?.ids().first().copied()) else {
            return View::default();
        };
        let Ok(Some(thread)) = self.thread(tid) else {
            return View::default();
        };
        let registers = thread
            .cpu
            .and_then(|vcpu| self.threads.as_ref()?.registers(vcpu.cpu));
        let pc = registers.and_then(Registers::pc);
        self.space.view(thread.task.as_ref(), pc)
    }

    /// Reads as many of the bytes at `addr` as there are before the first hole, as a thread sees them.
    pub(crate) fn read_memory(&mut self, tid: Option<Tid>, addr: u64, buf: &mut [u8]) -> usize {
        if ModuleFile::is_nowhere(KernelAddr(addr)) {
            // Of code that is no more, a client wants to see where its prologue ends.
            buf.fill(0);
            return buf.len();
        }
        if self.non_stop {
            // Breakpoints are in the text.
            let read = self.debugger.read_memory(KernelAddr(addr), buf.len());
            let read = read.unwrap_or_default();
            buf.iter_mut().zip(&read).for_each(|(to, from)| *to = *from);
            return read.len();
        }
        let view = self.view(tid);
        self.space.read(view, addr, buf)
    }

    /// Writes memory as a thread sees it. False when any of it cannot be.
    pub(crate) fn write_bytes(&mut self, tid: Option<Tid>, addr: u64, bytes: &[u8]) -> bool {
        let view = self.view(tid);
        let debugger = &self.debugger;
        let written = self.space.write(view, addr, bytes, |at, bytes| {
            debugger.write_memory(at, bytes).map_err(|error| {
                log::info!("{error}");
                Unwritable::Unmapped
            })
        });
        // Task lists may be what was written.
        self.threads = None;
        if let Err(Unwritable::ReadOnly) = written {
            log::info!(
                "not written: the page at {addr:#x} may not be the process's own (it is written to by nobody yet)"
            );
        }
        written.is_ok()
    }

    /// The CPU that a thread is on; of none, that of the one that stopped.
    pub(crate) fn cpu_of(&mut self, tid: Option<Tid>) -> Option<CpuId> {
        let tid = tid.or(self.stopped_thread());
        let tid = tid.or_else(|| self.running().ok()?.ids().first().copied())?;
        Some(self.thread(tid).ok()??.cpu?.cpu)
    }
}
