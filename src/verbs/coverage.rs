//! `kscope coverage`: which lines of the kernel ran.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::{fs, io, thread};

use anyhow::{Context, bail};
use clap::ValueEnum;
use glob::Pattern;
use kscope_coverage::counters::Counters;
use kscope_coverage::export::{self, ExportError};
use kscope_coverage::map::CounterMap;
use kscope_coverage::report::{Coverage, Doubts};
use kscope_coverage::tree::BuildTree;
use kscope_coverage::{lcov, summary};
use kscope_guest::guest::Outcome;
use kscope_guest::locate::locate;
use kscope_guest::mem::ProcMem;
use kscope_guest::presets::Preset;
use kscope_guest::registry::Registry;
use kscope_guest::remote::Connection;
use kscope_kernel::Image;
use nix::unistd::{AccessFlags, access};

use super::launch_args::{LaunchArgs, Running, conclude};
use crate::target::open_image;

const EXAMPLES: &str = "\
Examples:
  kscope coverage                           the running guest, since it booted
  kscope coverage g2 --lcov cov.info        another one, for genhtml or Codecov
  kscope coverage g2 --reset                start counting anew
  kscope coverage -- ls -lR /proc           a guest of its own, only while ls runs
  kscope coverage --lcov cov.info -k ./linux -- ./selftest
  genhtml --branch-coverage -o html cov.info
  kscope coverage --include 'fs/*' --depth 3

The counters are read from the guest's memory: nothing runs in the guest, it need not
end, and it may hang or have panicked. The kernel has to be built with the coverage
preset (GCOV_KERNEL and GCOV_PROFILE_ALL), and its build tree has to be there, for the
.gcno files.

Lines, functions and branches are those of `gcov`. The guest runs while its counters
are read: those of one function can be some increments apart.

The summary goes to stdout, after what the command has written there.

Exit codes: with a command its own, else 0; 96 setup; 102 panic, 103 timeout, 104 no
boot, 105 killed from outside, 106 by the debugger. After a panic or a timeout what ran
until then is shown.";

/// Show which lines, functions and branches of the kernel ran.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The guest; may be left out when there is only one.
    #[arg(value_name = "NAME", conflicts_with = "command")]
    guest: Option<String>,

    /// Write an LCOV tracefile, with absolute paths, for genhtml, Codecov, ...
    /// (`-` for standard output, in place of the summary)
    #[arg(long, value_name = "OUT")]
    lcov: Option<PathBuf>,

    /// Zero the guest's counters. Shows nothing; with --lcov and such, after
    /// reading them.
    #[arg(long, conflicts_with = "command")]
    reset: bool,

    /// How to print the summary.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,

    /// How many levels of directories to tell apart in the summary.
    #[arg(long, value_name = "N", default_value_t = 2)]
    depth: usize,

    /// Only source files that match, by path below the kernel's root;
    /// repeatable. `*` also matches slashes.
    #[arg(long, value_name = "GLOB")]
    include: Vec<Pattern>,

    /// No source files that match; repeatable.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<Pattern>,

    /// Where the kernel was built. [default: the kernel's directory]
    #[arg(long, value_name = "DIR")]
    build_tree: Option<PathBuf>,

    /// Write .gcda files for GCC's own tools here, each beside a link to its
    /// .gcno file.
    #[arg(long, value_name = "DIR")]
    gcda: Option<PathBuf>,

    #[command(flatten)]
    launch: LaunchArgs,

    /// A command to boot a guest for. Only what happens between its start and
    /// its end is counted.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table
    Human,
    /// One JSON object, versioned
    Json,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    // Told now, and not after the work.
    if let Some(path) = args.lcov.as_deref().filter(|p| *p != Path::new("-")) {
        check_writable(path)?;
    }
    if args.command.is_empty() {
        read_running(&args)
    } else {
        cover_command(&args)
    }
}

/// Reads a guest that runs.
fn read_running(args: &Args) -> anyhow::Result<u8> {
    let entry = Registry::open()?.find(args.guest.as_deref())?;
    let mut connection = Connection::to(&entry)?;
    let description = connection.describe()?;
    let kernel = args.launch.kernel.as_ref().unwrap_or(&description.kernel);
    let image = open_image(kernel)?;
    if description.build_id.is_some() && description.build_id != image.build_id() {
        bail!(
            "`{}` is not the kernel that {} runs: it was built anew since, or is another one; \
             boot a new guest, or name the right file with --kernel",
            kernel.display(),
            description.name
        );
    }
    let memory = connection.memory()?;
    let map = CounterMap::find(&image, &memory)?;
    let asked = args.lcov.is_some() || args.gcda.is_some() || args.format == Format::Json;
    if !args.reset || asked {
        args.show(&image, &map.read(&memory), &map)?;
    }
    if args.reset {
        map.reset(|addr, zeros| connection.write_memory(addr, zeros))?;
        args.launch
            .say(format_args!("{} objects' counters are zero", map.objects()));
    }
    Ok(0)
}

/// Boots a guest for a command and counts while that runs.
fn cover_command(args: &Args) -> anyhow::Result<u8> {
    let needed = [Preset::Coverage];
    // A guest takes its time to boot; what cannot be counted is told before.
    let kernel = locate(args.launch.kernel.as_deref(), &needed)?;
    kscope_coverage::map::check(&open_image(&kernel.path)?)?;
    let Running { mut guest, .. } = args.launch.start(&args.command, &needed)?;
    let image = guest.image().clone();
    let memory = guest.memory()?;
    let (outcome, counted) = match guest.wait_ready() {
        Err(outcome) => (*outcome, None),
        Ok(()) => {
            let before = snapshot(&image, &memory)?.1;
            let (sender, last) = mpsc::channel();
            guest.on_failure({
                let (image, memory) = (image.clone(), memory.clone());
                // Nobody listens only when there is nobody left to tell.
                move |_| drop(sender.send(snapshot(&image, &memory)))
            });
            guest.go();
            let outcome = guest.wait_command();
            // The memory of a guest that was ended went with it.
            let after = last
                .try_recv()
                .unwrap_or_else(|_| snapshot(&image, &memory));
            (
                outcome,
                Some(after.map(|(map, after)| (map, after - &before))),
            )
        }
    };
    for warning in guest.take_warnings() {
        eprintln!("kscope: warning: {warning}");
    }
    let name = guest.name().to_owned();
    let lasting = matches!(outcome, Outcome::Exited(_));
    guest.finish();
    let shown = match counted {
        Some(Ok((map, counters))) => args.show(&image, &counters, &map),
        Some(Err(error)) if lasting => Err(error),
        // Why it ended is what matters.
        Some(Err(_)) | None => Ok(()),
    };
    let code = conclude(&name, outcome)?;
    shown.map(|()| code)
}

fn snapshot(image: &Image, memory: &ProcMem) -> anyhow::Result<(CounterMap, Counters)> {
    // Anew each time: the command may have loaded modules.
    let map = CounterMap::find(image, memory)?;
    let counters = map.read(memory);
    Ok((map, counters))
}

impl Args {
    /// Writes and prints all that was asked for.
    fn show(&self, image: &Image, counters: &Counters, map: &CounterMap) -> anyhow::Result<()> {
        let kernel = std::path::absolute(image.path())?;
        let root = self
            .build_tree
            .as_deref()
            .or(kernel.parent())
            .unwrap_or(Path::new("/"));
        let data_files = counters.objects.iter().map(|o| o.data_file.as_str());
        let tree = BuildTree::locate(root, data_files);
        let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let mut coverage = Coverage::solve(counters, &tree, threads)?;
        warn(&coverage, map);
        if !self.include.is_empty() || !self.exclude.is_empty() {
            let any = |patterns: &[Pattern], path: &str| patterns.iter().any(|p| p.matches(path));
            coverage.retain(|path| {
                (self.include.is_empty() || any(&self.include, path)) && !any(&self.exclude, path)
            });
            if coverage.files.is_empty() {
                bail!("no source file matches --include and --exclude");
            }
        }
        if let Some(path) = &self.lcov {
            save(path, |out| lcov::write(&coverage, out))?;
        }
        if let Some(dir) = &self.gcda {
            write_gcda(dir, counters, &tree)?;
        }
        if self.lcov.as_deref() == Some(Path::new("-")) {
            return Ok(());
        }
        let text = match self.format {
            Format::Human => summary::table(&coverage, self.depth),
            Format::Json => summary::json(&coverage, &kernel.to_string_lossy(), self.depth) + "\n",
        };
        match io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Tells what is missing from the report.
fn warn(coverage: &Coverage, map: &CounterMap) {
    let warn = |line: String| eprintln!("kscope: warning: {line}");
    if map.damaged > 0 {
        warn(format!(
            "the coverage data of {} objects make no sense; they are left out",
            map.damaged
        ));
    }
    if let Some(first) = coverage.skipped.first() {
        let reason = &first.reason;
        let count = coverage.skipped.len();
        warn(format!(
            "{count} objects are left out, such as {}: {reason}",
            first.notes.display()
        ));
    }
    let Doubts {
        mismatched,
        torn,
        negative,
    } = coverage.doubts;
    if mismatched > 0 {
        warn(format!(
            "{mismatched} functions are not those of their .gcno files; shown as not run"
        ));
    }
    if negative > 0 {
        warn(format!(
            "{negative} counts of {torn} functions came out negative, because the guest ran while it was read; shown as 0"
        ));
    }
}

fn check_writable(path: &Path) -> anyhow::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
    let target = if path.exists() {
        path
    } else {
        directory.unwrap_or(Path::new("."))
    };
    if path.is_dir() {
        bail!("cannot write {}: it is a directory", path.display());
    }
    access(target, AccessFlags::W_OK)
        .with_context(|| format!("cannot write {}: {}", path.display(), target.display()))
}

/// Writes the file at `path`; `-` is standard output.
fn save(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let result = if path == Path::new("-") {
        write(&mut BufWriter::new(io::stdout().lock()))
    } else {
        fs::File::create(path).and_then(|file| {
            let mut out = BufWriter::new(file);
            write(&mut out)?;
            out.flush()
        })
    };
    result.with_context(|| format!("cannot write {}", path.display()))
}

fn write_gcda(dir: &Path, counters: &Counters, tree: &BuildTree) -> anyhow::Result<()> {
    for object in &counters.objects {
        let places = tree.notes_of(&object.data_file);
        let notes = places.iter().find(|notes| notes.is_file());
        match export::write(dir, object, notes.map(PathBuf::as_path)) {
            // The guest's doing; the other objects' files are good.
            Err(error @ ExportError::Name(_)) => {
                eprintln!("kscope: warning: an object is left out: {error}");
            }
            other => other?,
        }
    }
    Ok(())
}
