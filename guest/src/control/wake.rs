//! What takes an engine's thread out of its waits: whoever sends it work, and the clock.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use libc::c_int;

use super::HostTid;
use super::sys::tgkill;

/// How often an engine that waits for its guest's threads looks up. What it may miss, a kick at the
/// moment at which it begins to wait, is late by this at most.
const TICK: Duration = Duration::from_millis(100);

/// The signal that takes an engine's thread out of its wait. It does nothing else.
fn kick() -> c_int {
    // The first few are what debuggers and profilers of this process itself like to take.
    libc::SIGRTMIN() + 6
}

extern "C" fn on_kick(_: c_int) {}

/// Sets what this process does with the signals that engines live by.
fn install_handlers() -> io::Result<()> {
    let set = |signal, handler| {
        // SAFETY: all-zero is a valid `sigaction`: no flags, so that calls are interrupted, and an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler;
        // SAFETY: `action` is valid, and its handler does nothing, or is the host's own.
        match unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // A process that ignores SIGCHLD, as its parent may have told it to, hears nothing of its children.
    set(libc::SIGCHLD, libc::SIG_DFL)?;
    set(kick(), on_kick as extern "C" fn(c_int) as usize)
}

/// What wakes an engine: an eventfd while nothing is attached, a signal while it waits for the guest's threads.
#[derive(Debug)]
pub(super) struct Waker {
    fd: OwnedFd,
    /// The engine's thread while it waits for the guest's, or 0.
    waiting: AtomicI32,
}

impl Waker {
    /// Makes one.
    pub(super) fn new() -> io::Result<Self> {
        install_handlers()?;
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the host has just made this descriptor, and nobody else knows it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            waiting: AtomicI32::new(0),
        })
    }

    /// Wakes the engine, which sees to what was sent before this.
    pub(super) fn wake(&self) {
        let waiting = self.waiting.load(Ordering::SeqCst);
        if waiting != 0 {
            let own = HostTid(std::process::id() as i32);
            // It may be gone: then there is nobody to be woken.
            let _ = tgkill(own, HostTid(waiting), kick());
            return;
        }
        let one = 1_u64;
        // SAFETY: eight bytes are read from `one`. The only possible error is a full counter: awake already.
        unsafe {
            libc::write(
                self.fd.as_raw_fd(),
                (&raw const one).cast(),
                size_of::<u64>(),
            )
        };
    }

    /// Announces that the engine's thread, which is `tid`, is about to wait for the guest's, or with `None`, that it
    /// does not any more.
    pub(super) fn set_waiting(&self, tid: Option<HostTid>) {
        let tid = tid.map_or(0, |tid| tid.0);
        self.waiting.store(tid, Ordering::SeqCst);
    }

    /// Takes note of having been woken.
    pub(super) fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: eight bytes are written to `count`. The only possible error is that there was no wake-up.
        unsafe {
            libc::read(
                self.fd.as_raw_fd(),
                (&raw mut count).cast(),
                size_of::<u64>(),
            )
        };
    }

    /// Sleeps until woken, or until `other` is readable or hung up: tells whether it is.
    pub(super) fn sleep(&self, other: Option<&OwnedFd>) -> io::Result<bool> {
        let mut fds = [
            libc::pollfd {
                fd: self.fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            },
            libc::pollfd {
                fd: other.map_or(-1, AsRawFd::as_raw_fd),
                events: libc::POLLIN,
                revents: 0,
            },
        ];
        // SAFETY: `fds` has as many elements as said.
        if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) } == -1 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            };
        }
        if fds[0].revents != 0 {
            self.clear();
        }
        Ok(fds[1].revents != 0)
    }
}

/// Interrupts the waits of the thread that has made it, every [`TICK`] while it is on: no wait is without an end.
pub(super) struct Ticker {
    timer: libc::timer_t,
    tid: HostTid,
    is_on: bool,
}

// SAFETY: the host's name of a timer is good in any thread.
unsafe impl Send for Ticker {}

impl Ticker {
    /// Makes one for the calling thread; it is off.
    pub(super) fn new() -> io::Result<Self> {
        // Whoever has started this process may have blocked it.
        // SAFETY: zero is a valid mask, which the calls initialise in any case; they change this thread's alone.
        unsafe {
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut mask);
            libc::sigaddset(&raw mut mask, kick());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const mask, std::ptr::null_mut());
        }
        // SAFETY: zero is a value of every member.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = kick();
        // SAFETY: the call takes nothing.
        let tid = unsafe { libc::gettid() };
        event.sigev_notify_thread_id = tid;
        let mut timer = std::ptr::null_mut();
        // SAFETY: both pointers are valid.
        match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(Self {
                timer,
                tid: HostTid(tid),
                is_on: false,
            }),
        }
    }

    /// The thread that it is for.
    pub(super) fn thread(&self) -> HostTid {
        self.tid
    }

    /// Turns it on or off.
    pub(super) fn set(&mut self, on: bool) -> io::Result<()> {
        if self.is_on == on {
            return Ok(());
        }
        let every = if on { TICK } else { Duration::ZERO };
        self.program(every, every)
    }

    /// Turns it on, with the next tick so much from now.
    pub(super) fn tick_in(&mut self, time: Duration) -> io::Result<()> {
        self.program(time.min(TICK), TICK)
    }

    fn program(&mut self, first: Duration, every: Duration) -> io::Result<()> {
        let spec = |time: Duration| libc::timespec {
            // Both are less than a second.
            tv_sec: 0,
            tv_nsec: libc::c_long::from(time.subsec_nanos().cast_signed()),
        };
        let spec = libc::itimerspec {
            it_interval: spec(every),
            it_value: spec(first),
        };
        // SAFETY: the timer is this object's own, and `spec` is valid.
        match unsafe { libc::timer_settime(self.timer, 0, &raw const spec, std::ptr::null_mut()) } {
            -1 => Err(io::Error::last_os_error()),
            _ => {
                self.is_on = !first.is_zero();
                Ok(())
            }
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // SAFETY: the timer is this object's own, and nobody uses it any more.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn change_sigchld(how: c_int) -> io::Result<()> {
    // SAFETY: zero is a valid mask; `sigemptyset` initialises it in any case.
    let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `mask` is valid for all three calls.
    let result = unsafe {
        libc::sigemptyset(&raw mut mask);
        libc::sigaddset(&raw mut mask, libc::SIGCHLD);
        libc::pthread_sigmask(how, &raw const mask, std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Blocks SIGCHLD in the calling thread, and so in every thread and process that it will start.
///
/// Nobody here wants it: a traced guest causes one per stop. A program to be started wants [`unblock_sigchld`].
///
/// # Errors
///
/// None that the host documents for these arguments.
pub fn block_sigchld() -> io::Result<()> {
    change_sigchld(libc::SIG_BLOCK)
}

/// Undoes [`block_sigchld`] in the calling thread: before an exec, or between fork and exec, where it is safe.
///
/// # Errors
///
/// None that the host documents for these arguments.
pub fn unblock_sigchld() -> io::Result<()> {
    change_sigchld(libc::SIG_UNBLOCK)
}
