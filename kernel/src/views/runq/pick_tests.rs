use super::super::fair::{Buddies, Eevdf, FairGroup};
use super::*;
use crate::addr::{GuestPid, KernelAddr};
use crate::views::runq::Policy;

const RULES: Rules = Rules {
    run_to_parity: true,
    pick_buddy: true,
    wakeup_granularity: 1_000_000,
};

fn task(pid: i32) -> SchedTask {
    SchedTask {
        pid: GuestPid(pid),
        comm: format!("task{pid}"),
        policy: Policy::Normal,
        prio: 120,
        nice: 0,
        addr: KernelAddr(pid as u64 * 0x1000),
    }
}

/// A task of nice 0.
fn entity(pid: i32, vruntime: i64, deadline: i64) -> FairEntity {
    FairEntity {
        task: Some(task(pid)),
        group: None,
        current: false,
        next: false,
        on_rq: true,
        cgroup: None,
        weight: 1024,
        share: 1024,
        counted: 1024,
        vruntime,
        runtime: 0,
        eevdf: Some(Eevdf {
            lag: 0,
            eligible: false,
            deadline,
            slice: 3_000_000,
            custom_slice: false,
            delayed: false,
            protected: false,
        }),
        addr: KernelAddr(pid as u64 * 0x1000 + 0x80),
    }
}

fn running(entity: FairEntity) -> FairEntity {
    FairEntity {
        current: true,
        ..entity
    }
}

fn queue(order: FairOrder, zero: i64, entities: Vec<FairEntity>) -> FairQueue {
    let mut sums = Sums {
        zero,
        ..Sums::default()
    };
    for entity in entities.iter().filter(|entity| !entity.current) {
        sums.vruntime += ahead(entity.vruntime, zero) * entity.counted as i64;
        sums.weight += entity.counted;
    }
    FairQueue {
        addr: KernelAddr(0x100),
        order,
        weight: entities.iter().map(|entity| entity.weight).sum(),
        vtime: zero,
        throttled: false,
        entities,
        sums,
        buddies: Buddies::default(),
    }
}

#[track_caller]
fn picked(queue: &mut FairQueue) -> (i32, Reason) {
    let pick = next_fair(queue, &RULES).expect("somebody");
    (pick.task.pid.0, pick.reason)
}

#[test]
fn an_early_deadline_is_no_use_to_who_had_too_much() {
    // V is 200: task 1 is ahead of it.
    let waiting = [
        entity(1, 300, 310),
        entity(2, 150, 400),
        entity(3, 150, 390),
    ];
    let mut queue = queue(FairOrder::Eevdf, 0, waiting.into());
    assert_eq!(picked(&mut queue), (3, Reason::EarliestEligible));
    let marked: Vec<_> = queue.entities.iter().map(|entity| entity.next).collect();
    assert_eq!(marked, [false, false, true]);
}

#[test]
fn virtual_times_are_compared_across_their_wrap() {
    let waiting = [entity(1, -5, -1), entity(2, i64::MAX, i64::MIN + 5)];
    let zero = i64::MAX - 10;
    let mut one = queue(FairOrder::Eevdf, zero, vec![waiting[1].clone()]);
    one.entities.push(entity(3, i64::MIN + 20, i64::MIN + 2));
    // Beyond the wrap, 21 further on.
    one.sums.vruntime += 1024 * 31;
    one.sums.weight += 1024;
    assert_eq!(picked(&mut one), (2, Reason::EarliestEligible));
    let mut other = queue(FairOrder::Eevdf, -10, vec![waiting[0].clone()]);
    assert_eq!(picked(&mut other), (1, Reason::Alone));
}

#[test]
fn the_running_task_keeps_its_slice_while_it_is_eligible() {
    let current = running(entity(1, 100, 500));
    let mut both = queue(FairOrder::Eevdf, 0, vec![current, entity(2, 200, 300)]);
    assert_eq!(picked(&mut both), (1, Reason::EarliestEligible));
    both.entities[0].eevdf.as_mut().unwrap().protected = true;
    assert_eq!(picked(&mut both), (1, Reason::Slice));
    both.entities[0].vruntime = 300;
    assert_eq!(picked(&mut both), (2, Reason::EarliestEligible));
    // When its task sleeps it is not asked any more.
    both.entities[0].on_rq = false;
    both.entities[0].vruntime = 100;
    assert_eq!(picked(&mut both), (2, Reason::Alone));
}

#[test]
fn who_sleeps_is_let_go_of_and_changes_the_average() {
    let mut sleeper = entity(1, 100, 200);
    sleeper.eevdf.as_mut().unwrap().delayed = true;
    let waiting = vec![sleeper.clone(), entity(2, 200, 300), entity(3, 180, 400)];
    let mut queue = queue(FairOrder::Eevdf, 50, waiting);
    // V is 160 with the sleeper, and 190 without it.
    assert_eq!(picked(&mut queue), (3, Reason::EarliestEligible));
    queue.entities = vec![sleeper];
    queue.sums.weight = 1024;
    queue.sums.vruntime = 50 * 1024;
    assert_eq!(next_fair(&mut queue, &RULES), None);
}

#[test]
fn a_buddy_must_be_eligible() {
    let waiting = [
        entity(1, 300, 310),
        entity(2, 150, 400),
        entity(3, 150, 390),
    ];
    let mut queue = queue(FairOrder::Eevdf, 0, waiting.into());
    queue.buddies.next = Some(queue.entities[1].addr);
    assert_eq!(picked(&mut queue), (2, Reason::Buddy));
    queue.buddies.next = Some(queue.entities[0].addr);
    assert_eq!(picked(&mut queue), (3, Reason::EarliestEligible));
}

#[test]
fn groups_pick_in_turn() {
    let inner = queue(
        FairOrder::Eevdf,
        0,
        vec![entity(5, 10, 20), entity(6, 10, 15)],
    );
    let mut group = entity(1, 100, 200);
    group.task = None;
    group.group = Some(FairGroup {
        path: "/a".to_owned(),
        queue: inner,
    });
    let mut outer = queue(FairOrder::Eevdf, 0, vec![group, entity(2, 100, 300)]);
    assert_eq!(picked(&mut outer), (6, Reason::EarliestEligible));
    assert!(outer.entities[0].next && !outer.entities[1].next);
    let group = outer.entities[0].group.as_ref().unwrap();
    assert!(!group.queue.entities[0].next && group.queue.entities[1].next);
}

#[test]
fn cfs_takes_the_first_unless_a_buddy_is_near() {
    const MS: i64 = 1_000_000;
    let current = running(entity(1, 3 * MS, 0));
    let entities = vec![current, entity(2, MS, 0), entity(3, 2 * MS, 0)];
    let mut queue = queue(FairOrder::Cfs, 0, entities);
    assert_eq!(picked(&mut queue), (2, Reason::LeastVruntime));
    queue.buddies.skip = Some(queue.entities[1].addr);
    assert_eq!(picked(&mut queue), (3, Reason::Yielded));
    queue.buddies.last = Some(queue.entities[2].addr);
    assert_eq!(picked(&mut queue), (3, Reason::Last));
    // Two granularities behind is too far, unless it is light.
    queue.buddies.next = Some(queue.entities[0].addr);
    assert_eq!(picked(&mut queue), (3, Reason::Last));
    queue.entities[0].weight = 512;
    assert_eq!(picked(&mut queue), (1, Reason::Buddy));
    queue.entities[0].vruntime = MS / 2;
    queue.buddies = Buddies::default();
    assert_eq!(picked(&mut queue), (1, Reason::LeastVruntime));
}
