//! The user's side of the command's streams.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kscope_wire::{Stream, Terminal};
use nix::sys::termios::{self, SetArg, Termios};

use crate::console::{Mailbox, Message};

/// Writes to one of the user's descriptors in a thread of its own, since such a
/// write may block for as long as the user likes (`| less`, Ctrl-S) and making
/// the descriptor non-blocking would do so for everybody who shares it.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Option<Sender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. It reports what it has written to `mailbox`.
    pub(crate) fn start(
        stream: Stream,
        target: OwnedFd,
        mailbox: Arc<Mailbox>,
    ) -> io::Result<Writer> {
        let (queue, receiver) = unbounded();
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || write_all(stream, File::from(target), &receiver, &mailbox))?;
        Ok(Writer {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Adds to what is to be written.
    pub(crate) fn write(&self, bytes: Vec<u8>) {
        if let Some(queue) = &self.queue {
            // The thread is gone only after a failure that it has reported.
            let _ = queue.send(bytes);
        }
    }

    /// Lets the thread end without waiting: it may be stuck in a write.
    pub(crate) fn abandon(mut self) {
        self.queue = None;
        self.thread = None;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(stream: Stream, mut target: File, queue: &Receiver<Vec<u8>>, mailbox: &Mailbox) {
    for bytes in queue {
        match target.write_all(&bytes) {
            Ok(()) => mailbox.send(Message::Written(stream, bytes.len())),
            Err(error) => {
                mailbox.send(Message::WriteFailed(stream, error));
                return;
            }
        }
    }
}

/// The user's terminal in raw mode: every key goes to the guest. Dropping it
/// restores the terminal.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    fd: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal raw.
    pub(crate) fn enter(fd: OwnedFd) -> nix::Result<RawTerminal> {
        let before = termios::tcgetattr(&fd)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&fd, SetArg::TCSADRAIN, &raw)?;
        Ok(RawTerminal { fd, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // What the command has printed is to be seen as it was meant.
        let _ = termios::tcsetattr(&self.fd, SetArg::TCSADRAIN, &self.before);
    }
}

/// The size of a terminal; 24 by 80 when it does not know.
pub(crate) fn terminal_size(fd: BorrowedFd<'_>) -> Terminal {
    // SAFETY: winsize is plain data for which all zeroes is a valid value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives across the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    if done < 0 || size.ws_row == 0 || size.ws_col == 0 {
        return Terminal {
            rows: 24,
            columns: 80,
        };
    }
    Terminal {
        rows: size.ws_row,
        columns: size.ws_col,
    }
}

/// Whether two descriptors lead to the same place, so that what is written to
/// both has one order.
pub(crate) fn same_target(a: impl AsFd, b: impl AsFd) -> bool {
    match (nix::sys::stat::fstat(a), nix::sys::stat::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino, a.st_rdev) == (b.st_dev, b.st_ino, b.st_rdev),
        _ => false,
    }
}

/// Watches what the user types for three Ctrl-] within a second, the way out of
/// a guest that does not react any more.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    presses: Vec<std::time::Instant>,
}

impl Escape {
    const KEY: u8 = 0x1d;
    const PRESSES: usize = 3;
    const WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

    /// Takes in what was typed at `now`; whether the user wants out.
    pub(crate) fn typed(&mut self, bytes: &[u8], now: std::time::Instant) -> bool {
        for &byte in bytes {
            if byte == Self::KEY {
                self.presses.push(now);
            } else {
                self.presses.clear();
            }
        }
        self.presses
            .retain(|&at| now.duration_since(at) < Self::WITHIN);
        self.presses.len() >= Self::PRESSES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn three_quick_presses_are_an_escape_and_slow_ones_are_not() {
        let start = Instant::now();
        let mut escape = Escape::default();
        assert!(!escape.typed(b"\x1d", start));
        assert!(!escape.typed(b"\x1dx", start));
        assert!(!escape.typed(b"\x1d\x1d", start));
        assert!(escape.typed(b"\x1d", start + Duration::from_millis(500)));

        let mut slow = Escape::default();
        for press in 0..5 {
            assert!(!slow.typed(b"\x1d", start + Duration::from_millis(600) * press));
        }
    }
}
