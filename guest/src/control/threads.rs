//! One traced host thread.

use super::{Action, HostTid, StopReason, sys::SigInfo};

/// What a thread does, as far as ptrace knows.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// It runs, or sleeps in a system call.
    Running,
    /// It is in a group stop (somebody sent SIGSTOP) and is to stay there.
    Listening,
    /// It is stopped for us.
    Stopped(Stop),
}

/// How a thread is stopped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stop {
    /// The signal to be delivered on the way on, or 0. The host still has its description.
    pub(super) deliver: i32,
    /// It is in a group stop, besides.
    pub(super) group: bool,
    /// What a debugger has yet to be told.
    pub(super) cause: Option<StopReason>,
    /// It is stopped for a signal, so that another can be delivered in its place.
    pub(super) by_signal: bool,
    /// The debugger has been told of the signal, and decides what becomes of it.
    pub(super) told: bool,
}

/// What a thread has given to a process that it has started with `vfork`: its memory. Until it has that back it executes
/// nothing, and cannot be stopped either; then it stops by itself.
#[derive(Clone, Copy)]
pub(super) struct Loan {
    /// The process.
    pub(super) to: HostTid,
    /// The thread's registers all the while.
    pub(super) registers: libc::user_regs_struct,
}

/// One traced host thread.
pub(super) struct Thread {
    pub(super) tid: HostTid,
    /// The process that it is one of.
    pub(super) pid: HostTid,
    pub(super) state: State,
    /// SIGCHLD is blocked by us and has to be unblocked.
    pub(super) sigchld_blocked: bool,
    /// Its last resumption was a single step.
    pub(super) stepping: bool,
    /// Signals held back while stepping.
    pub(super) held: Vec<SigInfo>,
    /// Signals held back before and sent again, whose description is to be put back.
    pub(super) resent: Vec<SigInfo>,
    /// The program counter that the debugger has been told of with a breakpoint: on the way on, that breakpoint does
    /// not count.
    pub(super) reported_at: Option<u64>,
    /// The debug registers are not what they should be.
    pub(super) watchpoints_stale: bool,
    /// What the debugger of a process lets it do.
    pub(super) action: Action,
    /// What the debugger is told of when it stops, as it wants it held.
    pub(super) halt: Option<StopReason>,
    /// Signals sent for the debugger, which is not to be told of them again.
    pub(super) injected: Vec<i32>,
    /// A process has its memory.
    pub(super) loan: Option<Loan>,
}

impl Thread {
    /// Of the process `pid`.
    pub(super) fn new(pid: HostTid, tid: HostTid) -> Self {
        Self {
            tid,
            pid,
            state: State::Running,
            sigchld_blocked: false,
            stepping: false,
            held: Vec::new(),
            resent: Vec::new(),
            reported_at: None,
            watchpoints_stale: false,
            action: Action::Run,
            halt: None,
            injected: Vec::new(),
            loan: None,
        }
    }

    /// Whether it executes nothing until it is told to: because it is stopped, or because it has lent its memory.
    pub(super) fn stands_still(&self) -> bool {
        self.stop().is_some() || self.loan.is_some()
    }

    pub(super) fn stop(&self) -> Option<&Stop> {
        match &self.state {
            State::Stopped(stop) => Some(stop),
            _ => None,
        }
    }

    pub(super) fn stop_mut(&mut self) -> Option<&mut Stop> {
        match &mut self.state {
            State::Stopped(stop) => Some(stop),
            _ => None,
        }
    }

    /// Holds a signal back. One that waits already is enough, as for the host, except for the queued real-time ones.
    pub(super) fn hold_back(&mut self, info: SigInfo) {
        const FIRST_REAL_TIME: i32 = 32;
        let waits = |held: &SigInfo| held.signal() == info.signal();
        if info.signal() >= FIRST_REAL_TIME || !self.held.iter().any(waits) {
            self.held.push(info);
        }
    }
}
