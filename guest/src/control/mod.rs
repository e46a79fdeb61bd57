//! Control of a running guest: stop, resume, step, registers, breakpoints. All ptrace of kscope is here.
//!
//! ptrace belongs to one thread, so one engine thread per guest owns every relation, and a [`Control`] is a handle that
//! sends it work. The engine sleeps until it has some: nothing is attached, and the guest pays nothing, before somebody
//! asks; and when the last one who asked is gone, the guest is let go with its own bytes and its own signal mask.
//!
//! The guest kernel lives by host signals: SIGALRM is its timer, SIGIO its devices, SIGSEGV its page faults. They pass
//! through unseen. While the engine is attached it blocks SIGCHLD in a kernel that leaves it at the default action:
//! such a kernel gets one from each of its own processes' stops, and each would stop it for its tracer.

mod attach;
mod breakpoints;
mod clock;
mod emulate;
mod engine;
mod filters;
mod hold;
mod process;
mod registers;
mod requests;
mod running;
mod sys;
mod threads;
mod types;
mod watchpoints;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use kscope_kernel::{CpuId, Image, KernelAddr, Registers};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::mem::ProcMem;
use engine::Engine;
use sys::Waker;

pub use clock::{Clock, ClockError};
pub use filters::{Filter, Hit, Verdict};
pub use hold::Hold;
pub use process::{Exec, Spawned, give_terminal};
pub use requests::Stopped;
pub use sys::{block_sigchld, unblock_sigchld};
pub use types::{
    Action, ControlError, Event, ExitStatus, HostTid, Resume, Step, StopReason, VCpu, WatchKind,
};

/// Work for the engine thread.
type Command = Box<dyn FnOnce(&mut Engine) + Send>;

/// How an engine treats its guest.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether the guest is killed when this process dies while attached. So it should be for a guest of one's own; a
    /// guest that somebody else has started is better left alive.
    pub kill_on_exit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { kill_on_exit: true }
    }
}

/// How the guest ended, once it has.
#[derive(Debug, Default)]
struct Ending {
    status: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl Ending {
    fn set(&self, status: ExitStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.changed.notify_all();
    }

    fn get(&self) -> Option<ExitStatus> {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the handles share. When the last is gone, the engine ends.
struct Shared {
    pid: HostTid,
    image: Option<Image>,
    commands: Option<Sender<Command>>,
    waker: Arc<Waker>,
    ending: Arc<Ending>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A closed channel ends the engine, which has to wake up to see it.
        self.commands = None;
        self.waker.wake();
    }
}

/// A handle on the engine of one guest. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("pid", &self.shared.pid)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Starts the engine of the guest whose kernel process is `pid`. Nothing is attached.
    ///
    /// The engine also reaps the process when it is a child of this one: nobody else may wait for it.
    ///
    /// # Errors
    ///
    /// The process does not exist, or the host is out of descriptors or threads.
    pub fn start(pid: HostTid, image: Image) -> Result<Self, ControlError> {
        Self::start_with(pid, image, Options::default())
    }

    /// As [`Control::start`], with options.
    ///
    /// # Errors
    ///
    /// As [`Control::start`].
    pub fn start_with(pid: HostTid, image: Image, options: Options) -> Result<Self, ControlError> {
        Self::start_any(pid, Some(image), options)
    }

    /// Starts the engine of an ordinary process, which is this one's child. Nothing is attached.
    ///
    /// To the debugger each thread is a CPU, whose number is the thread's. It is told of every signal, but for those
    /// that it lets pass, and the process stays stopped when it goes, unless it detaches.
    ///
    /// # Errors
    ///
    /// As [`Control::start`].
    pub fn start_process(pid: HostTid) -> Result<Self, ControlError> {
        Self::start_any(pid, None, Options::default())
    }

    fn start_any(
        pid: HostTid,
        image: Option<Image>,
        options: Options,
    ) -> Result<Self, ControlError> {
        let waker = Arc::new(Waker::new()?);
        let ending = Arc::new(Ending::default());
        let (sender, receiver) = unbounded();
        let engine = Engine::new(
            pid,
            image.clone(),
            options,
            receiver,
            Arc::clone(&waker),
            Arc::clone(&ending),
        )?;
        thread::Builder::new()
            .name(format!("control {pid}"))
            .spawn(move || engine.run())?;
        Ok(Self {
            shared: Arc::new(Shared {
                pid,
                image,
                commands: Some(sender),
                waker,
                ending,
            }),
        })
    }

    /// The guest's kernel process.
    pub fn pid(&self) -> HostTid {
        self.shared.pid
    }

    /// The kernel that the guest runs.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoKernel`] when it is an ordinary process.
    pub fn image(&self) -> Result<&Image, ControlError> {
        let image = self.shared.image.as_ref();
        image.ok_or(ControlError::NoKernel(self.shared.pid))
    }

    /// Writes guest memory, whether or not the guest runs; under a breakpoint, the instruction that comes back when it
    /// is removed.
    ///
    /// # Errors
    ///
    /// The guest has ended, or a byte is not mapped.
    pub fn write_memory(&self, addr: KernelAddr, bytes: &[u8]) -> Result<(), ControlError> {
        let memory = self.memory()?;
        let bytes = bytes.to_vec();
        // On the engine's thread: nobody else knows what is in the text, or may change it meanwhile.
        self.call(move |engine| engine.breakpoints.write(&memory, addr, &bytes))?
    }

    /// Has the guest's clock stand still as long as a debugger has the guest stopped. It is otherwise the host's.
    ///
    /// # Errors
    ///
    /// The guest has ended.
    pub fn freeze_clock(&self, clock: Clock) -> Result<(), ControlError> {
        self.call(move |engine| engine.clock = Some(clock))
    }

    /// The guest's memory, readable while it runs. Breakpoints that are set show in it while the guest runs.
    ///
    /// # Errors
    ///
    /// The guest has ended.
    pub fn memory(&self) -> Result<ProcMem, ControlError> {
        Ok(ProcMem::open(self.shared.pid)?)
    }

    /// Attaches to the guest, which keeps running, and stays attached until the last attachment is dropped.
    ///
    /// # Errors
    ///
    /// The guest has ended, or the host does not allow it.
    pub fn attach(&self) -> Result<Attachment, ControlError> {
        self.call(Engine::attach)??;
        Ok(Attachment {
            control: self.clone(),
        })
    }

    /// Stops every CPU of the guest, runs `f` on the engine's thread and lets the guest run on.
    ///
    /// Attaches if nobody has. When a debugger holds the guest, `f` runs at once and the guest is left as it is.
    /// `timeout` bounds the stopping, not `f`.
    ///
    /// # Errors
    ///
    /// The guest has ended, cannot be attached, or did not stop in time.
    ///
    /// # Panics
    ///
    /// When `f` does; the guest runs on all the same.
    pub fn with_stopped<T, F>(&self, timeout: Duration, f: F) -> Result<T, ControlError>
    where
        F: FnOnce(&mut Stopped<'_>) -> T + Send + 'static,
        T: Send + 'static,
    {
        let outcome = self.call(move |engine| {
            engine.with_stopped(timeout, |stopped| {
                catch_unwind(AssertUnwindSafe(|| f(stopped)))
            })
        })??;
        outcome.map_err(|panic| resume_unwind(panic))
    }

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

    /// Takes hold of a process that has yet to exec the kernel, so that the kernel can be held at its start: the first
    /// instruction of `start_kernel`. To be followed by the exec and [`Control::wait_start`].
    ///
    /// # Errors
    ///
    /// The process has ended, cannot be attached, or its kernel lacks symbols.
    pub fn hold_at_start(&self) -> Result<(), ControlError> {
        self.call(Engine::hold_at_start)?
    }

    /// Takes hold of a process that has yet to exec its program, so that it is held right after that. To be followed by
    /// the exec and [`Control::wait_start`].
    ///
    /// # Errors
    ///
    /// The process has ended or cannot be attached.
    pub fn hold_at_exec(&self) -> Result<(), ControlError> {
        self.call(Engine::hold_at_exec)?
    }

    /// Waits until the kernel is held at its start. It stays so until [`Control::release`], or until a debugger has
    /// come and continued it or gone.
    ///
    /// # Errors
    ///
    /// The guest has ended, or did not get there in time.
    pub fn wait_start(&self, timeout: Duration) -> Result<(), ControlError> {
        let deadline = Instant::now() + timeout;
        let (sender, receiver) = bounded(1);
        self.call(move |engine| engine.notify_start(sender))?;
        match receiver.recv_deadline(deadline) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(ControlError::Ended),
            Err(RecvTimeoutError::Timeout) => Err(ControlError::StartTimeout {
                timeout,
                place: sys::whereabouts(self.shared.pid),
            }),
        }
    }

    /// Lets a kernel that is held at its start run, if no debugger has taken it over.
    ///
    /// # Errors
    ///
    /// The guest has ended.
    pub fn release(&self) -> Result<(), ControlError> {
        self.call(Engine::release)?
    }

    /// Whether the guest is held, by a debugger or at its start.
    pub fn is_stopped_by_debugger(&self) -> bool {
        self.call(|engine| engine.is_held()).unwrap_or(false)
    }

    /// How the guest ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.shared.ending.get()
    }

    /// Waits for the end of the guest, at most for `timeout` (none: for ever).
    pub fn wait_exit(&self, timeout: Option<Duration>) -> Option<ExitStatus> {
        let ending = &self.shared.ending;
        let guard = ending.status.lock().unwrap_or_else(PoisonError::into_inner);
        let running = |status: &mut Option<ExitStatus>| status.is_none();
        match timeout {
            None => *ending
                .changed
                .wait_while(guard, running)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                *ending
                    .changed
                    .wait_timeout_while(guard, timeout, running)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        }
    }

    /// Has the engine do `f`, and waits for the result.
    fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        let (sender, receiver) = bounded(1);
        self.send(move |engine| {
            // The caller waits: it cannot be gone.
            let _ = sender.send(f(engine));
        });
        // A kick is lost on an engine that is just about to wait.
        for pause in [1, 2, 4, 8, 16, 32].map(Duration::from_millis) {
            match receiver.recv_timeout(pause) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(ControlError::Ended),
                Err(RecvTimeoutError::Timeout) => self.shared.waker.wake(),
            }
        }
        receiver.recv().map_err(|_| ControlError::Ended)
    }

    /// Has the engine do `f`, without waiting.
    fn send(&self, f: impl FnOnce(&mut Engine) + Send + 'static) {
        if let Some(commands) = &self.shared.commands {
            // A failure means that the engine is gone, with the guest.
            let _ = commands.send(Box::new(f));
            self.shared.waker.wake();
        }
    }
}

/// The guest stays attached as long as this lives.
#[derive(Debug)]
pub struct Attachment {
    control: Control,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.control.send(Engine::drop_attachment);
    }
}

/// Where the engine puts a debugger's events.
struct EventSink {
    sender: Sender<Event>,
    ready: Arc<EventFd>,
}

impl EventSink {
    fn send(&self, event: Event) {
        // A failure means that the debugger is going; the engine will hear of it.
        let _ = self.sender.send(event);
        let _ = self.ready.write(1);
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
    /// there is.
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

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
///
/// No such process.
pub fn pidfd(pid: HostTid) -> std::io::Result<OwnedFd> {
    sys::pidfd_open(pid)
}
