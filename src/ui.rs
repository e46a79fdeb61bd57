//! What a long job tells people: phases on stderr, and a bar where that is a terminal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kscope_guest::progress::{Amount, Event, Progress, Unit};

/// Prints a line to stderr; a closed one must not end a build.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// `582 MB`, `1.7 GB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// `12 s`, `3 min 54 s`, `5 h`, `12 d`.
pub fn duration(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3600..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// Phases as lines on stderr, and on a terminal a bar below the current one.
pub struct Ui {
    terminal: bool,
    bar: Option<ProgressBar>,
    /// Whether the bar's length is a guess, which grows when it was too small.
    guessed: bool,
}

impl Ui {
    /// For the terminal that stderr is, or is not.
    pub fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            bar: None,
            guessed: false,
        }
    }

    /// A line: a word, and what it is about.
    pub fn line(verb: &str, what: &str) {
        tell(&format!("{verb:>12} {what}"));
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn start_bar(&mut self, amount: Option<Amount>) {
        let total = amount.and_then(|amount| amount.total);
        self.guessed = amount.is_some_and(|amount| !amount.exact);
        let (style, bar) = match (amount.map(|amount| amount.unit), total) {
            (Some(Unit::Bytes), Some(total)) => (
                "{elapsed:>12} [{bar:32}] {bytes}/{total_bytes}",
                ProgressBar::new(total),
            ),
            (Some(Unit::Percent), Some(total)) => {
                ("{elapsed:>12} [{bar:32}] {pos} %", ProgressBar::new(total))
            }
            (Some(Unit::Steps), Some(total)) if self.guessed => (
                "{elapsed:>12} [{bar:32}] {pos} of about {len} steps",
                ProgressBar::new(total),
            ),
            (_, Some(total)) => (
                "{elapsed:>12} [{bar:32}] {pos}/{len}",
                ProgressBar::new(total),
            ),
            (Some(_), None) => (
                "{elapsed:>12} {spinner} {pos} steps",
                ProgressBar::no_length(),
            ),
            (None, None) => ("{elapsed:>12} {spinner}", ProgressBar::no_length()),
        };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }
}

impl Progress for Ui {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Phase { verb, what, amount } => {
                self.clear();
                Self::line(verb, what);
                if self.terminal {
                    self.start_bar(amount);
                }
            }
            Event::Advance(done) => {
                if let Some(bar) = &self.bar {
                    if self.guessed && bar.length().is_some_and(|total| done > total) {
                        bar.set_length(done);
                    }
                    bar.set_position(done);
                }
            }
            Event::Note(text) => match &self.bar {
                Some(bar) => bar.suspend(|| Self::line("Note", text)),
                None => Self::line("Note", text),
            },
        }
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(size(1), "1 kB");
        assert_eq!(size(582_000_000), "582 MB");
        assert_eq!(size(1_700_000_000), "1.7 GB");
        assert_eq!(duration(Duration::from_secs(59)), "59 s");
        assert_eq!(duration(Duration::from_secs(234)), "3 min 54 s");
        assert_eq!(duration(Duration::from_secs(90_000)), "25 h");
        assert_eq!(duration(Duration::from_secs(200_000)), "2 d");
    }
}
