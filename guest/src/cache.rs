//! The cache of kernels and kernel sources.
//!
//! ```text
//! $XDG_CACHE_HOME/kscope/            (default ~/.cache/kscope)
//!   sources/NAME/                    an unpacked kernel source
//!   sources/NAME.tmp/                one that is being unpacked
//!   sources/NAME.lock                held exclusively to unpack, shared to build
//!   kernels/KEY/build/               the build tree (make's O=), `linux` in it
//!   kernels/KEY/build.log            everything the build said
//!   kernels/KEY/entry.json           what it is; there only when all of it is
//!   kernels/KEY.lock                 held while it is built or pruned
//!   facts/BUILD-ID.facts             what was looked up in a kernel's DWARF
//!   facts/BUILD-ID.types             the types that were described, to print values of them
//!   facts/BUILD-ID.names             the names of all types
//!   apt/SUITE/                       apt's lists of a Debian suite that the machine has not
//!   apt/SUITE.lock                   held exclusively to read it, shared to download from it
//! ```
//!
//! An entry is whole if and only if its `entry.json` is there: it is removed
//! before a build touches the entry and written last, by a rename. The build
//! tree stays, since coverage needs its .gcno files and gdb its sources.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::FlockArg;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hostjob::Cancel;
use crate::presets::Preset;

mod lock;
mod prune;
pub(crate) use lock::lock_path;
pub use lock::{Lock, LockError};
pub use prune::{PruneReason, Pruned, Removed, disk_usage};

/// The version of `entry.json` and of the cache keys; entries of another
/// version are rebuilt.
pub const VERSION: u32 = 1;

/// What the name of a source that is being unpacked ends in.
pub(crate) const UNPACKING: &str = ".tmp";

/// A file or directory of the cache could not be read or written.
#[derive(Debug, Error)]
#[error("{path}: {reason}{}", hint(.reason), path = .path.display())]
pub struct StorageError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    pub reason: std::io::Error,
}

impl StorageError {
    pub(crate) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self { path, reason }
    }
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            " (make room there, `kscope build --prune` may help, or point XDG_CACHE_HOME at a bigger disk)"
        }
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            " (point XDG_CACHE_HOME at a directory that you may write)"
        }
        _ => "",
    }
}

/// There is no place for a cache.
#[derive(Debug, Error)]
#[error("no place for the kernel cache: set HOME or XDG_CACHE_HOME to an absolute path")]
pub struct NoCacheDir;

/// Where the source of a kernel came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntrySource {
    /// As the user says it: `debian:6.12`, or the path of a tree.
    pub name: String,
    /// What exactly it is: `linux-source-6.12 6.12.117-1~deb12u1`, or the
    /// tree's own version.
    pub version: String,
    /// The directory of the sources.
    pub path: PathBuf,
    /// Whether it is somebody's own tree, which changes under the entry.
    pub tree: bool,
}

/// A whole kernel in the cache: the contents of `entry.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// [`VERSION`].
    pub version: u32,
    /// The cache key, also the name of the entry's directory.
    pub key: String,
    /// The source.
    pub source: EntrySource,
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// The presets, `base` among them.
    pub presets: Vec<Preset>,
    /// The user's own fragments, by path.
    pub fragments: Vec<PathBuf>,
    /// `$CC` when it was set.
    pub cc: Option<String>,
    /// The compiler's own words: `gcc version 12.2.0 (Debian 12.2.0-14)`.
    pub compiler: String,
    /// The kernel: `…/build/linux`.
    pub linux: PathBuf,
    /// The size of `linux`, bytes.
    pub linux_size: u64,
    /// The build steps that a build from nothing took; 0 when unknown.
    pub steps: u64,
    /// The options that are `y` in its configuration.
    pub options: u64,
    /// When the build ended, seconds since 1970.
    pub built: u64,
    /// When `kscope build` last gave it to somebody, seconds since 1970.
    #[serde(default)]
    pub asked: u64,
}

impl Entry {
    /// The build tree (make's `O=`).
    pub fn build_dir(&self) -> &Path {
        self.linux.parent().unwrap_or(&self.linux)
    }

    /// The time since it was built; zero when the clock went back.
    pub fn age(&self) -> Duration {
        let built = SystemTime::UNIX_EPOCH + Duration::from_secs(self.built);
        built.elapsed().unwrap_or_default()
    }

    fn is_whole(&self) -> bool {
        self.version == VERSION
            && fs::metadata(&self.linux).is_ok_and(|m| m.is_file() && m.len() == self.linux_size)
    }
}

/// What there is of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// All of it.
    Whole(Box<Entry>),
    /// A builder is at it.
    Building,
    /// What an interrupted or failed build left.
    Incomplete,
}

/// One kernel's place in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The cache key.
    pub key: String,
    /// The directory.
    pub dir: PathBuf,
    /// How whole it is.
    pub state: State,
}

/// The cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache: `$XDG_CACHE_HOME/kscope`, by default
    /// `~/.cache/kscope`. Nothing is created.
    ///
    /// # Errors
    ///
    /// When neither variable holds an absolute path.
    pub fn open() -> Result<Self, NoCacheDir> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        absolute("XDG_CACHE_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".cache")))
            .map(|dir| Self::at(dir.join("kscope")))
            .ok_or(NoCacheDir)
    }

    /// A cache in `root`.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The cache's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where sources are unpacked.
    pub fn sources_dir(&self) -> PathBuf {
        self.root.join("sources")
    }

    /// Where kernels are built.
    pub fn kernels_dir(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Where apt's lists of other suites are.
    pub(crate) fn apt_dir(&self) -> PathBuf {
        self.root.join("apt")
    }

    /// Where facts about kernels are kept, their types and source lines, by build-id.
    pub fn facts_dir(&self) -> PathBuf {
        self.root.join("facts")
    }

    /// The place of one kernel.
    pub fn slot(&self, key: &str) -> Slot {
        Slot {
            key: key.to_owned(),
            dir: self.kernels_dir().join(key),
        }
    }

    /// Every kernel in the cache, whole or not, by key.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read; a missing one is an empty cache.
    pub fn list(&self) -> Result<Vec<Listed>, StorageError> {
        let mut listed = Vec::new();
        for key in subdirectories(&self.kernels_dir())? {
            let slot = self.slot(&key);
            let state = match slot.entry() {
                Some(entry) => State::Whole(Box::new(entry)),
                None if Lock::is_held(&slot.lock_path()) => State::Building,
                None => State::Incomplete,
            };
            listed.push(Listed {
                key,
                dir: slot.dir,
                state,
            });
        }
        Ok(listed)
    }

    /// The whole kernels in the cache.
    ///
    /// # Errors
    ///
    /// As [`Cache::list`].
    pub fn entries(&self) -> Result<Vec<Entry>, StorageError> {
        let whole = |listed: Listed| match listed.state {
            State::Whole(entry) => Some(*entry),
            _ => None,
        };
        Ok(self.list()?.into_iter().filter_map(whole).collect())
    }

    /// The directories of the unpacked sources.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read; a missing one is an empty cache.
    pub fn sources(&self) -> Result<Vec<PathBuf>, StorageError> {
        let dir = self.sources_dir();
        let names = subdirectories(&dir)?.into_iter();
        Ok(names
            .filter(|name| !name.ends_with(UNPACKING))
            .map(|name| dir.join(name))
            .collect())
    }

    /// The kernel to take when somebody needs these presets: one built from
    /// `tree` (the kernel tree the user stands in) before others, then one
    /// with the fewest presets and fragments beyond the needed ones, then one
    /// with the default preset, then the one that `kscope build` was last asked
    /// for.
    pub fn find(&self, needed: &[Preset], tree: Option<&Path>) -> Option<Entry> {
        let rank = |entry: &Entry| {
            let extra = entry.presets.len() + entry.fragments.len();
            let here = tree.is_some_and(|tree| entry.source.tree && entry.source.path == tree);
            // Of equals, what `kscope build` makes when nothing is asked for:
            // not the instrumented kernel, say, which is slower.
            let default = entry.presets.contains(&Preset::Debug);
            (
                here,
                std::cmp::Reverse(extra),
                default,
                entry.asked,
                entry.built,
            )
        };
        // An unreadable cache has nothing to offer; a build will say why.
        let entries = self.entries().unwrap_or_default();
        entries
            .into_iter()
            .filter(|entry| needed.iter().all(|preset| entry.presets.contains(preset)))
            .max_by_key(rank)
    }
}

/// The cached kernel to take when somebody needs these presets, for example
/// `find(&[Preset::Coverage])`: see [`Cache::find`].
pub fn find(needed: &[Preset]) -> Option<PathBuf> {
    let tree = std::env::current_dir()
        .ok()
        .and_then(|dir| crate::source::enclosing_tree(&dir));
    let entry = Cache::open().ok()?.find(needed, tree.as_deref())?;
    Some(entry.linux)
}

/// The names of the directories in `dir`, sorted; none when it is missing.
fn subdirectories(dir: &Path) -> Result<Vec<String>, StorageError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(StorageError::at(dir))?,
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(StorageError::at(dir))?;
        // A name that is no UTF-8 is not ours.
        if let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string())
            && kind.is_dir()
        {
            names.insert(name);
        }
    }
    Ok(names.into_iter().collect())
}

/// The place of one kernel in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    key: String,
    dir: PathBuf,
}

impl Slot {
    /// The cache key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The build tree.
    pub fn build_dir(&self) -> PathBuf {
        self.dir.join("build")
    }

    /// The log of the latest build.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("build.log")
    }

    fn entry_path(&self) -> PathBuf {
        self.dir.join("entry.json")
    }

    /// Present while a build runs; what is left of one that was killed may
    /// hold half-written objects that make would take for good ones.
    fn dirty_path(&self) -> PathBuf {
        self.dir.join("building")
    }

    fn lock_path(&self) -> PathBuf {
        lock_path(&self.dir)
    }

    /// The whole kernel here, if there is one.
    pub fn entry(&self) -> Option<Entry> {
        let text = fs::read(self.entry_path()).ok()?;
        let entry: Entry = serde_json::from_slice(&text).ok()?;
        entry.is_whole().then_some(entry)
    }

    /// Takes the slot for building; calls `on_wait` once when another builder
    /// has it, and waits.
    ///
    /// # Errors
    ///
    /// When the lock cannot be had, or the wait is cancelled.
    pub fn lock(&self, cancel: &Cancel, on_wait: impl FnOnce()) -> Result<Lock, LockError> {
        Lock::wait(
            &self.lock_path(),
            FlockArg::LockExclusiveNonblock,
            cancel,
            on_wait,
        )
    }

    /// Makes the slot not whole and fit to be built in. A build tree whose
    /// build was killed is removed. Returns whether a build tree is left, so
    /// that the build will be incremental.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written.
    pub fn begin(&self, _lock: &Lock) -> Result<bool, StorageError> {
        let build = self.build_dir();
        fs::create_dir_all(&self.dir).map_err(StorageError::at(&self.dir))?;
        remove_file(&self.entry_path())?;
        let dirty = self.dirty_path();
        if dirty.exists() {
            remove_dir(&build)?;
        }
        File::create(&dirty).map_err(StorageError::at(&dirty))?;
        let incremental = build.join("linux").exists();
        fs::create_dir_all(&build).map_err(StorageError::at(&build))?;
        Ok(incremental)
    }

    /// Says that the build ended in good order, well or not: what it left is
    /// fit for make to go on from.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written.
    pub fn settle(&self, _lock: &Lock) -> Result<(), StorageError> {
        remove_file(&self.dirty_path())
    }

    /// Makes the slot whole.
    ///
    /// # Errors
    ///
    /// When the entry cannot be written; the slot is not whole then.
    pub fn commit(&self, _lock: &Lock, entry: &Entry) -> Result<(), StorageError> {
        // After a power cut a whole entry must not have an empty kernel.
        File::open(&entry.linux)
            .and_then(|file| file.sync_all())
            .map_err(StorageError::at(&entry.linux))?;
        let path = self.entry_path();
        let temporary = self.dir.join("entry.json.tmp");
        let mut text = serde_json::to_vec_pretty(entry).map_err(|error| StorageError {
            path: path.clone(),
            reason: error.into(),
        })?;
        text.push(b'\n');
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| {
            // What a full disk took of it is of no use.
            let _ = fs::remove_file(&temporary);
            StorageError::at(&path)(error)
        })
    }
}

/// Removes a file; a missing one is fine.
fn remove_file(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StorageError::at(path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it; a missing one is fine.
pub(crate) fn remove_dir(path: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StorageError::at(path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
