//! The run queues: who wants each CPU, and in which order they get it.

mod display;
mod fair;
mod groups;
mod pick;

use std::collections::HashSet;

use serde::Serialize;

use crate::addr::{CpuId, GuestPid, KernelAddr};
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

pub use fair::{Eevdf, FairEntity, FairGroup, FairOrder, FairQueue};
pub use pick::{Pick, Reason};

/// The run queue of every CPU that is online.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RunQueues(pub Vec<RunQueue>);

/// The run queue of one CPU (`struct rq`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunQueue {
    /// The CPU.
    pub cpu: CpuId,
    /// The address of its `struct rq`.
    pub addr: KernelAddr,
    /// The scheduler's clock when it last looked, nanoseconds since the boot.
    pub clock: u64,
    /// The same clock without the time that interrupts took, nanoseconds: what run times are
    /// measured with.
    pub clock_task: u64,
    /// How many tasks are runnable, the running one among them (the idle task is not counted).
    pub nr_running: u64,
    /// How many times it has switched from one task to another.
    pub switches: u64,
    /// The decaying average of the fair tasks' weight, 1024 for one task of nice 0 that always
    /// runs. `None` without SMP, where it is not kept.
    pub load_avg: Option<u64>,
    /// The decaying average of how busy the fair tasks keep the CPU, 0 to 1024. `None` without
    /// SMP.
    pub util_avg: Option<u64>,
    /// The task that runs.
    pub current: Option<SchedTask>,
    /// The task that runs next if the scheduler is called now.
    pub next: Option<Pick>,
    /// The task that stops the CPU, when it is queued: it goes before everything else.
    pub stop: Option<SchedTask>,
    /// The tasks with deadlines (SCHED_DEADLINE), the earliest first. They go before `realtime`.
    pub deadline: Vec<DeadlineEntity>,
    /// The tasks with fixed priorities (SCHED_FIFO and SCHED_RR), the most important first, among
    /// equals the one that is next. They go before `fair`.
    pub realtime: Vec<RealtimeEntity>,
    /// Everybody else.
    pub fair: FairQueue,
}

/// A task as its scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SchedTask {
    /// Its pid.
    pub pid: GuestPid,
    /// Its name.
    pub comm: String,
    /// Its policy.
    pub policy: Policy,
    /// Its priority as the kernel counts: 0 to 99 with fixed priority, 100 to 139 for nice -20 to
    /// 19, -1 with a deadline. Lower is more important.
    pub prio: i64,
    /// Its nice value, -20 to 19. Without meaning unless its policy is a fair one.
    pub nice: i64,
    /// The address of its `task_struct`.
    pub addr: KernelAddr,
}

/// A scheduling policy (include/uapi/linux/sched.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// SCHED_NORMAL, also called SCHED_OTHER: fair.
    Normal,
    /// SCHED_FIFO: fixed priority, for as long as the task likes.
    Fifo,
    /// SCHED_RR: fixed priority, in turns.
    Rr,
    /// SCHED_BATCH: fair, wakes up without hurry.
    Batch,
    /// SCHED_IDLE: fair, with very little weight.
    Idle,
    /// SCHED_DEADLINE.
    Deadline,
    /// SCHED_EXT: scheduled by a BPF program.
    Ext,
    /// None that is known.
    Unknown,
}

/// Who waits in the deadline class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadlineEntity {
    /// The task; `None` for a server, which runs another class's tasks for a while.
    pub task: Option<SchedTask>,
    /// Nanoseconds that it may still run before its deadline; negative after an overrun.
    pub runtime: i64,
    /// Its deadline on the CPU's clock, nanoseconds.
    pub deadline: u64,
    /// Nanoseconds that it may run per period.
    pub per_period: u64,
    /// Its period, nanoseconds.
    pub period: u64,
    /// The address of its `sched_dl_entity`.
    pub addr: KernelAddr,
}

/// Who waits in the realtime class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RealtimeEntity {
    /// The task.
    pub task: SchedTask,
    /// Its priority as users count, 1 to 99; higher is more important.
    pub priority: u64,
    /// Of a SCHED_RR task, the ticks that are left of its turn.
    pub ticks_left: Option<u64>,
}

impl<M: Memory> Reader<'_, M> {
    /// The run queues of all CPUs.
    ///
    /// # Errors
    ///
    /// When the kernel's types are not known, or no run queue can be read.
    pub fn run_queues(&self) -> Result<RunQueues, ViewError> {
        let rules = self.pick_rules();
        let mut queues = Vec::new();
        let mut problem = None;
        for cpu in self.kernel().cpus() {
            let queue = self
                .per_cpu("runqueues", cpu)
                .and_then(|rq| self.run_queue(cpu, &rq, &rules));
            match queue {
                Ok(queue) => queues.push(queue),
                Err(error) => {
                    self.warn(format!("the run queue of CPU {cpu} is left out: {error}"));
                    problem = problem.or(Some(error));
                }
            }
        }
        match (queues.is_empty(), problem) {
            (true, Some(problem)) => Err(problem),
            _ => Ok(RunQueues(queues)),
        }
    }

    fn run_queue(
        &self,
        cpu: CpuId,
        rq: &Object<'_, M>,
        rules: &pick::Rules,
    ) -> Result<RunQueue, ViewError> {
        let rq = &rq.clone().fetched();
        // These two change with everything else. Read as pointers they are compared with what they
        // are at the end: if they are the same then, the view is of one moment.
        let clock = rq.pointer("clock")?.get();
        let switches = rq.pointer("nr_switches")?.get();
        let idle = rq.pointer("idle")?;
        let current = rq.pointer("curr")?;
        let fair = rq.member("cfs")?;
        let average = |path: &str| match fair.has(path) {
            true => fair.u64(path).map(Some),
            false => Ok(None),
        };
        let mut queue = RunQueue {
            cpu,
            addr: rq.addr(),
            clock,
            clock_task: rq.u64("clock_task")?,
            nr_running: rq.u64("nr_running")?,
            switches,
            load_avg: average("avg.load_avg")?,
            util_avg: average("avg.util_avg")?,
            current: self.or_warn(self.sched_task(current)),
            next: None,
            stop: self.or_warn(self.queued_stop(rq)).flatten(),
            deadline: self.or_warn(self.deadline_queue(rq)).unwrap_or_default(),
            realtime: self
                .or_warn(self.realtime_queue(&rq.member("rt")?, 0, &mut HashSet::new()))
                .unwrap_or_default(),
            fair: self.fair_queue(&fair)?,
        };
        let idle = self.or_warn(self.sched_task(idle));
        queue.next = pick::next(&mut queue, idle, rules);
        Ok(queue)
    }

    /// A task as it is scheduled.
    fn sched_task(&self, addr: KernelAddr) -> Result<SchedTask, ViewError> {
        let task = self.kernel().task_at(addr)?;
        let object = self.task(addr).fetched();
        // DEFAULT_PRIO of include/linux/sched/prio.h: nice 0.
        const NICE_0: i64 = 120;
        Ok(SchedTask {
            pid: task.pid,
            comm: task.comm,
            policy: match object.u64("policy")? {
                0 => Policy::Normal,
                1 => Policy::Fifo,
                2 => Policy::Rr,
                3 => Policy::Batch,
                5 => Policy::Idle,
                6 => Policy::Deadline,
                7 => Policy::Ext,
                _ => Policy::Unknown,
            },
            prio: object.i64("prio")?,
            nice: object.i64("static_prio")?.saturating_sub(NICE_0),
            addr,
        })
    }

    /// The stop task, if it is queued (`sched_stop_runnable()`).
    fn queued_stop(&self, rq: &Object<'_, M>) -> Result<Option<SchedTask>, ViewError> {
        // TASK_ON_RQ_QUEUED of kernel/sched/sched.h.
        const QUEUED: u64 = 1;
        match rq.follow("stop")? {
            Some(stop) if stop.u64("on_rq")? == QUEUED => self.sched_task(stop.addr()).map(Some),
            _ => Ok(None),
        }
    }

    fn deadline_queue(&self, rq: &Object<'_, M>) -> Result<Vec<DeadlineEntity>, ViewError> {
        let mut found = Vec::new();
        let root = rq.addr_of("dl.root.rb_root")?;
        for entity in self.tree(root, "struct sched_dl_entity", "rb_node", "deadline tasks")? {
            found.extend(self.or_warn(self.deadline_entity(&entity)));
        }
        Ok(found)
    }

    fn deadline_entity(&self, entity: &Object<'_, M>) -> Result<DeadlineEntity, ViewError> {
        // Servers came in 6.8.
        let is_server = entity.has("dl_server") && entity.bool("dl_server")?;
        let task = match is_server {
            true => None,
            false => {
                let task = entity.container("struct task_struct", "dl")?;
                Some(self.sched_task(task.addr())?)
            }
        };
        Ok(DeadlineEntity {
            task,
            runtime: entity.i64("runtime")?,
            deadline: entity.u64("deadline")?,
            per_period: entity.u64("dl_runtime")?,
            period: entity.u64("dl_period")?,
            addr: entity.addr(),
        })
    }

    fn realtime_queue(
        &self,
        rt: &Object<'_, M>,
        depth: usize,
        seen: &mut HashSet<KernelAddr>,
    ) -> Result<Vec<RealtimeEntity>, ViewError> {
        let mut found = Vec::new();
        if !seen.insert(rt.addr()) {
            return Err(groups::circle(rt));
        }
        if depth > groups::MAX_DEPTH || rt.u64("rt_nr_running")? == 0 {
            return Ok(found);
        }
        let bitmap = rt.bytes("active.bitmap")?;
        // Bit 100 of the bitmap is always set and has no queue.
        for prio in 0..rt.len("active.queue")? {
            let byte = bitmap.get(prio as usize / 8).copied().unwrap_or(0);
            if byte >> (prio % 8) & 1 == 0 {
                continue;
            }
            let head = rt.element("active.queue", prio)?.addr();
            let entities = "struct sched_rt_entity";
            for entity in self.list(head, entities, "run_list", "realtime tasks")? {
                // With CONFIG_RT_GROUP_SCHED it can be a group.
                if entity.has("my_q")
                    && let Some(group) = entity.follow("my_q")?
                {
                    let within = self.realtime_queue(&group, depth + 1, seen);
                    found.extend(self.or_warn(within).unwrap_or_default());
                    continue;
                }
                found.extend(self.or_warn(self.realtime_entity(&entity)));
            }
        }
        Ok(found)
    }

    fn realtime_entity(&self, entity: &Object<'_, M>) -> Result<RealtimeEntity, ViewError> {
        let task = entity.container("struct task_struct", "rt")?;
        let priority = task.u64("rt_priority")?;
        let task = self.sched_task(task.addr())?;
        let ticks_left = match task.policy {
            Policy::Rr => Some(entity.u64("time_slice")?),
            _ => None,
        };
        Ok(RealtimeEntity {
            task,
            priority,
            ticks_left,
        })
    }
}
