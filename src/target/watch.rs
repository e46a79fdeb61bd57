//! A view that is read again and again: redrawn on a terminal, one after the other elsewhere.

use std::fmt::Display;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use kscope_guest::registry::Registry;
use kscope_kernel::{Reader, ViewError, printable};
use serde::Serialize;
use serde_json::Value;

use super::look::Seen;
use super::open::{Subject, Target};
use super::print::document;
use super::{Format, Source, ViewArgs};
use crate::exit::{self, Coded};
use crate::screen::{Event, Screen};

impl ViewArgs {
    /// Opens the target and shows a view of it every so often, until the user or the guest ends it.
    ///
    /// On a terminal each picture takes the place of the one before, elsewhere it follows it: as
    /// text after an empty line, as JSON on a line of its own.
    ///
    /// # Errors
    ///
    /// As [`show`](ViewArgs::show), and when there is nothing to watch since it is a core.
    pub fn watch<V: Serialize + Display>(
        &self,
        guest: Option<&str>,
        key: &'static str,
        every: Duration,
        view: impl Fn(&Reader<'_, Source>) -> Result<V, ViewError>,
    ) -> anyhow::Result<u8> {
        let target = self.open(guest)?;
        let Subject::Guest { name, .. } = &target.subject else {
            return Err(Coded {
                code: exit::USAGE,
                error: anyhow!("a core file does not change: leave --watch out"),
            }
            .into());
        };
        let look = || target.look(|look| view(look.reader()));
        let first = look()?;
        // Only time is lost when this fails.
        let _ = target.kernel.image().save();
        let screen = match self.format {
            Format::Human => Screen::open().context("cannot use the terminal")?,
            Format::Json => None,
        };
        let mut seen = first;
        loop {
            let ends = match &screen {
                Some(screen) => {
                    let title = title(name, key, every, &seen);
                    redraw(screen, &format!("{title}\n\n{}", seen.view), every)?
                }
                None => {
                    let more = self.append(&target, key, &seen)?;
                    thread::sleep(every);
                    !more
                }
            };
            if ends {
                return Ok(exit::OK);
            }
            seen = match look() {
                Ok(seen) => seen,
                Err(_) if has_ended(name) => {
                    drop(screen);
                    eprintln!("kscope: {name} has ended");
                    return Ok(exit::OK);
                }
                Err(error) => return Err(error),
            };
        }
    }

    /// Prints one more view. `false` when nobody reads it any more.
    fn append<V: Serialize + Display>(
        &self,
        target: &Target,
        key: &'static str,
        seen: &Seen<V>,
    ) -> anyhow::Result<bool> {
        let text = match self.format {
            Format::Human => format!("{}\n", seen.view),
            Format::Json => format!("{}\n", Value::Object(document(target, key, seen)?)),
        };
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            printed => printed.context("cannot write to stdout")?,
        }
        for warning in &seen.warnings {
            eprintln!("kscope: warning: {}", printable(warning));
        }
        Ok(true)
    }
}

/// Draws a text, and waits for its time to be over. Whether the user ends it.
fn redraw(screen: &Screen, text: &str, every: Duration) -> anyhow::Result<bool> {
    let event = loop {
        screen.draw(text).context("cannot write to the terminal")?;
        match screen.wait(every).context("cannot use the terminal")? {
            Event::Resized => {}
            event => break event,
        }
    };
    Ok(event == Event::Quit)
}

/// What is above the view.
fn title<V>(name: &str, key: &str, every: Duration, seen: &Seen<V>) -> String {
    let mut title = format!(
        "kscope {key} {name}, every {} s; q ends it",
        every.as_secs_f64()
    );
    if seen.torn {
        title.push_str(" (the guest changed while this was read)");
    } else if let Some(warning) = seen.warnings.first() {
        title.push_str(&format!(" (warning: {})", printable(warning)));
    }
    title
}

/// Whether the guest is gone, or goes right now: its memory is gone before its name is.
fn has_ended(name: &str) -> bool {
    const TRIES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(20);
    let is_gone = || Registry::open().is_ok_and(|registry| registry.find(Some(name)).is_err());
    (0..TRIES).any(|_| {
        let gone = is_gone();
        if !gone {
            thread::sleep(PAUSE);
        }
        gone
    })
}

/// The time between two pictures, for clap.
///
/// # Errors
///
/// When it is no number of seconds, or less than 10 ms or more than a day.
pub fn parse_every(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let every = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    every
        .filter(|every| (Duration::from_millis(10)..Duration::from_secs(86_400)).contains(every))
        .ok_or_else(|| {
            "a number of seconds, at least 0.01; the guest's name goes before --watch".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_of_seconds_that_make_sense() {
        assert_eq!(parse_every("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "web", "1e9", ""] {
            assert!(parse_every(bad).is_err(), "{bad}");
        }
    }
}
