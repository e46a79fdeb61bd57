//! The kinds of trouble, and how the kernel's messages tell them apart.

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Panic,
    Bug,
    Warn,
    Oops,
    Kasan,
    Lockdep,
    HungTask,
    RcuStall,
    Oom,
}

/// What is known of a kind.
pub(super) struct Profile {
    pub(super) kind: Kind,
    /// As `monitor stop-on` has it.
    pub(super) name: &'static str,
    /// How the kernel's messages of it begin, or what they contain. The first profile that fits is the one.
    messages: &'static [&'static str],
    /// A symbol that kernels which can report it have, and the option that it comes with.
    pub(super) needs: Option<(&'static str, &'static str)>,
}

/// All kinds, the special before the general.
pub(super) const PROFILES: [Profile; 9] = [
    Profile {
        kind: Kind::Kasan,
        name: "kasan",
        messages: &["BUG: KASAN: "],
        needs: Some(("kasan_report", "CONFIG_KASAN")),
    },
    Profile {
        kind: Kind::Lockdep,
        name: "lockdep",
        messages: &[
            "WARNING: possible ",
            "WARNING: inconsistent lock state",
            "WARNING: bad unlock balance",
            "WARNING: held lock freed",
            "WARNING: lock held when returning",
            "WARNING: suspicious RCU usage",
            "WARNING: Nested lock was not taken",
            "WARNING: HARDIRQ-",
            "WARNING: SOFTIRQ-",
            "WARNING: bad contention",
            "still has locks held",
            "BUG: Invalid wait context",
            "BUG: MAX_LOCK",
        ],
        needs: Some(("lock_acquire", "CONFIG_PROVE_LOCKING")),
    },
    Profile {
        kind: Kind::HungTask,
        name: "hung-task",
        messages: &[" for more than "],
        needs: Some(("sysctl_hung_task_timeout_secs", "CONFIG_DETECT_HUNG_TASK")),
    },
    Profile {
        kind: Kind::RcuStall,
        name: "rcu-stall",
        messages: &["detected stall", "detected expedited stall"],
        needs: Some((
            "rcu_cpu_stall_suppress",
            "CONFIG_TREE_RCU (it comes with SMP)",
        )),
    },
    Profile {
        kind: Kind::Oom,
        name: "oom",
        messages: &[" invoked oom-killer: "],
        needs: None,
    },
    // What is an oops elsewhere is a panic here, with one of these.
    Profile {
        kind: Kind::Oops,
        name: "oops",
        messages: &[
            "Kernel mode fault at ",
            "Kernel tried to access user memory",
            "Segfault with no mm",
            "Kernel mode signal ",
        ],
        needs: None,
    },
    Profile {
        kind: Kind::Bug,
        name: "bug",
        messages: &["BUG: ", "BUG!", "kernel BUG at "],
        needs: None,
    },
    Profile {
        kind: Kind::Warn,
        name: "warn",
        messages: &["WARNING: "],
        needs: None,
    },
    Profile {
        kind: Kind::Panic,
        name: "panic",
        messages: &[],
        needs: None,
    },
];

/// What is known of a kind.
pub(super) fn profile(kind: Kind) -> &'static Profile {
    let mut all = PROFILES.iter();
    all.find(|profile| profile.kind == kind)
        .unwrap_or(&PROFILES[PROFILES.len() - 1])
}

/// The kind that a message tells of.
pub(super) fn kind_of(message: &str) -> Option<Kind> {
    let fits = |profile: &&Profile| profile.messages.iter().any(|part| message.contains(part));
    PROFILES.iter().find(fits).map(|profile| profile.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        for (message, kind) in [
            (
                "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2",
                Some(Kind::Kasan),
            ),
            (
                "BUG: sleeping function called from invalid context",
                Some(Kind::Bug),
            ),
            ("BUG: failure at fs/inode.c:12/iput()!", Some(Kind::Bug)),
            (
                "WARNING: possible circular locking dependency detected",
                Some(Kind::Lockdep),
            ),
            (
                "WARNING: CPU: 0 PID: 1 at kernel/fork.c:3 f+0x1/0x2",
                Some(Kind::Warn),
            ),
            (
                "INFO: task cat:33 blocked for more than 1 seconds.",
                Some(Kind::HungTask),
            ),
            (
                "INFO: task cat:33 blocked in I/O wait for more than 1 seconds.",
                Some(Kind::HungTask),
            ),
            (
                "rcu: INFO: rcu_sched self-detected stall on CPU",
                Some(Kind::RcuStall),
            ),
            (
                "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks:",
                Some(Kind::RcuStall),
            ),
            ("tail invoked oom-killer: gfp_mask=0x0", Some(Kind::Oom)),
            ("Kernel mode fault at addr 0x0, ip 0x1", Some(Kind::Oops)),
            ("eth0: link up", None),
        ] {
            assert_eq!(kind_of(message), kind, "{message}");
        }
    }
}
