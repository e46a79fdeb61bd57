//! The fair class: EEVDF since 6.6, CFS before (kernel/sched/fair.c).

use std::cell::RefCell;
use std::collections::HashSet;

use serde::Serialize;

use super::{SchedTask, groups};
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

/// The queue of one CPU's fair tasks, or of a group's on one CPU (`struct cfs_rq`).
///
/// Virtual times are nanoseconds of a clock that runs at the speed of a task of nice 0: a task's
/// own goes faster the less weight it has, by 1024 / `share`. They are compared by their
/// difference; where they start says nothing, and it can be negative.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FairQueue {
    /// The address of its `struct cfs_rq`.
    pub addr: KernelAddr,
    /// What the queue is ordered by.
    pub order: FairOrder,
    /// The weight of all entities together, 1024 for one task of nice 0.
    pub weight: u64,
    /// With EEVDF, the queue's virtual time V: the average of all virtual run times by weight. Who
    /// is behind it got less than its share. With CFS, the lowest virtual run time that is left.
    pub vtime: i64,
    /// Whether the queue used up its group's quota (cpu.max) and waits for more.
    pub throttled: bool,
    /// The running entity first, then those that wait, in the order of the queue.
    pub entities: Vec<FairEntity>,
    #[serde(skip)]
    pub(super) sums: Sums,
    /// Of CFS and EEVDF: who was asked to run next.
    #[serde(skip)]
    pub(super) buddies: Buddies,
}

/// What a fair queue is ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FairOrder {
    /// Linux 6.6 and later: by deadline, of those that are eligible.
    Eevdf,
    /// Before: by virtual run time.
    Cfs,
}

/// What EEVDF keeps of the entities in the tree, relative to a virtual time near V.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// What the others are relative to.
    pub(super) zero: i64,
    /// The sum of (vruntime - zero) * weight.
    pub(super) vruntime: i64,
    /// The sum of the weights.
    pub(super) weight: u64,
}

/// Where an entity is met.
#[derive(Clone, Copy)]
struct Place<'s> {
    order: FairOrder,
    /// How many bits of the weights the queue's sums leave out.
    shift: u32,
    /// How many groups are around it.
    depth: usize,
    /// The queues that were met, of which each belongs to one group.
    seen: &'s RefCell<HashSet<KernelAddr>>,
}

/// Entities that are preferred, or with CFS also avoided, when that is not too unfair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Buddies {
    pub(super) next: Option<KernelAddr>,
    pub(super) last: Option<KernelAddr>,
    pub(super) skip: Option<KernelAddr>,
}

/// A task or a group that is queued in the fair class (`struct sched_entity`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FairEntity {
    /// The task, if it is one.
    pub task: Option<SchedTask>,
    /// The group, if it is one.
    pub group: Option<FairGroup>,
    /// Whether it runs, or is the group of the task that runs. It is not in the tree then.
    pub current: bool,
    /// Whether its queue picks it if the scheduler is called now.
    pub next: bool,
    /// Whether it is on the queue: the running entity no longer is when its task goes to sleep.
    pub on_rq: bool,
    /// The path of its control group, where groups have no queues of their own (Linux 7.3 and
    /// later) and it is not the root.
    pub cgroup: Option<String>,
    /// Its weight: 1024 for nice 0, and about a quarter more for each step below.
    pub weight: u64,
    /// What it counts for in this queue: its weight, or where groups have no queues of their own,
    /// what it gets of the weights of the groups that it is in.
    pub share: u64,
    /// The same as the kernel's sums have it.
    #[serde(skip)]
    pub(super) counted: u64,
    /// How long it has run, in virtual time.
    pub vruntime: i64,
    /// How long it has run, nanoseconds.
    pub runtime: u64,
    /// What only EEVDF has.
    pub eevdf: Option<Eevdf>,
    /// The address of its `sched_entity`.
    pub addr: KernelAddr,
}

/// What EEVDF decides by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Eevdf {
    /// How far it is behind its queue's V in virtual time: what it is owed, negative when it had
    /// more than its share. Times `share` / 1024 it is time on the CPU.
    pub lag: i64,
    /// Whether it may be picked: its lag is not negative, as the kernel computes that.
    pub eligible: bool,
    /// When it will have had its slice, in virtual time: of the eligible, the earliest is picked.
    pub deadline: i64,
    /// The time on the CPU that it asks for at once, nanoseconds.
    pub slice: u64,
    /// Whether it asked for that slice itself (sched_setattr()).
    pub custom_slice: bool,
    /// Whether it sleeps already, and is kept on the queue only until it has made up for what it
    /// had too much (Linux 6.12 and later).
    pub delayed: bool,
    /// Whether it was picked and is not disturbed until its slice (or the shortest slice of the
    /// queue) is over.
    #[serde(skip)]
    pub(super) protected: bool,
}

/// A group of tasks that shares one place in a queue: a control group, or an autogroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FairGroup {
    /// The path of its control group.
    pub path: String,
    /// The queue of its tasks on this CPU.
    pub queue: FairQueue,
}

impl FairOrder {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            FairOrder::Eevdf => "EEVDF",
            FairOrder::Cfs => "CFS",
        }
    }
}

/// `scale_load_down()` of kernel/sched/sched.h: 64-bit kernels keep weights with ten more bits.
fn scaled_down(weight: u64) -> u64 {
    match weight {
        0 => 0,
        weight => (weight >> 10).max(2),
    }
}

/// `a - b` as the kernel compares virtual times.
pub(super) fn ahead(a: i64, b: i64) -> i64 {
    a.wrapping_sub(b)
}

impl Sums {
    /// With one entity more; the running one is not in the kernel's sums.
    pub(super) fn with(&self, entity: Option<&FairEntity>) -> (i128, i128) {
        let (mut sum, mut weight) = (i128::from(self.vruntime), i128::from(self.weight));
        if let Some(entity) = entity {
            let key = ahead(entity.vruntime, self.zero);
            sum += i128::from(key) * i128::from(entity.counted);
            weight += i128::from(entity.counted);
        }
        (sum, weight)
    }

    /// V, as `avg_vruntime()` has it: rounded down, so that who is there is eligible.
    fn average(&self, current: Option<&FairEntity>) -> i64 {
        let (sum, weight) = self.with(current);
        let average = match weight {
            ..=0 => 0,
            weight => sum.div_euclid(weight),
        };
        self.zero.wrapping_add(average as i64)
    }

    /// As `vruntime_eligible()` has it.
    pub(super) fn is_eligible(&self, current: Option<&FairEntity>, vruntime: i64) -> bool {
        let (sum, weight) = self.with(current);
        sum >= i128::from(ahead(vruntime, self.zero)) * weight
    }
}

impl<M: Memory> Reader<'_, M> {
    /// The fair queue of a CPU.
    pub(super) fn fair_queue(&self, cfs: &Object<'_, M>) -> Result<FairQueue, ViewError> {
        self.fair_queue_at(cfs, 0, &RefCell::default())
    }

    fn fair_queue_at(
        &self,
        cfs: &Object<'_, M>,
        depth: usize,
        seen: &RefCell<HashSet<KernelAddr>>,
    ) -> Result<FairQueue, ViewError> {
        if !seen.borrow_mut().insert(cfs.addr()) {
            return Err(groups::circle(cfs));
        }
        let entity = self.object("struct sched_entity", KernelAddr(0));
        let order = match entity.has("deadline") {
            true => FairOrder::Eevdf,
            false => FairOrder::Cfs,
        };
        let first_of = |paths: &[&'static str]| {
            let known = paths.iter().find(|path| cfs.has(path));
            known.or(paths.last()).copied().unwrap_or_default()
        };
        // What the sums are relative to was `min_vruntime` until 6.18.
        let zero = cfs.i64(first_of(&["zero_vruntime", "min_vruntime"]))?;
        let sums = match order {
            FairOrder::Cfs => Sums::default(),
            FairOrder::Eevdf => Sums {
                zero,
                // Renamed in 7.0.
                vruntime: cfs.i64(first_of(&["sum_w_vruntime", "avg_vruntime"]))?,
                weight: cfs.u64(first_of(&["sum_weight", "avg_load"]))?,
            },
        };
        let buddy = |path: &str| match cfs.has(path) {
            true => Ok(Some(cfs.addr_value(path)?).filter(|buddy| !buddy.is_null())),
            false => Ok::<_, ViewError>(None),
        };
        let buddies = Buddies {
            next: buddy("next")?,
            last: buddy("last")?,
            skip: buddy("skip")?,
        };
        let shift = match cfs.has("sum_shift") {
            true => cfs.u64("sum_shift")?,
            false => 0,
        };
        let place = Place {
            order,
            shift: shift as u32,
            depth,
            seen,
        };
        let mut entities = Vec::new();
        if let Some(current) = cfs.follow("curr")? {
            let current = self.fair_entity(&current, place);
            entities.extend(self.or_warn(current).map(|current| FairEntity {
                current: true,
                ..current
            }));
        }
        let root = cfs.addr_of("tasks_timeline.rb_root")?;
        for waiting in self.tree(root, "struct sched_entity", "run_node", "fair tasks")? {
            if self.is_hopeless() {
                break;
            }
            entities.extend(self.or_warn(self.fair_entity(&waiting, place)));
        }
        let mut queue = FairQueue {
            addr: cfs.addr(),
            order,
            weight: scaled_down(cfs.u64("load.weight")?),
            vtime: zero,
            throttled: cfs.has("throttled") && cfs.bool("throttled")?,
            entities,
            sums,
            buddies,
        };
        if order == FairOrder::Eevdf {
            queue.judge();
        }
        Ok(queue)
    }

    fn fair_entity(
        &self,
        entity: &Object<'_, M>,
        place: Place<'_>,
    ) -> Result<FairEntity, ViewError> {
        let group = match entity.has("my_q") {
            true => entity.follow("my_q")?,
            false => None,
        };
        let (task, group) = match group {
            None => {
                let task = entity.container("struct task_struct", "se")?;
                (Some(self.sched_task(task.addr())?), None)
            }
            Some(_) if place.depth >= groups::MAX_DEPTH => {
                return Err(ViewError::Invalid(format!(
                    "the task group at {} is nested too deep: its tasks are left out",
                    entity.addr()
                )));
            }
            Some(queue) => {
                // First of all whether it is a new one.
                let tasks = self.fair_queue_at(&queue, place.depth + 1, place.seen)?;
                let path = self.task_group_path(&queue.deref("tg")?);
                let group = FairGroup {
                    path: self.or_warn(path).unwrap_or_else(|| "?".to_owned()),
                    queue: tasks,
                };
                (None, Some(group))
            }
        };
        let eevdf = match place.order {
            FairOrder::Cfs => None,
            FairOrder::Eevdf => Some(eevdf(entity)?),
        };
        let weight = entity.u64("load.weight")?;
        // Since 7.3 all tasks are in one tree; this is what their groups leave to them.
        let share = match entity.has("h_load.weight") {
            true => Some(entity.u64("h_load.weight")?),
            false => None,
        };
        Ok(FairEntity {
            task,
            group,
            current: false,
            next: false,
            on_rq: entity.bool("on_rq")?,
            cgroup: match share {
                Some(_) => self.or_warn(self.entity_cgroup(entity)).flatten(),
                None => None,
            },
            weight: scaled_down(weight),
            share: scaled_down(share.unwrap_or(weight)),
            counted: match share {
                Some(share) if place.shift == 0 => share,
                Some(share) => share.checked_shr(place.shift).unwrap_or(0).max(2),
                None => scaled_down(weight),
            },
            vruntime: entity.i64("vruntime")?,
            runtime: entity.u64("sum_exec_runtime")?,
            eevdf,
            addr: entity.addr(),
        })
    }

    /// The path of the control group that an entity is in, unless that is the root.
    fn entity_cgroup(&self, entity: &Object<'_, M>) -> Result<Option<String>, ViewError> {
        if !entity.has("cfs_rq") {
            return Ok(None);
        }
        let group = entity.deref("cfs_rq")?.deref("tg")?;
        match group.pointer("parent")?.is_null() {
            true => Ok(None),
            false => self.task_group_path(&group).map(Some),
        }
    }
}

fn eevdf<M: Memory>(entity: &Object<'_, M>) -> Result<Eevdf, ViewError> {
    let flag = |path: &str| Ok::<_, ViewError>(entity.has(path) && entity.bool(path)?);
    let deadline = entity.i64("deadline")?;
    // When it is picked, `vlag` becomes the deadline; since 6.17 there is a member for it.
    let protected = match entity.has("vprot") {
        true => ahead(entity.i64("vprot")?, entity.i64("vruntime")?) > 0,
        false => entity.i64("vlag")? == deadline,
    };
    Ok(Eevdf {
        lag: 0,
        eligible: false,
        deadline,
        slice: entity.u64("slice")?,
        custom_slice: flag("custom_slice")?,
        delayed: flag("sched_delayed")?,
        protected,
    })
}

impl FairQueue {
    /// The running entity, if it is still on the queue.
    pub(super) fn current(&self) -> Option<&FairEntity> {
        let mut entities = self.entities.iter();
        entities.find(|entity| entity.current && entity.on_rq)
    }

    /// Computes V, and what it means for each entity.
    fn judge(&mut self) {
        let current = self.current().cloned();
        let current = current.as_ref();
        self.vtime = self.sums.average(current);
        for entity in &mut self.entities {
            if let Some(eevdf) = &mut entity.eevdf {
                eevdf.lag = ahead(self.vtime, entity.vruntime);
                eevdf.eligible = self.sums.is_eligible(current, entity.vruntime);
            }
        }
    }
}
