//! `kscope build`: builds a User Mode Linux kernel, or takes it from the cache.
//!
//! `--format json` prints one document, version 1; members may be added:
//!
//! - a build: `linux` (the kernel), `build` (its build tree), `source` (its
//!   sources), `release` (`uname -r`), `presets`, `key`, `cached` (nothing was
//!   built);
//! - `--list`: `cache`, `sources` (`path`, `size` in bytes), `kernels`: each
//!   `state` (`whole`, `building` or `incomplete`), `key`, `path`, `size`, and
//!   when whole `linux`, `source`, `source_version`, `source_path`, `release`,
//!   `presets`, `fragments`, `compiler`, `built` (seconds since 1970);
//! - `--prune`: `removed` (`path`, `size`, `reason`), `in_use` (`path`, `pid`).

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use kscope_guest::builder::{self, BuildError, Built, Request};
use kscope_guest::cache::{Cache, Listed, State, disk_usage};
use kscope_guest::hostjob::Cancel;
use kscope_guest::presets::{Preset, Selection};
use kscope_guest::source::Source;
use serde_json::json;

use crate::exit;
use crate::gdb_index;
use crate::ui::{Ui, duration, size, tell};

const EXAMPLES: &str = "\
Examples:
  kscope build                               Debian's 6.12, or the tree you are in
  kscope build --source ~/linux              somebody's tree; incremental when repeated
  kscope build --source debian:6.1 --preset coverage
  kscope build --source debian:7.3 --preset debug,smp
  kscope build --preset debug,kunit --config my.config
  kscope run -k \"$(kscope build | tail -n1)\" -- uname -r
  kscope build --list
  kscope build --prune

debian:VERSION is the kernel source of that name that the machine's apt offers; what it does
not offer is taken from another of Debian's suites (backports, sid, ...), by the machine's own
mirror and keys, without a change to the machine's lists or configuration.

Presets compose; `base` is part of every one:
  base        what every guest needs: DWARF, frame pointers, initrd, overlayfs, sockets, ...
  debug       cheap checks, event tracing, schedstats (the default)
  coverage    gcov counters in every object, for `kscope coverage`
  kunit       the in-kernel unit tests
  timetravel  time that leaps to whatever comes next (boot with -a time-travel=inf-cpu)
  smp         several CPUs, for `kscope run --cpus N`; Linux 6.19 and later, not with timetravel
  full        the kernel's own UML defconfig underneath, instead of nothing

A fragment holds CONFIG_NAME=value and `# CONFIG_NAME is not set` lines. An option that
Kconfig drops is an error; a line `# kscope: if-known` before some options asks for them
only of kernels that know them.

Kernels stay in $XDG_CACHE_HOME/kscope (~/.cache/kscope) with their build trees. --prune
removes interrupted builds, kernels that a newer build of the same source, presets and
fragments supersedes, kernels whose source is gone, and sources without a kernel; never
what is in use.

A failed build exits with 101, anything else that is missing with 96.";

/// Build a kernel, or take it from the cache, and print its path.
///
/// The last line of stdout is the path of `linux`. Its build tree (sources,
/// .gcno files, gdb scripts) is the directory around it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A kernel tree (default inside one), or debian:VERSION (default: debian:6.12).
    #[arg(long, value_name = "SRC")]
    source: Option<String>,

    /// Presets, separated by commas.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "debug"
    )]
    preset: Vec<Preset>,

    /// A Kconfig fragment of your own, laid over the presets; repeatable.
    #[arg(long, value_name = "FRAGMENT")]
    config: Vec<PathBuf>,

    /// How many compilers at once (default: the CPUs there are).
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZeroUsize>,

    /// List the kernels and sources in the cache.
    #[arg(long, conflicts_with_all = ["source", "config", "jobs", "prune"])]
    list: bool,

    /// Remove from the cache what is incomplete, superseded or unused.
    #[arg(long, conflicts_with_all = ["source", "config", "jobs"])]
    prune: bool,

    /// The form of the result on stdout.
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
}

/// The form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people.
    Human,
    /// One JSON document.
    Json,
}

/// Runs the verb.
///
/// # Errors
///
/// What [`BuildError`] says, or a cache that cannot be read or pruned.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let cache = Cache::open()?;
    if args.list {
        return list(&cache, args.format);
    }
    if args.prune {
        return prune(&cache, args.format);
    }
    let source = match &args.source {
        Some(source) => source.parse()?,
        None => Source::default_in(&std::env::current_dir().context("current directory")?),
    };
    let request = Request {
        source,
        presets: Selection::new(args.preset),
        fragments: args.config,
        jobs: match args.jobs {
            Some(jobs) => jobs,
            None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        },
    };
    // Before the bar's thread: the signals are blocked in later threads too.
    let cancel = Cancel::on_signals().context("cannot wait for signals")?;
    let mut ui = Ui::new();
    let began = Instant::now();
    let result = builder::build(&cache, &request, &mut ui, &cancel);
    ui.clear();
    match result {
        Ok(built) => {
            if !built.cached {
                gdb_index::prepare(&built.entry.linux);
            }
            let name = format!("{} ({})", built.entry.source.version, request.presets);
            if built.cached {
                let age = duration(built.entry.age());
                Ui::line("Cached", &format!("{name}, built {age} ago"));
            } else {
                let took = duration(began.elapsed());
                Ui::line("Finished", &format!("{name} in {took}"));
            }
            print(&result_text(&built, args.format))
        }
        Err(error) if error.is_cancelled() => {
            tell(&format!("kscope: {}", BuildError::Cancelled));
            cancel.reraise();
            Ok(130)
        }
        Err(error) if error.is_build_failure() => Err(exit::Coded {
            code: exit::BUILD,
            error: error.into(),
        }
        .into()),
        Err(error) => Err(error.into()),
    }
}

fn result_text(built: &Built, format: Format) -> String {
    match format {
        Format::Human => format!("{}\n", built.entry.linux.display()),
        Format::Json => {
            let entry = &built.entry;
            let document = json!({
                "version": 1,
                "linux": entry.linux,
                "build": entry.build_dir(),
                "source": entry.source.path,
                "release": entry.release,
                "presets": entry.presets,
                "key": entry.key,
                "cached": built.cached,
            });
            format!("{document:#}\n")
        }
    }
}

/// Prints to stdout; that nobody reads any more is no error.
fn print(text: &str) -> anyhow::Result<u8> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(exit::OK),
    }
}

fn list(cache: &Cache, format: Format) -> anyhow::Result<u8> {
    let kernels = cache.list()?;
    let sources = cache.sources()?;
    if format == Format::Json {
        let kernels: Vec<_> = kernels.iter().map(kernel_json).collect();
        let sources: Vec<_> = sources
            .iter()
            .map(|path| json!({"path": path, "size": disk_usage(path)}))
            .collect();
        let document = json!({
            "version": 1,
            "cache": cache.root(),
            "kernels": kernels,
            "sources": sources,
        });
        return print(&format!("{document:#}\n"));
    }
    let mut rows = vec![["SOURCE", "VERSION", "PRESETS", "SIZE", "AGE", "PATH"].map(String::from)];
    rows.extend(kernels.iter().map(kernel_row));
    rows.extend(sources.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (package, version) = name.split_once('_').unwrap_or((&name, "-"));
        [
            package.into(),
            version.into(),
            "(source)".into(),
            size(disk_usage(path)),
            "-".into(),
            path.display().to_string(),
        ]
    }));
    if rows.len() == 1 {
        tell(&format!("no kernels in {}", cache.root().display()));
        return Ok(exit::OK);
    }
    print(&table(&rows))
}

fn kernel_row(kernel: &Listed) -> [String; 6] {
    let space = size(disk_usage(&kernel.dir));
    match &kernel.state {
        State::Whole(entry) => {
            let mut presets = Selection::new(entry.presets.iter().copied()).to_string();
            for path in &entry.fragments {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                presets.push_str(&format!("+{name}"));
            }
            [
                entry.source.name.clone(),
                entry.release.clone(),
                presets,
                space,
                duration(entry.age()),
                entry.linux.display().to_string(),
            ]
        }
        other => {
            let state = if *other == State::Building {
                "(building)"
            } else {
                "(incomplete)"
            };
            [
                "-".into(),
                "-".into(),
                state.into(),
                space,
                "-".into(),
                kernel.dir.display().to_string(),
            ]
        }
    }
}

fn kernel_json(kernel: &Listed) -> serde_json::Value {
    let space = disk_usage(&kernel.dir);
    match &kernel.state {
        State::Whole(entry) => json!({
            "state": "whole",
            "key": kernel.key,
            "path": kernel.dir,
            "size": space,
            "linux": entry.linux,
            "source": entry.source.name,
            "source_version": entry.source.version,
            "source_path": entry.source.path,
            "release": entry.release,
            "presets": entry.presets,
            "fragments": entry.fragments,
            "compiler": entry.compiler,
            "built": entry.built,
        }),
        other => json!({
            "state": if *other == State::Building { "building" } else { "incomplete" },
            "key": kernel.key,
            "path": kernel.dir,
            "size": space,
        }),
    }
}

fn prune(cache: &Cache, format: Format) -> anyhow::Result<u8> {
    let pruned = cache.prune()?;
    if format == Format::Json {
        let removed: Vec<_> = pruned
            .removed
            .iter()
            .map(|r| json!({"path": r.path, "size": r.size, "reason": r.reason.as_str()}))
            .collect();
        let in_use: Vec<_> = pruned
            .in_use
            .iter()
            .map(|(path, pid)| json!({"path": path, "pid": pid}))
            .collect();
        let document = json!({"version": 1, "removed": removed, "in_use": in_use});
        return print(&format!("{document:#}\n"));
    }
    let mut text = String::new();
    for removed in &pruned.removed {
        text.push_str(&format!(
            "removed {} ({}, {})\n",
            removed.path.display(),
            removed.reason.as_str(),
            size(removed.size)
        ));
    }
    for (path, pid) in &pruned.in_use {
        text.push_str(&format!("kept {}: process {pid} uses it\n", path.display()));
    }
    let freed: u64 = pruned.removed.iter().map(|removed| removed.size).sum();
    text.push_str(&format!("{} freed\n", size(freed)));
    print(&text)
}

/// Lays rows out in columns; the last column is not padded.
fn table(rows: &[[String; 6]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |a: &str, z: &str| [a, "1", "2", "3", "4", z].map(String::from);
        assert_eq!(
            table(&[row("a", "x"), row("long", "y")]),
            "a     1  2  3  4  x\nlong  1  2  3  4  y\n"
        );
    }
}
