//! Attaching to the guest's threads, and letting go of them as they were.

use std::time::{Duration, Instant};

use super::breakpoints::Breakpoints;
use super::engine::{Engine, STOP_TIMEOUT};
use super::running::Job;
use super::sys::{self, Wait};
use super::threads::Thread;
use super::{ControlError, HostTid};
use crate::mem::ProcMem;

impl Engine {
    pub(super) fn attach(&mut self) -> Result<(), ControlError> {
        self.alive()?;
        if self.threads.is_empty() {
            self.seize_and_prepare()?;
        }
        self.references += 1;
        Ok(())
    }

    fn seize_and_prepare(&mut self) -> Result<(), ControlError> {
        self.memory = Some(ProcMem::open(self.pid)?);
        self.seize_new()?;
        if sys::has_default_action(self.pid, libc::SIGCHLD) {
            // The mask can be changed in a stopped thread only.
            if let Err(error) = self.stop_all(STOP_TIMEOUT) {
                self.let_go();
                return Err(error);
            }
            for thread in self.threads.values_mut() {
                block_sigchld_in(thread);
            }
        }
        self.job = Job::Free;
        self.settle();
        Ok(())
    }

    /// Seizes the threads that are not yet traced.
    pub(super) fn seize_new(&mut self) -> Result<(), ControlError> {
        // A thread may start others while we look; one that does so for ever gets no more than this.
        const ROUNDS: usize = 16;
        let mut options = libc::PTRACE_O_TRACEEXEC;
        if self.options.kill_on_exit {
            options |= libc::PTRACE_O_EXITKILL;
        }
        for _ in 0..ROUNDS {
            let mut found = false;
            for tid in sys::threads(self.pid).map_err(|_| ControlError::Ended)? {
                if self.threads.contains_key(&tid) {
                    continue;
                }
                match sys::seize(tid, options) {
                    Ok(()) => {
                        let mut thread = Thread::new(tid);
                        thread.watchpoints_stale = !self.watchpoints.is_empty();
                        self.threads.insert(tid, thread);
                        found = true;
                    }
                    // Gone since the directory was read.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(error) => {
                        let hint = self.attach_hint(tid, &error);
                        if tid == self.pid {
                            self.let_go();
                            return Err(ControlError::Attach { tid, error, hint });
                        }
                        log::warn!("helper thread {tid} of guest {}: {error}{hint}", self.pid);
                    }
                }
            }
            if !found {
                break;
            }
        }
        if self.threads.is_empty() {
            return Err(ControlError::Ended);
        }
        Ok(())
    }

    fn attach_hint(&self, tid: HostTid, error: &std::io::Error) -> String {
        if error.raw_os_error() != Some(libc::EPERM) {
            return String::new();
        }
        if let Some((tracer, name)) = sys::tracer(tid) {
            return format!(": process {tracer} ({name}) traces it already: detach that one first");
        }
        match sys::ptrace_scope() {
            Some(1) => ": Yama's ptrace_scope is 1, so only a guest's own kscope may attach: use `kscope gdb`, or set \
                        /proc/sys/kernel/yama/ptrace_scope to 0"
                .to_owned(),
            Some(scope @ 2..) => format!(
                ": Yama's ptrace_scope is {scope}: set /proc/sys/kernel/yama/ptrace_scope to 1 or less, as root"
            ),
            _ => ": it must be a process of the same user".to_owned(),
        }
    }

    pub(super) fn drop_attachment(&mut self) {
        self.references = self.references.saturating_sub(1);
        if self.references == 0 && !self.threads.is_empty() {
            if let Err(error) = self.stop_all(STOP_TIMEOUT) {
                // It stays attached, which the next attachment makes use of.
                log::warn!("detaching from guest {}: {error}", self.pid);
                self.settle();
                return;
            }
            self.let_go();
        }
    }

    /// Restores everything in the stopped threads and detaches from them.
    pub(super) fn let_go(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.breakpoints.lift(&memory);
        }
        self.breakpoints = Breakpoints::default();
        self.watchpoints.clear();
        for mut thread in std::mem::take(&mut self.threads).into_values() {
            let Some(stop) = thread.stop().copied() else {
                // Seized, but never stopped: a thread has to be stopped to be let go.
                if sys::interrupt(thread.tid).is_ok() {
                    let deadline = Instant::now() + STOP_TIMEOUT;
                    while Instant::now() < deadline {
                        match sys::wait(thread.tid) {
                            Ok(None) => {
                                let _ = self.waker.sleep(None, Some(Duration::from_millis(100)));
                            }
                            Ok(Some(Wait::Signal(signal))) => {
                                let _ = sys::detach(thread.tid, signal);
                                break;
                            }
                            _ => {
                                let _ = sys::detach(thread.tid, 0);
                                break;
                            }
                        }
                    }
                }
                continue;
            };
            if thread.sigchld_blocked {
                let unblock = sys::signal_mask(thread.tid).and_then(|mask| {
                    sys::set_signal_mask(thread.tid, mask & !sys::bit(libc::SIGCHLD))
                });
                if let Err(error) = unblock {
                    log::debug!("unblocking SIGCHLD in {}: {error}", thread.tid);
                }
            }
            if thread.watchpoints_stale {
                let _ = self.watchpoints.apply(thread.tid);
            }
            for info in thread.held.drain(..).chain(thread.resent.drain(..)) {
                let _ = sys::tgkill(self.pid, thread.tid, info.signal());
            }
            if let Err(error) = sys::detach(thread.tid, stop.deliver) {
                log::debug!("detaching from {}: {error}", thread.tid);
            }
        }
        self.job = Job::Free;
        self.cpus.clear();
    }
}

/// Blocks SIGCHLD in a stopped thread, unless it is already.
pub(super) fn block_sigchld_in(thread: &mut Thread) {
    let blocked = sys::signal_mask(thread.tid).and_then(|mask| {
        if mask & sys::bit(libc::SIGCHLD) != 0 {
            return Ok(thread.sigchld_blocked);
        }
        sys::set_signal_mask(thread.tid, mask | sys::bit(libc::SIGCHLD)).map(|()| true)
    });
    match blocked {
        Ok(blocked) => thread.sigchld_blocked = blocked,
        Err(error) => log::debug!("blocking SIGCHLD in {}: {error}", thread.tid),
    }
}
