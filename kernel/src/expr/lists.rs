//! What the kernel's lists hold.
//!
//! C does not say what hangs in a list: its head is a `struct list_head` as each of its links is.
//! For heads that many ask for it is written here; which of these a kernel has, its DWARF says.

/// A head, what hangs in it, and by which member.
pub(super) struct Known {
    /// The struct that the head is in, or nothing when it is a variable.
    owner: &'static str,
    /// The member that is the head, or the variable.
    head: &'static str,
    /// The struct that is listed.
    pub(super) element: &'static str,
    /// Its link.
    pub(super) link: &'static str,
}

/// What may hang in a head, the newest kernel's first.
pub(super) fn known<'a>(
    owner: &'a str,
    head: &'a str,
) -> impl Iterator<Item = &'static Known> + 'a {
    KNOWN
        .iter()
        .filter(move |known| known.owner == owner && known.head == head)
}

const fn list(
    owner: &'static str,
    head: &'static str,
    element: &'static str,
    link: &'static str,
) -> Known {
    Known {
        owner,
        head,
        element,
        link,
    }
}

#[rustfmt::skip]
const KNOWN: &[Known] = &[
    // Tasks: include/linux/sched.h, sched/signal.h; kernel/sched/sched.h.
    list("task_struct", "tasks", "task_struct", "tasks"),
    list("task_struct", "children", "task_struct", "sibling"),
    list("task_struct", "ptraced", "task_struct", "ptrace_entry"),
    list("task_struct", "thread_group", "task_struct", "thread_group"),
    list("signal_struct", "thread_head", "task_struct", "thread_node"),
    list("sigpending", "list", "sigqueue", "list"),
    list("css_set", "tasks", "task_struct", "cg_list"),
    list("rq", "cfs_tasks", "task_struct", "se.group_node"),
    list("rq", "leaf_cfs_rq_list", "cfs_rq", "leaf_cfs_rq_list"),
    list("cfs_rq", "tasks_timeline", "sched_entity", "run_node"),
    list("rt_prio_array", "queue", "sched_rt_entity", "run_list"),
    list("dl_rq", "root", "sched_dl_entity", "rb_node"),
    list("", "task_groups", "task_group", "list"),
    list("task_group", "children", "task_group", "siblings"),
    list("cgroup_subsys_state", "children", "cgroup_subsys_state", "sibling"),
    // Who waits: include/linux/wait.h, swait.h, mutex.h, rwsem.h; kernel/locking.
    list("wait_queue_head", "head", "wait_queue_entry", "entry"),
    list("swait_queue_head", "task_list", "swait_queue", "task_list"),
    list("mutex", "wait_list", "mutex_waiter", "list"),
    list("rw_semaphore", "wait_list", "rwsem_waiter", "list"),
    list("semaphore", "wait_list", "semaphore_waiter", "list"),
    // Files: include/linux/fs.h, dcache.h; fs/mount.h, eventpoll.c.
    list("", "super_blocks", "super_block", "s_list"),
    list("super_block", "s_inodes", "inode", "i_sb_list"),
    list("super_block", "s_mounts", "mount", "mnt_instance"),
    list("super_block", "s_dentry_lru", "dentry", "d_lru"),
    list("file_system_type", "fs_supers", "super_block", "s_instances"),
    list("inode", "i_dentry", "dentry", "d_u.d_alias"),
    list("dentry", "d_children", "dentry", "d_sib"),
    list("dentry", "d_subdirs", "dentry", "d_child"),
    list("mount", "mnt_mounts", "mount", "mnt_child"),
    list("mnt_namespace", "mounts", "mount", "mnt_node"),
    list("mnt_namespace", "list", "mount", "mnt_list"),
    list("eventpoll", "rdllist", "epitem", "rdllink"),
    list("eventpoll", "rbr", "epitem", "rbn"),
    list("backing_dev_info", "wb_list", "bdi_writeback", "bdi_node"),
    list("bdi_writeback", "b_dirty", "inode", "i_io_list"),
    list("bdi_writeback", "b_io", "inode", "i_io_list"),
    list("bdi_writeback", "b_more_io", "inode", "i_io_list"),
    list("bdi_writeback", "b_dirty_time", "inode", "i_io_list"),
    list("", "bdi_list", "backing_dev_info", "bdi_list"),
    list("", "formats", "linux_binfmt", "lh"),
    // Memory: mm/slab.h, include/linux/mm_types.h, mmzone.h, vmalloc.h.
    list("", "slab_caches", "kmem_cache", "list"),
    list("kmem_cache_node", "partial", "slab", "slab_list"),
    list("kmem_cache_node", "full", "slab", "slab_list"),
    list("", "vmap_area_list", "vmap_area", "list"),
    list("vm_area_struct", "anon_vma_chain", "anon_vma_chain", "same_vma"),
    list("anon_vma", "rb_root", "anon_vma_chain", "rb"),
    list("address_space", "i_mmap", "vm_area_struct", "shared.rb"),
    list("free_area", "free_list", "page", "lru"),
    list("lruvec", "lists", "folio", "lru"),
    list("", "shrinker_list", "shrinker", "list"),
    // Time and work: kernel/time/timer.c, include/linux/timerqueue.h; kernel/workqueue.c.
    list("timer_base", "vectors", "timer_list", "entry"),
    list("timerqueue_head", "rb_root", "timerqueue_node", "node"),
    list("", "clocksource_list", "clocksource", "list"),
    list("", "workqueues", "workqueue_struct", "list"),
    list("workqueue_struct", "pwqs", "pool_workqueue", "pwqs_node"),
    list("worker_pool", "worklist", "work_struct", "entry"),
    list("worker_pool", "workers", "worker", "node"),
    // Network: include/net/net_namespace.h, linux/netdevice.h, net/sock.h.
    list("", "net_namespace_list", "net", "list"),
    list("net", "dev_base_head", "net_device", "dev_list"),
    list("net_device", "napi_list", "napi_struct", "dev_list"),
    list("", "pernet_list", "pernet_operations", "list"),
    list("", "proto_list", "proto", "node"),
    // Devices and the rest: include/linux/module.h, kobject.h, klist.h, console.h.
    list("", "modules", "module", "list"),
    list("module", "source_list", "module_use", "source_list"),
    list("module", "target_list", "module_use", "target_list"),
    list("kset", "list", "kobject", "entry"),
    list("klist", "k_list", "klist_node", "n_node"),
    list("", "dpm_list", "device", "power.entry"),
    list("", "console_list", "console", "node"),
    list("", "misc_list", "miscdevice", "list"),
    list("", "crypto_alg_list", "crypto_alg", "cra_list"),
    list("", "input_dev_list", "input_dev", "node"),
    list("", "cgroup_roots", "cgroup_root", "root_list"),
];
