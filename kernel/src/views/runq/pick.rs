//! Whom the scheduler picks, by the rules of `__pick_next_task()` and of the fair class.

use serde::Serialize;

use super::fair::{FairEntity, FairOrder, FairQueue, Sums, ahead};
use super::{RunQueue, SchedTask};
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::Reader;

/// Whom the scheduler picks, and why.
///
/// It is what the scheduler would do with the numbers as they are. It first brings those of the
/// running task up to date, which only its own clock allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pick {
    /// The task. Of nested groups, the one at the end.
    pub task: SchedTask,
    /// Why it and no other.
    pub reason: Reason,
}

/// Why a task is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It stops the CPU.
    Stop,
    /// Of the deadline class, it has the earliest deadline.
    Deadline,
    /// Of the realtime class, it has the highest priority and waits for the longest time.
    Priority,
    /// Nobody else is in the fair queue.
    Alone,
    /// EEVDF: it runs, and may finish its slice or the shortest slice in the queue (the feature
    /// RUN_TO_PARITY says which).
    Slice,
    /// It was chosen to be next by whoever woke it up or yielded to it, and that is fair enough.
    Buddy,
    /// EEVDF: of those that are eligible, it has the earliest deadline.
    EarliestEligible,
    /// CFS: it has the least virtual run time.
    LeastVruntime,
    /// CFS: it ran when another one preempted it, and is not far behind the first.
    Last,
    /// CFS: the first of the queue yielded, and this one is not far behind.
    Yielded,
    /// There is nothing to do.
    Idle,
}

impl Reason {
    /// The reason in a few words.
    pub fn describe(self) -> &'static str {
        match self {
            Reason::Stop => "it stops the CPU, and goes before all others",
            Reason::Deadline => "it has the earliest deadline of the deadline class",
            Reason::Priority => "it has the highest realtime priority",
            Reason::Alone => "nobody else is in the queue",
            Reason::Slice => "it runs, is eligible, and is not disturbed within its slice",
            Reason::Buddy => "it was chosen by another task (next buddy), and that is fair enough",
            Reason::EarliestEligible => "it has the earliest deadline of those that are eligible",
            Reason::LeastVruntime => "it has the least virtual run time",
            Reason::Last => "it was preempted by mistake (last buddy), and that is fair enough",
            Reason::Yielded => "the first of the queue yielded, and this one is not far behind",
            Reason::Idle => "there is nothing to do",
        }
    }
}

/// What a kernel can be told at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Scheduler features: /sys/kernel/debug/sched/features.
    run_to_parity: bool,
    pick_buddy: bool,
    /// Of CFS, nanoseconds: how far behind the first a buddy may be.
    wakeup_granularity: u64,
}

impl<M: Memory> Reader<'_, M> {
    pub(super) fn pick_rules(&self) -> Rules {
        // Without CONFIG_SCHED_DEBUG the features are constants, all of these on.
        let features = self.global("sysctl_sched_features");
        let features = features.and_then(|features| features.u64(""));
        let feature = |name: &str| {
            // The bits are in an enumeration without a name beside `struct rq`.
            let layout = self.kernel().image().layout();
            let bit = layout.and_then(|layout| layout.enumerator_of("struct rq", name));
            match (&features, bit) {
                (_, Err(_)) => false,
                (Ok(features), Ok(bit)) => features.checked_shr(bit as u32).unwrap_or(0) & 1 == 1,
                (Err(_), Ok(_)) => true,
            }
        };
        let granularity = self.global("sysctl_sched_wakeup_granularity");
        let granularity = granularity.and_then(|granularity| granularity.u64(""));
        let entity = self.object("struct sched_entity", KernelAddr(0));
        Rules {
            // Since 6.17 this feature only changes for how long.
            run_to_parity: feature("__SCHED_FEAT_RUN_TO_PARITY") || entity.has("vprot"),
            pick_buddy: feature("__SCHED_FEAT_PICK_BUDDY"),
            wakeup_granularity: granularity.unwrap_or(0),
        }
    }
}

/// Whom the scheduler picks for a CPU. Marks the entities that are picked on the way.
pub(super) fn next(queue: &mut RunQueue, idle: Option<SchedTask>, rules: &Rules) -> Option<Pick> {
    let pick = |task: &SchedTask, reason| {
        let task = task.clone();
        Some(Pick { task, reason })
    };
    if let Some(stop) = &queue.stop {
        return pick(stop, Reason::Stop);
    }
    // A server of the fair class lets that pick.
    let deadline = queue.deadline.first();
    match deadline.map(|first| &first.task) {
        Some(Some(task)) => return pick(task, Reason::Deadline),
        Some(None) => {}
        None => {
            if let Some(first) = queue.realtime.first() {
                return pick(&first.task, Reason::Priority);
            }
        }
    }
    if !queue.fair.entities.is_empty()
        && let Some(found) = next_fair(&mut queue.fair, rules)
    {
        return Some(found);
    }
    match queue.nr_running {
        0 => pick(&idle?, Reason::Idle),
        // The numbers do not fit together: they were read while they changed.
        _ => None,
    }
}

/// Whom a fair queue picks, down to the task.
fn next_fair(queue: &mut FairQueue, rules: &Rules) -> Option<Pick> {
    let (at, reason) = match queue.order {
        FairOrder::Eevdf => pick_eevdf(queue, rules)?,
        FairOrder::Cfs => pick_cfs(queue, rules)?,
    };
    let entity = queue.entities.get_mut(at)?;
    entity.next = true;
    match (&entity.task, &mut entity.group) {
        (Some(task), _) => Some(Pick {
            task: task.clone(),
            reason,
        }),
        (None, Some(group)) => next_fair(&mut group.queue, rules),
        (None, None) => None,
    }
}

/// `pick_next_entity()` and `pick_eevdf()`.
fn pick_eevdf(queue: &FairQueue, rules: &Rules) -> Option<(usize, Reason)> {
    let entities = &queue.entities;
    let current = entities.iter().position(|e| e.current && e.on_rq);
    let running = current.and_then(|at| entities.get(at));
    let mut sums = queue.sums.clone();
    // In the order of the tree, without the running one.
    let mut waiting: Vec<usize> = (0..entities.len()).collect();
    waiting.retain(|&at| entities.get(at).is_some_and(|e| !e.current));
    loop {
        let (at, reason) = pick_once(queue, rules, &sums, current, &waiting)?;
        let entity = entities.get(at)?;
        if !entity.eevdf.as_ref()?.delayed {
            return Some((at, reason));
        }
        // It sleeps: it leaves the queue for good, and the next one is picked.
        let place = waiting.iter().position(|&waits| waits == at)?;
        waiting.remove(place);
        sums.remove(entity);
        if waiting.is_empty() && running.is_none() {
            return None;
        }
    }
}

fn pick_once(
    queue: &FairQueue,
    rules: &Rules,
    sums: &Sums,
    current: Option<usize>,
    waiting: &[usize],
) -> Option<(usize, Reason)> {
    let entities = &queue.entities;
    let running = current.and_then(|at| entities.get(at));
    let is_eligible = |entity: &FairEntity| sums.is_eligible(running, entity.vruntime);
    let deadline = |entity: &FairEntity| entity.eevdf.as_ref().map(|e| e.deadline);
    if let Some(buddy) = queue.buddies.next.filter(|_| rules.pick_buddy)
        && let Some(at) = entities.iter().position(|e| e.addr == buddy)
        && is_eligible(entities.get(at)?)
    {
        return Some((at, Reason::Buddy));
    }
    match (current, waiting) {
        (Some(at), []) | (None, &[at]) => return Some((at, Reason::Alone)),
        _ => {}
    }
    let running = running.filter(|running| is_eligible(running));
    let is_protected = |e: &FairEntity| e.eevdf.as_ref().is_some_and(|e| e.protected);
    if rules.run_to_parity && running.is_some_and(is_protected) {
        return current.map(|at| (at, Reason::Slice));
    }
    let mut best = None;
    for &at in waiting {
        let entity = entities.get(at)?;
        let deadline = deadline(entity)?;
        let is_better = best.is_none_or(|(_, earliest)| ahead(deadline, earliest) < 0);
        if is_better && is_eligible(entity) {
            best = Some((at, deadline));
        }
    }
    if let (Some(running), Some(current)) = (running, current) {
        let deadline = deadline(running)?;
        if best.is_none_or(|(_, earliest)| ahead(deadline, earliest) < 0) {
            return Some((current, Reason::EarliestEligible));
        }
    }
    best.map(|(at, _)| (at, Reason::EarliestEligible))
}

impl Sums {
    /// An entity leaves the tree.
    fn remove(&mut self, entity: &FairEntity) {
        let key = ahead(entity.vruntime, self.zero);
        let share = key.wrapping_mul(entity.counted as i64);
        self.vruntime = self.vruntime.wrapping_sub(share);
        self.weight = self.weight.saturating_sub(entity.counted);
    }
}

/// `pick_next_entity()` of Linux up to 6.5.
fn pick_cfs(queue: &FairQueue, rules: &Rules) -> Option<(usize, Reason)> {
    let entities = &queue.entities;
    let at = |at: usize| entities.get(at);
    // The running one and the others by virtual run time; of equals, the running one comes last.
    let mut order: Vec<usize> = (0..entities.len()).collect();
    order.retain(|&i| at(i).is_some_and(|e| !e.current));
    if let Some(current) = entities.iter().position(|e| e.current && e.on_rq) {
        let vruntime = at(current)?.vruntime;
        let before = |&i: &usize| at(i).is_some_and(|e| ahead(e.vruntime, vruntime) <= 0);
        let place = order.iter().position(|i| !before(i));
        order.insert(place.unwrap_or(order.len()), current);
    }
    let first = *order.first()?;
    let leftmost = at(first)?;
    // `wakeup_preempt_entity() < 1`: the other one is not more than the granularity behind.
    let is_fair = |other: &FairEntity| {
        let granularity = u128::from(rules.wakeup_granularity) * 1024;
        let granularity = granularity / u128::from(other.weight.max(1));
        i128::from(ahead(other.vruntime, leftmost.vruntime)) <= granularity as i128
    };
    let buddy = |addr| {
        let at = entities.iter().position(|e| Some(e.addr) == addr)?;
        is_fair(entities.get(at)?).then_some(at)
    };
    if let Some(at) = buddy(queue.buddies.next) {
        return Some((at, Reason::Buddy));
    }
    if let Some(at) = buddy(queue.buddies.last) {
        return Some((at, Reason::Last));
    }
    if let Some(&second) = order.get(1)
        && queue.buddies.skip == Some(leftmost.addr)
        && is_fair(at(second)?)
    {
        return Some((second, Reason::Yielded));
    }
    Some(match order.len() {
        1 => (first, Reason::Alone),
        _ => (first, Reason::LeastVruntime),
    })
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
