//! The guest's tasks: processes, their threads, and the kernel's own threads.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::addr::{GuestPid, KernelAddr};
use crate::image::Image;
use crate::kernel::{Corruption, Kernel, required};
use crate::layout::{Layout, LayoutError, Member};
use crate::memory::{Memory, MemoryExt};

/// A task of the guest, as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Task {
    /// The address of its `task_struct`.
    pub addr: KernelAddr,
    /// Its pid in the guest's root namespace; a thread's own. 0 for the idle task of every CPU.
    pub pid: GuestPid,
    /// The pid of its process: that of the thread group's leader.
    pub tgid: GuestPid,
    /// Its name, at most 15 bytes as the kernel keeps it.
    pub comm: String,
    /// What it does.
    pub state: TaskState,
    /// Whether it is one of the kernel's own threads, which have no user space.
    pub kernel_thread: bool,
    /// The lowest address of its kernel stack.
    pub stack: KernelAddr,
}

/// What a task does, as the letter that ps prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskState(pub char);

impl TaskState {
    /// From `task_struct.__state` and `task_struct.exit_state`.
    pub(crate) fn from_bits(state: u32, exit_state: u32) -> TaskState {
        // The bits are the same in 6.1 to 7.x, and the letters are ABI: proc(5), field 3 of
        // /proc/PID/stat. This is `__task_state_index()` of include/linux/sched.h.
        const UNINTERRUPTIBLE: u32 = 0x2;
        const REPORTED: u32 = 0x7f;
        const IDLE: u32 = 0x402;
        const SHOWN_AS_UNINTERRUPTIBLE: u32 = 0x1000 | 0x8000;
        const LETTERS: [char; 8] = ['R', 'S', 'D', 'T', 't', 'X', 'Z', 'P'];

        let mut shown = (state | exit_state) & REPORTED;
        if state & IDLE == IDLE {
            return TaskState('I');
        }
        if state & SHOWN_AS_UNINTERRUPTIBLE != 0 {
            shown = UNINTERRUPTIBLE;
        }
        let index = (u32::BITS - shown.leading_zeros()) as usize;
        TaskState(LETTERS.get(index).copied().unwrap_or('?'))
    }

    /// The state in a word, as in /proc/PID/status.
    pub fn describe(self) -> &'static str {
        match self.0 {
            'R' => "running",
            'S' => "sleeping",
            'D' => "disk sleep",
            'T' => "stopped",
            't' => "tracing stop",
            'X' => "dead",
            'Z' => "zombie",
            'P' => "parked",
            'I' => "idle",
            _ => "unknown",
        }
    }

    /// Whether the task runs or waits for a CPU.
    pub fn is_runnable(self) -> bool {
        self.0 == 'R'
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where `task_struct` keeps what is read from it.
#[derive(Clone, Debug)]
pub(crate) struct TaskFields {
    pub(crate) init_task: KernelAddr,
    pub(crate) state: Member,
    pub(crate) exit_state: Option<Member>,
    pub(crate) stack: Member,
    pub(crate) flags: Member,
    pub(crate) pid: Member,
    pub(crate) tgid: Member,
    pub(crate) comm: Member,
    /// `tasks.next`: the list of thread group leaders through `init_task`.
    pub(crate) next_leader: Member,
    pub(crate) signal: Member,
    /// `thread_node.next`: the list of a group's threads through its `signal_struct`.
    pub(crate) next_thread: Member,
    /// Within `signal_struct`.
    pub(crate) thread_head: Member,
}

impl TaskFields {
    pub(crate) fn new(image: &Image, layout: &Layout) -> Result<TaskFields, LayoutError> {
        let member = |path| layout.member("struct task_struct", path);
        Ok(TaskFields {
            init_task: required(image, "init_task")?,
            // `state` before 5.14.
            state: member("__state").or_else(|error| member("state").map_err(|_| error))?,
            exit_state: member("exit_state").ok(),
            stack: member("stack")?,
            flags: member("flags")?,
            pid: member("pid")?,
            tgid: member("tgid")?,
            comm: member("comm")?,
            next_leader: member("tasks.next")?,
            signal: member("signal")?,
            next_thread: member("thread_node.next")?,
            thread_head: layout.member("struct signal_struct", "thread_head")?,
        })
    }

    /// The part of `task_struct` that holds all of these: one read instead of ten.
    fn span(&self) -> (u64, usize) {
        let mut members = vec![
            self.state,
            self.stack,
            self.flags,
            self.pid,
            self.tgid,
            self.comm,
            self.next_leader,
            self.signal,
            self.next_thread,
        ];
        members.extend(self.exit_state);
        let start = members
            .iter()
            .map(|member| member.offset)
            .min()
            .unwrap_or(0);
        let end = members
            .iter()
            .map(|member| member.offset + member.size)
            .max()
            .unwrap_or(0);
        (start, (end - start) as usize)
    }
}

/// A task and its links to others.
struct Linked {
    task: Task,
    next_leader: KernelAddr,
    signal: KernelAddr,
    next_thread: KernelAddr,
}

/// PF_KTHREAD of include/linux/sched.h: not in DWARF, the same in 6.1 to 7.x.
pub(crate) const KERNEL_THREAD: u32 = 0x0020_0000;

/// Thread ids for debuggers of what has no pid of its own, the idle tasks: their CPU's number on top
/// of this. More than any pid can be (`PID_MAX_LIMIT` is 4 Mi), and still readable.
pub const IDLE_THREADS: i32 = 10_000_000;

/// PID_MAX_LIMIT of 64-bit kernels.
const MAX_TASKS: usize = 4 * 1024 * 1024;

impl<M: Memory> Kernel<M> {
    /// Every task: CPU 0's idle task (`swapper`) first, then the processes in the order of their
    /// creation, each followed by its other threads.
    pub fn tasks(&self) -> Tasks<'_, M> {
        Tasks {
            kernel: self,
            seen: HashSet::new(),
            next: Next::Idle,
        }
    }

    /// The task whose `task_struct` is at `addr`.
    ///
    /// # Errors
    ///
    /// When there is nothing readable.
    pub fn task_at(&self, addr: KernelAddr) -> Result<Task, Corruption> {
        self.read_task(addr).map(|linked| linked.task)
    }

    /// The task with this pid; for pid 0, CPU 0's idle task. `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the list of tasks is corrupt before the task is found.
    pub fn find_task(&self, pid: GuestPid) -> Result<Option<Task>, Corruption> {
        let mut corruption = None;
        for task in self.tasks() {
            match task {
                Ok(task) if task.pid == pid => return Ok(Some(task)),
                Ok(_) => {}
                Err(error) => corruption = corruption.or(Some(error)),
            }
        }
        corruption.map_or(Ok(None), Err)
    }

    fn read_task(&self, addr: KernelAddr) -> Result<Linked, Corruption> {
        let fields = &self.task_fields;
        let (start, len) = fields.span();
        let at = addr + start;
        let bytes = self
            .read_vec(at, len)
            .map_err(|source| Corruption::Unreadable {
                what: "task_struct",
                addr,
                source,
            })?;
        let field = |member: Member| -> &[u8] {
            let from = (member.offset - start) as usize;
            bytes
                .get(from..from + member.size as usize)
                .unwrap_or_default()
        };
        let number = |member: Member| little_endian(field(member));
        let comm = field(fields.comm);
        let comm = comm.split(|&byte| byte == 0).next().unwrap_or_default();
        let state = number(fields.state) as u32;
        let exit_state = fields.exit_state.map_or(0, number) as u32;
        Ok(Linked {
            task: Task {
                addr,
                pid: GuestPid(number(fields.pid) as i32),
                tgid: GuestPid(number(fields.tgid) as i32),
                comm: String::from_utf8_lossy(comm).into_owned(),
                state: TaskState::from_bits(state, exit_state),
                kernel_thread: number(fields.flags) as u32 & KERNEL_THREAD != 0,
                stack: KernelAddr(number(fields.stack)),
            },
            next_leader: KernelAddr(number(fields.next_leader)),
            signal: KernelAddr(number(fields.signal)),
            next_thread: KernelAddr(number(fields.next_thread)),
        })
    }
}

/// The lowest 8 bytes as a number.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take(8)
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// The iterator of [`Kernel::tasks`].
///
/// It visits no task twice and ends on every memory. What is corrupt comes as an error in its
/// place: a broken list of threads costs the rest of these threads, a broken list of processes
/// ends the walk.
#[derive(Debug)]
pub struct Tasks<'k, M> {
    kernel: &'k Kernel<M>,
    seen: HashSet<KernelAddr>,
    next: Next,
}

#[derive(Debug)]
enum Next {
    /// The walk begins.
    Idle,
    /// A process.
    Leader(After),
    /// A list of threads, at `node`; the pointer to it was read at `link`.
    Thread {
        node: KernelAddr,
        link: KernelAddr,
        head: KernelAddr,
        leader: KernelAddr,
        after: After,
    },
    /// A list of threads whose head cannot be read.
    Broken {
        corruption: Corruption,
        after: After,
    },
    End,
}

/// The process after the one whose threads are listed, and where the pointer to it was read.
#[derive(Clone, Copy, Debug)]
struct After {
    node: KernelAddr,
    link: KernelAddr,
}

impl From<After> for Next {
    fn from(after: After) -> Next {
        Next::Leader(after)
    }
}

impl<M: Memory> Tasks<'_, M> {
    /// The task that embeds the list node, unless that was seen or cannot be.
    fn visit(
        &mut self,
        what: &'static str,
        node: KernelAddr,
        link: KernelAddr,
        offset: u64,
    ) -> Result<Linked, Corruption> {
        let addr = node - offset;
        if node.get() < offset || !node.get().is_multiple_of(8) {
            return Err(Corruption::WildPointer {
                what,
                addr: link,
                value: node,
            });
        }
        if self.seen.len() >= MAX_TASKS {
            return Err(Corruption::TooLong {
                what,
                limit: MAX_TASKS,
            });
        }
        if !self.seen.insert(addr) {
            return Err(Corruption::Cycle { what, addr });
        }
        self.kernel.read_task(addr)
    }

    /// Goes on with the threads of a leader that was just read.
    fn threads_of(&mut self, leader: &Linked) -> Next {
        let fields = &self.kernel.task_fields;
        let addr = leader.task.addr;
        let after = After {
            node: leader.next_leader,
            link: addr + fields.next_leader.offset,
        };
        // A process that ends gives up its signals; the idle task's are not worth a look.
        if leader.signal.is_null() || addr == fields.init_task {
            return after.into();
        }
        let head = leader.signal + fields.thread_head.offset;
        match self.kernel.read_addr(head) {
            Ok(node) => Next::Thread {
                node,
                link: head,
                head,
                leader: addr,
                after,
            },
            Err(source) => {
                let what = "signal_struct";
                let corruption = Corruption::Unreadable {
                    what,
                    addr: leader.signal,
                    source,
                };
                Next::Broken { corruption, after }
            }
        }
    }

    /// One step along a list of threads.
    fn thread(
        &mut self,
        node: KernelAddr,
        link: KernelAddr,
        head: KernelAddr,
        leader: KernelAddr,
        after: After,
    ) -> Result<(Option<Task>, Next), Corruption> {
        let offset = self.kernel.task_fields.next_thread.offset;
        if node == head {
            return Ok((None, after.into()));
        }
        let what = "thread";
        let (task, next) = if node - offset == leader {
            // Listed already, as a leader.
            let next = self
                .kernel
                .read_addr(node)
                .map_err(|source| Corruption::Unreadable {
                    what,
                    addr: leader,
                    source,
                })?;
            if next == node || link != head {
                return Err(Corruption::Cycle { what, addr: leader });
            }
            (None, next)
        } else {
            let thread = self.visit(what, node, link, offset)?;
            (Some(thread.task), thread.next_thread)
        };
        Ok((
            task,
            Next::Thread {
                node: next,
                link: node,
                head,
                leader,
                after,
            },
        ))
    }
}

impl<M: Memory> Iterator for Tasks<'_, M> {
    type Item = Result<Task, Corruption>;

    fn next(&mut self) -> Option<Self::Item> {
        let fields = &self.kernel.task_fields;
        loop {
            match std::mem::replace(&mut self.next, Next::End) {
                Next::End => return None,
                Next::Idle => {
                    self.seen.insert(fields.init_task);
                    return Some(self.kernel.read_task(fields.init_task).map(|idle| {
                        self.next = self.threads_of(&idle);
                        idle.task
                    }));
                }
                Next::Leader(After { node, link }) => {
                    if node == fields.init_task + fields.next_leader.offset {
                        return None;
                    }
                    let leader = self.visit("process", node, link, fields.next_leader.offset);
                    return Some(leader.map(|leader| {
                        self.next = self.threads_of(&leader);
                        leader.task
                    }));
                }
                Next::Thread {
                    node,
                    link,
                    head,
                    leader,
                    after,
                } => match self.thread(node, link, head, leader, after) {
                    Ok((task, next)) => {
                        self.next = next;
                        if let Some(task) = task {
                            return Some(Ok(task));
                        }
                    }
                    Err(corruption) => {
                        self.next = after.into();
                        return Some(Err(corruption));
                    }
                },
                Next::Broken { corruption, after } => {
                    self.next = after.into();
                    return Some(Err(corruption));
                }
            }
        }
    }
}
