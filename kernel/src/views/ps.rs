//! The processes and threads, as ps and /proc list them.

mod cmdline;
mod print;

use std::collections::HashMap;

use serde::Serialize;

use crate::addr::{GuestPid, KernelAddr};
use crate::kernel::{Corruption, area};
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};
use crate::tasks::{KERNEL_THREAD, TaskState};

/// A process, or one thread of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its pid in the guest's root namespace: that of the thread group's leader.
    pub pid: GuestPid,
    /// The thread's own pid; the leader's is the process's.
    pub tid: GuestPid,
    /// The pid of the process that waits for its end. 0 for those that the kernel started.
    pub ppid: GuestPid,
    /// Whose rights it has: the effective user, by the numbers of the root user namespace.
    pub uid: u32,
    /// Who started it: the real user.
    pub ruid: u32,
    /// What it does.
    pub state: TaskState,
    /// Whether a CPU runs it at this moment. Otherwise a task in state R waits for its CPU.
    pub running: bool,
    /// The CPU that it runs on, or did last.
    pub cpu: u32,
    /// How many threads the process has.
    pub threads: u64,
    /// How long it has run on CPUs, nanoseconds. Of a process, all its threads, also those that
    /// have ended.
    pub runtime_ns: u64,
    /// How long it was ready to run and waited for its CPU, nanoseconds. Of a process, its present
    /// threads. `None` when the kernel does not count that (CONFIG_SCHED_INFO).
    pub run_delay_ns: Option<u64>,
    /// The kernel function that it sleeps in: the one that called the scheduler.
    pub wchan: Option<String>,
    /// Its name: 15 bytes as `task_struct.comm` keeps it, or the whole one of a kernel thread,
    /// with what a worker works for, as in /proc/PID/status.
    pub comm: String,
    /// Its command line. Empty for a kernel thread, for a process that has ended, and for one
    /// whose memory has it no more.
    pub cmdline: Vec<String>,
    /// Whether it is one of the kernel's own threads.
    pub kernel_thread: bool,
    /// The address of its `task_struct`.
    pub task: KernelAddr,
}

/// Which tasks [`Reader::processes`] lists.
#[derive(Clone, Debug, Default)]
pub struct PsOptions {
    /// Only those of the processes, or threads, with these pids; all when empty.
    pub pids: Vec<GuestPid>,
    /// Every thread on a line of its own.
    pub threads: bool,
    /// Drawn as a tree of parents and children.
    pub tree: bool,
}

/// The processes, by pid; of each, when they are listed, the threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Processes {
    /// Sorted by pid and tid.
    pub list: Vec<Process>,
    /// How it is displayed.
    #[serde(skip)]
    options: Shown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shown {
    threads: bool,
    tree: bool,
}

/// More tasks than a guest has room for stacks: with less than this, a view stays under 100 MB.
const MAX_TASKS: usize = 1 << 18;

/// PF_WQ_WORKER of include/linux/sched.h: the same in 6.1 to 7.x.
const WORKQUEUE_WORKER: u64 = 0x20;

impl<M: Memory> Reader<'_, M> {
    /// The processes, or all threads.
    ///
    /// # Errors
    ///
    /// When this kernel's types are not known, or there is no task of a pid that was asked for.
    pub fn processes(&self, options: &PsOptions) -> Result<Processes, ViewError> {
        let kernel = self.kernel();
        let current = |cpu| kernel.current(cpu).ok().map(|task| task.addr);
        let mut listing = Listing {
            reader: self,
            running: kernel.cpus().into_iter().filter_map(current).collect(),
            tgids: HashMap::new(),
            cmdlines: cmdline::Budget::default(),
            wanted: &options.pids,
        };
        let mut list = Vec::new();
        for leader in self.leaders()? {
            let leader = leader.fetched();
            let found = match options.threads {
                true => listing.threads(&leader),
                false => listing
                    .process(&leader)
                    .map(|found| found.into_iter().collect()),
            };
            list.extend(self.or_warn(found).unwrap_or_default());
            if list.len() >= MAX_TASKS {
                self.warn(Corruption::TooLong {
                    what: "process",
                    limit: MAX_TASKS,
                });
                break;
            }
        }
        for &pid in &options.pids {
            if !list.iter().any(|task| task.pid == pid || task.tid == pid) {
                return Err(ViewError::NoTask { pid });
            }
        }
        list.sort_by_key(|task| (task.pid, task.tid));
        Ok(Processes {
            list,
            options: Shown {
                threads: options.threads,
                tree: options.tree,
            },
        })
    }

    /// The leaders of all thread groups in the order of their creation, without the idle task.
    fn leaders(&self) -> Result<impl Iterator<Item = Object<'_, M>>, ViewError> {
        let head = self.global("init_task")?.addr_of("tasks")?;
        self.list(head, "struct task_struct", "tasks", "process")
    }
}

/// What the tasks of one listing have in common.
struct Listing<'r, M> {
    reader: &'r Reader<'r, M>,
    /// The task of every CPU.
    running: Vec<KernelAddr>,
    /// Pids of processes by their leaders, which are looked up as parents.
    tgids: HashMap<KernelAddr, GuestPid>,
    cmdlines: cmdline::Budget,
    wanted: &'r [GuestPid],
}

impl<'r, M: Memory> Listing<'r, M> {
    /// A process, with the times of all its threads.
    fn process(&mut self, leader: &Object<'r, M>) -> Result<Option<Process>, ViewError> {
        let tid = pid(leader, "pid")?;
        if !self.wanted.is_empty() && !self.wanted.contains(&tid) {
            return Ok(None);
        }
        let mut process = self.task(leader)?;
        let Some(signal) = leader.follow("signal")? else {
            return Ok(Some(process));
        };
        let signal = signal.fetched();
        process.threads = signal.u64("nr_threads")?;
        let ended = signal.u64("sum_sched_runtime")?;
        process.runtime_ns = process.runtime_ns.saturating_add(ended);
        // Most processes have no other.
        if process.threads > 1 {
            for thread in self.others(leader, &signal)? {
                let (runtime, delay) = times(&thread)?;
                process.runtime_ns = process.runtime_ns.saturating_add(runtime);
                let sum = |sum: u64| delay.map(|delay| sum.saturating_add(delay));
                process.run_delay_ns = process.run_delay_ns.and_then(sum);
            }
        }
        Ok(Some(process))
    }

    /// Where a task sleeps, from what was read of it already.
    fn sleeps_at(&self, task: &Object<'r, M>) -> Option<KernelAddr> {
        let saved = |register| task.u64(&format!("thread.switch_buf[0].{register}")).ok();
        let kernel = self.reader.kernel();
        let stack = area(task.u64("stack").ok()?, kernel.thread_size());
        kernel.caller_of_scheduler(stack, saved("__rsp")?, saved("__rbp")?)
    }

    /// The threads of a process, the leader first.
    fn threads(&mut self, leader: &Object<'r, M>) -> Result<Vec<Process>, ViewError> {
        let mut threads = vec![self.task(leader)?];
        if let Some(signal) = leader.follow("signal")? {
            let signal = signal.fetched();
            let count = signal.u64("nr_threads")?;
            for thread in self.others(leader, &signal)? {
                threads.push(self.task(&thread)?);
            }
            for thread in &mut threads {
                thread.threads = count;
            }
        }
        let wanted = |task: &Process| {
            let is_wanted = |&pid| task.pid == pid || task.tid == pid;
            self.wanted.is_empty() || self.wanted.iter().any(is_wanted)
        };
        threads.retain(wanted);
        Ok(threads)
    }

    /// The threads of a process without its leader.
    fn others(
        &self,
        leader: &Object<'r, M>,
        signal: &Object<'r, M>,
    ) -> Result<impl Iterator<Item = Object<'r, M>> + use<'r, M>, ViewError> {
        let head = signal.addr_of("thread_head")?;
        let leader = leader.addr();
        let threads = self
            .reader
            .list(head, "struct task_struct", "thread_node", "thread")?;
        let others = threads.filter(move |thread| thread.addr() != leader);
        Ok(others.take(MAX_TASKS).map(Object::fetched))
    }

    /// One task; as a process it is incomplete.
    fn task(&mut self, task: &Object<'r, M>) -> Result<Process, ViewError> {
        let tgid = pid(task, "tgid")?;
        let tid = pid(task, "pid")?;
        self.tgids.insert(task.addr(), tgid);
        let state = if task.has("__state") {
            "__state"
        } else {
            "state"
        };
        let state = TaskState::from_bits(task.u64(state)? as u32, task.u64("exit_state")? as u32);
        let running = self.running.contains(&task.addr());
        let kernel_thread = task.u64("flags")? & u64::from(KERNEL_THREAD) != 0;
        let sleeps = !running && !state.is_runnable();
        let caller = sleeps.then(|| self.sleeps_at(task)).flatten();
        let credentials = task.deref("real_cred")?.fetched();
        let (runtime_ns, run_delay_ns) = times(task)?;
        let cmdline = match kernel_thread {
            true => Vec::new(),
            false => {
                let cmdline = self.cmdlines.read(task);
                self.reader.or_warn(cmdline).unwrap_or_default()
            }
        };
        let comm = match kernel_thread {
            true => kernel_thread_name(task).or_else(|_| task.text("comm"))?,
            false => task.text("comm")?,
        };
        Ok(Process {
            pid: tgid,
            tid,
            ppid: self.parent(task)?,
            uid: credentials.u64("euid")? as u32,
            ruid: credentials.u64("uid")? as u32,
            state,
            running,
            cpu: cpu(task)?,
            threads: 1,
            runtime_ns,
            run_delay_ns,
            wchan: caller.and_then(|pc| {
                let image = self.reader.kernel().image();
                image.symbol_at(pc - 1).map(|(name, _)| name.to_owned())
            }),
            comm,
            cmdline,
            kernel_thread,
            task: task.addr(),
        })
    }

    fn parent(&mut self, task: &Object<'r, M>) -> Result<GuestPid, ViewError> {
        let Some(parent) = task.follow("real_parent")? else {
            return Ok(GuestPid(0));
        };
        if let Some(&tgid) = self.tgids.get(&parent.addr()) {
            return Ok(tgid);
        }
        let tgid = pid(&parent, "tgid")?;
        self.tgids.insert(parent.addr(), tgid);
        Ok(tgid)
    }
}

fn pid<M: Memory>(task: &Object<'_, M>, path: &str) -> Result<GuestPid, ViewError> {
    Ok(GuestPid(task.i64(path)? as i32))
}

/// How long a task has run and how long it waited for a CPU, nanoseconds.
fn times<M: Memory>(task: &Object<'_, M>) -> Result<(u64, Option<u64>), ViewError> {
    let runtime = task.u64("se.sum_exec_runtime")?;
    let delay = match task.has("sched_info.run_delay") {
        true => Some(task.u64("sched_info.run_delay")?),
        false => None,
    };
    Ok((runtime, delay))
}

/// `task_cpu()` of include/linux/sched.h.
fn cpu<M: Memory>(task: &Object<'_, M>) -> Result<u32, ViewError> {
    // At the base of the stack, until it moved into the task.
    let cpu = match task.has("thread_info") {
        true if task.has("thread_info.cpu") => task.u64("thread_info.cpu")?,
        true => 0,
        false => {
            let stack = task.pointer("stack")?;
            // An ended process may have given it up.
            if stack.is_null() {
                return Ok(0);
            }
            let info = task.reader().object("struct thread_info", stack);
            info.u64("cpu")?
        }
    };
    Ok(cpu as u32)
}

/// `get_kthread_comm()` of kernel/kthread.c, and `wq_worker_comm()` of kernel/workqueue.c.
fn kernel_thread_name<M: Memory>(task: &Object<'_, M>) -> Result<String, ViewError> {
    let comm = task.text("comm")?;
    let data = task.pointer("worker_private")?;
    if data.is_null() {
        return Ok(comm);
    }
    let thread = task.reader().object("struct kthread", data);
    if task.u64("flags")? & WORKQUEUE_WORKER != 0 {
        let worker = thread.pointer("data")?;
        if worker.is_null() {
            return Ok(comm);
        }
        let worker = task.reader().object("struct worker", worker);
        // `comm` has no room for the name of a rescuer's workqueue.
        if comm.starts_with("kworker/R-")
            && let Some(queue) = worker.follow("rescue_wq")?
        {
            return Ok(format!("kworker/R-{}", queue.text("name")?));
        }
        let works_for = worker.text("desc")?;
        let busy = !worker.addr_value("current_work")?.is_null();
        return Ok(match (works_for.is_empty(), busy) {
            (true, _) => comm,
            (false, true) => format!("{comm}+{works_for}"),
            (false, false) => format!("{comm}-{works_for}"),
        });
    }
    if thread.has("full_name") {
        let name = thread.text("full_name")?;
        if !name.is_empty() {
            return Ok(name);
        }
    }
    Ok(comm)
}
