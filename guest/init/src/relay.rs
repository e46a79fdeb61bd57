//! Relaying one command: its streams, its signals, its end.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use kscope_wire::{INPUT_WINDOW, Job, MAX_PAYLOAD, OUTPUT_WINDOW, Status, Stream, ToGuest, ToHost};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::command::{self, Streams};
use crate::line::Line;

/// How long a terminal's last bytes may take from its slave to its master side
/// while a background process still holds it, in milliseconds. Pipes need no
/// such time: what the command wrote is in them when it has ended.
const TERMINAL_DRAIN_MS: u16 = 100;
/// Bytes per output frame.
const CHUNK: usize = 32 * 1024;
const _: () = assert!(CHUNK <= MAX_PAYLOAD && CHUNK <= OUTPUT_WINDOW);

/// One direction of output.
struct Output {
    stream: Stream,
    source: Option<File>,
    /// Bytes that may still be sent.
    credit: usize,
    /// After the command's end: nothing is left in the source.
    drained: bool,
}

struct Relay<'a> {
    line: &'a mut Line,
    signals: SignalFd,
    /// The command's pid while it runs.
    child: Option<Pid>,
    status: Option<Status>,
    terminal: bool,
    outputs: Vec<Output>,
    /// Where standard input goes: a pipe, or the master side of the terminal.
    sink: Option<File>,
    /// Standard input that the command has not taken yet.
    pending: Vec<u8>,
    eof: bool,
    /// Standard input taken off the line and not yet reported.
    owed: usize,
    buffer: Vec<u8>,
}

/// Waits for [`ToGuest::Go`], runs the job, and returns at [`ToGuest::Bye`].
pub(crate) fn run(line: &mut Line, job: &Job) -> Result<(), String> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block()
        .map_err(|e| format!("sigprocmask: {e}"))?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| format!("signalfd: {e} (CONFIG_SIGNALFD=y)"))?;
    let mut relay = Relay {
        line,
        signals,
        child: None,
        status: None,
        terminal: job.terminal.is_some(),
        outputs: Vec::new(),
        sink: None,
        pending: Vec::new(),
        eof: false,
        owed: 0,
        buffer: vec![0; CHUNK],
    };
    loop {
        while let Some(frame) = relay.line.next()? {
            if frame == ToGuest::Bye {
                return Ok(());
            }
            relay.handle(frame, job)?;
        }
        relay.finish()?;
        relay.wait()?;
    }
}

impl Relay<'_> {
    fn handle(&mut self, frame: ToGuest, job: &Job) -> Result<(), String> {
        match frame {
            ToGuest::Go => self.start(job)?,
            ToGuest::Stdin(bytes) => {
                if self.sink.is_some() && self.pending.len() + bytes.len() <= INPUT_WINDOW {
                    self.pending.extend_from_slice(&bytes);
                    self.feed()?;
                } else {
                    // Nobody will read it; the window must still reopen.
                    self.credit(bytes.len())?;
                }
            }
            ToGuest::StdinEof => {
                self.eof = true;
                self.feed()?;
            }
            ToGuest::Winsize { rows, columns } => self.resize(rows, columns),
            ToGuest::Signal(number) => {
                if let (Some(child), Ok(signal)) = (self.child, Signal::try_from(i32::from(number)))
                {
                    // It may have just ended.
                    let _ = killpg(child, signal);
                }
            }
            ToGuest::Credit(stream, bytes) => {
                if let Some(output) = self.outputs.iter_mut().find(|o| o.stream == stream) {
                    output.credit = (output.credit + bytes as usize).min(OUTPUT_WINDOW);
                }
            }
            ToGuest::Close(stream) => {
                if let Some(output) = self.outputs.iter_mut().find(|o| o.stream == stream) {
                    output.source = None;
                    output.drained = true;
                }
                if self.terminal {
                    // Nobody is at the terminal any more: hang up.
                    self.sink = None;
                }
            }
            ToGuest::Bye => {}
        }
        Ok(())
    }

    fn start(&mut self, job: &Job) -> Result<(), String> {
        if !job.cwd.is_empty() {
            use std::os::unix::ffi::OsStrExt;
            let cwd = std::path::Path::new(std::ffi::OsStr::from_bytes(&job.cwd));
            if let Err(e) = nix::unistd::chdir(cwd) {
                self.line.send(&ToHost::Warning(format!(
                    "{}: {}: the command runs in /",
                    cwd.display(),
                    e.desc()
                )))?;
            }
        }
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(job.umask.into()));
        let mut master = None;
        let mut merged = None;
        let streams = match job.terminal {
            None if job.merge => {
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
                    .map_err(|e| format!("cannot make a pipe: {e}"))?;
                merged = Some(File::from(read));
                Streams::Merged(write)
            }
            None => Streams::Pipes,
            Some(size) => {
                let pty = nix::pty::openpty(None, None)
                    .map_err(|e| format!("cannot make a terminal: {e} (CONFIG_UNIX98_PTYS=y)"))?;
                for fd in [&pty.master, &pty.slave] {
                    fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
                        .map_err(|e| format!("fcntl: {e}"))?;
                }
                set_winsize(pty.master.as_fd(), size.rows, size.columns);
                master = Some(File::from(pty.master));
                Streams::Terminal(pty.slave)
            }
        };
        let mut child = match command::start(job, streams) {
            Ok(child) => child,
            Err(command::NotStarted { code, message }) => {
                self.status = None;
                return self.line.send(&ToHost::NotStarted { code, message });
            }
        };
        self.child = Some(Pid::from_raw(child.id() as i32));
        match master {
            Some(master) => {
                let copy = master.try_clone().map_err(|e| format!("dup: {e}"))?;
                self.sink = Some(master);
                self.add_output(Stream::Stdout, copy)?;
            }
            None => {
                self.sink = child.stdin.take().map(|p| File::from(OwnedFd::from(p)));
                if let Some(pipe) = merged {
                    self.add_output(Stream::Stdout, pipe)?;
                }
                if let Some(pipe) = child.stdout.take() {
                    self.add_output(Stream::Stdout, File::from(OwnedFd::from(pipe)))?;
                }
                if let Some(pipe) = child.stderr.take() {
                    self.add_output(Stream::Stderr, File::from(OwnedFd::from(pipe)))?;
                }
            }
        }
        if let Some(sink) = &self.sink {
            nonblocking(sink.as_fd())?;
        }
        self.line.send(&ToHost::Started(child.id()))?;
        self.feed()
    }

    fn add_output(&mut self, stream: Stream, source: File) -> Result<(), String> {
        nonblocking(source.as_fd())?;
        self.outputs.push(Output {
            stream,
            source: Some(source),
            credit: OUTPUT_WINDOW,
            drained: false,
        });
        Ok(())
    }

    /// Gives the command what it can take of the pending input.
    fn feed(&mut self) -> Result<(), String> {
        let Some(sink) = &mut self.sink else {
            return Ok(());
        };
        let mut taken = 0;
        let mut closed = false;
        while taken < self.pending.len() {
            match sink.write(&self.pending[taken..]) {
                Ok(len) => taken += len,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    closed = true;
                    break;
                }
            }
        }
        let credit = if closed { self.pending.len() } else { taken };
        self.pending.drain(..credit);
        if closed || (self.eof && self.pending.is_empty() && !self.terminal) {
            self.sink = None;
        }
        self.credit(credit)?;
        if closed {
            self.line.send(&ToHost::StdinClosed)?;
        }
        Ok(())
    }

    /// Reopens the input window, in steps: a frame costs more than what most
    /// commands read.
    fn credit(&mut self, bytes: usize) -> Result<(), String> {
        self.owed += bytes;
        if self.owed < INPUT_WINDOW / 2 {
            return Ok(());
        }
        let owed = std::mem::take(&mut self.owed);
        self.line.send(&ToHost::Credit(owed as u32))
    }

    fn resize(&mut self, rows: u16, columns: u16) {
        if let (true, Some(master)) = (self.terminal, &self.sink) {
            set_winsize(master.as_fd(), rows, columns);
        }
    }

    /// Sleeps until something happens and deals with it.
    fn wait(&mut self) -> Result<(), String> {
        let ended = self.child.is_none() && self.status.is_some();
        let mut fds = vec![
            PollFd::new(self.line.fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        let mut ready = Vec::new();
        for (index, output) in self.outputs.iter().enumerate() {
            if let (Some(source), true) = (&output.source, output.credit > 0 && !output.drained) {
                fds.push(PollFd::new(source.as_fd(), PollFlags::POLLIN));
                ready.push(index);
            }
        }
        let polled = ready.len();
        if let (Some(sink), false) = (&self.sink, self.pending.is_empty()) {
            fds.push(PollFd::new(sink.as_fd(), PollFlags::POLLOUT));
        } else if let (Some(sink), false) = (&self.sink, self.terminal) {
            // A closed read end shows as an error without any event asked for.
            fds.push(PollFd::new(sink.as_fd(), PollFlags::empty()));
        }
        let timeout = match (ended && polled > 0, self.terminal) {
            (false, _) => PollTimeout::NONE,
            (true, false) => PollTimeout::ZERO,
            (true, true) => PollTimeout::from(TERMINAL_DRAIN_MS),
        };
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(e) => return Err(format!("poll: {e}")),
        }
        let happened = |fd: &PollFd| fd.revents().is_some_and(|r| !r.is_empty());
        let line = happened(&fds[0]);
        let signalled = happened(&fds[1]);
        let mut quiet = Vec::new();
        let mut readable = Vec::new();
        for (fd, index) in fds[2..].iter().zip(&ready) {
            if happened(fd) {
                readable.push(*index);
            } else {
                quiet.push(*index);
            }
        }
        let writable = fds.get(2 + polled).is_some_and(happened);
        drop(fds);
        if line {
            self.line.receive()?;
        }
        if signalled {
            self.reap();
        }
        for index in readable {
            self.forward(index)?;
        }
        if ended {
            for index in quiet {
                self.outputs[index].drained = true;
            }
        }
        if writable {
            if self.pending.is_empty() {
                // Only an error was polled for.
                self.sink = None;
                self.line.send(&ToHost::StdinClosed)?;
            } else {
                self.feed()?;
            }
        }
        Ok(())
    }

    /// Sends one chunk of output.
    fn forward(&mut self, index: usize) -> Result<(), String> {
        let output = &mut self.outputs[index];
        let Some(source) = &mut output.source else {
            return Ok(());
        };
        let limit = output.credit.min(CHUNK);
        let len = match source.read(&mut self.buffer[..limit]) {
            Ok(len) => len,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            // A terminal whose last slave side is closed reports an I/O error.
            Err(_) => 0,
        };
        if len == 0 {
            output.source = None;
            output.drained = true;
            return Ok(());
        }
        output.credit -= len;
        let frame = ToHost::Output(output.stream, self.buffer[..len].to_vec());
        self.line.send(&frame)
    }

    /// Collects every process that has ended; all orphans are ours.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Status::Code(code as u8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, Status::Signal(signal as i32 as u8))
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if self.child == Some(pid) {
                self.child = None;
                self.status = Some(status);
            }
        }
    }

    /// Reports the command's end once all its output is on its way.
    ///
    /// A background process that still holds a pipe does not hold up the end:
    /// the guest ends with its command.
    fn finish(&mut self) -> Result<(), String> {
        let Some(status) = self.status else {
            return Ok(());
        };
        if self.child.is_none() && self.outputs.iter().all(|o| o.drained) {
            self.status = None;
            self.sink = None;
            self.outputs.clear();
            self.line.send(&ToHost::Exited(status))?;
        }
        Ok(())
    }
}

fn nonblocking(fd: BorrowedFd<'_>) -> Result<(), String> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|e| format!("fcntl: {e}"))
}

fn set_winsize(fd: BorrowedFd<'_>, rows: u16, columns: u16) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call. A
    // failure leaves the old size, which is harmless.
    let _ = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &size) };
}
