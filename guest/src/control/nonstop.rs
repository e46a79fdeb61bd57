//! Non-stop: each thread of a process stops and runs by itself, as its debugger says.
//!
//! The engine's job is to let run ([`Job::Free`]) all the time. A thread that has something to tell is held
//! ([`Action::Hold`]) and told of, and the others do not notice. Breakpoints stay in the text, so that memory is read
//! with the process's own bytes put back in what was read. What needs all threads to stand still (to go over a
//! breakpoint that does not count, to set the debug registers) stops them for as long as that takes.

use kscope_kernel::KernelAddr;

use super::engine::{Engine, STOP_TIMEOUT};
use super::running::Job;
use super::threads::Thread;
use super::{Action, ControlError, Debugger, Event, HostTid, Resume, StopReason, sys};

impl Debugger {
    /// Has each thread of a process stop by itself, or all of them with the first. The process has to be stopped to
    /// begin with the former, and is afterwards; then it is all the same to everything that needs a stopped guest
    /// whether it is, but nothing is known of the registers of a thread that runs.
    ///
    /// # Errors
    ///
    /// The process has ended, runs, did not stop in time, or is a kernel, whose CPUs are stopped together.
    pub fn set_non_stop(&self, on: bool) -> Result<(), ControlError> {
        self.control()
            .call(move |engine| engine.debug_non_stop(on))?
    }

    /// In non-stop, lets held threads run as each is told. The others do what they did.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn resume_some(&self, resumes: Vec<Resume>) -> Result<(), ControlError> {
        self.control()
            .call(move |engine| engine.debug_resume_some(&resumes))?
    }

    /// In non-stop, holds threads that run. [`Event::Stopped`] with `reason` follows for each, unless it has something
    /// else to tell.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn halt(&self, tids: Vec<HostTid>, reason: StopReason) -> Result<(), ControlError> {
        self.control()
            .call(move |engine| engine.debug_halt(&tids, reason))?
    }

    /// In non-stop, whether the debugger is told of each thread that begins ([`StopReason::Created`]) or ends
    /// ([`Event::ThreadExited`]).
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn set_thread_events(&self, on: bool) -> Result<(), ControlError> {
        self.control().call(move |engine| engine.thread_events = on)
    }

    /// Reads as many of `len` bytes at `addr` as there are before the first hole, with the process's own bytes where
    /// breakpoints are, whether or not it runs.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn read_memory(&self, addr: KernelAddr, len: usize) -> Result<Vec<u8>, ControlError> {
        self.control().call(move |engine| {
            let space = engine.space_mut(engine.selected)?;
            let mut bytes = vec![0; len];
            let read = space.memory.read_some(addr, &mut bytes);
            bytes.truncate(read);
            space.breakpoints.mask(addr, &mut bytes);
            Ok(bytes)
        })?
    }
}

impl Engine {
    fn debug_non_stop(&mut self, on: bool) -> Result<(), ControlError> {
        self.alive()?;
        if !self.is_process() {
            return Err(ControlError::AllStop);
        }
        if on == self.non_stop {
            return Ok(());
        }
        if !on {
            self.stop_all(STOP_TIMEOUT)?;
            self.end_non_stop();
            self.job = Job::Held;
            self.lift();
            return Ok(());
        }
        self.held()?;
        for thread in self.threads.values_mut() {
            thread.action = Action::Hold;
            thread.reported_at = None;
        }
        self.non_stop = true;
        self.job = Job::Free;
        Ok(())
    }

    /// Threads stop together again.
    pub(super) fn end_non_stop(&mut self) {
        self.non_stop = false;
        self.thread_events = false;
        for thread in self.threads.values_mut() {
            thread.halt = None;
        }
    }

    fn debug_resume_some(&mut self, resumes: &[Resume]) -> Result<(), ControlError> {
        self.alive()?;
        for resume in resumes {
            self.take_up(resume);
        }
        Ok(())
    }

    fn debug_halt(&mut self, tids: &[HostTid], reason: StopReason) -> Result<(), ControlError> {
        self.alive()?;
        for tid in tids {
            let runs = |thread: &&mut Thread| thread.action != Action::Hold;
            let Some(thread) = self.threads.get_mut(tid).filter(runs) else {
                continue;
            };
            thread.halt = Some(reason);
            if thread.stop().is_none() {
                // A thread that is gone says so in the end.
                let _ = sys::interrupt(*tid);
            }
        }
        Ok(())
    }

    /// What the debugger is to be told of threads that it wants held, one at a time.
    pub(super) fn take_halted(&mut self) -> Option<(HostTid, StopReason)> {
        let mut threads = self.threads.values_mut();
        threads.find_map(|thread| {
            if thread.stop().is_none() || thread.action == Action::Hold {
                return None;
            }
            Some((thread.tid, thread.halt.take()?))
        })
    }

    /// The start of a thread, as its debugger may want to hear of it.
    pub(super) fn new_thread(&mut self, pid: HostTid, tid: HostTid) -> Thread {
        self.cpus.clear();
        let mut thread = Thread::new(pid, tid);
        thread.watchpoints_stale = true;
        thread.halt = self.thread_events.then_some(StopReason::Created);
        thread
    }

    /// A thread has ended, but not the process.
    pub(super) fn thread_is_gone(&mut self, tid: HostTid, code: i32) {
        let Some(thread) = self.threads.remove(&tid) else {
            return;
        };
        self.cpus.clear();
        if !self.is_process() {
            return;
        }
        if self.thread_events {
            let pid = thread.pid;
            self.tell_debugger(Event::ThreadExited { pid, tid, code });
        }
        self.lost_runner |= thread.action != Action::Hold;
    }

    /// A tick has passed. The leader of a process ends without a word as long as it has other threads, and it looks
    /// the same when they are all about to end with it, which takes less than another tick.
    pub(super) fn look_at_leader(&mut self) {
        let dead = match self.is_process() && self.threads.len() > self.processes.pids().count() {
            true => self.dead_leaders(),
            false => Vec::new(),
        };
        for leader in std::mem::replace(&mut self.leaders_seem_dead, dead.clone()) {
            if dead.contains(&leader) {
                self.thread_is_gone(leader, 0);
            }
        }
    }

    /// Those that look dead, of processes that have other threads.
    fn dead_leaders(&self) -> Vec<HostTid> {
        let others = |pid| {
            let mut threads = self.threads.values();
            threads.any(|thread| thread.pid == pid && thread.tid != pid)
        };
        let is_dead = |thread: &&Thread| {
            thread.tid == thread.pid
                && thread.stop().is_none()
                && others(thread.pid)
                && sys::is_zombie(thread.tid)
        };
        let leaders = self.threads.values().filter(is_dead);
        leaders.map(|thread| thread.tid).collect()
    }

    /// A debugger that waits for a thread hears of it when the last that ran has ended.
    pub(super) fn tell_if_none_runs(&mut self) {
        if !std::mem::take(&mut self.lost_runner)
            || !self.has_debugger()
            || self.threads.is_empty()
            || self.threads.values().any(|t| t.action != Action::Hold)
        {
            return;
        }
        if !self.non_stop {
            self.job = Job::Held;
            self.lift();
        }
        self.tell_debugger(Event::NoneRuns);
    }
}
