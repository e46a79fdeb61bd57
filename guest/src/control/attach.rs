//! Attaching to the guest's threads, and letting go of them as they were.

use std::time::Instant;

use super::engine::{Engine, STOP_TIMEOUT};
use super::running::Job;
use super::sys;
use super::threads::{State, Thread};
use super::watchpoints::Watchpoints;
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
        self.processes.add(self.pid, ProcMem::open(self.pid)?);
        self.seize_new()?;
        if !self.is_process() && sys::has_default_action(self.pid, libc::SIGCHLD) {
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
        // New threads are traced from their first instruction: CPUs and helpers, which otherwise would
        // run into breakpoints that nobody is there for.
        let mut options = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACECLONE;
        if self.is_process() {
            options |= libc::PTRACE_O_TRACEFORK
                | libc::PTRACE_O_TRACEVFORK
                | libc::PTRACE_O_TRACEVFORKDONE;
        }
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
                        let mut thread = Thread::new(self.pid, tid);
                        let process = self.processes.get(self.pid);
                        thread.watchpoints_stale =
                            process.is_some_and(|process| !process.watchpoints.is_empty());
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
            Some(1) if self.is_process() => ": Yama's ptrace_scope is 1, so only who has started it may attach: set \
                        /proc/sys/kernel/yama/ptrace_scope to 0, or start it with `kscope gdbserver`"
                .to_owned(),
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

    /// Stops what is not stopped, restores everything in the threads, and detaches from them.
    pub(super) fn let_go(&mut self) {
        self.job = Job::Free;
        let tids: Vec<_> = self.threads.keys().copied().collect();
        for &tid in &tids {
            let stopped = |thread: &Thread| thread.stands_still();
            // A thread has to be stopped to be let go. One that is gone says so in the end.
            if !self.threads.get(&tid).is_some_and(stopped) && sys::interrupt(tid).is_ok() {
                self.await_stop(tid);
            }
        }
        self.lift();
        self.prepare_to_go(&tids);
        self.clock_goes();
        for thread in std::mem::take(&mut self.threads).into_values() {
            self.let_thread_go(thread);
        }
        self.processes.clear();
        self.cpus.clear();
    }

    /// Takes out of stopped threads what nobody else would expect: watchpoints, and traps that are yet to come.
    pub(super) fn prepare_to_go(&mut self, tids: &[HostTid]) {
        for &tid in tids {
            if let Some(thread) = self.threads.get(&tid)
                && let Some(process) = self.processes.get(thread.pid)
                && (thread.watchpoints_stale || !process.watchpoints.is_empty())
                && let Err(error) = Watchpoints::default().apply(tid)
            {
                log::debug!("watchpoints of {tid}: {error}");
            }
        }
        for &tid in tids {
            self.drain_traps(tid);
        }
    }

    /// Waits for a thread to stop. False if it did not in time, or is gone.
    fn await_stop(&mut self, tid: HostTid) -> bool {
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            match self.threads.get(&tid) {
                None => return false,
                Some(thread) if thread.stop().is_some() => return true,
                Some(_) => {}
            }
            if Instant::now() >= deadline || self.wait_for_threads(false).is_err() {
                return false;
            }
        }
    }

    /// Takes our own traps out of the queue of a stopped thread: an interrupt is told of before a SIGTRAP that the
    /// same instruction has caused, and nobody else would survive that.
    fn drain_traps(&mut self, tid: HostTid) {
        // There is hardly ever a second.
        const MOST: usize = 8;
        for _ in 0..MOST {
            let Some(thread) = self.threads.get_mut(&tid) else {
                return;
            };
            let Some(stop) = thread.stop().copied() else {
                return;
            };
            // One that is blocked is the guest's own: ours are forced on it.
            let comes = sys::has_pending(tid, libc::SIGTRAP).unwrap_or(false)
                && sys::signal_mask(tid).is_ok_and(|mask| mask & sys::bit(libc::SIGTRAP) == 0);
            if !comes || sys::cont(tid, stop.deliver).is_err() {
                return;
            }
            thread.state = State::Running;
            thread.stepping = false;
            if !self.await_stop(tid) && sys::interrupt(tid).is_ok() {
                self.await_stop(tid);
            }
        }
    }
}

/// Detaches from a thread, with its own signals and mask.
pub(super) fn let_go_of(thread: &mut Thread) {
    let tid = thread.tid;
    if thread.sigchld_blocked {
        let unblock = sys::signal_mask(tid)
            .and_then(|mask| sys::set_signal_mask(tid, mask & !sys::bit(libc::SIGCHLD)));
        if let Err(error) = unblock {
            log::debug!("unblocking SIGCHLD in {tid}: {error}");
        }
    }
    // Those that were sent again before are in the host's queue still, or were delivered.
    for info in thread.held.drain(..) {
        if let Err(error) = sys::send_again(thread.pid, tid, &info) {
            log::debug!("sending signal {} again: {error}", info.signal());
        }
    }
    let deliver = thread.stop().map_or(0, |stop| stop.deliver);
    if let Err(error) = sys::detach(tid, deliver) {
        log::debug!("detaching from {tid}: {error}");
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
