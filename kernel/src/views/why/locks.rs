//! The kernel's own locks: which one a task waits for, and who has it.

use std::rc::Rc;

use super::kinds::Kind;
use super::look::Look;
use super::sleeper::Sleeper;
use super::{Access, Reason, Role, Wait, Waker};
use crate::addr::KernelAddr;
use crate::layout::Shape;
use crate::memory::Memory;
use crate::reader::Object;
use crate::tasks::Task;

/// Flags in `mutex.owner` (kernel/locking/mutex.c up to 6.6, kernel/locking/mutex.h since): there
/// are waiters, one of them is to be handed the mutex, that one has not picked it up yet.
const MUTEX_FLAGS: u64 = 7;
const MUTEX_WAITERS: u64 = 1;

/// Flags in `rw_semaphore.owner` and `rw_semaphore.count` (kernel/locking/rwsem.c).
const RWSEM_OWNER_FLAGS: u64 = 3;
const RWSEM_READER_OWNED: u64 = 1;
const RWSEM_WRITER_LOCKED: u64 = 1;
const RWSEM_WAITERS: u64 = 2;
const RWSEM_READER_SHIFT: u32 = 8;
/// A reader that gives up may have counted itself into the sign bit.
const RWSEM_READFAIL: u64 = 1 << 63;

/// `RT_MUTEX_HAS_WAITERS` of kernel/locking/rtmutex_common.h, in `rt_mutex_base.owner`.
const RT_MUTEX_FLAGS: u64 = 1;

/// Locks without an owner that all tasks are searched for.
const MAX_MENTIONED: usize = 256;

/// A lock whose waiters are in a list.
struct Listed {
    lock: &'static str,
    waiter: &'static str,
}

const MUTEX: Listed = Listed {
    lock: "struct mutex",
    waiter: "struct mutex_waiter",
};
const RWSEM: Listed = Listed {
    lock: "struct rw_semaphore",
    waiter: "struct rwsem_waiter",
};
const SEMAPHORE: Listed = Listed {
    lock: "struct semaphore",
    waiter: "struct semaphore_waiter",
};

impl<M: Memory> Look<'_, '_, M> {
    /// A mutex, and its owner.
    pub(super) fn mutex(&self, sleeper: &Sleeper) -> Wait {
        let wait = Wait::new(Reason::Mutex);
        let is_mutex = |lock: &Object<'_, M>| {
            // The first waiter sets it, and it stays for as long as there are any.
            lock.u64("owner")
                .is_ok_and(|owner| owner & MUTEX_WAITERS != 0)
        };
        let lock = self.blocked_on(sleeper);
        let lock = lock.filter(is_mutex);
        let Some(lock) = lock.or_else(|| self.find(sleeper, &MUTEX, is_mutex)) else {
            return wait;
        };
        let owner = KernelAddr(lock.u64("owner").unwrap_or(0) & !MUTEX_FLAGS);
        wait.on(Some(self.named(lock.addr(), "struct mutex")))
            .held_by(self, owner)
    }

    /// A read-write semaphore, and its writer, or those of its readers that are known.
    pub(super) fn rwsem(&self, sleeper: &Sleeper, access: Access) -> Wait {
        let mut reason = Wait::new(Reason::Rwsem {
            access,
            readers: 0,
            writer: false,
        });
        let is_rwsem = |lock: &Object<'_, M>| {
            let owner = lock.u64("owner").unwrap_or(1) & !RWSEM_OWNER_FLAGS;
            lock.u64("count").unwrap_or(0) & RWSEM_WAITERS != 0 && owner.is_multiple_of(8)
        };
        let Some(lock) = self.find(sleeper, &RWSEM, is_rwsem) else {
            return reason;
        };
        let count = lock.u64("count").unwrap_or(0);
        let owner = lock.u64("owner").unwrap_or(0);
        let readers = (count & !RWSEM_READFAIL) >> RWSEM_READER_SHIFT;
        let writer = count & RWSEM_WRITER_LOCKED != 0;
        reason.reason = Reason::Rwsem {
            access,
            readers,
            writer,
        };
        let wait = reason.on(Some(self.named(lock.addr(), "struct rw_semaphore")));
        let last = KernelAddr(owner & !RWSEM_OWNER_FLAGS);
        if writer {
            return wait.held_by(self, last);
        }
        // The word is not cleared when the last reader lets go: it may be somebody who does not
        // have the lock any more. So those are added whose stacks mention it.
        let mut wakers = match owner & RWSEM_READER_OWNED {
            0 => Vec::new(),
            _ => self.owner(last, Role::Reader, false),
        };
        if readers as usize > wakers.len() {
            for task in self.who_mentions(lock.addr(), &sleeper.task) {
                if wakers.iter().all(|waker| waker.addr != task.addr) {
                    wakers.push(Waker::new(task, Role::Reader, false));
                }
            }
        }
        let all = readers > 0 && readers as usize == wakers.len();
        let mut wait = wait.only(wakers);
        wait.closed &= all;
        wait
    }

    /// A semaphore. It has no owner; some kernels remember the last that took it.
    pub(super) fn semaphore(&self, sleeper: &Sleeper) -> Wait {
        let wait = Wait::new(Reason::Semaphore);
        let is_semaphore = |lock: &Object<'_, M>| lock.u64("count").is_ok_and(|count| count == 0);
        let Some(lock) = self.find(sleeper, &SEMAPHORE, is_semaphore) else {
            return wait;
        };
        // With CONFIG_DETECT_HUNG_TASK_BLOCKER, since 6.16.
        let last = lock.addr_value("last_holder").unwrap_or(KernelAddr(0));
        let mut wakers = self.owner(last, Role::Owner, false);
        if wakers.is_empty() {
            let tasks = self.who_mentions(lock.addr(), &sleeper.task);
            wakers.extend(tasks.map(|task| Waker::new(task, Role::Owner, false)));
        }
        let one = wakers.len() == 1;
        let mut wait = wait
            .on(Some(self.named(lock.addr(), "struct semaphore")))
            .only(wakers);
        wait.closed &= one;
        wait
    }

    /// A mutex with priority inheritance, and its owner.
    pub(super) fn rt_mutex(&self, sleeper: &Sleeper) -> Wait {
        let wait = Wait::new(Reason::RtMutex);
        let waiter = self.object(&sleeper.task).addr_value("pi_blocked_on");
        let Some(waiter) = waiter.ok().filter(|waiter| !waiter.is_null()) else {
            return wait;
        };
        let waiter = self.reader.object("struct rt_mutex_waiter", waiter);
        if waiter.addr_value("task").ok() != Some(sleeper.task.addr) {
            return wait;
        }
        let Ok(lock) = waiter.addr_value("lock") else {
            return wait;
        };
        let lock = self.reader.object("struct rt_mutex_base", lock);
        let owner = lock.u64("owner").unwrap_or(0) & !RT_MUTEX_FLAGS;
        wait.on(Some(self.named(lock.addr(), "struct rt_mutex")))
            .held_by(self, KernelAddr(owner))
    }

    /// A per-CPU read-write semaphore. It remembers a writer that waits for readers, nobody else.
    pub(super) fn percpu_rwsem(&self, sleeper: &Sleeper) -> Wait {
        const OWNER: &str = "struct percpu_rw_semaphore";
        let access = match sleeper.is_in("percpu_down_write") {
            true => Access::Write,
            false => Access::Read,
        };
        let wait = Wait::new(Reason::PercpuRwsem { access });
        let mut lock = self.queue_of(sleeper, "percpu_rwsem_wake_function");
        let waiters = self.layout().and_then(|layout| {
            let member = layout.member(OWNER, "waiters").ok()?;
            Some(member.offset)
        });
        let Some(waiters) = waiters else {
            return wait;
        };
        lock = lock.map(|queue| queue - waiters);
        let own = sleeper.task.addr;
        let has_writer = |addr: &KernelAddr| {
            let lock = self.reader.object(OWNER, *addr);
            let waiters = lock.addr_of("waiters.head").ok();
            lock.addr_value("writer.task").ok() == Some(own)
                && lock.u64("block") == Ok(1)
                && waiters.is_some_and(|waiters| self.ring(waiters).is_some())
        };
        let waits_for_readers = lock.is_none();
        lock = lock.or_else(|| sleeper.pointers().iter().copied().find(has_writer));
        let Some(lock) = lock.map(|lock| self.reader.object(OWNER, lock)) else {
            return wait;
        };
        let writer = lock.addr_value("writer.task").unwrap_or(KernelAddr(0));
        let mut wakers = match waits_for_readers {
            // The writer whose turn it is, and who waits for readers in turn.
            false => self.owner(writer, Role::Owner, true),
            true => Vec::new(),
        };
        if wakers.is_empty() {
            let role = match waits_for_readers {
                true => Role::Reader,
                false => Role::Owner,
            };
            let tasks = self.who_mentions(lock.addr(), &sleeper.task);
            wakers.extend(tasks.map(|task| Waker::new(task, role, false)));
        }
        let one = wakers.len() == 1;
        let mut wait = wait.on(Some(self.named(lock.addr(), OWNER))).only(wakers);
        wait.closed &= one;
        wait
    }

    /// The mutex that the task itself says it is blocked on, in kernels that keep that.
    fn blocked_on(&self, sleeper: &Sleeper) -> Option<Object<'_, M>> {
        let place = self.layout()?.place("struct task_struct", "blocked_on");
        // With CONFIG_DEBUG_MUTEXES, before 6.18, it was the waiter.
        let Shape::Pointer(Some(target)) = place.ok()?.shape else {
            return None;
        };
        let lock = self.object(&sleeper.task).addr_value("blocked_on").ok()?;
        let known = target == MUTEX.lock && !lock.is_null() && lock.get().is_multiple_of(8);
        known.then(|| self.reader.object(MUTEX.lock, lock))
    }

    /// The lock that a task waits for with a waiter on its stack.
    fn find(
        &self,
        sleeper: &Sleeper,
        kind: &Listed,
        is_lock: impl Fn(&Object<'_, M>) -> bool,
    ) -> Option<Object<'_, M>> {
        let layout = self.layout()?;
        let waiters = sleeper.left(self, kind.waiter, "task");
        // Up to 6.x the list's head is in the lock.
        if let Ok(wait_list) = layout.member(kind.lock, "wait_list") {
            return waiters.iter().find_map(|waiter| {
                let head = self.head_of(waiter, kind.waiter, "list", "task")?;
                let lock = self.reader.object(kind.lock, head - wait_list.offset);
                is_lock(&lock).then_some(lock)
            });
        }
        // Since 7.1 the waiters are in a ring of their own, of which the lock knows the first. Who
        // waits has the address of the lock at hand somewhere.
        let first = layout.member(kind.lock, "first_waiter").ok()?.offset;
        let link = layout.member(kind.waiter, "list").ok()?.offset;
        let stack = self.reader.kernel().stack_of(&sleeper.task);
        let pointers = sleeper.pointers();
        waiters.iter().find_map(|waiter| {
            let ring = self.ring(waiter.addr() + link)?;
            let locks = pointers.iter().filter(|&&lock| {
                let first = self.word(lock + first);
                first.is_some_and(|first| ring.nodes.contains(&(first + link)))
            });
            let locks = locks.map(|&lock| self.reader.object(kind.lock, lock));
            let mut locks: Vec<_> = locks.filter(&is_lock).collect();
            // A pointer into the stack may lead to another copy of the waiter's address.
            locks.sort_by_key(|lock| stack.contains(&lock.addr().get()));
            locks.into_iter().next()
        })
    }

    /// The tasks, other than this one, that sleep with an address on their stack, but do not wait
    /// for what is there: likely those that have the lock.
    fn who_mentions(&self, addr: KernelAddr, but: &Task) -> impl Iterator<Item = &Task> {
        let known = self.mentions.borrow().get(&addr).cloned();
        let found = known.unwrap_or_else(|| {
            let tasks = self.tasks().filter(|task| self.mentions(task, addr));
            let found: Rc<[KernelAddr]> = match self.mentions.borrow().len() {
                0..MAX_MENTIONED => tasks.map(|task| task.addr).collect(),
                _ => Rc::default(),
            };
            self.mentions.borrow_mut().insert(addr, Rc::clone(&found));
            found
        });
        let but = but.addr;
        let found: Vec<_> = found.iter().copied().filter(|&task| task != but).collect();
        found.into_iter().filter_map(|task| self.task(task))
    }

    fn mentions(&self, task: &Task, addr: KernelAddr) -> bool {
        if task.state.is_runnable() || self.runs(task) {
            return false;
        }
        let Some(sleeper) = self.sleeper(task) else {
            return false;
        };
        sleeper.pointers().binary_search(&addr).is_ok() && !self.waits_on(&sleeper, addr)
    }

    /// Whether it is this lock that a task waits for.
    fn waits_on(&self, sleeper: &Sleeper, addr: KernelAddr) -> bool {
        let any = |_: &Object<'_, M>| true;
        let lock = match sleeper.kind() {
            Some(Kind::Rwsem(_)) => self.find(sleeper, &RWSEM, any),
            Some(Kind::Semaphore) => self.find(sleeper, &SEMAPHORE, any),
            Some(Kind::PercpuRwsem(_)) => return true,
            _ => None,
        };
        lock.is_some_and(|lock| lock.addr() == addr)
    }
}

impl Wait {
    /// For a lock whose owner is known for sure.
    fn held_by<M: Memory>(self, look: &Look<'_, '_, M>, owner: KernelAddr) -> Wait {
        let wakers = look.owner(owner, Role::Owner, true);
        let gone = wakers.is_empty() && !owner.is_null() && look.is_gone(owner);
        let mut wait = self.only(wakers);
        if gone {
            wait.gone = Some(owner);
            wait.closed = true;
        }
        wait
    }
}
