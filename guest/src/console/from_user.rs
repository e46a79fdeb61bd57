//! What the user sends: input, signals, window sizes.

use super::*;

impl Console {
    pub(super) fn read_signals(&mut self) {
        while let Some(signal) = self.parts.signals.as_ref().and_then(SignalReader::next) {
            match signal {
                Signal::SIGWINCH => self.resize(),
                signal => self.signalled(signal),
            }
        }
    }

    pub(super) fn resize(&mut self) {
        if self.parts.user.terminal && matches!(self.phase, Phase::Running) {
            let size = terminal_size(self.parts.user.stdin.as_fd());
            self.send(&ToGuest::Winsize {
                rows: size.rows,
                columns: size.columns,
            });
        }
    }

    /// The user wants an end: the command is asked for it, the guest is not.
    pub(super) fn signalled(&mut self, signal: Signal) {
        self.interruptions += 1;
        if self.phase != Phase::Running || self.interruptions > 1 {
            self.interrupt(signal);
            return;
        }
        self.send(&ToGuest::Signal(signal as i32 as u8));
        if matches!(signal, Signal::SIGTERM | Signal::SIGHUP) {
            self.last_chance = Some((Instant::now() + GRACE, signal));
        }
    }

    pub(super) fn interrupt(&mut self, signal: Signal) {
        self.kill();
        if self.phase != Phase::Over {
            self.over(Event::Interrupted(signal));
        }
    }

    pub(super) fn read_stdin(&mut self) {
        let limit = self.credit.min(CHUNK);
        let len = match self.parts.user.stdin.read(&mut self.buffer[..limit]) {
            Ok(len) => len,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                return;
            }
            // A terminal that has hung up, a directory: no more input.
            Err(_) => 0,
        };
        if len == 0 {
            self.stdin_open = false;
            if self.parts.user.terminal {
                self.signalled(Signal::SIGHUP);
            } else {
                self.send(&ToGuest::StdinEof);
            }
            return;
        }
        if self.parts.user.terminal && self.escape.typed(&self.buffer[..len], Instant::now()) {
            self.interrupt(Signal::SIGKILL);
            return;
        }
        self.credit -= len;
        let frame = ToGuest::Stdin(self.buffer[..len].to_vec());
        self.send(&frame);
    }
}
