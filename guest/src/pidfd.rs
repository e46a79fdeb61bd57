//! A process that cannot be mistaken for another with the same number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A descriptor for a process; readable when the process has ended.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process with this number.
    pub(crate) fn open(pid: u32) -> io::Result<PidFd> {
        // SAFETY: no memory is passed; the result is checked before it is owned.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system call has just made the descriptor.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Sends a signal.
    pub(crate) fn kill(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: a null siginfo asks for the default one.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Kills the process, which leads the process group of number `pid`, and all
    /// of that group.
    ///
    /// The host kills most of them with their leader; not so the children that a
    /// starting kernel makes to try out ptrace. A group keeps its number while it
    /// has a member, so that it can be killed after its leader.
    pub(crate) fn kill_group(&self, pid: Pid) {
        let _ = self.kill(Signal::SIGKILL);
        let _ = killpg(pid, Signal::SIGKILL);
    }

    /// Waits until the process has ended. For one that SIGKILL was sent to, the
    /// host's kernel is the deadline.
    pub(crate) fn wait(&self) {
        while !self.poll(PollTimeout::NONE) {}
    }

    fn poll(&self, timeout: PollTimeout) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(count) => count > 0,
            // Anything but a signal is final.
            Err(e) => e != Errno::EINTR,
        }
    }
}

impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> PidFd {
        PidFd(fd)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
