//! Which kind of sleep it is, by the names of the functions on the stack.
//!
//! The names are those of Linux 6.1 to 7.x. A function that is not known costs detail, not truth:
//! the task is then told as waiting in that function.

use super::{Access, PipeSide};

/// What kind of thing a task sleeps on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Mutex,
    Rwsem(Access),
    Semaphore,
    RtMutex,
    PercpuRwsem(Access),
    Completion,
    Bit,
    Page,
    Futex,
    FutexVector,
    Pipe(PipeSide),
    Poll,
    Select,
    Epoll,
    Socket,
    FileLock,
    Children,
    Message,
    Semaphores,
    Sleep,
    Signal,
    Stop,
    Trace,
}

/// The scheduler's part of every sleeping stack, from `switch_threads()` to the function that
/// was called to sleep.
pub(super) fn is_scheduler(function: &str) -> bool {
    const PREFIXES: [&str; 4] = ["schedule", "__schedule", "io_schedule", "preempt_schedule"];
    const NAMES: [&str; 7] = [
        "switch_threads",
        "__switch_to",
        "_switch_to",
        "context_switch",
        "rt_mutex_schedule",
        "__cond_resched",
        "poll_schedule_timeout",
    ];
    NAMES.contains(&function) || PREFIXES.iter().any(|prefix| function.starts_with(prefix))
}

impl Kind {
    /// The kind that a function is part of.
    pub(super) fn of(function: &str) -> Option<Kind> {
        Some(match function {
            "rwsem_down_read_slowpath" => Kind::Rwsem(Access::Read),
            "rwsem_down_write_slowpath" => Kind::Rwsem(Access::Write),
            "__down_common" | "___down_common" => Kind::Semaphore,
            "percpu_rwsem_wait" | "__percpu_down_read" => Kind::PercpuRwsem(Access::Read),
            "percpu_down_write" => Kind::PercpuRwsem(Access::Write),
            "do_wait_for_common" | "__wait_for_common" | "wait_for_common" => Kind::Completion,
            "bit_wait"
            | "bit_wait_io"
            | "bit_wait_timeout"
            | "bit_wait_io_timeout"
            | "__wait_on_bit"
            | "__wait_on_bit_lock"
            | "out_of_line_wait_on_bit"
            | "out_of_line_wait_on_bit_lock" => Kind::Bit,
            "folio_wait_bit_common"
            | "folio_put_wait_locked"
            | "migration_entry_wait_on_locked" => Kind::Page,
            // `futex_do_wait` since 6.16.
            "futex_wait_queue"
            | "futex_do_wait"
            | "__futex_wait"
            | "futex_wait"
            | "futex_wait_requeue_pi"
            | "futex_lock_pi" => Kind::Futex,
            "futex_sleep_multiple" | "futex_wait_multiple" => Kind::FutexVector,
            // `anon_pipe_read` since 6.15.
            "pipe_read" | "anon_pipe_read" | "fifo_pipe_read" | "ipipe_prep"
            | "pipe_wait_readable" => Kind::Pipe(PipeSide::Read),
            "pipe_write" | "anon_pipe_write" | "fifo_pipe_write" | "opipe_prep"
            | "pipe_wait_writable" | "wait_for_space" => Kind::Pipe(PipeSide::Write),
            "wait_for_partner" => Kind::Pipe(PipeSide::Open),
            "do_poll" | "do_sys_poll" => Kind::Poll,
            "do_select" | "core_sys_select" => Kind::Select,
            "ep_poll" | "do_epoll_wait" => Kind::Epoll,
            "unix_stream_data_wait"
            | "unix_wait_for_peer"
            | "__skb_wait_for_more_packets"
            | "sock_alloc_send_pskb"
            | "sk_wait_data"
            | "sk_stream_wait_memory"
            | "inet_csk_wait_for_connect"
            | "inet_csk_accept"
            | "inet_wait_for_connect"
            | "tcp_recvmsg_locked" => Kind::Socket,
            "flock_lock_inode_wait"
            | "posix_lock_inode_wait"
            | "do_lock_file_wait"
            | "locks_lock_inode_wait" => Kind::FileLock,
            // `__break_lease` waits for those who have a lease: nobody's lock.
            "do_wait" => Kind::Children,
            "do_msgrcv" | "do_msgsnd" | "wq_sleep" => Kind::Message,
            "__do_semtimedop" | "do_semtimedop" => Kind::Semaphores,
            "do_nanosleep"
            | "hrtimer_nanosleep"
            | "msleep"
            | "msleep_interruptible"
            | "usleep_range_state"
            | "ssleep" => Kind::Sleep,
            "sys_pause" | "__do_sys_pause" | "__x64_sys_pause" | "sigsuspend"
            | "do_sigtimedwait" => Kind::Signal,
            "do_signal_stop" | "do_jobctl_trap" => Kind::Stop,
            "ptrace_stop" => Kind::Trace,
            _ if function.starts_with("__mutex_lock")
                || function.starts_with("mutex_lock")
                || function.starts_with("__ww_mutex_lock") =>
            {
                Kind::Mutex
            }
            _ if function.contains("rt_mutex") => Kind::RtMutex,
            _ => return None,
        })
    }

    /// Whether a function belongs to the primitive, rather than to who uses it.
    pub(super) fn owns(self, function: &str) -> bool {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| function.starts_with(prefix));
        match self {
            Kind::Mutex => begins(&["__mutex_", "mutex_", "__ww_mutex_", "ww_mutex_"]),
            Kind::Rwsem(_) => begins(&["rwsem_", "__down_", "down_", "mmap_", "inode_lock"]),
            Kind::Semaphore => begins(&["down", "__down", "___down"]),
            Kind::RtMutex => function.contains("rt_mutex"),
            Kind::PercpuRwsem(_) => begins(&["percpu_", "__percpu_"]),
            Kind::Completion => begins(&["wait_for_co", "__wait_for_co", "do_wait_for_co"]),
            Kind::Bit => begins(&[
                "bit_wait",
                "__wait_on_bit",
                "out_of_line_wait",
                "wait_on_bit",
            ]),
            Kind::Page => begins(&["folio_wait", "folio_lock", "__folio_lock", "wait_on_page"]),
            Kind::Sleep => begins(&["msleep", "usleep", "ssleep", "fsleep"]),
            _ => false,
        }
    }

    /// Whether an idle thread of the kernel can wait in this way for work.
    pub(super) fn has_owner(self) -> bool {
        matches!(
            self,
            Kind::Mutex
                | Kind::Rwsem(_)
                | Kind::Semaphore
                | Kind::RtMutex
                | Kind::PercpuRwsem(_)
                | Kind::Completion
                | Kind::Bit
                | Kind::Page
        )
    }
}
