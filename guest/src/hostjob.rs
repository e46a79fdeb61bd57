//! Running a host command as a job that cannot outlive kscope.
//!
//! A build is a tree of processes: make, sub-makes, shells, compilers. Each job
//! is a process group of its own. It ends when
//!
//! - it is done, or
//! - its [`Cancel`] is told to end it (Ctrl-C, SIGTERM), or
//! - kscope dies, however it dies: a small watcher, a shell outside the group,
//!   waits for the end of a pipe that only kscope holds, and then kills the
//!   group.

use std::io::{BufRead, BufReader, PipeReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, killpg, raise};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use thiserror::Error;

/// How long a job may take to end after SIGTERM (make removes half-written
/// targets then) before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// What the watcher runs; `$1` is the process group. (dash knows no `kill --`.)
const WATCH: &str = "read -r _; kill -TERM \"-$1\"; sleep 1; kill -KILL \"-$1\"";

/// The longest line of a job's output that is kept together, bytes.
const MAX_LINE: usize = 64 * 1024;

/// The host command could not be run to its end.
#[derive(Debug, Error)]
pub enum JobError {
    /// It did not start.
    #[error("cannot run `{program}`: {reason}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        reason: std::io::Error,
    },
    /// Its output, input or end could not be awaited.
    #[error("lost track of `{program}`: {reason}")]
    Wait {
        /// The program.
        program: String,
        /// Why.
        reason: std::io::Error,
    },
    /// [`Cancel::cancel`] was called.
    #[error("interrupted")]
    Cancelled,
}

#[derive(Debug, Default)]
struct State {
    cancelled: bool,
    signal: Option<Signal>,
    group: Option<Pid>,
}

/// A handle by which another thread ends a job, and every later one.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<(Mutex<State>, Condvar)>);

impl Cancel {
    /// A handle nothing has been cancelled on.
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle that SIGINT, SIGTERM and SIGHUP cancel, from now until the
    /// process ends. Signals that are ignored (nohup) stay ignored.
    ///
    /// Call it before any other thread is started: the signals are blocked in
    /// the calling thread and those it starts. [`Cancel::reraise`] lets the
    /// process die of the signal in the end.
    ///
    /// # Errors
    ///
    /// When the signals cannot be blocked or the waiting thread not started.
    pub fn on_signals() -> std::io::Result<Self> {
        let cancel = Self::new();
        let ignored = ignored_signals();
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            if ignored & (1 << (signal as i32 - 1)) == 0 {
                set.add(signal);
            }
        }
        set.thread_block()?;
        let waiter = cancel.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                while let Ok(signal) = set.wait() {
                    waiter.state().signal.get_or_insert(signal);
                    waiter.cancel();
                }
            })?;
        Ok(cancel)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid at every step: a panicking holder spoils nothing.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.state().cancelled
    }

    /// `Err(JobError::Cancelled)` once [`Cancel::cancel`] was called.
    ///
    /// # Errors
    ///
    /// See above.
    pub fn check(&self) -> Result<(), JobError> {
        if self.is_cancelled() {
            Err(JobError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Ends the running job, if there is one: SIGTERM to its process group,
    /// SIGKILL after 3 seconds. Returns when it has ended or was sent SIGKILL.
    pub fn cancel(&self) {
        let mut state = self.state();
        state.cancelled = true;
        if let Some(group) = state.group {
            // ESRCH: it has just ended.
            let _ = killpg(group, Signal::SIGTERM);
        }
        let (state, timeout) = self
            .0
            .1
            .wait_timeout_while(state, GRACE, |state| state.group.is_some())
            .unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(group)) = (timeout.timed_out(), state.group) {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }

    /// Ends this process by the signal that cancelled, so that its parent sees
    /// the truth. Returns when no signal did.
    pub fn reraise(&self) {
        let Some(signal) = self.state().signal else {
            return;
        };
        let mut set = SigSet::empty();
        set.add(signal);
        if raise(signal).is_ok() {
            let _ = set.thread_unblock();
        }
    }
}

/// The signals this process ignores, as a bit set; none when /proc is missing.
fn ignored_signals() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|l| l.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(0)
}

/// A running command.
pub(crate) struct Job {
    program: String,
    child: Child,
    watcher: Child,
    output: Option<BufReader<PipeReader>>,
    cancel: Cancel,
    finished: bool,
}

impl Job {
    /// Starts `command` in a process group of its own; its stdout and stderr
    /// come out of [`Job::for_each_line`] in their order. Its stdin is
    /// [`Job::input`] when `feed` is set, else empty.
    pub(crate) fn start(
        mut command: Command,
        feed: bool,
        cancel: &Cancel,
    ) -> Result<Self, JobError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let spawn_error = |reason| JobError::Spawn {
            program: program.clone(),
            reason,
        };
        let (reader, writer) = std::io::pipe().map_err(spawn_error)?;
        command
            .stdin(if feed { Stdio::piped() } else { Stdio::null() })
            .stdout(writer.try_clone().map_err(spawn_error)?)
            .stderr(writer)
            .process_group(0);

        // Under the lock: a cancellation comes either before the start, and is
        // seen here, or after the group is known.
        let mut state = cancel.state();
        if state.cancelled {
            return Err(JobError::Cancelled);
        }
        let mut child = command.spawn().map_err(spawn_error)?;
        // The command holds the pipe's write ends until it is dropped.
        drop(command);
        let group = Pid::from_raw(child.id().cast_signed());
        let watcher = Command::new("/bin/sh")
            .args(["-c", WATCH, "sh", &group.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        let watcher = match watcher {
            Ok(watcher) => watcher,
            Err(reason) => {
                let _ = killpg(group, Signal::SIGKILL);
                let _ = child.wait();
                return Err(JobError::Spawn {
                    program: "/bin/sh".into(),
                    reason,
                });
            }
        };
        state.group = Some(group);
        drop(state);
        Ok(Self {
            program,
            child,
            watcher,
            output: Some(BufReader::new(reader)),
            cancel: cancel.clone(),
            finished: false,
        })
    }

    /// The command's stdin, once.
    pub(crate) fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The command's output, once.
    pub(crate) fn output(&mut self) -> Option<BufReader<PipeReader>> {
        self.output.take()
    }

    /// Hands over the output line by line (without the line end) until the
    /// command and everything it started have closed it.
    pub(crate) fn for_each_line(
        &mut self,
        mut on_line: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), JobError> {
        let Some(output) = self.output() else {
            return Ok(());
        };
        lines(output, &mut on_line).map_err(|reason| JobError::Wait {
            program: self.program.clone(),
            reason,
        })
    }

    /// Waits for the command's end.
    ///
    /// # Errors
    ///
    /// [`JobError::Cancelled`] when it was cancelled, even if it ended well.
    pub(crate) fn finish(mut self) -> Result<ExitStatus, JobError> {
        let status = self.end();
        self.finished = true;
        self.cancel.check()?;
        status.map_err(|reason| JobError::Wait {
            program: self.program.clone(),
            reason,
        })
    }

    fn end(&mut self) -> std::io::Result<ExitStatus> {
        // Not reaped yet: nobody else can have the number of the group while
        // it can still be signalled.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR)
        {
        }
        self.cancel.state().group = None;
        self.cancel.0.1.notify_all();
        // Killed before its pipe is closed, or it would do its work.
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
        self.child.wait()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.finished {
            let group = Pid::from_raw(self.child.id().cast_signed());
            let _ = killpg(group, Signal::SIGKILL);
            let _ = kill(group, Signal::SIGKILL);
            let _ = self.end();
        }
    }
}

/// Splits a stream into lines; overlong ones are cut into pieces.
fn lines(
    mut input: impl BufRead,
    on_line: &mut impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut line = Vec::new();
    loop {
        let chunk = match input.fill_buf() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if chunk.is_empty() {
            if !line.is_empty() {
                on_line(&line)?;
            }
            return Ok(());
        }
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let taken = newline.unwrap_or(chunk.len());
        line.extend_from_slice(&chunk[..taken]);
        let consumed = newline.map_or(taken, |at| at + 1);
        input.consume(consumed);
        if newline.is_some() || line.len() >= MAX_LINE {
            on_line(&line)?;
            line.clear();
        }
    }
}

/// Runs a command to its end; returns its status and all of its output, which
/// must be short.
pub(crate) fn capture(command: Command, cancel: &Cancel) -> Result<(ExitStatus, String), JobError> {
    let mut job = Job::start(command, false, cancel)?;
    let mut text = String::new();
    job.for_each_line(|line| {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
        Ok(())
    })?;
    Ok((job.finish()?, text))
}

/// Runs a command that reads `input`, telling `advance` how many bytes it has
/// taken; returns its status and the last of its output.
pub(crate) fn feed(
    command: Command,
    mut input: impl std::io::Read,
    mut advance: impl FnMut(u64),
    cancel: &Cancel,
) -> Result<(ExitStatus, String), JobError> {
    let mut job = Job::start(command, true, cancel)?;
    let wait_error = |reason| JobError::Wait {
        program: "tar".into(),
        reason,
    };
    let output = job.output();
    let stdin = job.input();
    let said = std::thread::scope(|scope| -> Result<String, JobError> {
        // The output must be drained while the input is written, or both sides
        // could wait for each other.
        let drain = scope.spawn(move || {
            let mut text = String::new();
            if let Some(output) = output {
                let _ = lines(output, &mut |line| {
                    // The first lines tell the reason.
                    if text.len() < 4096 {
                        text.push_str(&String::from_utf8_lossy(line));
                        text.push('\n');
                    }
                    Ok(())
                });
            }
            text
        });
        let mut done = 0;
        if let Some(mut stdin) = stdin {
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let n = input.read(&mut buffer).map_err(wait_error)?;
                // A failed write means that the command has ended: its status
                // and output say why.
                if n == 0 || stdin.write_all(&buffer[..n]).is_err() {
                    break;
                }
                done += n as u64;
                advance(done);
            }
        }
        Ok(drain.join().unwrap_or_default())
    })?;
    Ok((job.finish()?, said))
}

#[cfg(test)]
mod tests;
