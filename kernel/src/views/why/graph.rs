//! Who waits for whom: chains, circles, and who can never go on.

use std::collections::{HashMap, HashSet, VecDeque};

use super::kinds::Kind;
use super::look::Look;
use super::sleeper::Sleeper;
use super::{Deadlock, Link, Reason, Role, Step, Wait, Waiting, Waker, Who, Why};
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::tasks::Task;

/// How often a task is looked at that runs meanwhile.
const ATTEMPTS: usize = 3;

/// Steps of a chain that are shown.
const MAX_CHAIN: usize = 32;

/// Lines of a stack that are kept.
const MAX_LINES: usize = 64;

/// What each task waits for that was looked at.
type Waits = HashMap<KernelAddr, Wait>;

pub(super) fn explain<M: Memory>(look: &Look<'_, '_, M>, wanted: &[&Task]) -> Why {
    let mut waits = Waits::new();
    let mut queue: VecDeque<_> = wanted.iter().map(|task| task.addr).collect();
    while let Some(addr) = queue.pop_front() {
        let Some(task) = look.task(addr).filter(|_| !waits.contains_key(&addr)) else {
            continue;
        };
        let wait = look.wait(task);
        queue.extend(wait.wakers.iter().map(|waker| waker.addr));
        waits.insert(addr, wait);
    }
    let stuck = stuck(&waits);
    let mut why = Why::default();
    let mut part_of: HashMap<KernelAddr, usize> = HashMap::new();
    for circle in circles(look, &waits, &stuck) {
        part_of.extend(circle.iter().map(|&addr| (addr, why.deadlocks.len())));
        why.deadlocks.push(deadlock(look, &waits, &circle));
    }
    for &task in wanted {
        let Some(wait) = waits.get(&task.addr) else {
            continue;
        };
        let since = match wait.reason {
            Reason::Runs | Reason::Cpu => None,
            _ => look.since(task),
        };
        why.tasks.push(Waiting {
            task: Who::of(task),
            tgid: task.tgid,
            state: task.state,
            kernel_thread: task.kernel_thread,
            chain: chain(look, &waits, &stuck, task),
            stuck: stuck.contains(&task.addr),
            deadlock: part_of.get(&task.addr).copied(),
            since,
            stack: look.stack(task, &wait.reason),
            wait: wait.clone(),
        });
    }
    // In the order of the kernel's list, among equals.
    why.tasks.sort_by_key(|waiting| {
        let rank = match waiting.wait.reason {
            _ if waiting.stuck => 0,
            _ if waiting.state.0 == 'D' => 1,
            Reason::Work => 3,
            Reason::Runs | Reason::Cpu => 4,
            _ => 2,
        };
        (waiting.deadlock.unwrap_or(usize::MAX), rank)
    });
    why
}

/// The tasks that can never go on: nobody but certain tasks can end their waits, and these are
/// such tasks, too.
fn stuck(waits: &Waits) -> HashSet<KernelAddr> {
    let is_zombie = |waker: &Waker| {
        let wait = waits.get(&waker.addr);
        wait.is_some_and(|wait| wait.reason == Reason::Zombie)
    };
    // From who can go on, backwards to those for whom they can do something.
    let mut waiters: HashMap<KernelAddr, Vec<KernelAddr>> = HashMap::new();
    let mut live: Vec<KernelAddr> = Vec::new();
    for (&addr, wait) in waits {
        if !wait.closed {
            live.push(addr);
        }
        for waker in &wait.wakers {
            // A lock whose owner has ended is never given back.
            if !(is_zombie(waker) && waker.role == Role::Owner) {
                waiters.entry(waker.addr).or_default().push(addr);
            }
        }
    }
    let mut stuck: HashSet<KernelAddr> = waits.keys().copied().collect();
    while let Some(addr) = live.pop() {
        if stuck.remove(&addr) {
            live.extend(waiters.get(&addr).into_iter().flatten().copied());
        }
    }
    stuck
}

/// The wakers of a task that are stuck, too.
fn edges<'w>(
    waits: &'w Waits,
    stuck: &'w HashSet<KernelAddr>,
    addr: KernelAddr,
) -> impl Iterator<Item = KernelAddr> + 'w {
    let wakers = waits.get(&addr).into_iter().flat_map(|wait| &wait.wakers);
    let wakers = wakers.map(|waker| waker.addr);
    wakers.filter(|waker| stuck.contains(waker))
}

/// One circle of each knot of tasks that wait for each other, the shortest through the task that
/// was listed first.
fn circles<M: Memory>(
    look: &Look<'_, '_, M>,
    waits: &Waits,
    stuck: &HashSet<KernelAddr>,
) -> Vec<Vec<KernelAddr>> {
    let mut circles = Vec::new();
    let mut done: HashSet<KernelAddr> = HashSet::new();
    for task in look.tasks().filter(|task| stuck.contains(&task.addr)) {
        if done.contains(&task.addr) {
            continue;
        }
        let mut before: HashMap<KernelAddr, KernelAddr> = HashMap::new();
        let mut queue = VecDeque::from([task.addr]);
        // Who was reached from another task before, without a circle to here, leads to none.
        while let Some(addr) = queue.pop_front() {
            for next in edges(waits, stuck, addr) {
                if !done.contains(&next) && !before.contains_key(&next) {
                    before.insert(next, addr);
                    queue.push_back(next);
                }
            }
            if before.contains_key(&task.addr) {
                break;
            }
        }
        done.insert(task.addr);
        let Some(&last) = before.get(&task.addr) else {
            continue;
        };
        let mut circle = vec![last];
        while let Some(&addr) = circle.last().filter(|&&addr| addr != task.addr) {
            circle.extend(before.get(&addr));
        }
        circle.reverse();
        done.extend(&circle);
        circles.push(circle);
    }
    circles
}

fn deadlock<M: Memory>(look: &Look<'_, '_, M>, waits: &Waits, circle: &[KernelAddr]) -> Deadlock {
    let nexts = circle.iter().cycle().skip(1);
    let mut certain = true;
    let mut links = Vec::new();
    for (&addr, &next) in circle.iter().zip(nexts) {
        let (Some(task), Some(wait)) = (look.task(addr), waits.get(&addr)) else {
            continue;
        };
        let mut wait = wait.clone();
        // The one that matters first.
        wait.wakers.sort_by_key(|waker| waker.addr != next);
        certain &= wait.wakers.first().is_some_and(|waker| waker.certain);
        links.push(Link {
            task: Who::of(task),
            stack: look.stack(task, &wait.reason),
            wait,
        });
    }
    Deadlock { certain, links }
}

fn chain<M: Memory>(
    look: &Look<'_, '_, M>,
    waits: &Waits,
    stuck: &HashSet<KernelAddr>,
    task: &Task,
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut seen = HashSet::from([task.addr]);
    let mut at = task.addr;
    while steps.len() < MAX_CHAIN {
        let Some(wait) = waits.get(&at) else { break };
        // Of several, one that is stuck: it is why this one is.
        let stuck = wait.wakers.iter().find(|waker| stuck.contains(&waker.addr));
        let Some(waker) = stuck.or(wait.wakers.first()) else {
            break;
        };
        let (Some(task), Some(wait)) = (look.task(waker.addr), waits.get(&waker.addr)) else {
            break;
        };
        steps.push(Step {
            task: Who::of(task),
            reason: wait.reason.clone(),
            object: wait.object.clone(),
            role: waker.role,
        });
        if !seen.insert(waker.addr) {
            break;
        }
        at = waker.addr;
    }
    steps
}

impl<M: Memory> Look<'_, '_, M> {
    /// What a task waits for.
    fn wait(&self, task: &Task) -> Wait {
        let reason = match task.state.0 {
            'Z' | 'X' => Reason::Zombie,
            't' => Reason::Traced,
            'T' => Reason::Stopped,
            _ if self.runs(task) => Reason::Runs,
            _ if task.state.is_runnable() => Reason::Cpu,
            _ => return self.sleep(task),
        };
        Wait::new(reason)
    }

    fn sleep(&self, task: &Task) -> Wait {
        for _ in 0..ATTEMPTS {
            let before = self.switches(task);
            let wait = self.sleeper(task).map(|sleeper| self.asleep(&sleeper));
            if let Some(wait) = wait.filter(|_| self.switches(task) == before) {
                return wait;
            }
            self.forget(task);
        }
        Wait::new(Reason::Runs)
    }

    fn asleep(&self, sleeper: &Sleeper) -> Wait {
        let kind = sleeper.kind();
        let mut wait = match kind {
            Some(kind) if kind.has_owner() || !sleeper.task.kernel_thread => {
                self.by_kind(sleeper, kind)
            }
            kind => self.idle(sleeper, kind),
        };
        let primitive = kind.filter(|_| wait.reason != Reason::Unknown);
        wait.function = sleeper.function(primitive).map(str::to_owned);
        self.with_timeout(wait, sleeper)
    }

    fn by_kind(&self, sleeper: &Sleeper, kind: Kind) -> Wait {
        match kind {
            Kind::Mutex => self.mutex(sleeper),
            Kind::Rwsem(access) => self.rwsem(sleeper, access),
            Kind::Semaphore => self.semaphore(sleeper),
            Kind::RtMutex if sleeper.callers().any(|caller| caller.starts_with("futex_")) => {
                self.futex(sleeper)
            }
            Kind::RtMutex => self.rt_mutex(sleeper),
            Kind::PercpuRwsem(_) => self.percpu_rwsem(sleeper),
            Kind::Completion => self.completion(sleeper),
            Kind::Bit => self.bit(sleeper),
            Kind::Page => self.page(sleeper),
            Kind::Futex => self.futex(sleeper),
            Kind::FutexVector => self.futex_vector(sleeper),
            Kind::Pipe(side) => self.pipe(sleeper, side),
            Kind::Poll => self.polled(sleeper, "poll"),
            Kind::Select => self.polled(sleeper, "select"),
            Kind::Epoll => self.epolled(sleeper),
            Kind::Socket => self.socket(sleeper),
            Kind::FileLock => self.file_lock(sleeper),
            Kind::Children => self.children(sleeper),
            Kind::Message => Wait::new(Reason::Message),
            Kind::Semaphores => Wait::new(Reason::Semaphores),
            Kind::Sleep => Wait::new(Reason::Sleep),
            Kind::Signal => Wait::new(Reason::Signal),
            Kind::Stop => Wait::new(Reason::Stopped),
            Kind::Trace => Wait::new(Reason::Traced),
        }
    }

    /// A wait that is none of a lock: in the loop of a kernel thread, for work.
    fn idle(&self, sleeper: &Sleeper, kind: Option<Kind>) -> Wait {
        let queue = || self.wait_queue(sleeper);
        if sleeper.task.kernel_thread && sleeper.thread_loop().is_some() {
            let object = queue().and_then(|wait| wait.object);
            return Wait::new(Reason::Work).on(object);
        }
        match kind {
            Some(kind) => self.by_kind(sleeper, kind),
            None => queue().unwrap_or_else(|| Wait::new(Reason::Unknown)),
        }
    }

    /// A task's stack from where it began to wait.
    fn stack(&self, task: &Task, reason: &Reason) -> Vec<String> {
        if matches!(reason, Reason::Runs | Reason::Cpu | Reason::Zombie) {
            return Vec::new();
        }
        let Some(sleeper) = self.sleeper(task) else {
            return Vec::new();
        };
        let rest = sleeper.functions.get(sleeper.scheduler..);
        let mut lines = Vec::new();
        let mut last = None;
        for function in rest.unwrap_or_default() {
            if lines.len() < MAX_LINES && last != Some(function.frame) {
                lines.extend(self.describe_frame(function.frame));
                last = Some(function.frame);
            }
        }
        lines
    }
}
