//! Why tasks are blocked: what each waits for, who could end that, and which of them wait for each
//! other.
//!
//! Lockdep need not be built in. A task that goes to sleep leaves a waiter structure on its own
//! stack (`struct mutex_waiter`, `struct wait_queue_entry`, ...) that points back to the task and
//! is linked into the lock. The functions on the stack say which kind to look for; the links lead
//! to the lock, and the lock says who has it.

mod clock;
mod files;
mod futex;
mod graph;
mod kinds;
mod links;
mod locks;
mod look;
mod modules;
mod names;
mod queues;
mod rings;
mod show;
mod sleeper;
mod sockets;

use serde::Serialize;

use crate::addr::{GuestPid, KernelAddr, UserAddr};
use crate::memory::Memory;
use crate::reader::{Reader, ViewError};
use crate::tasks::{Task, TaskState};
use look::Look;

/// What tasks wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Why {
    /// The tasks that wait for each other in a circle: none of them can go on.
    pub deadlocks: Vec<Deadlock>,
    /// The tasks that were asked for. When all were: those in or behind a deadlock first, then
    /// those that are blocked, then those that sleep, then the idle threads of the kernel.
    pub tasks: Vec<Waiting>,
    /// Whether these are all tasks, and not just those that were asked for.
    #[serde(skip)]
    all: bool,
}

/// A task, as it is named in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Who {
    /// Its pid in the guest's root namespace.
    pub pid: GuestPid,
    /// Its name.
    pub comm: String,
}

/// Tasks that wait for each other in a circle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deadlock {
    /// Whether the kernel itself says who holds each of the locks. Otherwise some of it is
    /// inferred, as the owner of a mutex in user space or of a lock that is held for reading.
    pub certain: bool,
    /// Each waits for what the next one has, and the last for what the first has.
    pub links: Vec<Link>,
}

/// A task in a deadlock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The task.
    pub task: Who,
    /// What it waits for.
    pub wait: Wait,
    /// Its kernel stack from where it began to wait, innermost first.
    pub stack: Vec<String>,
}

/// A task and what it waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// The task.
    pub task: Who,
    /// The pid of its process.
    pub tgid: GuestPid,
    /// Its state, as the letter that ps prints.
    pub state: TaskState,
    /// Whether it is one of the kernel's own threads.
    pub kernel_thread: bool,
    /// What it waits for.
    pub wait: Wait,
    /// Whom it waits for, whom that one waits for, and so on.
    pub chain: Vec<Step>,
    /// Whether it can never go on: it is in a deadlock, or waits for tasks that are.
    pub stuck: bool,
    /// The deadlock that it is part of: an index into the view's `deadlocks`.
    pub deadlock: Option<usize>,
    /// Since when, if that is known. `None` for a task that runs.
    pub since: Option<Since>,
    /// Its kernel stack from where it began to wait, innermost first.
    pub stack: Vec<String>,
}

/// One step along a chain of owners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The task that has what the one before waits for.
    pub task: Who,
    /// What it waits for itself.
    pub reason: Reason,
    /// The lock or the queue, when it was found.
    pub object: Option<Named>,
    /// What it is to what the one before waits for.
    pub role: Role,
}

/// When a task went to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Since {
    /// Nanoseconds of the guest's scheduler clock, which counts from boot as dmesg does.
    pub at_ns: u64,
    /// How long ago that is, by the same clock. At least: the clock of an idle guest stands still
    /// between events.
    pub for_ns: u64,
}

/// What a task waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// What kind of thing it is.
    pub reason: Reason,
    /// The lock or the queue, when it was found.
    pub object: Option<Named>,
    /// The kernel function that waits, behind those of the lock itself.
    pub function: Option<String>,
    /// The tasks that can end it.
    pub wakers: Vec<Waker>,
    /// The task that holds the lock and has ended without giving it back: where it was.
    pub gone: Option<KernelAddr>,
    /// Whether nobody else can (but for a signal): the owner of a lock, or all who have the other
    /// end of a pipe.
    pub closed: bool,
    /// Nanoseconds until it ends by itself. At most: the clock of an idle guest stands still
    /// between events.
    pub timeout_ns: Option<i64>,
}

/// A task that can end a wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waker {
    /// The task.
    pub task: Who,
    /// What it is to the object.
    pub role: Role,
    /// Whether the kernel itself says so. See [`Deadlock::certain`].
    pub certain: bool,
    /// Where its `task_struct` is.
    #[serde(skip)]
    addr: KernelAddr,
}

/// What a task is to something that another one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Holds the lock.
    Owner,
    /// The last that took the lock for reading; others may have it, too, and this one may not any
    /// more.
    Reader,
    /// Has the other end open.
    OtherEnd,
    /// A child.
    Child,
    /// Will end, or call `exec()`, and so end the wait.
    Exits,
    /// Does the work.
    Worker,
}

/// An address of the kernel, and what is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Where it is.
    pub addr: KernelAddr,
    /// A variable's name, a member of a structure that is known, or where in which slab cache it
    /// lies.
    pub name: Option<String>,
}

/// For reading or for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Together with others.
    Read,
    /// Alone.
    Write,
}

/// What somebody waits for in user space's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FutexUse {
    /// A lock whose word, or what C libraries keep beside it, names the owner.
    Lock,
    /// A lock whose owner inherits the waiters' priority (`FUTEX_LOCK_PI`).
    PriorityLock,
    /// The end of a thread (`pthread_join()`).
    Join,
    /// A condition variable whose waiters are handed on to a lock (`FUTEX_WAIT_REQUEUE_PI`).
    Requeue,
    /// Something else: a condition variable, a semaphore, a lock of a library that is not known.
    Other,
}

/// What is done with a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PipeSide {
    /// Read from it: it is empty.
    Read,
    /// Write to it: it is full.
    Write,
    /// Open it: a FIFO whose other end nobody has open.
    Open,
}

/// A file that a task waits for with others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Polled {
    /// The descriptor, when the task still has it.
    pub fd: Option<u32>,
    /// What it is: a name, or `pipe:[123]` as in /proc/PID/fd.
    pub file: String,
}

/// The kind of thing that a task waits for; in JSON, `kind` is its name: `mutex`, `wait_queue`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// A `struct mutex`.
    Mutex,
    /// A `struct rw_semaphore`.
    Rwsem {
        /// What for.
        access: Access,
        /// How many have it for reading.
        readers: u64,
        /// Whether one has it for writing.
        writer: bool,
    },
    /// A `struct semaphore`.
    Semaphore,
    /// A `struct rt_mutex`.
    RtMutex,
    /// A `struct percpu_rw_semaphore`.
    PercpuRwsem {
        /// What for.
        access: Access,
    },
    /// A `struct completion`.
    Completion,
    /// A wait queue.
    WaitQueue,
    /// A bit in a word of the kernel.
    Bit {
        /// Which.
        bit: u64,
    },
    /// A page of a file: to be read, written or unlocked.
    Page {
        /// The bit of its flags, by name where that is known: `locked`, `writeback`.
        bit: String,
        /// The file, when it is known.
        file: Option<String>,
    },
    /// A word in user space's memory.
    Futex {
        /// Where.
        uaddr: Option<UserAddr>,
        /// What is there now.
        value: Option<u32>,
        /// What it seems to be.
        usage: FutexUse,
        /// Whether other processes can see it.
        shared: bool,
        /// How many words are waited for at once (`futex_waitv()`); `uaddr` is the first.
        words: u64,
    },
    /// A pipe or a FIFO.
    Pipe {
        /// What for.
        side: PipeSide,
        /// The inode's number, as in `pipe:[123]`.
        inode: Option<u64>,
        /// The task's descriptor.
        fd: Option<u32>,
        /// Bytes in it.
        bytes: Option<u64>,
    },
    /// One of several files, with `poll()`, `select()` or `epoll_wait()`.
    Files {
        /// The call: `poll`, `select` or `epoll`.
        call: &'static str,
        /// The files, as many as are shown.
        files: Vec<Polled>,
        /// How many there are.
        count: u64,
    },
    /// A socket.
    Socket {
        /// The address family, such as `unix`.
        family: String,
        /// The task's descriptor.
        fd: Option<u32>,
    },
    /// A lock on a file, with `flock()` or `fcntl()`.
    FileLock {
        /// The file.
        file: Option<String>,
    },
    /// The end of a child, with `wait()`.
    Children {
        /// Which: `any`, or `pid 12`, or `group 12`.
        which: String,
    },
    /// A message of a queue, of System V or of POSIX: to come, or to fit in.
    Message,
    /// System V semaphores.
    Semaphores,
    /// Time.
    Sleep,
    /// A signal.
    Signal,
    /// More to do, as an idle thread of the kernel.
    Work,
    /// To be continued by a signal.
    Stopped,
    /// To be continued by its tracer.
    Traced,
    /// To be waited for by its parent.
    Zombie,
    /// Nothing: it runs.
    Runs,
    /// A CPU: it is ready to run, and another one does.
    Cpu,
    /// Something that is not known.
    Unknown,
}

/// Wakers of one wait that are kept. Where there are more, nobody is sure to be stuck.
const MAX_WAKERS: usize = 64;

impl<M: Memory> Reader<'_, M> {
    /// What tasks wait for: those with these pids, or every one when there are none.
    ///
    /// A task that runs between two reads is looked at again. What still moves after some attempts
    /// is told as running.
    ///
    /// # Errors
    ///
    /// When no task has one of the pids, or the kernel's types are not known.
    pub fn why(&self, pids: &[GuestPid]) -> Result<Why, ViewError> {
        let look = Look::new(self)?;
        let mut wanted: Vec<&Task> = Vec::new();
        for &pid in pids {
            let task = look.tasks().find(|task| task.pid == pid);
            wanted.push(task.ok_or(ViewError::NoTask { pid })?);
        }
        let all = pids.is_empty();
        if all {
            // The idle tasks wait for nothing.
            wanted.extend(look.tasks().filter(|task| task.pid.0 != 0));
        }
        let mut why = graph::explain(&look, &wanted);
        why.all = all;
        Ok(why)
    }
}

impl Who {
    fn of(task: &Task) -> Who {
        Who {
            pid: task.pid,
            comm: task.comm.clone(),
        }
    }
}

impl Waker {
    fn new(task: &Task, role: Role, certain: bool) -> Waker {
        Waker {
            task: Who::of(task),
            role,
            certain,
            addr: task.addr,
        }
    }
}

impl Wait {
    fn new(reason: Reason) -> Wait {
        Wait {
            reason,
            object: None,
            function: None,
            wakers: Vec::new(),
            gone: None,
            closed: false,
            timeout_ns: None,
        }
    }

    /// With wakers beside whom there are none, unless there are none at all.
    fn only(mut self, mut wakers: Vec<Waker>) -> Wait {
        self.closed = (1..=MAX_WAKERS).contains(&wakers.len());
        wakers.truncate(MAX_WAKERS);
        self.wakers = wakers;
        self
    }

    fn on(mut self, object: Option<Named>) -> Wait {
        self.object = object;
        self
    }
}
