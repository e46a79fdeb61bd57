//! An ordinary process in the place of a kernel: each thread is a CPU, and signals are its debugger's business.
//!
//! A kernel's CPUs run or are held together; the threads of a process each do what its debugger says ([`Resume`]). What
//! the process forks is in [`super::forks`].

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use kscope_kernel::{CpuId, KernelAddr};

use super::engine::Engine;
use super::running::Job;
use super::sys::{self, SigInfo};
use super::threads::{Stop, Thread};
use super::{Action, ControlError, HostTid, Resume, Step, StopReason, VCpu};
use crate::mem::ProcMem;

/// A process that waits for a word before it becomes its program.
#[derive(Debug)]
pub struct Spawned {
    pid: HostTid,
    go: PipeWriter,
    failure: PipeReader,
}

impl Spawned {
    /// Starts it, with this process's standard streams, in a process group of its own. Its addresses are not randomised
    /// unless `randomize` says so, so that its breakpoints are where they were the last time.
    ///
    /// To be called as long as this process has one thread.
    ///
    /// # Errors
    ///
    /// The host is out of processes or descriptors, or an argument has a zero byte.
    pub fn new(program: &OsStr, arguments: &[OsString], randomize: bool) -> io::Result<Self> {
        let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
        let program = c_string(program)?;
        let mut argv = vec![program.clone()];
        for argument in arguments {
            argv.push(c_string(argument)?);
        }
        let mut pointers: Vec<_> = argv.iter().map(|argument| argument.as_ptr()).collect();
        pointers.push(std::ptr::null());
        let (told, go) = io::pipe()?;
        let (failure, failed) = io::pipe()?;
        // SAFETY: there is one thread, so that the child may do what it likes.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(go);
                // SAFETY: the pointers are to strings that end with a zero, and the last is null.
                let error = unsafe { become_program(told, &program, &pointers, randomize) };
                let errno = error.raw_os_error().unwrap_or(0);
                let _ = (&failed).write_all(&errno.to_ne_bytes());
                // SAFETY: the call does not return.
                unsafe { libc::_exit(127) }
            }
            pid => Ok(Self {
                pid: HostTid(pid),
                go,
                failure,
            }),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> HostTid {
        self.pid
    }

    /// Has it become its program. Returns what is to be asked if that fails.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn exec(mut self) -> io::Result<Exec> {
        self.go.write_all(b"!")?;
        Ok(Exec(self.failure))
    }
}

/// How it went.
#[derive(Debug)]
pub struct Exec(PipeReader);

impl Exec {
    /// Why the process could not become its program. Waits until that is known.
    pub fn failure(mut self) -> Option<io::Error> {
        let mut errno = [0; 4];
        self.0.read_exact(&mut errno).ok()?;
        Some(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
    }
}

/// In the child: waits for the word, and executes the program. Returns only when that fails.
///
/// # Safety
///
/// `argv` has pointers to strings that end with a zero, and null as its last element.
unsafe fn become_program(
    told: PipeReader,
    program: &CString,
    argv: &[*const libc::c_char],
    randomize: bool,
) -> io::Error {
    const ADDR_NO_RANDOMIZE: libc::c_ulong = 0x004_0000;
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: the calls take numbers, and pointers to what lives here.
    unsafe {
        libc::setpgid(0, 0);
        let persona = libc::personality(ASK);
        if persona != -1 && !randomize {
            libc::personality(persona as libc::c_ulong | ADDR_NO_RANDOMIZE);
        }
        // What Rust's start and this program have changed.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGTTOU, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let mut word = 0_u8;
        if libc::read(told.as_raw_fd(), (&raw mut word).cast(), 1) != 1 {
            // The parent is gone.
            libc::_exit(127);
        }
        libc::execvp(program.as_ptr(), argv.as_ptr());
    }
    io::Error::last_os_error()
}

impl Engine {
    pub(super) fn is_process(&self) -> bool {
        self.image.is_none()
    }

    /// Those of the processes that the debugger knows of, one process after the other, the leader first.
    pub(super) fn threads_as_vcpus(&self) -> Vec<VCpu> {
        let is_told = |thread: &&Thread| {
            let process = self.processes.get(thread.pid);
            process.is_some_and(|process| process.untold.is_none())
        };
        let mut threads: Vec<_> = self.threads.values().filter(is_told).collect();
        threads.sort_by_key(|thread| {
            let is_first = thread.pid == self.pid;
            (!is_first, thread.pid, thread.tid != thread.pid, thread.tid)
        });
        let vcpu = |thread: &Thread| VCpu {
            cpu: CpuId(thread.tid.0 as u32),
            tid: thread.tid,
            pid: thread.pid,
        };
        threads.into_iter().map(vcpu).collect()
    }

    /// The thread that an interrupt is told of: one that was running.
    pub(super) fn interrupted(&self) -> HostTid {
        let runs = |thread: &&Thread| thread.action != Action::Hold;
        let leader = self.threads.get(&self.pid).filter(runs);
        let thread = leader.or_else(|| self.threads.values().find(runs));
        thread
            .or_else(|| self.threads.values().next())
            .map_or(self.pid, |thread| thread.tid)
    }

    /// The process is another program now.
    pub(super) fn after_process_exec(&mut self, pid: HostTid, memory: Option<ProcMem>) -> Stop {
        let thread = self.threads.entry(pid);
        let thread = thread.or_insert_with(|| Thread::new(pid, pid));
        thread.action = Action::Run;
        thread.watchpoints_stale = true;
        thread.loan = None;
        if let Some(memory) = memory {
            self.processes.exec(pid, memory);
        }
        self.cpus.clear();
        if let Some(start) = &mut self.start
            && !start.reached
        {
            start.execs = start.execs.saturating_sub(1);
            if start.execs > 0 {
                return Stop::default();
            }
            start.reached = true;
            self.job = Job::Held;
            for waiter in start.waiters.drain(..) {
                let _ = waiter.send(());
            }
            return Stop::default();
        }
        Stop {
            cause: self.has_debugger().then_some(StopReason::Exec),
            ..Stop::default()
        }
    }

    /// The thread is about to be given a signal: whether its debugger is told first.
    pub(super) fn on_process_signal(&mut self, tid: HostTid, info: SigInfo) -> Stop {
        let signal = info.signal();
        let mut stop = Stop {
            deliver: signal,
            by_signal: true,
            ..Stop::default()
        };
        let holds_back = self.holds_back(tid);
        let (debugged, passes) = (self.has_debugger(), self.pass_signals.contains(&signal));
        let Some(thread) = self.threads.get_mut(&tid) else {
            return stop;
        };
        let injected = thread.injected.iter().position(|&sent| sent == signal);
        if let (true, Some(index)) = (info.is_own(), injected) {
            thread.injected.remove(index);
        } else if holds_back && !super::running::is_fault(signal) {
            thread.hold_back(info);
            stop.deliver = 0;
        } else if debugged && !(passes && thread.action == Action::Run) {
            stop.cause = Some(StopReason::Signal(signal));
        }
        stop
    }

    /// Whether a thread that has executed one instruction has done what its debugger wanted.
    pub(super) fn has_stepped(&self, tid: HostTid) -> bool {
        match self.threads.get(&tid).map(|thread| &thread.action) {
            Some(Action::Step(Step::Instruction)) => true,
            Some(Action::Step(Step::Range(range))) => {
                !sys::registers(tid).is_ok_and(|regs| range.contains(&KernelAddr(regs.rip)))
            }
            _ => false,
        }
    }

    /// Whether the thread is to execute one instruction, or one after the other.
    pub(super) fn is_stepped(&self, tid: HostTid) -> bool {
        let thread = self.threads.get(&tid);
        thread.is_some_and(|thread| matches!(thread.action, Action::Step(_)))
    }

    /// Whether the program of a process has a breakpoint of its own at `addr`.
    pub(super) fn has_own_int3(&self, tid: HostTid, addr: KernelAddr) -> bool {
        let space = self.space_of(tid);
        self.is_process()
            && !space.is_some_and(|space| space.breakpoints.is_planted(addr))
            && self.is_int3(tid, addr)
    }

    /// The instruction under a breakpoint, which does not count, was all that the thread was to execute.
    pub(super) fn stepped_over(&mut self, tid: HostTid) {
        if let Some(thread) = self.threads.get_mut(&tid)
            && matches!(thread.action, Action::Step(_))
            && let Some(stop) = thread.stop_mut()
        {
            stop.cause = Some(StopReason::Step);
        }
    }

    pub(super) fn debug_resume(&mut self, resumes: &[Resume]) -> Result<(), ControlError> {
        self.held()?;
        for thread in self.threads.values_mut() {
            thread.action = Action::Hold;
            // The debugger knows where its breakpoints are, and goes over one by itself.
            thread.reported_at = None;
        }
        for resume in resumes {
            self.take_up(resume);
        }
        // What is to run may be gone by now.
        self.lost_runner = true;
        self.run_on()
    }

    /// Has a thread do what the debugger says from the next settlement on.
    pub(super) fn take_up(&mut self, resume: &Resume) {
        let Some(thread) = self.threads.get_mut(&resume.tid) else {
            return;
        };
        thread.action = resume.action.clone();
        thread.reported_at = None;
        if let Err(error) = give(thread, resume.signal) {
            log::warn!("signal {} for {}: {error}", resume.signal, resume.tid);
        }
    }

    pub(super) fn debug_detach(&mut self) {
        self.detaching = true;
    }
}

/// Has a stopped thread given `signal` (0: none) on the way on, in the place of the one that the debugger was told of.
fn give(thread: &mut Thread, signal: i32) -> io::Result<()> {
    let tid = thread.tid;
    let Some(stop) = thread.stop_mut() else {
        return Ok(());
    };
    if std::mem::take(&mut stop.told) {
        stop.deliver = 0;
    }
    if signal == 0 {
        return Ok(());
    }
    if stop.by_signal && stop.deliver == 0 && stop.cause.is_none() {
        stop.deliver = signal;
        return Ok(());
    }
    // The host takes none from a tracer at other stops.
    sys::tgkill(thread.pid, tid, signal)?;
    thread.injected.push(signal);
    Ok(())
}

/// Puts a process, which leads its group, into the foreground of this process's terminal: it gets what is typed there.
///
/// # Errors
///
/// There is no terminal.
pub fn give_terminal(pid: HostTid) -> io::Result<Given> {
    let terminal = File::options().read(true).write(true).open("/dev/tty")?;
    // SAFETY: the calls take numbers only. A process in the background that is not to be stopped for it ignores SIGTTOU.
    let (before, result) = unsafe {
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        let before = libc::tcgetpgrp(terminal.as_raw_fd());
        (before, libc::tcsetpgrp(terminal.as_raw_fd(), pid.0))
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(Given { terminal, before }),
    }
}

/// The terminal is given to a process. When this is dropped, whoever had it has it again.
#[derive(Debug)]
pub struct Given {
    terminal: File,
    before: libc::pid_t,
}

impl Drop for Given {
    fn drop(&mut self) {
        if self.before > 0 {
            // SAFETY: the call takes numbers only. An error means that the terminal is gone.
            unsafe { libc::tcsetpgrp(self.terminal.as_raw_fd(), self.before) };
        }
    }
}
