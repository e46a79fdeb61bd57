//! Building a kernel: source + presets + fragments + compiler -> a whole entry
//! of the cache.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cache::{
    Cache, Entry, EntrySource, Lock, LockError, Slot, StorageError, VERSION as CACHE_VERSION,
};
use crate::disk::{is_full, says_disk_full};
use crate::hostjob::{Cancel, Job, JobError};
use crate::kconfig::{DotConfig, DroppedOptions, Fragment, FragmentError, definitions};
use crate::presets::{Preset, PresetConflict, Selection};
use crate::progress::{Amount, Event, Progress, Unit};
use crate::source::{Resolved, Source, SourceError};
use crate::toolchain::{Toolchain, ToolchainError};

mod log;
use log::{Log, is_step};

/// Build steps per option that is `y`, where no build can be looked at:
/// measured 5.0 with the debug preset on 6.12.
const STEPS_PER_OPTION: f64 = 5.0;

/// The first version whose User Mode Linux can have several CPUs (`SMP` in
/// arch/um/Kconfig).
const SMP_SINCE: (u32, u32) = (6, 19);

/// What to build.
#[derive(Debug, Clone)]
pub struct Request {
    /// From what.
    pub source: Source,
    /// With which presets.
    pub presets: Selection,
    /// The user's own fragments, laid over the presets in this order.
    pub fragments: Vec<PathBuf>,
    /// How many compilers at once.
    pub jobs: NonZeroUsize,
}

/// A kernel that is there.
#[derive(Debug, Clone)]
pub struct Built {
    /// The entry.
    pub entry: Entry,
    /// Whether it was there before, and nothing was built.
    pub cached: bool,
}

/// Why there is no kernel.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The machine.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// A fragment that is none.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// Presets that no kernel can have together.
    #[error(transparent)]
    Presets(#[from] PresetConflict),
    /// A kernel from before several CPUs.
    #[error(
        "preset smp needs Linux {}.{} or later, and {name} is {version}: take for example --source debian:7.3",
        SMP_SINCE.0, SMP_SINCE.1
    )]
    NoSmp {
        /// The source's name.
        name: String,
        /// Its version.
        version: String,
    },
    /// Options that Kconfig dropped.
    #[error("{dropped}\nThe whole configuration: {config}", config = .config.display())]
    Dropped {
        /// Which.
        dropped: DroppedOptions,
        /// The `.config` without them.
        config: PathBuf,
    },
    /// make failed.
    #[error(
        "`make {target}` failed ({status}). The last lines of {log}:\n{tail}",
        log = .log.display()
    )]
    Make {
        /// What it was to make.
        target: String,
        /// How it ended.
        status: ExitStatus,
        /// Where the full log is.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// make ended well but there is no `linux`.
    #[error("the build ended well but made no {0}: is this kernel for User Mode Linux?")]
    NoKernel(PathBuf),
    /// A file or directory of the cache or the user, a full disk among others.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Interrupted by the user.
    #[error("interrupted; the next build goes on from here")]
    Cancelled,
    /// A host command.
    #[error(transparent)]
    Job(JobError),
}

impl From<JobError> for BuildError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Cancelled => Self::Cancelled,
            other => Self::Job(other),
        }
    }
}

impl From<LockError> for BuildError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Storage(error) => Self::Storage(error),
            LockError::Cancelled => Self::Cancelled,
        }
    }
}

impl BuildError {
    /// Whether the kernel itself did not build, as opposed to the machine or
    /// the command line not being fit for building it.
    pub fn is_build_failure(&self) -> bool {
        matches!(
            self,
            Self::Dropped { .. } | Self::Make { .. } | Self::NoKernel(_)
        )
    }

    /// Whether somebody interrupted.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::Source(SourceError::Job(JobError::Cancelled))
                | Self::Toolchain(ToolchainError::Job(JobError::Cancelled))
        )
    }
}

/// Builds a kernel, unless the cache has it. A kernel of somebody's own tree
/// is always made again, incrementally.
///
/// # Errors
///
/// See [`BuildError`]. Whatever happens, what the cache then calls whole is
/// whole.
pub fn build(
    cache: &Cache,
    request: &Request,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Built, BuildError> {
    request.presets.check()?;
    let (wanted, fragments) = wanted(request)?;
    let toolchain = Toolchain::detect(cancel)?;
    let source = request.source.resolve(cache, progress, cancel)?;
    if request.presets.contains(Preset::Smp) && source.series().is_some_and(|v| v < SMP_SINCE) {
        return Err(BuildError::NoSmp {
            name: source.name,
            version: source.version,
        });
    }
    let key = key(&source, &request.presets, &wanted, &fragments, &toolchain);
    let slot = cache.slot(&key);
    if slot.dir().to_string_lossy().contains([' ', ':']) {
        return Err(SourceError::BadPath(slot.dir().to_owned()).into());
    }

    let lock = slot.lock(cancel, || {
        progress.event(Event::Phase {
            verb: "Waiting",
            what: "for another kscope that builds the same kernel",
            amount: None,
        });
    })?;
    let before = slot.entry();
    if source.package.is_some()
        && let Some(mut entry) = before
    {
        // So that `kscope run` takes the kernel that was asked for last. On a full disk the order
        // suffers; the kernel is there all the same.
        entry.asked = now();
        let _ = slot.commit(&lock, &entry);
        return Ok(Built {
            entry,
            cached: true,
        });
    }

    let ready = source.get(cache, progress, cancel)?;
    let incremental = slot.begin(&lock)?;
    let mut build = Build {
        cache,
        request,
        slot: &slot,
        lock: &lock,
        source: &source,
        toolchain: &toolchain,
        tree: &ready.dir,
        steps_before: before.map_or(0, |entry| entry.steps),
        incremental,
        log: Log::create(&slot.log_path())?,
        progress,
        cancel,
    };
    let result = build.run(&wanted, fragments);
    // Every way out but the death of this process: make has ended, by itself
    // or by SIGTERM, and has removed what it had half written.
    let settled = slot.settle(&lock);
    let entry = result?;
    settled?;
    Ok(Built {
        entry,
        cached: false,
    })
}

/// All that is requested, and the canonical paths of the user's fragments.
fn wanted(request: &Request) -> Result<(Fragment, Vec<PathBuf>), BuildError> {
    let mut wanted = request.presets.fragment()?;
    let mut paths = Vec::new();
    for path in &request.fragments {
        let text = fs::read_to_string(path).map_err(StorageError::at(path))?;
        wanted.overlay(Fragment::parse(&path.display().to_string(), &text)?);
        paths.push(fs::canonicalize(path).map_err(StorageError::at(path))?);
    }
    Ok((wanted, paths))
}

/// The cache key: readable first, then 12 hex digits of all that decides what
/// is built.
fn key(
    source: &Resolved,
    presets: &Selection,
    wanted: &Fragment,
    fragments: &[PathBuf],
    toolchain: &Toolchain,
) -> String {
    let mut hash = Sha256::new();
    let mut part = |name: &str, value: &str| {
        // With the length, so that no two lists of parts read the same.
        hash.update(format!("{name} {}\n{value}\n", value.len()));
    };
    part("cache", &CACHE_VERSION.to_string());
    part("source", &source.identity());
    for preset in presets.iter() {
        part("preset", preset.name());
    }
    for path in fragments {
        part("fragment", &path.display().to_string());
    }
    part("config", &wanted.to_text());
    part("cc", toolchain.cc.as_deref().unwrap_or_default());
    part("compiler", &toolchain.identity);
    let digest = hash.finalize();
    let hex: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();

    let name = match source.package {
        Some(_) => source.name.clone(),
        None => source
            .dir
            .file_name()
            .map_or_else(|| "tree".into(), |name| name.to_string_lossy().into_owned()),
    };
    let readable: String = format!("{name}-{presets}")
        .chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' => c,
            _ => '-',
        })
        .take(64)
        .collect();
    format!("{readable}-{hex}")
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// One build that is going on.
struct Build<'a> {
    cache: &'a Cache,
    request: &'a Request,
    slot: &'a Slot,
    lock: &'a Lock,
    source: &'a Resolved,
    toolchain: &'a Toolchain,
    tree: &'a Path,
    steps_before: u64,
    incremental: bool,
    log: Log,
    progress: &'a mut dyn Progress,
    cancel: &'a Cancel,
}

impl Build<'_> {
    fn run(&mut self, wanted: &Fragment, fragments: Vec<PathBuf>) -> Result<Entry, BuildError> {
        let build_dir = self.slot.build_dir();
        let config = self.configure(wanted)?;
        let options = config.count("y") as u64;

        let total = if self.incremental {
            None
        } else {
            Some(self.estimate(options)?)
        };
        self.progress.event(Event::Phase {
            verb: "Building",
            what: &format!("{} ({})", self.source.version, self.request.presets),
            amount: Some(Amount {
                unit: Unit::Steps,
                total,
                exact: false,
            }),
        });
        let mut targets = vec!["linux", "scripts_gdb"];
        if config.count("m") > 0 {
            targets.push("modules");
        }
        let steps = self.make(&targets)?;

        let linux = build_dir.join("linux");
        let meta = match fs::metadata(&linux) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BuildError::NoKernel(linux));
            }
            other => other.map_err(StorageError::at(&linux))?,
        };
        let release = build_dir.join("include/config/kernel.release");
        let release = fs::read_to_string(&release).map_err(StorageError::at(&release))?;
        let entry = Entry {
            version: CACHE_VERSION,
            key: self.slot.key().to_owned(),
            source: EntrySource {
                name: self.source.name.clone(),
                version: self.source.version.clone(),
                path: self.source.dir.clone(),
                tree: self.source.package.is_none(),
            },
            release: release.trim().to_owned(),
            presets: self.request.presets.iter().collect(),
            fragments,
            cc: self.toolchain.cc.clone(),
            compiler: self.toolchain.summary().to_owned(),
            linux,
            linux_size: meta.len(),
            steps: if self.incremental {
                self.steps_before
            } else {
                steps
            },
            options,
            built: now(),
            asked: now(),
        };
        self.slot.commit(self.lock, &entry)?;
        Ok(entry)
    }

    /// Writes `.config`, and fails when it is not as requested.
    fn configure(&mut self, wanted: &Fragment) -> Result<DotConfig, BuildError> {
        self.progress.event(Event::Phase {
            verb: "Configuring",
            what: &format!("{} ({})", self.source.version, self.request.presets),
            amount: None,
        });
        let build_dir = self.slot.build_dir();
        let file = self.slot.dir().join("wanted.config");
        fs::write(&file, wanted.to_text()).map_err(StorageError::at(&file))?;
        let config = build_dir.join(".config");
        if self.request.presets.contains(Preset::Full) {
            self.make(&["defconfig"])?;
            // Of two values for an option Kconfig takes the later one.
            let mut text = fs::read_to_string(&config).map_err(StorageError::at(&config))?;
            text.push_str(&wanted.to_text());
            fs::write(&config, text).map_err(StorageError::at(&config))?;
            self.make(&["olddefconfig"])?;
        } else {
            let fragment = format!("KCONFIG_ALLCONFIG={}", file.display());
            self.make(&[fragment.as_str(), "allnoconfig"])?;
        }
        let text = fs::read_to_string(&config).map_err(StorageError::at(&config))?;
        let result = DotConfig::parse(&text);
        match wanted.check(&result, |names| definitions(self.tree, names)) {
            Ok(()) => Ok(result),
            Err(dropped) => Err(BuildError::Dropped { dropped, config }),
        }
    }

    /// How many steps the build will take: as many as the newest build with
    /// the same presets, or in proportion to the options of another build.
    fn estimate(&self, options: u64) -> Result<u64, BuildError> {
        let presets: Vec<Preset> = self.request.presets.iter().collect();
        let entries = self.cache.entries()?;
        let similar = entries
            .iter()
            .filter(|entry| entry.steps > 0 && entry.options > 0)
            .max_by_key(|entry| (entry.presets == presets, entry.built));
        let per_option = similar.map_or(STEPS_PER_OPTION, |entry| {
            entry.steps as f64 / entry.options as f64
        });
        Ok((options as f64 * per_option).ceil() as u64)
    }

    /// Runs make; returns how many steps it took.
    fn make(&mut self, targets: &[&str]) -> Result<u64, BuildError> {
        let mut command = Command::new("make");
        command.env("LC_ALL", "C");
        for (name, _) in std::env::vars_os() {
            if changes_the_build(&name.to_string_lossy()) {
                command.env_remove(&name);
            }
        }
        command
            .arg("--no-print-directory")
            .arg("-C")
            .arg(self.tree)
            .arg("ARCH=um")
            .arg(format!("O={}", self.slot.build_dir().display()))
            .arg(format!("-j{}", self.request.jobs));
        if let Some(cc) = &self.toolchain.cc {
            command.arg(format!("CC={cc}"));
        }
        command.args(targets);
        self.log.command(&command)?;

        let mut steps = 0;
        let mut disk_full = false;
        let mut written = Ok(());
        let log = &mut self.log;
        let progress = &mut *self.progress;
        let mut job = Job::start(command, false, self.cancel)?;
        job.for_each_line(|line| {
            // Without a log the build goes on to its end: a failed write ends
            // up in `written`.
            let text = String::from_utf8_lossy(line);
            if written.is_ok() {
                written = log.line(&text);
            }
            disk_full |= says_disk_full(&text);
            if is_step(&text) {
                steps += 1;
                progress.event(Event::Advance(steps));
            }
            Ok(())
        })?;
        let status = job.finish()?;
        if status.success() {
            written?;
            return Ok(steps);
        }
        if let Some(full) = self.full_disk(disk_full) {
            return Err(full.into());
        }
        Err(BuildError::Make {
            target: targets.join(" "),
            status,
            log: self.slot.log_path(),
            tail: self.log.tail(),
        })
    }

    /// Which disk is full, if one is; `said` is whether the build said so.
    fn full_disk(&self, said: bool) -> Option<StorageError> {
        let build_dir = self.slot.build_dir();
        let candidates = [build_dir.clone(), std::env::temp_dir()];
        let full = candidates.into_iter().find(|path| is_full(path));
        full.or(said.then_some(build_dir))
            .map(|path| StorageError::at(&path)(Errno::ENOSPC.into()))
    }
}

/// Environment variables that would make kbuild build something else than the
/// cache key says.
fn changes_the_build(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "ARCH",
        "SUBARCH",
        "CROSS_COMPILE",
        "LLVM",
        "LLVM_IAS",
        "LOCALVERSION",
        "KCFLAGS",
        "KCPPFLAGS",
        "KAFLAGS",
        "KRUSTFLAGS",
        "MAKEFLAGS",
        "MFLAGS",
        "GNUMAKEFLAGS",
        "MAKELEVEL",
        "MAKEFILES",
        "C",
        "V",
        "W",
        "O",
        "M",
    ];
    let named_build = matches!(
        name,
        "KBUILD_BUILD_USER" | "KBUILD_BUILD_HOST" | "KBUILD_BUILD_TIMESTAMP"
    );
    NAMES.contains(&name)
        || name.starts_with("KCONFIG_")
        || (name.starts_with("KBUILD_") && !named_build)
}

#[cfg(test)]
mod tests;
