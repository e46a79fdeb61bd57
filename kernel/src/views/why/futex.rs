//! Futexes: words in user space's memory that tasks wait to see changed.

use super::look::Look;
use super::sleeper::Sleeper;
use super::{FutexUse, Reason, Role, Wait, Waker};
use crate::addr::{GuestPid, KernelAddr, UserAddr};
use crate::memory::Memory;
use crate::reader::Object;
use crate::tasks::Task;

/// In the low bits of a key's offset (include/linux/futex.h): the word is in a file's page, or in
/// memory that is shared in some other way.
const IN_FILE: u64 = 1;
const SHARED: u64 = 2;

/// The part of a lock's word that is its owner's tid (FUTEX_TID_MASK of include/uapi/linux/futex.h).
const TID: u32 = 0x3fff_ffff;
const WAITERS: u32 = 0x8000_0000;

/// More than `futex_waitv()` takes (FUTEX_WAITV_MAX).
const MAX_WORDS: u64 = 128;

/// glibc's `pthread_mutex_t` on x86-64 (sysdeps/x86/nptl/bits/struct_mutex.h), part of its ABI:
/// the word that is waited on is 2 while there are waiters, and the tid of the owner is behind it
/// and a counter.
const GLIBC_CONTENDED: u32 = 2;
const GLIBC_OWNER: u64 = 8;

/// What one futex_q says.
struct Word {
    uaddr: Option<UserAddr>,
    shared: bool,
}

impl<M: Memory> Look<'_, '_, M> {
    /// A futex; who holds it, if it is a lock.
    pub(super) fn futex(&self, sleeper: &Sleeper) -> Wait {
        let queued = sleeper.left(self, "struct futex_q", "task");
        let queued = queued.into_iter().find(|queued| self.is_queued(queued));
        let Some(queued) = queued else {
            // While it waits for the lock itself, it is no longer in the futex's queue.
            return Wait::new(reason(None, None, FutexUse::Other, false, 1));
        };
        let word = self.futex_word(sleeper, &queued);
        let wait = self.futex_wait(sleeper, &word, 1);
        let is_lock = sleeper.is_in("futex_lock_pi");
        if !is_lock && !sleeper.is_in("futex_wait_requeue_pi") {
            return wait;
        }
        let owner = queued.addr_value("pi_state").ok();
        let owner = owner.filter(|state| !state.is_null()).and_then(|state| {
            let state = self.reader.object("struct futex_pi_state", state);
            state.addr_value("owner").ok()
        });
        let mut wait = wait;
        if let Reason::Futex { usage, .. } = &mut wait.reason {
            *usage = match is_lock {
                true => FutexUse::PriorityLock,
                false => FutexUse::Requeue,
            };
        }
        match owner.filter(|_| is_lock) {
            Some(owner) => wait.only(self.owner(owner, Role::Owner, true)),
            None => wait,
        }
    }

    /// Several at once (`futex_waitv()`).
    pub(super) fn futex_vector(&self, sleeper: &Sleeper) -> Wait {
        const VECTOR: &str = "struct futex_vector";
        let own = sleeper.task.addr;
        let size = self.layout().and_then(|layout| layout.size_of(VECTOR).ok());
        let is_own = |addr: KernelAddr| {
            let element = self.reader.object(VECTOR, addr);
            element.addr_value("q.task").ok() == Some(own)
        };
        // It is not on the stack but beside it, for there may be many.
        let pointers = sleeper.pointers().iter().copied();
        let first = pointers.filter(|&addr| is_own(addr)).find(|&addr| {
            let queued = self.reader.object(VECTOR, addr).member("q");
            queued.is_ok_and(|queued| self.is_queued(&queued))
        });
        let (Some(first), Some(size)) = (first, size) else {
            return Wait::new(reason(None, None, FutexUse::Other, false, 0));
        };
        let words = (0..MAX_WORDS)
            .take_while(|at| is_own(first + at * size))
            .count();
        let element = self.reader.object(VECTOR, first);
        let queued = element.member("q");
        let word = queued.ok().map(|queued| self.futex_word(sleeper, &queued));
        let word = word.unwrap_or(Word {
            uaddr: None,
            shared: false,
        });
        let mut wait = self.futex_wait(sleeper, &word, words as u64);
        // One of many is not the one that must come.
        wait.closed &= words == 1;
        wait
    }

    fn is_queued(&self, queued: &Object<'_, M>) -> bool {
        let linked = queued.addr_of("list.node_list").ok();
        linked.is_some_and(|node| self.is_linked(node))
            && queued
                .addr_value("lock_ptr")
                .is_ok_and(|lock| !lock.is_null())
    }

    /// Where the word is, from the key that the kernel finds its waiters by.
    fn futex_word(&self, sleeper: &Sleeper, queued: &Object<'_, M>) -> Word {
        let offset = queued.u64("key.both.offset").unwrap_or(0);
        let within = offset & !(IN_FILE | SHARED);
        let shared = offset & (IN_FILE | SHARED) != 0;
        let uaddr = match offset & IN_FILE {
            0 => {
                let page = queued.u64("key.private.address").ok();
                page.map(|page| UserAddr(page.wrapping_add(within)))
            }
            // The key has the file; the address is the system call's first argument.
            _ => self
                .first_argument(&sleeper.task)
                .filter(|uaddr| uaddr.get() % self.reader.kernel().page_size() == within),
        };
        Word { uaddr, shared }
    }

    /// The first argument of the system call that a task is in: `rdi` when it entered the kernel.
    fn first_argument(&self, task: &Task) -> Option<UserAddr> {
        // The host's `struct user_regs_struct` (asm/user_64.h), in units of a register.
        const RDI: u64 = 14;
        let path = format!("thread.regs.regs.gp[{RDI}]");
        self.object(task).u64(&path).ok().map(UserAddr)
    }

    /// What a word says of who has it.
    fn futex_wait(&self, sleeper: &Sleeper, word: &Word, words: u64) -> Wait {
        let mm = self.object(&sleeper.task).addr_value("mm").ok();
        let read = |addr: Option<UserAddr>| {
            let mut bytes = [0; 4];
            self.reader
                .kernel()
                .read_user(mm?, addr?, &mut bytes)
                .ok()?;
            Some(u32::from_le_bytes(bytes))
        };
        let value = read(word.uaddr);
        let reason = |usage| reason(word.uaddr, value, usage, word.shared, words);
        if let Some(thread) = self.joined(mm, word.uaddr) {
            let waker = Waker::new(thread, Role::Exits, true);
            return Wait::new(reason(FutexUse::Join)).only(vec![waker]);
        }
        let tid = match value {
            Some(GLIBC_CONTENDED) => read(word.uaddr.map(|addr| addr + GLIBC_OWNER)),
            // What locks of other libraries, and robust ones, have: the tid and a flag.
            Some(value) if value & WAITERS != 0 => Some(value & TID),
            _ => None,
        };
        let owner = tid.and_then(|tid| self.thread_of(&sleeper.task, tid, word.shared));
        match owner {
            Some(owner) => {
                let waker = Waker::new(owner, Role::Owner, false);
                Wait::new(reason(FutexUse::Lock)).only(vec![waker])
            }
            None => Wait::new(reason(FutexUse::Other)),
        }
    }

    /// The thread whose end the kernel tells by clearing and waking this word.
    fn joined(&self, mm: Option<KernelAddr>, uaddr: Option<UserAddr>) -> Option<&Task> {
        let thread = self.links().by_cleared.get(&(mm?, uaddr?.get()))?;
        self.task(*thread)
    }

    /// The task that has this tid for another one: in its process, or in any when the memory is
    /// shared. Processes in a pid namespace count for themselves.
    fn thread_of(&self, task: &Task, tid: u32, shared: bool) -> Option<&Task> {
        let tid = GuestPid(i32::try_from(tid).ok().filter(|&tid| tid > 0)?);
        let level = self.pid_level(task).unwrap_or(0);
        let has_tid = |other: &&Task| self.pid_at(other, level) == Some(tid);
        if shared && level == 0 {
            return self.task(*self.links().by_pid.get(&tid)?);
        }
        if shared {
            return self.tasks().find(has_tid);
        }
        let threads = self.links().threads.get(&task.tgid)?.iter();
        threads.filter_map(|addr| self.task(*addr)).find(has_tid)
    }

    /// How deep the pid namespace is nested that a task is in.
    fn pid_level(&self, task: &Task) -> Option<u64> {
        let pid = self.object(task).addr_value("thread_pid").ok()?;
        self.reader.object("struct pid", pid).u64("level").ok()
    }

    /// A task's pid as namespaces of this depth count.
    fn pid_at(&self, task: &Task, level: u64) -> Option<GuestPid> {
        // MAX_PID_NS_LEVEL of include/linux/pid_namespace.h.
        const MAX_LEVEL: u64 = 32;
        if level == 0 {
            return Some(task.pid);
        }
        if level > MAX_LEVEL || self.pid_level(task)? < level {
            return None;
        }
        let pid = self.object(task).addr_value("thread_pid").ok()?;
        let first = self
            .reader
            .object("struct pid", pid)
            .addr_of("numbers")
            .ok()?;
        let size = self.layout()?.size_of("struct upid").ok()?;
        let number = self.reader.object("struct upid", first + level * size);
        let number = number.i64("nr").ok()?;
        i32::try_from(number).ok().map(GuestPid)
    }
}

fn reason(
    uaddr: Option<UserAddr>,
    value: Option<u32>,
    usage: FutexUse,
    shared: bool,
    words: u64,
) -> Reason {
    Reason::Futex {
        uaddr,
        value,
        usage,
        shared,
        words,
    }
}
