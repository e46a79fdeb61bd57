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
mod cpus;
mod debugger;
mod emulate;
mod engine;
mod exec;
mod filters;
mod forks;
mod hold;
mod nonstop;
mod process;
mod processes;
mod registers;
mod requests;
mod running;
mod stepping;
mod sys;
mod threads;
mod types;
mod visit;
mod wake;
mod watchpoints;

use std::fmt;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use kscope_kernel::{Image, KernelAddr};

use crate::mem::ProcMem;
use engine::Engine;
use wake::Waker;

pub use clock::{Clock, ClockError};
pub use debugger::Debugger;
pub use filters::{Filter, Hit, Verdict};
pub use hold::Hold;
pub use process::{Exec, Spawned, give_terminal};
pub use requests::Stopped;
pub use types::{
    Action, ControlError, Event, ExitStatus, HostTid, Resume, Step, StopReason, VCpu, WatchKind,
};
pub use visit::Visit;
pub use wake::{block_sigchld, unblock_sigchld};

/// Work for the engine thread.
enum Command {
    /// One thing that is asked of the engine.
    Work(Box<dyn FnOnce(&mut Engine) + Send>),
    /// Somebody who asks for one thing after the other, on the engine's thread.
    Visit(Box<dyn FnOnce() + Send>),
}

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
#[derive(Debug)]
struct Ending {
    /// The process whose end it is: of what a debugged process has forked it may be the last.
    pid: AtomicI32,
    status: Mutex<Option<ExitStatus>>,
    changed: Condvar,
    /// A debugger has killed it.
    killed: AtomicBool,
}

impl Ending {
    fn new(pid: HostTid) -> Self {
        Self {
            pid: AtomicI32::new(pid.0),
            status: Mutex::default(),
            changed: Condvar::default(),
            killed: AtomicBool::new(false),
        }
    }

    fn pid(&self) -> HostTid {
        HostTid(self.pid.load(Ordering::Relaxed))
    }

    fn set_pid(&self, pid: HostTid) {
        self.pid.store(pid.0, Ordering::Relaxed);
    }

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
    image: Option<Image>,
    /// Whether somebody else has started it.
    attached: bool,
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
            .field("pid", &self.pid())
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

    /// As [`Control::start_process`], of a process that somebody else has started: it is stopped at once, until a
    /// debugger says otherwise, and lives on when this process dies.
    ///
    /// # Errors
    ///
    /// As [`Control::start`] and [`Control::attach`], or it did not stop in time.
    pub fn attach_to_process(pid: HostTid) -> Result<Self, ControlError> {
        let options = Options {
            kill_on_exit: false,
        };
        let control = Self::start_any(pid, None, options)?;
        control.call(Engine::hold_now)??;
        Ok(control)
    }

    fn start_any(
        pid: HostTid,
        image: Option<Image>,
        options: Options,
    ) -> Result<Self, ControlError> {
        let waker = Arc::new(Waker::new()?);
        let ending = Arc::new(Ending::new(pid));
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
                image,
                attached: !options.kill_on_exit,
                commands: Some(sender),
                waker,
                ending,
            }),
        })
    }

    /// The guest's kernel process; or the debugged one, in whose place comes one that it has forked when it goes first.
    pub fn pid(&self) -> HostTid {
        self.shared.ending.pid()
    }

    /// Whether somebody else has started the guest, so that it lives on when this process dies.
    pub fn is_attached(&self) -> bool {
        self.shared.attached
    }

    /// The kernel that the guest runs.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoKernel`] when it is an ordinary process.
    pub fn image(&self) -> Result<&Image, ControlError> {
        let image = self.shared.image.as_ref();
        image.ok_or(ControlError::NoKernel(self.pid()))
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
        self.call(move |engine| match engine.space_mut(engine.pid) {
            Ok(space) => space.write(addr, &bytes),
            Err(_) => Ok(memory.write(addr, &bytes)?),
        })?
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
        Ok(ProcMem::open(self.pid())?)
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

    /// Takes hold of a process that has yet to exec the kernel, so that the kernel can be held at its start: the first
    /// instruction of `start_kernel`. To be followed by the exec and [`Control::wait_start`].
    ///
    /// # Errors
    ///
    /// The process has ended, cannot be attached, or its kernel lacks symbols.
    pub fn hold_at_start(&self) -> Result<(), ControlError> {
        self.call(Engine::hold_at_start)?
    }

    /// Takes hold of a process that has yet to exec its program, so that it is held right after that: its first exec,
    /// or, where others come in between, that of this number. To be followed by the exec and [`Control::wait_start`].
    ///
    /// # Errors
    ///
    /// The process has ended or cannot be attached.
    pub fn hold_at_exec(&self, execs: usize) -> Result<(), ControlError> {
        self.call(move |engine| engine.hold_at_exec(execs))?
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
                place: sys::whereabouts(self.pid()),
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

    /// Lets a process go, whoever debugs it, with its own bytes.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn let_go(&self) -> Result<(), ControlError> {
        self.call(|engine| {
            engine.debug_detach();
            engine.end_debug();
            engine.release()
        })?
    }

    /// Whether the guest is held, by a debugger or at its start.
    pub fn is_stopped_by_debugger(&self) -> bool {
        self.call(|engine| engine.is_held()).unwrap_or(false)
    }

    /// How the guest ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.shared.ending.get()
    }

    /// Kills the guest, with all that is debugged of what it has forked, because its debugger wants that.
    ///
    /// # Errors
    ///
    /// The host does not allow it.
    pub fn kill(&self) -> Result<(), ControlError> {
        self.shared.ending.killed.store(true, Ordering::Relaxed);
        match self.call(Engine::kill_all) {
            // It was faster.
            Err(ControlError::Ended) => Ok(()),
            done => done?,
        }
    }

    /// Whether [`Control::kill`] has been called.
    pub fn was_killed(&self) -> bool {
        self.shared.ending.killed.load(Ordering::Relaxed)
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
        let f = match self.visited(f) {
            Ok(answer) => return Ok(answer),
            Err(f) => f,
        };
        let (sender, receiver) = bounded(1);
        self.push(Command::Work(Box::new(move |engine| {
            // The caller waits: it cannot be gone.
            let _ = sender.send(f(engine));
        })));
        self.answer(&receiver)
    }

    /// Has the engine do `f`, without waiting.
    fn send(&self, f: impl FnOnce(&mut Engine) + Send + 'static) {
        if let Err(f) = self.visited(f) {
            self.push(Command::Work(Box::new(f)));
        }
    }

    fn push(&self, command: Command) {
        if let Some(commands) = &self.shared.commands {
            // A failure means that the engine is gone, with the guest.
            let _ = commands.send(command);
            self.shared.waker.wake();
        }
    }

    /// Waits for what the engine has been asked.
    fn answer<T>(&self, receiver: &Receiver<T>) -> Result<T, ControlError> {
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

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
///
/// No such process.
pub fn pidfd(pid: HostTid) -> std::io::Result<OwnedFd> {
    sys::pidfd_open(pid)
}
