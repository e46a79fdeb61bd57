//! The console line to the supervisor.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use kscope_wire::{Decoder, Frame, TAKEN_STEP, ToGuest, ToHost};
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

const PATH: &str = "/dev/tty1";

/// Both directions of the line.
pub(crate) struct Line {
    input: File,
    output: File,
    decoder: Decoder,
    /// Bytes taken off the line and not yet reported.
    taken: usize,
    /// Reused for every frame that goes out.
    frame: Vec<u8>,
}

impl Line {
    /// Opens the line and makes it raw: no echo, no translation, no signals.
    pub(crate) fn open() -> Result<Line, String> {
        let describe = |e: &dyn std::fmt::Display| {
            format!("{PATH}: {e}: the kernel was not started with con1=fd:IN,fd:OUT")
        };
        // Two opens, since only reading may not block: the supervisor takes
        // what is sent at once and never waits for this end while it does.
        let input = OpenOptions::new()
            .read(true)
            .custom_flags(O_NOCTTY | O_NONBLOCK)
            .open(PATH)
            .map_err(|e| describe(&e))?;
        let output = OpenOptions::new()
            .write(true)
            .custom_flags(O_NOCTTY)
            .open(PATH)
            .map_err(|e| describe(&e))?;
        let mut settings = tcgetattr(&input).map_err(|e| describe(&e))?;
        cfmakeraw(&mut settings);
        tcsetattr(&input, SetArg::TCSANOW, &settings).map_err(|e| describe(&e))?;
        Ok(Line {
            input,
            output,
            decoder: Decoder::new(),
            taken: 0,
            frame: Vec::new(),
        })
    }

    /// What to poll for input.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// Sends one frame; waits while the line is full.
    pub(crate) fn send(&mut self, frame: &ToHost) -> Result<(), String> {
        self.frame.clear();
        frame.encode(&mut self.frame);
        self.output
            .write_all(&self.frame)
            .map_err(|e| format!("{PATH}: cannot write: {e}"))
    }

    /// Takes in what has arrived; does not wait.
    pub(crate) fn receive(&mut self) -> Result<(), String> {
        let mut buffer = [0; 4096];
        loop {
            match self.input.read(&mut buffer) {
                Ok(0) => return Err(format!("{PATH}: hung up")),
                Ok(len) => {
                    self.decoder.push(&buffer[..len]);
                    self.taken += len;
                    if self.taken >= TAKEN_STEP {
                        let taken = std::mem::take(&mut self.taken);
                        self.send(&ToHost::Taken(taken as u32))?;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("{PATH}: cannot read: {e}")),
            }
        }
    }

    /// The next frame that has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<ToGuest>, String> {
        self.decoder.next_frame().map_err(|e| e.to_string())
    }

    /// Waits until the supervisor has read everything and says goodbye.
    pub(crate) fn wait_for_bye(&mut self) -> Result<(), String> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        loop {
            while let Some(frame) = self.next()? {
                if frame == ToGuest::Bye {
                    return Ok(());
                }
            }
            let mut fds = [PollFd::new(self.fd(), PollFlags::POLLIN)];
            // The supervisor ends a guest that stays; no deadline is needed here.
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(format!("{PATH}: cannot wait: {e}")),
            }
            self.receive()?;
        }
    }
}
