//! A view as text or JSON, and what there is to say about it.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Context;
use kscope_kernel::{Image, printable};
use serde::Serialize;
use serde_json::{Map, Value};

use super::look::{Seen, Stood};
use super::open::{Subject, Target};
use super::{Format, ViewArgs};
use crate::exit;

/// The version of the JSON that every view prints.
const FORMAT_VERSION: u32 = 1;

impl ViewArgs {
    pub(super) fn print<V: Serialize + Display>(
        &self,
        target: &Target,
        key: &'static str,
        seen: &Seen<V>,
    ) -> anyhow::Result<u8> {
        let mut out = io::stdout().lock();
        let printed = match self.format {
            Format::Human => write!(out, "{}", seen.view),
            Format::Json => {
                let object = document(target, key, seen)?;
                serde_json::to_writer_pretty(&mut out, &Value::Object(object))
                    .map_err(io::Error::from)
                    .and_then(|()| writeln!(out))
            }
        };
        match printed.and_then(|()| out.flush()) {
            // The reader has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(exit::OK),
            printed => printed.context("cannot write to stdout")?,
        }
        if let (Subject::Guest { name, .. }, Some(stood)) = (&target.subject, seen.stood) {
            match stood {
                Stood::For(time) => eprintln!("kscope: {name} stood still for {}", millis(time)),
                Stood::Debugged(_) => {
                    eprintln!("kscope: {name} was stopped before, and waits for its debugger");
                }
                // A warning tells.
                Stood::TooLong => {}
            }
        }
        for warning in &seen.warnings {
            eprintln!("kscope: warning: {}", printable(warning));
        }
        Ok(match seen.warnings.is_empty() {
            true => exit::OK,
            false => exit::PARTIAL,
        })
    }
}

/// Prints what is told of a kernel's binary alone, under `key` in JSON.
///
/// # Errors
///
/// When stdout cannot be written.
pub fn print_facts<V: Serialize + Display>(
    format: Format,
    image: &Image,
    key: &'static str,
    facts: &V,
) -> anyhow::Result<u8> {
    let mut out = io::stdout().lock();
    let printed = match format {
        Format::Human => write!(out, "{facts}"),
        Format::Json => {
            let mut object = Map::new();
            object.insert("version".to_owned(), FORMAT_VERSION.into());
            let path = image.path().to_string_lossy().into_owned();
            object.insert("kernel".to_owned(), path.into());
            let facts = serde_json::to_value(facts).context("cannot print the facts")?;
            object.insert(key.to_owned(), facts);
            serde_json::to_writer_pretty(&mut out, &Value::Object(object))
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out))
        }
    };
    match printed.and_then(|()| out.flush()) {
        // The reader has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(exit::OK),
        printed => {
            printed.context("cannot write to stdout")?;
            Ok(exit::OK)
        }
    }
}

/// What is printed as JSON.
pub(super) fn document<V: Serialize>(
    target: &Target,
    key: &'static str,
    seen: &Seen<V>,
) -> anyhow::Result<Map<String, Value>> {
    let mut object = Map::new();
    object.insert("version".to_owned(), FORMAT_VERSION.into());
    let guest = match &target.subject {
        Subject::Guest { name, .. } => Some(name.as_str()),
        Subject::Core(core) => core.guest(),
    };
    object.insert("guest".to_owned(), guest.into());
    if let Subject::Core(core) = &target.subject {
        let path = core.path().to_string_lossy().into_owned();
        object.insert("core".to_owned(), path.into());
    }
    if let Some(stood) = seen.stood {
        let millis = match stood {
            // Microseconds are as exact as it gets.
            Stood::For(time) | Stood::Debugged(time) => {
                let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
                Some(f64::from(micros) / 1000.0)
            }
            Stood::TooLong => None,
        };
        object.insert("stopped_ms".to_owned(), millis.into());
    }
    object.insert("torn".to_owned(), seen.torn.into());
    object.insert("warnings".to_owned(), seen.warnings.clone().into());
    let view = serde_json::to_value(&seen.view).context("cannot print the view")?;
    object.insert(key.to_owned(), view);
    Ok(object)
}

/// A time for people: `3.2 ms`, `1.25 s`.
pub fn millis(time: std::time::Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds < 1.0 {
        true => format!("{:.1} ms", seconds * 1000.0),
        false => format!("{seconds:.2} s"),
    }
}
