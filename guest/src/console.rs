//! The supervisor's loop: it moves the command's streams, the kernel's log,
//! signals and deadlines between the user and the guest, and sleeps otherwise.

mod from_guest;
mod from_user;
mod watch;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use kscope_kernel::{KernelAddr, MemoryExt};
use kscope_wire::{
    Decoder, Frame, INPUT_WINDOW, LINE_WINDOW, OUTPUT_WINDOW, Root, Status, Stream, ToGuest,
    ToHost, VERSION, WireError,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::control::{Control, HostTid};
use crate::kernel_log::KernelLog;
use crate::mem::ProcMem;
use crate::pidfd::PidFd;
use crate::signals::SignalReader;
use crate::streams::{Escape, RawTerminal, Writer, terminal_size};

/// How long a command may take to end after SIGTERM or SIGHUP.
const GRACE: Duration = Duration::from_secs(2);
/// A panic is reported when the kernel has been silent for this long after it,
/// so that the log is complete and the panicking CPU is at rest.
const SETTLE: Duration = Duration::from_millis(50);
/// How often the guest's memory is asked whether it has panicked without a
/// word (`loglevel=0`). One read of four bytes.
const PROBE: Duration = Duration::from_secs(1);
/// A deadline that passes while a debugger holds the guest is looked at again
/// after this time.
const HELD: Duration = Duration::from_secs(1);
/// Bytes per read, and per frame of standard input.
const CHUNK: usize = 32 * 1024;

/// What others tell the loop.
#[derive(Debug)]
pub(crate) enum Message {
    /// Start the command.
    Go,
    /// The command is done with: power off.
    Bye,
    /// End the guest as SIGTERM does.
    Stop,
    /// End the guest now.
    Kill,
    /// The user's stream has taken this many bytes.
    Written(Stream, usize),
    /// The user's stream takes no more.
    WriteFailed(Stream, io::Error),
}

/// Where messages to the loop go.
#[derive(Debug)]
pub(crate) struct Mailbox {
    sender: Sender<Message>,
    wake: EventFd,
}

impl Mailbox {
    pub(crate) fn new(sender: Sender<Message>) -> nix::Result<Mailbox> {
        use nix::sys::eventfd::EfdFlags;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Mailbox { sender, wake })
    }

    pub(crate) fn send(&self, message: Message) {
        // A failure means that the loop is gone, and with it the guest.
        let _ = self.sender.send(message);
        let _ = self.wake.write(1);
    }
}

/// What the loop tells the guest's owner.
#[derive(Debug)]
pub(crate) enum Event {
    /// The guest is up and waits to be let go.
    Ready(Root),
    /// Something that the user should know.
    Warning(String),
    /// The command runs.
    Started,
    /// The command could not be executed.
    NotStarted { code: u8, message: String },
    /// The command has ended and its output has been delivered.
    Exited(Status),
    /// The kernel has panicked; it stays to be looked at.
    Panicked(String),
    /// The init could not set up the guest.
    SetupFailed(String),
    /// The line carries something that the init did not send.
    LineBroken(WireError),
    /// The guest was not up in time; it stays to be looked at.
    BootTimeout,
    /// The command did not end in time; the guest stays to be looked at.
    Timeout,
    /// The user ended the guest with this signal (or the escape key: SIGKILL).
    Interrupted(Signal),
    /// The guest's process is gone. Nothing comes after this.
    Gone,
}

/// What the loop waits for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Mailbox,
    Guest,
    Line,
    Log,
    Outgoing,
    Signals,
    Stdin,
}

/// How far the guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Booting,
    Ready,
    Running,
    /// The command has ended; its last output is on its way to the user.
    Delivering(Status),
    /// Whatever comes is for somebody else to decide.
    Over,
}

/// The user's end of the command.
#[derive(Debug)]
pub(crate) struct User {
    /// Standard input.
    pub(crate) stdin: File,
    /// A terminal on standard input and output: the command gets one of its own.
    pub(crate) terminal: bool,
    /// Kernel messages go to standard error.
    pub(crate) kmsg: bool,
}

/// Everything the loop works with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) to_guest: File,
    pub(crate) from_guest: File,
    pub(crate) kernel_output: File,
    pub(crate) user: User,
    pub(crate) stdout: Writer,
    pub(crate) stderr: Writer,
    pub(crate) signals: Option<SignalReader>,
    pub(crate) pidfd: PidFd,
    pub(crate) pid: HostTid,
    pub(crate) control: Control,
    pub(crate) log: KernelLog,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) messages: Receiver<Message>,
    pub(crate) events: Sender<Event>,
    pub(crate) boot_timeout: Duration,
    pub(crate) timeout: Option<Duration>,
}

/// The loop's state.
pub(crate) struct Console {
    parts: Parts,
    phase: Phase,
    decoder: Decoder,
    /// Bytes for the guest that its line has not taken yet.
    outgoing: Vec<u8>,
    /// Bytes that the line may be given.
    line_room: usize,
    /// Standard input that may still be sent.
    credit: usize,
    stdin_open: bool,
    /// The guest's end of the line is open.
    line_open: bool,
    /// The kernel's end of its log is open.
    log_open: bool,
    /// The guest's process has ended.
    gone: bool,
    streams: [Flow; 2],
    raw: Option<RawTerminal>,
    escape: Escape,
    /// When the guest is to have come further.
    deadline: Option<Instant>,
    /// When a command that was asked to end is ended.
    last_chance: Option<(Instant, Signal)>,
    /// Signals that the user has sent.
    interruptions: u32,
    /// When the last word of a panicking kernel came.
    panicked: Option<Instant>,
    probe: Option<KernelAddr>,
    memory: Option<ProcMem>,
    next_probe: Instant,
    buffer: Vec<u8>,
}

/// One output stream on its way to the user.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Handed to the writer and not written yet.
    queued: usize,
    /// Written and not yet reported to the guest.
    owed: usize,
    /// The user's end is closed.
    closed: bool,
}

impl Console {
    pub(crate) fn new(parts: Parts) -> Console {
        let now = Instant::now();
        let probe = parts
            .control
            .image()
            .ok()
            .and_then(|image| image.symbol("panic_cpu"));
        Console {
            deadline: now.checked_add(parts.boot_timeout),
            parts,
            phase: Phase::Booting,
            decoder: Decoder::new(),
            outgoing: Vec::new(),
            line_room: LINE_WINDOW,
            credit: INPUT_WINDOW,
            stdin_open: false,
            line_open: true,
            log_open: true,
            gone: false,
            streams: [Flow::default(); 2],
            raw: None,
            escape: Escape::default(),
            last_chance: None,
            interruptions: 0,
            panicked: None,
            probe,
            memory: None,
            next_probe: now + PROBE,
            buffer: vec![0; 2 * CHUNK],
        }
    }

    /// Runs until the guest is gone. Returns the kernel's last lines.
    pub(crate) fn run(mut self) -> Vec<String> {
        while !self.turn() {}
        self.raw = None;
        // Its children may have outlived it.
        self.kill();
        // What the guest sent last is still in the pipes.
        self.read_line();
        self.read_log();
        self.line_open = false;
        self.log_open = false;
        self.outgoing.clear();
        if matches!(self.phase, Phase::Delivering(_)) {
            // The user may be slow, but nothing is held up by that any more
            // except for the end of this process.
            while self.streams.iter().any(|s| s.queued > 0) && self.interruptions < 2 {
                self.turn();
            }
            self.delivered();
        }
        let tail = self.parts.log.tail();
        let Parts {
            stdout,
            stderr,
            events,
            ..
        } = self.parts;
        for (writer, flow) in [(stdout, self.streams[0]), (stderr, self.streams[1])] {
            if flow.queued > 0 {
                writer.abandon();
            }
        }
        let _ = events.send(Event::Gone);
        tail
    }

    fn kill(&self) {
        self.parts.pidfd.kill_group(Pid::from_raw(self.parts.pid.0));
    }

    fn emit(&self, event: Event) {
        // A failure means that the owner is gone; then the guest is being ended.
        let _ = self.parts.events.send(event);
    }

    /// Waits for something and deals with it; whether the guest is gone.
    fn turn(&mut self) -> bool {
        let mut sources = vec![Source::Mailbox];
        if !self.gone {
            sources.push(Source::Guest);
        }
        if self.line_open {
            sources.push(Source::Line);
        }
        if self.log_open {
            sources.push(Source::Log);
        }
        if !self.outgoing.is_empty() && self.line_room > 0 {
            sources.push(Source::Outgoing);
        }
        if self.parts.signals.is_some() {
            sources.push(Source::Signals);
        }
        if self.stdin_open && self.credit > 0 && self.phase == Phase::Running {
            sources.push(Source::Stdin);
        }
        let mut fds: Vec<_> = sources.iter().map(|&s| self.poll_fd(s)).collect();
        match poll(&mut fds, self.sleep()) {
            Ok(_) | Err(Errno::EINTR) => {}
            // Cannot be: all descriptors are open. Ending the guest is the way
            // out that leaves nothing behind.
            Err(_) => {
                self.kill();
                return true;
            }
        }
        let happened: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().is_some_and(|r| !r.is_empty()))
            .collect();
        drop(fds);
        for source in sources
            .into_iter()
            .zip(happened)
            .filter_map(|(s, happened)| happened.then_some(s))
        {
            match source {
                Source::Mailbox => self.read_mailbox(),
                Source::Guest => self.gone = true,
                Source::Line => self.read_line(),
                Source::Log => self.read_log(),
                Source::Outgoing => self.flush(),
                Source::Signals => self.read_signals(),
                Source::Stdin => self.read_stdin(),
            }
        }
        self.check_time();
        self.gone
    }

    fn poll_fd(&self, source: Source) -> PollFd<'_> {
        let p = &self.parts;
        let fd = match source {
            Source::Mailbox => p.mailbox.wake.as_fd(),
            Source::Guest => p.pidfd.as_fd(),
            Source::Line => p.from_guest.as_fd(),
            Source::Log => p.kernel_output.as_fd(),
            Source::Outgoing => return PollFd::new(p.to_guest.as_fd(), PollFlags::POLLOUT),
            // Without signals it is never asked for.
            Source::Signals => p
                .signals
                .as_ref()
                .map_or(p.mailbox.wake.as_fd(), AsFd::as_fd),
            Source::Stdin => p.user.stdin.as_fd(),
        };
        PollFd::new(fd, PollFlags::POLLIN)
    }

    fn read_mailbox(&mut self) {
        let _ = self.parts.mailbox.wake.read();
        while let Ok(message) = self.parts.messages.try_recv() {
            match message {
                Message::Go => self.go(),
                Message::Bye => self.send(&ToGuest::Bye),
                Message::Stop => self.signalled(Signal::SIGTERM),
                Message::Kill => {
                    self.phase = Phase::Over;
                    self.deadline = None;
                    self.kill();
                }
                Message::Written(stream, bytes) => self.written(stream, bytes),
                Message::WriteFailed(stream, error) => self.write_failed(stream, &error),
            }
        }
        self.delivered();
    }

    fn go(&mut self) {
        if self.phase != Phase::Ready {
            return;
        }
        self.phase = Phase::Running;
        self.deadline = self
            .parts
            .timeout
            .and_then(|t| Instant::now().checked_add(t));
        if self.parts.user.terminal {
            self.resize();
            let raw = self.parts.user.stdin.as_fd().try_clone_to_owned();
            match raw.map_err(Errno::try_from).map(RawTerminal::enter) {
                Ok(Ok(raw)) => self.raw = Some(raw),
                _ => self.emit(Event::Warning("cannot make the terminal raw".to_owned())),
            }
        }
        self.send(&ToGuest::Go);
    }

    fn send(&mut self, frame: &ToGuest) {
        frame.encode(&mut self.outgoing);
        self.flush();
    }

    fn flush(&mut self) {
        let limit = self.outgoing.len().min(self.line_room);
        let mut sent = 0;
        while sent < limit {
            match self.parts.to_guest.write(&self.outgoing[sent..limit]) {
                Ok(len) => sent += len,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The guest is gone; its pidfd tells.
                Err(_) => {
                    self.outgoing.clear();
                    return;
                }
            }
        }
        self.line_room -= sent;
        self.outgoing.drain(..sent);
    }

    fn flow(&mut self, stream: Stream) -> &mut Flow {
        &mut self.streams[match stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        }]
    }

    fn written(&mut self, stream: Stream, bytes: usize) {
        let flow = self.flow(stream);
        // Kernel messages on standard error are nobody's credit.
        let own = bytes.min(flow.queued);
        flow.queued -= own;
        flow.owed += own;
        // In steps: the line reads one byte per system call.
        if flow.owed >= OUTPUT_WINDOW / 2 {
            let owed = std::mem::take(&mut flow.owed);
            self.send(&ToGuest::Credit(stream, owed as u32));
        }
    }

    fn write_failed(&mut self, stream: Stream, error: &io::Error) {
        let flow = self.flow(stream);
        flow.queued = 0;
        if !std::mem::replace(&mut flow.closed, true) {
            // The command learns it as it would without a guest: by SIGPIPE.
            self.send(&ToGuest::Close(stream));
        }
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.emit(Event::Warning(format!(
                "cannot write the command's output: {error}"
            )));
        }
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
