//! What a debugged process forks.
//!
//! A debugger that follows forks is told of each, and of the end of each `vfork`: the child is traced as its parent is,
//! and stands still until the debugger lets it run or go. For any other debugger it is let go at once, without the
//! breakpoints that it has inherited; where it has its parent's memory, nobody has breakpoints as long as it has.

use std::time::Instant;

use kscope_kernel::KernelAddr;

use super::attach::let_go_of;
use super::breakpoints::INT3;
use super::engine::{Engine, STOP_TIMEOUT, take};
use super::sys::{self, Wait};
use super::threads::{Loan, State, Stop, Thread};
use super::{Action, ControlError, ExitStatus, HostTid, StopReason};
use crate::mem::ProcMem;

/// A process that ours has started, or a thread that nobody could stop, on its way to freedom.
pub(super) struct Child {
    pid: HostTid,
    /// What has to be put back where breakpoints of ours are in its memory.
    bytes: Vec<(KernelAddr, u8)>,
}

impl Engine {
    /// The process has started another, which is traced; or one that used its memory does so no more. Returns what the
    /// debugger is to be told.
    pub(super) fn after_fork(&mut self, tid: HostTid, event: i32) -> Option<StopReason> {
        let is_vfork = event == libc::PTRACE_EVENT_VFORK;
        let follows = self.follows_forks && self.has_debugger();
        let thread = self.threads.get_mut(&tid)?;
        let parent = thread.pid;
        match event {
            libc::PTRACE_EVENT_VFORK_DONE => {
                thread.loan = None;
                return follows.then_some(StopReason::VforkDone);
            }
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {}
            _ => return None,
        }
        // An error means that it was killed at this moment.
        let killed =
            |error: &std::io::Error| log::debug!("process {tid} has started another: {error}");
        let child = sys::started_thread(tid).inspect_err(killed).ok()?;
        if is_vfork {
            let registers = sys::registers(tid).inspect_err(killed).ok()?;
            thread.loan = Some(Loan {
                to: child,
                registers,
            });
        }
        if !follows {
            self.free(parent, child, is_vfork);
            return None;
        }
        let memory = match is_vfork {
            true => None,
            false => match ProcMem::open(child) {
                Ok(memory) => Some(memory),
                Err(error) => {
                    log::debug!("{error}");
                    return None;
                }
            },
        };
        self.processes.add_child(parent, child, memory);
        let mut thread = Thread::new(child, child);
        thread.action = Action::Hold;
        thread.watchpoints_stale = true;
        if take(&mut self.early_children, child) {
            thread.state = State::Stopped(Stop::default());
        }
        self.threads.insert(child, thread);
        Some(match is_vfork {
            true => StopReason::Vfork(child),
            false => StopReason::Fork(child),
        })
    }

    /// Lets go of a thread, now or when it has its memory back.
    pub(super) fn let_thread_go(&mut self, mut thread: Thread) {
        if thread.stop().is_none() && thread.loan.is_some() {
            self.children.push(Child {
                pid: thread.tid,
                bytes: Vec::new(),
            });
        } else {
            let_go_of(&mut thread);
        }
    }

    /// Lets a child that nobody follows go, as soon as it has stopped.
    fn free(&mut self, parent: HostTid, child: HostTid, is_vfork: bool) {
        let mut bytes = Vec::new();
        if let Some(space) = self.processes.space_mut(parent) {
            match is_vfork {
                // It would not survive a breakpoint.
                true => space.lift(),
                // What was in the text when it was copied may be there no more.
                false => bytes = space.own_bytes(),
            }
        }
        let child = Child { pid: child, bytes };
        match take(&mut self.early_children, child.pid) {
            true => child.let_go(),
            false => self.children.push(child),
        }
    }

    /// The processes whose memory is lent to others that nobody traces, which would not survive a breakpoint.
    pub(super) fn lenders(&self) -> Vec<HostTid> {
        let is_lent = |thread: &&Thread| {
            let loan = thread.loan;
            loan.is_some_and(|loan| !self.processes.contains(loan.to))
        };
        let lenders = self.threads.values().filter(is_lent);
        lenders.map(|thread| thread.pid).collect()
    }

    /// The traced process that `tid` is a thread of.
    pub(super) fn process_with(&self, tid: HostTid) -> Option<HostTid> {
        self.processes.pids().find(|&pid| sys::is_thread(pid, tid))
    }

    /// Whether something has happened to a process that ours has started and that is not traced for the debugger. It is
    /// let go when it has stopped, which it does before anything else.
    pub(super) fn is_of_child(&mut self, tid: HostTid, wait: Wait) -> bool {
        if self.threads.contains_key(&tid) {
            return false;
        }
        let has_ended = matches!(wait, Wait::Exited(_) | Wait::Signaled(_));
        if let Some(index) = self.children.iter().position(|child| child.pid == tid) {
            let child = self.children.remove(index);
            if !has_ended {
                child.let_go();
            }
            return true;
        }
        // A thread, or a process, may be there before the news of its start.
        if has_ended || self.process_with(tid).is_some() {
            return false;
        }
        self.early_children.push(tid);
        true
    }

    // One of several processes.

    /// A thread has ended, or with its leader a process, or with the last process everything.
    pub(super) fn has_exited(&mut self, tid: HostTid, status: ExitStatus) {
        let process = self.processes.remove(tid);
        if process.is_none() && tid != self.pid {
            let (ExitStatus::Exited(code) | ExitStatus::Signaled(code)) = status else {
                return;
            };
            return self.thread_is_gone(tid, code);
        }
        if self.processes.pids().next().is_none() {
            return self.ended(status);
        }
        self.forget_process(tid);
        if process.is_some_and(|process| process.untold.is_none()) && self.has_debugger() {
            self.ends.push_back((tid, status));
        }
    }

    /// A process is traced no more, and others still are.
    fn forget_process(&mut self, pid: HostTid) {
        self.threads.retain(|_, thread| thread.pid != pid);
        // Nobody is left to tell of them.
        for child in self.processes.untold_of(pid) {
            self.processes.told(child, false);
        }
        self.cpus.clear();
        if let Some(first) = self.processes.pids().next()
            && self.pid == pid
        {
            match sys::pidfd_open(first) {
                Ok(pidfd) => self.pidfd = pidfd,
                Err(error) => log::debug!("process {first}: {error}"),
            }
            self.pid = first;
            self.ending.set_pid(first);
        }
        if !self.processes.contains(self.selected) {
            self.selected = self.pid;
        }
    }

    /// The debugger's requests are about this process from now on.
    pub(super) fn select(&mut self, pid: HostTid) -> Result<ProcMem, ControlError> {
        let space = self.processes.space(pid).ok_or(ControlError::Ended)?;
        self.selected = pid;
        Ok(space.memory.clone())
    }

    /// Lets one of several processes go, with those that it has forked without anybody having been told.
    pub(super) fn detach_process(&mut self, pid: HostTid) -> Result<(), ControlError> {
        self.still()?;
        let mut pids = self.processes.untold_of(pid);
        pids.push(pid);
        for pid in pids {
            if let Some(space) = self.processes.space_mut(pid) {
                space.lift();
            }
            let is_its = |thread: &&Thread| thread.pid == pid;
            let tids = self
                .threads
                .values()
                .filter(is_its)
                .map(|thread| thread.tid);
            let tids: Vec<_> = tids.collect();
            self.prepare_to_go(&tids);
            for tid in tids {
                if let Some(thread) = self.threads.remove(&tid) {
                    self.let_thread_go(thread);
                }
            }
            self.processes.remove(pid);
            self.forget_process(pid);
        }
        Ok(())
    }

    /// Kills one of several processes, with those that it has forked without anybody having been told, and waits for
    /// its end, of which the debugger is not told.
    pub(super) fn kill_process(&mut self, pid: HostTid) -> Result<(), ControlError> {
        self.alive()?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut pids = self.processes.untold_of(pid);
        pids.push(pid);
        for &pid in &pids {
            sys::kill(pid)?;
        }
        while pids.iter().any(|&pid| self.processes.contains(pid)) && Instant::now() < deadline {
            self.wait_for_threads(false)?;
        }
        self.ends.retain(|(ended, _)| !pids.contains(ended));
        Ok(())
    }

    /// Kills everything that is traced, or else the guest.
    pub(super) fn kill_all(&mut self) -> Result<(), ControlError> {
        self.alive()?;
        sys::kill(self.pid)?;
        for pid in self.processes.pids() {
            sys::kill(pid)?;
        }
        Ok(())
    }
}

impl Child {
    fn let_go(&self) {
        if !self.bytes.is_empty()
            && let Err(error) = self.restore()
        {
            log::warn!("breakpoints stay in process {}: {error}", self.pid);
        }
        if let Err(error) = sys::detach(self.pid, 0) {
            log::debug!("detaching from process {}: {error}", self.pid);
        }
    }

    /// Takes the breakpoints out.
    fn restore(&self) -> Result<(), ControlError> {
        let memory = ProcMem::open(self.pid)?;
        for &(addr, byte) in &self.bytes {
            let mut now = [0];
            if memory.read_some(addr, &mut now) == 1 && now == [INT3] && byte != INT3 {
                memory.write(addr, &[byte])?;
            }
        }
        Ok(())
    }
}
