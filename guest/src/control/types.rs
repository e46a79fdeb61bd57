//! The words of the engine: what is asked of it, what it reports, what goes wrong.

use std::fmt;
use std::io;
use std::time::Duration;

use kscope_kernel::{CpuId, KernelAddr, Registers};
use serde::{Deserialize, Serialize};

use crate::mem::{OpenError, WriteError};

/// A thread (or process) of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostTid(pub i32);

impl fmt::Display for HostTid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the guest's CPUs and the host thread that is it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VCpu {
    /// The guest's number of the CPU.
    pub cpu: CpuId,
    /// The host thread.
    pub tid: HostTid,
    /// The host process that it is a thread of.
    pub pid: HostTid,
}

/// How a guest's kernel process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitStatus {
    /// It exited with this code (what the guest wrote to `/proc/exitcode`).
    Exited(i32),
    /// This host signal killed it.
    Signaled(i32),
    /// It is gone, and was not this process's child, so nobody can tell.
    Unknown,
}

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// The breakpoint at this address was hit; the program counter is there, its instruction not yet executed.
    Breakpoint(KernelAddr),
    /// A step is done.
    Step,
    /// [`Debugger::stop`](super::Debugger::stop) was called.
    Interrupt,
    /// A host signal that the kernel does not use for its own purposes is about to be delivered, such as SIGABRT when a
    /// kernel has panicked. [`Debugger::cont`](super::Debugger::cont) delivers it.
    Signal(i32),
    /// A watchpoint's memory was accessed.
    Watchpoint(KernelAddr),
    /// The process has become another program, of which nothing has been executed yet.
    Exec,
    /// The debugger wants this thread held, in non-stop.
    Halt,
    /// The thread has just begun, in non-stop ([`Debugger::set_thread_events`](super::Debugger::set_thread_events)).
    Created,
    /// The process has forked this one, which stands still.
    Fork(HostTid),
    /// As [`StopReason::Fork`], but the child has the process's memory, and what has started it stands still, too, until
    /// the child has executed a program or ended.
    Vfork(HostTid),
    /// The thread has its memory back from what it has started.
    VforkDone,
}

/// What the engine tells a debugger.
#[derive(Clone, Debug)]
pub enum Event {
    /// All CPUs are stopped, or, in non-stop, this thread.
    Stopped {
        /// The CPU that caused it.
        cpu: CpuId,
        /// Why.
        reason: StopReason,
        /// The registers of all CPUs; in non-stop, of none.
        registers: Vec<(VCpu, Registers)>,
    },
    /// A thread of a process is gone ([`Debugger::set_thread_events`](super::Debugger::set_thread_events)).
    ThreadExited {
        /// The process.
        pid: HostTid,
        /// The thread.
        tid: HostTid,
        /// Its exit code.
        code: i32,
    },
    /// The last thread of a process that ran is gone; those that are held are all that is left.
    NoneRuns,
    /// One of several processes is gone; the others are stopped.
    ProcessExited {
        /// The process.
        pid: HostTid,
        /// How.
        status: ExitStatus,
    },
    /// The guest is gone.
    Exited(ExitStatus),
}

/// Which accesses a watchpoint catches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WatchKind {
    /// Writes.
    Write,
    /// Reads and writes: the hardware has no reads alone.
    Access,
}

/// What a step may do, on one CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// One instruction.
    Instruction,
    /// Instructions until the program counter leaves the range or comes upon a breakpoint.
    Range(std::ops::Range<KernelAddr>),
}

/// What a debugger lets one thread of a process do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The thread.
    pub tid: HostTid,
    /// The way it runs.
    pub action: Action,
    /// The signal that it is given, or 0. The one that it was stopped for counts for nothing else.
    pub signal: i32,
}

/// The way a thread of a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Freely.
    #[default]
    Run,
    /// Step by step, while others may run.
    Step(Step),
    /// Not at all.
    Hold,
}

/// Why the engine could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The guest is gone.
    #[error("the guest has ended")]
    Ended,
    /// The host does not let this process trace the guest.
    #[error("cannot attach to the guest's host thread {tid}: {error}{hint}")]
    Attach {
        /// The thread.
        tid: HostTid,
        /// What the host said.
        error: io::Error,
        /// What is known about the cause, and what helps; empty or beginning with `: `.
        hint: String,
    },
    /// Somebody else is debugging the guest.
    #[error("another debugger is connected to this guest: detach it first")]
    Busy,
    /// A thread did not stop in time.
    #[error("CPU {cpu:?} of the guest did not stop within {timeout:?}: {place}")]
    StopTimeout {
        /// The CPU, if the thread is known to be one.
        cpu: Option<CpuId>,
        /// How long it was waited for.
        timeout: Duration,
        /// Where the host says that each thread is.
        place: String,
    },
    /// The kernel did not get to its start in time.
    #[error("the guest did not reach start_kernel within {timeout:?}: {place}")]
    StartTimeout {
        /// How long it was waited for.
        timeout: Duration,
        /// Where the host says that each thread is.
        place: String,
    },
    /// The kernel binary lacks a symbol.
    #[error("the kernel {image} has no symbol {name}: is it stripped?")]
    NoSymbol {
        /// The kernel's path.
        image: String,
        /// The symbol.
        name: &'static str,
    },
    /// Something was asked of an ordinary process that only a kernel has.
    #[error("process {0} is no kernel")]
    NoKernel(HostTid),
    /// Threads were to stop one by one that only stop together.
    #[error("the CPUs of a kernel stop together: there is no non-stop mode")]
    AllStop,
    /// Something was asked that needs a stopped guest.
    #[error("the guest is running: stop it first")]
    Running,
    /// Something was asked that needs a running guest.
    #[error("the guest is stopped: continue it first")]
    Stopped,
    /// Nothing is there.
    #[error("no memory of the guest is mapped at {addr}")]
    Unmapped {
        /// The address.
        addr: KernelAddr,
    },
    /// There is no such CPU.
    #[error("the guest has no CPU {0}")]
    NoCpu(CpuId),
    /// The processor's debug registers are in use, or cannot watch that.
    #[error("cannot watch {len} bytes at {addr}: {reason}")]
    Watchpoint {
        /// First byte.
        addr: KernelAddr,
        /// Bytes.
        len: u64,
        /// Why.
        reason: &'static str,
    },
    /// The host refused a ptrace request.
    #[error("{request} of the guest's host thread {tid} failed: {error}")]
    Ptrace {
        /// What was asked.
        request: &'static str,
        /// The thread.
        tid: HostTid,
        /// What the host said.
        error: io::Error,
    },
    /// The guest's memory cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The guest's memory cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The engine's own descriptors failed.
    #[error("guest control: {0}")]
    Io(#[from] io::Error),
}
