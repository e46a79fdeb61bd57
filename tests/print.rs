//! `kscope print` against gdb's print, on guests that stand still.

mod common;

use common::kernels;
use common::session::Session;
use serde_json::Value;

/// What both understand, of every kind of thing.
const EXPRESSIONS: &[&str] = &[
    // Globals and their members.
    "init_task.pid",
    "init_task.comm",
    "init_task.flags",
    "init_task.__state",
    "init_task.tasks",
    "init_task.se",
    "init_task.sched_info",
    "init_uts_ns.name",
    "linux_banner",
    "saved_command_line",
    "nr_threads",
    "jiffies_64",
    "init_mm",
    "init_task.mm",
    // Through pointers.
    "*init_task.cred",
    "init_task.cred->uid",
    "init_task.nsproxy->uts_ns->name.release",
    "*init_task.nsproxy",
    "*init_task.sighand->action[1].sa.sa_handler",
    "init_task.signal->rlim",
    "init_task.signal->rlim[3].rlim_max",
    "init_task.fs->pwd.dentry->d_name.name",
    "init_task.fs->pwd.dentry->d_parent->d_inode->i_sb->s_type->name",
    "*init_task.files->fdt",
    "init_task.files->fd_array",
    // Arrays, also of structs.
    "cpu_tasks[0]",
    "init_task.thread.switch_buf[0]",
    "init_task.comm[3]",
    "*init_task.thread.switch_buf",
    // Enumerations and bit-fields.
    "system_state",
    "initcall_debug",
    "init_task.sched_reset_on_fork",
    "init_task.policy",
    // Functions and pointers to them.
    "init_task.sched_class",
    "*init_task.sched_class",
    "init_task.sched_class->enqueue_task",
    "schedule",
    "&schedule",
    "file_systems",
    "proc_fs_type",
    "shmem_fs_type.name",
    // C.
    "&init_task.tasks",
    "(long)&init_task",
    "sizeof(struct task_struct)",
    "sizeof init_task.comm",
    "&init_task.comm[4]",
    "init_task.flags & 0x200000",
    "~init_task.flags",
    "init_task.prio - 100",
    "(char)init_task.comm[0]",
    "*(struct list_head *)&init_task.tasks",
    "(struct task_struct *)init_task.tasks.next",
    "&((struct task_struct *)0)->tasks",
    "init_task.tasks.next != init_task.tasks.prev",
    // Of the kernel's own scripts.
    "$lx_task_by_pid(1).comm",
    "$lx_task_by_pid(1).mm->pgd",
    "*$lx_task_by_pid(1).mm",
    "$lx_task_by_pid(2).thread_pid->numbers[0].nr",
];

/// Per-CPU variables and, behind the bar, what of them.
const PER_CPU: &[&str] = &[
    "runqueues",
    "runqueues|.nr_running",
    "runqueues|.curr->comm",
    "runqueues|.idle",
    "kstat",
    "hrtimer_bases|.clock_base[0]",
    "tick_cpu_device|.evtdev->name",
    "vm_event_states",
];

#[test]
#[ignore = "needs kernels"]
fn values_are_those_of_gdb() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        let session = Session::start(kernel, &[]);
        let script = format!(
            "EXPRESSIONS = {EXPRESSIONS:?}\nPER_CPU = {PER_CPU:?}\nCPUS = {}\n{}",
            kernel.cpus(),
            include_str!("print/values.py")
        );
        let said = session.gdb_python(&script);
        let answer = said.lines().find(|line| line.starts_with('{'));
        let said: Value = serde_json::from_str(answer.unwrap_or_default())
            .unwrap_or_else(|e| panic!("{e}: {said}"));
        println!("{}", said["counts"]);
        let differences = said["differences"].as_array().expect("an array");
        let texts: Vec<_> = differences.iter().filter_map(Value::as_str).collect();
        assert!(texts.is_empty(), "{}:\n{}", kernel.name, texts.join("\n"));
        let count = |what: &str| said["counts"][what].as_u64().unwrap_or(0);
        let expressions = EXPRESSIONS.len() + PER_CPU.len() * kernel.cpus();
        assert_eq!(count("expression"), expressions as u64);
        assert_eq!(count("list"), 6);
        for (what, least) in [
            ("number", 300),
            ("pointer", 300),
            ("struct", 100),
            ("array", 10),
            ("string", 10),
            ("enum", 1),
            ("bool", 1),
            ("function", 1),
            ("symbol", 20),
            ("text", 5),
            ("null", 10),
            ("element", 50),
        ] {
            assert!(count(what) >= least, "{what}: {}", said["counts"]);
        }
    }
}
