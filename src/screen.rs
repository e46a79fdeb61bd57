//! A terminal that is drawn on again and again, and left as it was.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use nix::sys::termios::{tcgetattr, tcsetattr};
use nix::unistd::read;

/// Another screen, no cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// What the screen is when nobody knows its size.
const USUAL: (usize, usize) = (80, 24);

/// The terminal on standard output. Dropping it leaves it as it was.
pub struct Screen {
    /// The keyboard's settings, if standard input is a terminal.
    keys: Option<Termios>,
    signals: SignalFd,
    /// What was blocked before.
    mask: SigSet,
}

/// Why [`Screen::wait`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time is over.
    Elapsed,
    /// The terminal has another size.
    Resized,
    /// The user, or a signal, ends it.
    Quit,
}

impl Screen {
    /// Takes the terminal over. `None` when standard output is none.
    ///
    /// # Errors
    ///
    /// When the terminal cannot be set up.
    pub fn open() -> io::Result<Option<Screen>> {
        if !io::stdout().is_terminal() {
            return Ok(None);
        }
        // As events, so that none of them leaves the terminal as it is now.
        let mut signals = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGWINCH,
        ] {
            signals.add(signal);
        }
        let mask = signals.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        let mut screen = Screen {
            keys: None,
            signals: SignalFd::with_flags(
                &signals,
                SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
            )?,
            mask,
        };
        if io::stdin().is_terminal() {
            let before = tcgetattr(io::stdin())?;
            let mut keys = before.clone();
            // Keys at once and unseen; Ctrl-C is a key. What is written goes through as before.
            keys.local_flags &= !(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
            keys.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
            keys.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            tcsetattr(io::stdin(), SetArg::TCSADRAIN, &keys)?;
            screen.keys = Some(before);
        }
        let mut out = io::stdout();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(Some(screen))
    }

    /// Shows a text from the top: what does not fit is cut off, and the last line tells how much.
    ///
    /// # Errors
    ///
    /// When the terminal cannot be written.
    pub fn draw(&self, text: &str) -> io::Result<()> {
        let size = terminal_size::terminal_size();
        let (columns, rows) = size.map_or(
            USUAL,
            |(terminal_size::Width(columns), terminal_size::Height(rows))| {
                (usize::from(columns), usize::from(rows))
            },
        );
        let mut out = io::stdout().lock();
        out.write_all(frame(text, columns, rows).as_bytes())?;
        out.flush()
    }

    /// Waits until something happens, at most so long.
    ///
    /// # Errors
    ///
    /// When the terminal is gone.
    pub fn wait(&self, time: Duration) -> io::Result<Event> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A part of a millisecond is one.
            let millis = u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            let stdin = io::stdin();
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if self.keys.is_some() {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, timeout) {
                Ok(0) => return Ok(Event::Elapsed),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let ready = |at: usize| {
                let events = fds.get(at).and_then(PollFd::revents);
                events.is_some_and(|events| !events.is_empty())
            };
            if ready(0) {
                match self
                    .signals
                    .read_signal()?
                    .map(|info| info.ssi_signo as i32)
                {
                    Some(signal) if signal == Signal::SIGWINCH as i32 => return Ok(Event::Resized),
                    Some(_) => return Ok(Event::Quit),
                    None => {}
                }
            }
            if ready(1) && ends(stdin.as_fd())? {
                return Ok(Event::Quit);
            }
        }
    }
}

/// Reads keys; whether one of them ends it.
fn ends(stdin: BorrowedFd<'_>) -> io::Result<bool> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    let mut keys = [0; 64];
    let len = match read(stdin, &mut keys) {
        // The terminal is gone.
        Ok(0) => return Ok(true),
        Ok(len) => len,
        Err(Errno::EINTR | Errno::EAGAIN) => 0,
        Err(error) => return Err(error.into()),
    };
    let keys = keys.get(..len).unwrap_or_default();
    let is_end = |key: &u8| matches!(*key, b'q' | b'Q' | CTRL_C | CTRL_D);
    Ok(keys.iter().any(is_end))
}

/// The text as it is drawn: every line from its first column on, and nothing of what was there.
fn frame(text: &str, columns: usize, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let more = match lines.len() > rows {
        true => lines.len() - rows + 1,
        false => 0,
    };
    let shown = lines.len() - more;
    let last = format!("... {more} more lines");
    let mut frame = String::from("\x1b[H");
    let lines = lines.iter().take(shown).copied();
    for (at, line) in lines.chain((more > 0).then_some(last.as_str())).enumerate() {
        if at > 0 {
            frame.push_str("\r\n");
        }
        frame.extend(line.chars().take(columns));
        frame.push_str("\x1b[K");
    }
    // What was below the last line, if there is room below it.
    match shown + usize::from(more > 0) {
        0 => frame.push_str("\x1b[J"),
        drawn if drawn < rows => frame.push_str("\r\n\x1b[J"),
        _ => {}
    }
    frame
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout();
        // Nobody is left to be told.
        let _ = out.write_all(LEAVE.as_bytes());
        let _ = out.flush();
        if let Some(keys) = &self.keys {
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, keys);
        }
        let _ = self.mask.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::frame;

    /// What is on a screen of that size after the frame was written over `before`.
    fn shown(before: &str, text: &str, columns: usize, rows: usize) -> Vec<String> {
        let mut screen: Vec<String> = vec![String::new(); rows];
        for text in [before, text] {
            let mut row = 0;
            let mut column = 0;
            let frame = frame(text, columns, rows);
            let mut rest = frame.as_str();
            while let Some(c) = rest.chars().next() {
                if let Some(after) = rest.strip_prefix("\x1b[H") {
                    (row, column) = (0, 0);
                    rest = after;
                } else if let Some(after) = rest.strip_prefix("\x1b[K") {
                    screen[row].truncate(column);
                    rest = after;
                } else if let Some(after) = rest.strip_prefix("\x1b[J") {
                    screen[row].truncate(column);
                    screen[row + 1..].fill(String::new());
                    rest = after;
                } else if let Some(after) = rest.strip_prefix("\r\n") {
                    row += 1;
                    assert!(row < rows, "it scrolls");
                    column = 0;
                    rest = after;
                } else {
                    let line = &mut screen[row];
                    line.replace_range(column..(column + 1).min(line.len()), &c.to_string());
                    column += 1;
                    rest = &rest[1..];
                }
            }
        }
        screen
    }

    #[test]
    fn nothing_of_an_earlier_picture_stays() {
        assert_eq!(shown("long line\nb\nc", "x\ny", 9, 4), ["x", "y", "", ""]);
        assert_eq!(shown("a\nb\nc\nd", "x", 9, 4), ["x", "", "", ""]);
        assert_eq!(
            shown("a\nb\nc\nd", "1\n2\n3\n4", 9, 4),
            ["1", "2", "3", "4"]
        );
    }

    #[test]
    fn what_does_not_fit_is_cut_off() {
        let many = "1\n2\n3\n4\n5\n6";
        assert_eq!(shown("", many, 20, 4), ["1", "2", "3", "... 3 more lines"]);
        assert_eq!(shown("", "abcdef", 3, 2), ["abc", ""]);
    }
}
