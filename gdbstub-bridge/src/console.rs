//! What breakpoints print, on its way from the engine's thread to the client.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The most that waits for the client. A breakpoint that prints is not held up by a client that does not read.
const MOST: usize = 1 << 20;

/// Text that is yet to be sent.
#[derive(Debug)]
pub(crate) struct Console {
    waiting: Mutex<Waiting>,
    ready: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    text: Vec<u8>,
    /// Bytes for which there was no room.
    dropped: usize,
}

impl Console {
    pub(crate) fn new() -> Result<Self, Errno> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            waiting: Mutex::default(),
            ready: EventFd::from_flags(flags)?,
        })
    }

    /// Adds text.
    pub(crate) fn print(&self, text: &[u8]) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.text.len() + text.len() > MOST {
            waiting.dropped += text.len();
            return;
        }
        let was_empty = waiting.text.is_empty();
        waiting.text.extend_from_slice(text);
        if was_empty {
            // A full counter has woken the reader already.
            let _ = self.ready.write(1);
        }
    }

    /// Takes all that waits.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.text.is_empty() && waiting.dropped == 0 {
            return Vec::new();
        }
        let _ = self.ready.read();
        let Waiting { mut text, dropped } = std::mem::take(&mut *waiting);
        if dropped > 0 {
            text.extend(
                format!("[kscope: {dropped} bytes were printed too fast and are lost]\n").bytes(),
            );
        }
        text
    }
}

impl AsFd for Console {
    /// Readable when there is text.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::is_readable;

    #[test]
    fn text_waits_and_does_not_pile_up() {
        let console = Console::new().unwrap();
        assert!(!is_readable(console.as_fd()));
        console.print(b"one\n");
        console.print(b"two\n");
        assert!(is_readable(console.as_fd()));
        assert_eq!(console.take(), b"one\ntwo\n");
        assert!(!is_readable(console.as_fd()));
        for _ in 0..MOST / 1000 + 10 {
            console.print(&[b'a'; 1000]);
        }
        let text = console.take();
        assert!(text.len() < MOST + 1000);
        assert!(String::from_utf8(text).unwrap().ends_with("are lost]\n"));
        assert!(console.take().is_empty());
    }
}
