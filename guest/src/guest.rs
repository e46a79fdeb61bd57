//! A running guest, and how it ends.

use std::any::Any;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use kscope_kernel::Image;
use kscope_wire::{Root, Status};
use nix::sys::signal::Signal;

use crate::console::{Event, Mailbox, Message};
use crate::control::{Control, ControlError, ExitStatus, HostTid};
use crate::janitor::Janitor;
use crate::launch::Launch;
use crate::mem::ProcMem;
use crate::processors::Mode;
use crate::registry::{FORMAT_VERSION, GuestDir, Record, RegistryError};
use crate::remote::PROTOCOL_VERSION;
use crate::report::{self, Report};
use crate::signals::Signals;

/// How long a guest may take to power off before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long the host may take to end a killed process.
const DYING: Duration = Duration::from_secs(10);

/// How a guest ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The command ended; the guest is still up until [`Guest::finish`].
    Exited(Status),
    /// The command could not be executed.
    NotStarted {
        /// 126 or 127, as a shell reports it.
        code: u8,
        /// The reason, as a shell words it.
        message: String,
    },
    /// The guest powered itself off before the command ended, with the code that
    /// it wrote to `/proc/exitcode`.
    PoweredOff(i32),
    /// The kernel panicked.
    Panicked(Report),
    /// The guest did not come up.
    BootFailed(Report),
    /// The command did not end in time.
    TimedOut(Report),
    /// A host signal that kscope did not send killed the guest's process.
    Killed(i32),
    /// Its debugger killed it.
    KilledByDebugger,
    /// The user ended it with this signal.
    Interrupted(Signal),
    /// The guest's init and kscope no longer understand each other.
    Lost(String),
}

/// What a guest consists of.
pub(crate) struct Life {
    pub(crate) launch: Launch,
    pub(crate) kernel: PathBuf,
    pub(crate) dir: GuestDir,
    pub(crate) cpu: Option<u32>,
    pub(crate) mode: Mode,
    pub(crate) control: Control,
    pub(crate) note: Option<String>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) events: Receiver<Event>,
    pub(crate) thread: JoinHandle<(Vec<String>, Janitor)>,
    pub(crate) signals: Signals,
}

/// What has gone wrong with a guest that is about to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<'a> {
    /// Its kernel has panicked; the reason.
    Panicked(&'a str),
    /// It, or its command, has taken too long.
    TookTooLong,
}

/// See [`Guest::on_failure`].
type LastLook = Box<dyn FnOnce(Failure<'_>) + Send>;

/// A running guest. Dropping it ends it and removes all that it had.
pub struct Guest {
    image: Image,
    memory: u64,
    cpus: u32,
    mode: Mode,
    command: Vec<OsString>,
    kernel: PathBuf,
    control: Control,
    warnings: Vec<String>,
    mailbox: Arc<Mailbox>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<(Vec<String>, Janitor)>>,
    last_looks: Vec<LastLook>,
    ready: bool,
    gone: bool,
    cpu: Option<u32>,
    // The order of fields is the order of drops: the directory goes when all
    // that uses it is gone, then signals have their usual effect again.
    servers: Vec<Box<dyn Any + Send>>,
    dir: GuestDir,
    janitor: Option<Janitor>,
    _signals: Signals,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl Guest {
    pub(crate) fn new(life: Life) -> Guest {
        Guest {
            image: life.launch.image.clone(),
            memory: life.launch.memory,
            cpus: life.launch.cpus,
            mode: life.mode,
            command: life.launch.effective_command(),
            kernel: life.kernel,
            control: life.control,
            warnings: life.note.into_iter().collect(),
            mailbox: life.mailbox,
            events: life.events,
            thread: Some(life.thread),
            last_looks: Vec::new(),
            ready: false,
            gone: false,
            cpu: life.cpu,
            servers: Vec::new(),
            dir: life.dir,
            janitor: None,
            _signals: life.signals,
        }
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        self.dir.name()
    }

    /// The guest's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its kernel process.
    pub fn pid(&self) -> HostTid {
        self.control.pid()
    }

    /// Its kernel.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The absolute path of its kernel.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// What it runs.
    pub fn command(&self) -> Vec<String> {
        self.command
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect()
    }

    /// The host CPU it stays on.
    pub fn cpu(&self) -> Option<u32> {
        self.cpu
    }

    /// The handle to stop and debug it.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Its memory, readable while it runs.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn memory(&self) -> Result<ProcMem, ControlError> {
        self.control.memory()
    }

    /// Ends the guest from elsewhere, as SIGTERM to its supervisor does.
    pub fn stopper(&self) -> impl Fn() + Send + Sync + 'static {
        let mailbox = Arc::clone(&self.mailbox);
        move || mailbox.send(Message::Stop)
    }

    /// What the user should know, since the last call.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Makes the guest known to `kscope list` and others. `gdb` is the address
    /// of its gdb server. The control socket should be there already.
    ///
    /// # Errors
    ///
    /// The record cannot be written.
    pub fn publish(&self, gdb: Option<String>) -> Result<(), RegistryError> {
        self.dir.publish(&Record {
            version: FORMAT_VERSION,
            protocol: PROTOCOL_VERSION,
            name: self.name().to_owned(),
            dir: self.dir().to_owned(),
            pid: self.pid().0 as u32,
            supervisor: std::process::id(),
            kernel: self.kernel.clone(),
            build_id: self.image.build_id(),
            gdb,
            started: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            cpu: self.cpu,
            cpus: self.cpus,
            mode: self.mode,
            memory: self.memory,
            command: self.command(),
        })
    }

    /// Keeps what serves the guest to others until it has ended.
    pub fn keep(&mut self, server: impl Any + Send) {
        self.servers.push(Box::new(server));
    }

    /// Waits until the guest is up.
    ///
    /// # Errors
    ///
    /// How it ended instead.
    pub fn wait_ready(&mut self) -> Result<(), Box<Outcome>> {
        if self.ready {
            return Ok(());
        }
        loop {
            match self.events.recv() {
                Ok(Event::Ready(root)) => {
                    self.ready = true;
                    if root == Root::ReadOnly {
                        log::info!("the guest's root is read-only");
                    }
                    return Ok(());
                }
                Ok(event) => {
                    if let Some(outcome) = self.conclude(event) {
                        return Err(Box::new(outcome));
                    }
                }
                Err(_) => return Err(Box::new(self.ended())),
            }
        }
    }

    /// Lets the command start. Before that the guest has to be ready.
    pub fn go(&self) {
        self.mailbox.send(Message::Go);
    }

    /// Waits until the command has ended and all its output has been written.
    ///
    /// After [`Outcome::Exited`] the guest is still there, to be read from.
    pub fn wait_command(&mut self) -> Outcome {
        loop {
            match self.events.recv() {
                Ok(event) => {
                    if let Some(outcome) = self.conclude(event) {
                        return outcome;
                    }
                }
                Err(_) => return self.ended(),
            }
        }
    }

    /// Waits until the guest is up, starts the command and waits for its end.
    pub fn wait(&mut self) -> Outcome {
        match self.wait_ready() {
            Ok(()) => {
                self.go();
                self.wait_command()
            }
            Err(outcome) => *outcome,
        }
    }

    /// Powers the guest off after its command has ended.
    pub fn finish(mut self) {
        if self.control.is_stopped_by_debugger() {
            // It is let go, or the guest could not hear.
            self.servers.clear();
        }
        self.mailbox.send(Message::Bye);
        self.await_end(FAREWELL);
        // Whatever is left goes the hard way.
    }

    fn conclude(&mut self, event: Event) -> Option<Outcome> {
        Some(match event {
            Event::Ready(_) | Event::Started => return None,
            Event::Warning(text) => {
                self.warnings.push(text);
                return None;
            }
            Event::Exited(status) => Outcome::Exited(status),
            Event::NotStarted { code, message } => Outcome::NotStarted { code, message },
            Event::Panicked(reason) => {
                Outcome::Panicked(self.report(&reason, Failure::Panicked(&reason)))
            }
            Event::SetupFailed(reason) => {
                let log = self.kill();
                Outcome::BootFailed(Report::new(reason).with_log(log))
            }
            Event::BootTimeout => {
                Outcome::BootFailed(self.report("it did not come up in time", Failure::TookTooLong))
            }
            Event::Timeout => Outcome::TimedOut(
                self.report("the command did not end in time", Failure::TookTooLong),
            ),
            Event::Interrupted(signal) => Outcome::Interrupted(signal),
            Event::LineBroken(error) => Outcome::Lost(error.to_string()),
            Event::Gone => {
                self.gone = true;
                self.ended()
            }
        })
    }

    /// Has `look` called when the guest has panicked or run out of time, just
    /// before it is ended: the last moment at which its memory is there. Of
    /// several, the first comes first.
    pub fn on_failure(&mut self, look: impl FnOnce(Failure<'_>) + Send + 'static) {
        self.last_looks.push(Box::new(look));
    }

    /// Where every CPU is, then the end.
    fn report(&mut self, reason: &str, failure: Failure<'_>) -> Report {
        let mut report = Report::new(reason.to_owned());
        match report::scene(&self.control) {
            Ok(scene) => {
                report.cpus = Ok(scene.cpus);
                report.sleepers = scene.sleepers;
            }
            Err(reason) => report.cpus = Err(reason),
        }
        for look in self.last_looks.drain(..) {
            look(failure);
        }
        report.with_log(self.kill())
    }

    /// The guest's process has ended by itself.
    fn ended(&mut self) -> Outcome {
        let log = self.join();
        let status = self.control.wait_exit(Some(DYING));
        let report = Report::new(match status {
            Some(ExitStatus::Exited(code)) => format!("its process exited with code {code}"),
            Some(ExitStatus::Signaled(signal)) => {
                format!("its process was killed by {}", signal_name(signal))
            }
            Some(ExitStatus::Unknown) | None => "its process ended".to_owned(),
        })
        .with_log(log);
        match status {
            Some(ExitStatus::Signaled(_)) if self.control.was_killed() => Outcome::KilledByDebugger,
            Some(ExitStatus::Signaled(signal)) => Outcome::Killed(signal),
            _ if !self.ready => Outcome::BootFailed(report),
            Some(ExitStatus::Exited(code)) => Outcome::PoweredOff(code),
            _ => Outcome::Lost("the guest's process ended".to_owned()),
        }
    }

    /// Ends the guest at once; returns the kernel's last lines.
    fn kill(&mut self) -> Vec<String> {
        self.mailbox.send(Message::Kill);
        self.await_end(DYING);
        self.join()
    }

    fn await_end(&mut self, timeout: Duration) {
        let deadline = std::time::Instant::now() + timeout;
        while !self.gone {
            match self.events.recv_deadline(deadline) {
                Ok(Event::Gone) | Err(RecvTimeoutError::Disconnected) => self.gone = true,
                Ok(Event::Warning(text)) => self.warnings.push(text),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return,
            }
        }
    }

    fn join(&mut self) -> Vec<String> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok((log, janitor))) => {
                self.janitor = Some(janitor);
                log
            }
            _ => Vec::new(),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.thread.is_some() {
            if !self.gone {
                self.mailbox.send(Message::Kill);
            }
            self.join();
        }
        self.control.wait_exit(Some(DYING));
        self.servers.clear();
    }
}

/// A signal's name, as in `SIGKILL`.
pub fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |s| s.as_str().to_owned())
}
