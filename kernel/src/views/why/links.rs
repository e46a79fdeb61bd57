//! How tasks are linked: parents, address spaces, and what is done when one ends.

use std::collections::HashMap;

use super::look::Look;
use crate::addr::{GuestPid, KernelAddr};
use crate::memory::Memory;
use crate::reader::Object;
use crate::tasks::Task;

/// PF_WQ_WORKER of include/linux/sched.h.
const WORKQUEUE_WORKER: u64 = 0x20;

/// Indices over all tasks; the values are addresses of `task_struct`s.
#[derive(Default)]
pub(super) struct Links {
    /// By parent.
    pub(super) children: HashMap<KernelAddr, Vec<KernelAddr>>,
    /// By pid in the root namespace.
    pub(super) by_pid: HashMap<GuestPid, KernelAddr>,
    /// By pid of the process.
    pub(super) threads: HashMap<GuestPid, Vec<KernelAddr>>,
    /// By `mm_struct`; one of them.
    pub(super) by_mm: HashMap<KernelAddr, KernelAddr>,
    /// By `signal_struct`; one of them.
    pub(super) by_signal: HashMap<KernelAddr, KernelAddr>,
    /// By `files_struct`.
    pub(super) by_files: HashMap<KernelAddr, Vec<KernelAddr>>,
    /// By `mm_struct` and the address that is cleared and woken when a thread ends.
    pub(super) by_cleared: HashMap<(KernelAddr, u64), KernelAddr>,
    /// By the completion that a child of `vfork()` completes.
    pub(super) by_vfork: HashMap<KernelAddr, KernelAddr>,
    /// Kernel threads by their `struct kthread`.
    pub(super) by_kthread: HashMap<KernelAddr, KernelAddr>,
    /// Threads of workqueues by the list head `worker.scheduled`.
    pub(super) by_scheduled: HashMap<KernelAddr, KernelAddr>,
}

impl Links {
    pub(super) fn read<M: Memory>(look: &Look<'_, '_, M>) -> Links {
        let mut links = Links::default();
        for task in look.tasks() {
            links.add(look, task);
        }
        links
    }

    fn add<M: Memory>(&mut self, look: &Look<'_, '_, M>, task: &Task) {
        let own = task.addr;
        let object = look.object(task);
        let pointer = |path| {
            let value = object.addr_value(path).ok();
            value.filter(|value| !value.is_null())
        };
        self.by_pid.insert(task.pid, own);
        self.threads.entry(task.tgid).or_default().push(own);
        if let Some(parent) = pointer("real_parent") {
            self.children.entry(parent).or_default().push(own);
        }
        if let Some(files) = pointer("files") {
            self.by_files.entry(files).or_default().push(own);
        }
        if let Some(signal) = pointer("signal") {
            self.by_signal.entry(signal).or_insert(own);
        }
        if let Some(done) = pointer("vfork_done") {
            self.by_vfork.insert(done, own);
        }
        if let Some(mm) = pointer("mm") {
            self.by_mm.entry(mm).or_insert(own);
            if let Some(cleared) = pointer("clear_child_tid") {
                self.by_cleared.insert((mm, cleared.get()), own);
            }
        }
        if let Some(thread) = pointer("worker_private").filter(|_| task.kernel_thread) {
            self.by_kthread.insert(thread, own);
            let worker = worker(look, &object, thread);
            let scheduled = worker.and_then(|worker| worker.addr_of("scheduled").ok());
            self.by_scheduled.extend(scheduled.map(|list| (list, own)));
        }
    }
}

/// The `struct worker` of a workqueue's thread.
fn worker<'r, M: Memory>(
    look: &'r Look<'_, '_, M>,
    task: &Object<'_, M>,
    thread: KernelAddr,
) -> Option<Object<'r, M>> {
    if task.u64("flags").ok()? & WORKQUEUE_WORKER == 0 {
        return None;
    }
    let thread = look.reader.object("struct kthread", thread);
    let worker = thread.addr_value("data").ok()?;
    let worker = look.reader.object("struct worker", worker);
    (worker.addr_value("task").ok()? == task.addr()).then_some(worker)
}
