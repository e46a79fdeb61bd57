//! What the views look at: a running guest, and how the answer is printed. One frame for every
//! verb that reads.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Context, bail};
use kscope_guest::cache::Cache;
use kscope_guest::registry::Registry;
use kscope_guest::remote::Connection;
use kscope_kernel::{Image, Kernel, Memory, Reader, ViewError};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::exit;

/// The memory of whatever is looked at.
pub type Source = Arc<dyn Memory + Send + Sync>;

/// The version of the JSON that every view prints.
const FORMAT_VERSION: u32 = 1;

/// How often a view of a running guest is read anew when it was torn.
const ATTEMPTS: usize = 5;

/// What `--help` of every view says of its JSON.
pub const JSON_HELP: &str = "\
JSON: {\"version\": 1, \"guest\" (name), \"torn\" (true when the guest changed what was
being read), \"warnings\" (what was corrupt and left out), and the view under the verb's
name}. Addresses are strings, \"0x60001000\".

Exit codes: 0; 1 when something was corrupt or torn (the rest is printed, warnings are
on stderr); 2 and 96 as everywhere.";

/// Options of every view.
#[derive(Clone, Debug, clap::Args)]
pub struct ViewArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Human,
    /// For programs: one JSON object.
    Json,
}

/// A guest whose memory can be read.
pub struct Target {
    /// Its kernel.
    pub kernel: Kernel<Source>,
    /// Its name.
    name: String,
}

/// A view that was read.
struct Seen<V> {
    view: V,
    warnings: Vec<String>,
    torn: bool,
}

impl ViewArgs {
    /// Opens what is looked at: the guest of this name, or the only one.
    ///
    /// # Errors
    ///
    /// When there is no such guest, or its kernel's binary is gone or another one.
    pub fn open(&self, guest: Option<&str>) -> anyhow::Result<Target> {
        let entry = Registry::open()?.find(guest)?;
        let name = entry.record.name.clone();
        let memory: Source = Arc::new(Connection::to(&entry)?.memory()?);
        let path = &entry.record.kernel;
        let image = match Cache::open() {
            Ok(cache) => Image::open_with_cache(path, &cache.facts_dir())?,
            // Without a home, slowly.
            Err(_) => Image::open(path)?,
        };
        if image.build_id() != entry.record.build_id {
            bail!(
                "`{}` was built anew since guest {name} was started: its types may be others. \
                 Start the guest again",
                path.display(),
            );
        }
        let kernel = Kernel::new(image, memory)?;
        Ok(Target { kernel, name })
    }

    /// Opens the target, reads a view of it and prints that, under `key` in JSON.
    ///
    /// # Errors
    ///
    /// When the target cannot be opened, the kernel has no such view, or stdout cannot be written.
    pub fn show<V: Serialize + Display>(
        &self,
        guest: Option<&str>,
        key: &'static str,
        view: impl Fn(&Reader<'_, Source>) -> Result<V, ViewError>,
    ) -> anyhow::Result<u8> {
        let target = self.open(guest)?;
        let code = self.print(&target, key, target.read(view)?)?;
        // Only time is lost when this fails.
        let _ = target.kernel.image().save();
        Ok(code)
    }

    fn print<V: Serialize + Display>(
        &self,
        target: &Target,
        key: &'static str,
        seen: Seen<V>,
    ) -> anyhow::Result<u8> {
        let mut out = io::stdout().lock();
        let printed = match self.format {
            Format::Human => write!(out, "{}", seen.view),
            Format::Json => {
                let mut object = Map::new();
                object.insert("version".to_owned(), FORMAT_VERSION.into());
                object.insert("guest".to_owned(), target.name.clone().into());
                object.insert("torn".to_owned(), seen.torn.into());
                object.insert("warnings".to_owned(), seen.warnings.clone().into());
                let view = serde_json::to_value(&seen.view).context("cannot print the view")?;
                object.insert(key.to_owned(), view);
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
        for warning in &seen.warnings {
            eprintln!("kscope: warning: {}", kscope_kernel::printable(warning));
        }
        Ok(match seen.warnings.is_empty() {
            true => exit::OK,
            false => exit::PARTIAL,
        })
    }
}

impl Target {
    /// Reads a view. When the guest changed it meanwhile, again, a few times.
    fn read<V>(
        &self,
        view: impl Fn(&Reader<'_, Source>) -> Result<V, ViewError>,
    ) -> Result<Seen<V>, ViewError> {
        let mut attempt = 1;
        loop {
            let reader = Reader::new(&self.kernel);
            let result = view(&reader);
            let torn = reader.torn();
            if torn.is_some() && attempt < ATTEMPTS {
                attempt += 1;
                continue;
            }
            let mut warnings = reader.warnings();
            warnings.extend(torn.as_ref().map(ToString::to_string));
            return Ok(Seen {
                view: result?,
                warnings,
                torn: torn.is_some(),
            });
        }
    }
}
