//! The signals that a supervisor passes on to its guest.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that a user, a terminal or a batch system sends.
const SIGNALS: [Signal; 5] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGWINCH,
];

/// The signals, and SIGCHLD, blocked in the calling thread and all it starts from here on.
/// Dropping it, in the same thread, unblocks them; one that came too late to be
/// read then has its usual effect.
#[derive(Debug)]
pub(crate) struct Signals {
    before: SigSet,
}

impl Signals {
    /// Takes the signals over, except for those that the parent process had
    /// ignored (`nohup`, background jobs of a script). They are read from the
    /// reader, in any thread.
    pub(crate) fn take() -> nix::Result<(Signals, SignalReader)> {
        let mut set = SigSet::empty();
        for signal in SIGNALS {
            if !is_ignored(signal) {
                set.add(signal);
            }
        }
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let reader = SignalReader(SignalFd::with_flags(&set, flags)?);
        // Every stop of a traced guest sends one, which is to wake the engine's thread and none on its way to that.
        set.add(Signal::SIGCHLD);
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))?;
        Ok((Signals { before }, reader))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// Reads the signals of a [`Signals`], in any thread.
#[derive(Debug)]
pub(crate) struct SignalReader(SignalFd);

impl SignalReader {
    /// The next signal that has come in.
    pub(crate) fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo as i32).ok()
    }
}

impl AsFd for SignalReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction is plain data for which all zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only asks for the present one, which is
    // written to a sigaction that lives across the call.
    let asked = unsafe { libc::sigaction(signal as i32, std::ptr::null(), &mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}
