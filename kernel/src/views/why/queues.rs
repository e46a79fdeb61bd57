//! Wait queues, completions, bits, pages and children: what tasks wait for without an owner, or
//! with one that is known from elsewhere.

use super::look::Look;
use super::sleeper::Sleeper;
use super::{Reason, Role, Wait, Waker};
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::Object;
use crate::tasks::Task;

const ENTRY: &str = "struct wait_queue_entry";

/// `__WNOTHREAD` of include/uapi/linux/wait.h: only the calling thread's own children.
const WNOTHREAD: u64 = 0x2000_0000;

impl<M: Memory> Look<'_, '_, M> {
    /// The wait queue entries of a task, innermost first, and the addresses of the functions that
    /// wake it.
    fn entries(&self, sleeper: &Sleeper) -> Vec<(Object<'_, M>, KernelAddr)> {
        let entries = sleeper.left(self, ENTRY, "private").into_iter();
        let entries = entries.filter_map(|entry| {
            let function = entry.addr_value("func").ok()?;
            // An entry alone was taken off its queue: the task is being woken.
            let is_queued = self.is_linked(entry.addr_of("entry").ok()?);
            (is_queued && self.is_text(function)).then_some((entry, function))
        });
        entries.collect()
    }

    fn is_text(&self, addr: KernelAddr) -> bool {
        self.reader.kernel().image().is_text(addr) || self.modules().contains(addr)
    }

    /// The entry of a task that a function of this name wakes.
    fn entry_by(&self, sleeper: &Sleeper, function: &str) -> Option<Object<'_, M>> {
        let entries = self.entries(sleeper).into_iter();
        let mut entries = entries.filter(|(entry, _)| self.calls(entry, "func", function));
        Some(entries.next()?.0)
    }

    /// The `wait_queue_head` that an entry is in.
    fn queue(&self, entry: &Object<'_, M>) -> Option<KernelAddr> {
        let layout = self.layout()?;
        let link = layout.member(ENTRY, "entry").ok()?.offset;
        let head = layout.member("struct wait_queue_head", "head").ok()?.offset;
        let found = self.head(entry.addr() + link, ENTRY, |node| {
            // Every entry has a function; what lies before a head is a lock or something else.
            let other = self.reader.object(ENTRY, node - link);
            let function = other.addr_value("func").unwrap_or(KernelAddr(0));
            self.is_text(function) && other.u64("flags").is_ok_and(|flags| flags <= 0xff)
        });
        found.map(|node| node - head)
    }

    /// The queue in which a task waits for a function of this name to wake it.
    pub(super) fn queue_of(&self, sleeper: &Sleeper, function: &str) -> Option<KernelAddr> {
        self.queue(&self.entry_by(sleeper, function)?)
    }

    /// The innermost queue that a task is in.
    pub(super) fn first_queue(&self, sleeper: &Sleeper) -> Option<KernelAddr> {
        let entries = self.entries(sleeper);
        entries.iter().find_map(|(entry, _)| self.queue(entry))
    }

    /// Any wait queue.
    pub(super) fn wait_queue(&self, sleeper: &Sleeper) -> Option<Wait> {
        let queue = self.first_queue(sleeper)?;
        let named = self.named(queue, "struct wait_queue_head");
        Some(Wait::new(Reason::WaitQueue).on(Some(named)))
    }

    /// A completion; for some, who is going to complete it.
    pub(super) fn completion(&self, sleeper: &Sleeper) -> Wait {
        const WAITER: &str = "struct swait_queue";
        const OWNER: &str = "struct completion";
        let wait = Wait::new(Reason::Completion);
        let list = self.layout().and_then(|layout| {
            let member = layout.member(OWNER, "wait.task_list");
            Some(member.ok()?.offset)
        });
        let Some(list) = list else { return wait };
        let waiters = sleeper.left(self, WAITER, "task");
        let found = waiters.iter().find_map(|waiter| {
            let head = self.head_of(waiter, WAITER, "task_list", "task")?;
            let done = self.reader.object(OWNER, head - list);
            (done.u64("done") == Ok(0)).then_some(done)
        });
        let Some(done) = found else { return wait };
        let wakers = self.completes(&done);
        wait.on(Some(self.named(done.addr(), OWNER))).only(wakers)
    }

    /// Who is going to complete something, when that is known.
    fn completes(&self, done: &Object<'_, M>) -> Vec<Waker> {
        let waker = |task, role| vec![Waker::new(task, role, true)];
        let task = |addr: Option<&KernelAddr>| self.task(*addr?);
        let links = self.links();
        // `vfork()`: the child, until it ends or executes something.
        if let Some(child) = task(links.by_vfork.get(&done.addr())) {
            return waker(child, Role::Exits);
        }
        // `kthread_stop()`: the thread that is to end.
        let thread = done.container("struct kthread", "exited").ok();
        let thread = thread.and_then(|thread| task(links.by_kthread.get(&thread.addr())));
        if let Some(thread) = thread {
            return waker(thread, Role::Exits);
        }
        // `flush_work()`: a barrier behind the work, in the list of the worker that does it.
        let worker = self.flushed(done);
        worker
            .map(|task| waker(task, Role::Worker))
            .unwrap_or_default()
    }

    /// The worker in whose list the barrier of a completion is.
    fn flushed(&self, done: &Object<'_, M>) -> Option<&Task> {
        let barrier = done.container("struct wq_barrier", "done").ok()?;
        let ring = self.ring(barrier.addr_of("work.entry").ok()?)?;
        let scheduled = &self.links().by_scheduled;
        let worker = ring.nodes.iter().find_map(|node| scheduled.get(node))?;
        self.task(*worker)
    }

    /// A bit in some word.
    pub(super) fn bit(&self, sleeper: &Sleeper) -> Wait {
        let entry = self.entry_by(sleeper, "wake_bit_function");
        let found = entry.and_then(|entry| {
            let wait = entry
                .container("struct wait_bit_queue_entry", "wq_entry")
                .ok()?;
            Some((
                wait.addr_value("key.flags").ok()?,
                wait.u64("key.bit_nr").ok()?,
            ))
        });
        match found {
            None => Wait::new(Reason::Unknown),
            Some((word, bit)) => {
                Wait::new(Reason::Bit { bit }).on(Some(self.named(word, "unsigned long")))
            }
        }
    }

    /// A page of a file, or of a process.
    pub(super) fn page(&self, sleeper: &Sleeper) -> Wait {
        let entry = self.entry_by(sleeper, "wake_page_function");
        let found = entry.and_then(|entry| {
            let wait = entry.container("struct wait_page_queue", "wait").ok()?;
            Some((wait.addr_value("folio").ok()?, wait.u64("bit_nr").ok()?))
        });
        let Some((folio, bit)) = found else {
            return Wait::new(Reason::Unknown);
        };
        let names = ["locked", "writeback", "private_2"];
        let name = names.into_iter().find(|name| {
            let flag = format!("PG_{name}");
            let layout = self.layout();
            layout.and_then(|layout| layout.enumerator_of("enum pageflags", &flag).ok())
                == Some(bit as i64)
        });
        // PAGE_MAPPING_FLAGS of include/linux/page-flags.h: what is no file has one of them set.
        const NO_FILE: u64 = 3;
        let page = self.reader.object("struct folio", folio);
        let mapping = page.addr_value("mapping").ok();
        let mapping = mapping.filter(|mapping| !mapping.is_null() && mapping.get() & NO_FILE == 0);
        let file = mapping.and_then(|mapping| {
            let mapping = self.reader.object("struct address_space", mapping);
            self.describe_inode(mapping.addr_value("host").ok()?)
        });
        let bit = name.map_or_else(|| bit.to_string(), str::to_owned);
        let named = super::Named {
            addr: folio,
            name: None,
        };
        Wait::new(Reason::Page { bit, file }).on(Some(named))
    }

    /// Children that are to end.
    pub(super) fn children(&self, sleeper: &Sleeper) -> Wait {
        let entry = self.entry_by(sleeper, "child_wait_callback");
        let options =
            entry.and_then(|entry| entry.container("struct wait_opts", "child_wait").ok());
        let Some(options) = options else {
            return Wait::new(Reason::Unknown);
        };
        let kind = options.i64("wo_type").unwrap_or(-1);
        let pid = options.addr_value("wo_pid").unwrap_or(KernelAddr(0));
        let is = |name| {
            let layout = self.layout();
            layout.and_then(|layout| layout.enumerator_of("enum pid_type", name).ok()) == Some(kind)
        };
        let number = self.pid_number(pid);
        let number = number.map_or_else(|| "?".to_owned(), |number| number.to_string());
        let which = if is("PIDTYPE_MAX") {
            "any".to_owned()
        } else if is("PIDTYPE_PGID") {
            format!("group {number}")
        } else {
            format!("pid {number}")
        };
        let own = sleeper.task.addr;
        let just_own = options.u64("wo_flags").unwrap_or(0) & WNOTHREAD != 0;
        let links = self.links();
        let parents = links.threads.get(&sleeper.task.tgid).into_iter().flatten();
        let parents = parents.filter(|&&parent| !just_own || parent == own);
        let children = parents
            .filter_map(|parent| links.children.get(parent))
            .flatten();
        let children = children.filter_map(|child| self.task(*child));
        // The leaders: it is they who are waited for.
        let leaders = children.filter(|child| child.pid == child.tgid);
        let wanted: Vec<_> = leaders
            .filter(|child| match which.split_once(' ') {
                None => true,
                Some(("group", _)) => self.group(child) == Some(pid),
                Some(_) => self.object(child).addr_value("thread_pid").ok() == Some(pid),
            })
            .collect();
        let wakers = wanted
            .iter()
            .map(|child| Waker::new(child, Role::Child, true));
        let mut wait = Wait::new(Reason::Children { which }).only(wakers.collect());
        // A child that has ended is about to be noticed.
        wait.closed &= wanted.iter().all(|child| child.state.0 != 'Z');
        wait
    }

    /// The number of a `struct pid` in the guest's root namespace.
    fn pid_number(&self, pid: KernelAddr) -> Option<i64> {
        let pid = self.reader.object("struct pid", pid);
        pid.i64("numbers[0].nr").ok()
    }

    /// The `struct pid` of a process's group.
    fn group(&self, task: &Task) -> Option<KernelAddr> {
        let index = self
            .layout()?
            .enumerator_of("enum pid_type", "PIDTYPE_PGID")
            .ok()?;
        let signal = self.object(task).addr_value("signal").ok()?;
        let signal = self.reader.object("struct signal_struct", signal);
        signal.addr_value(&format!("pids[{index}]")).ok()
    }
}
