//! Removing what nobody will ask the cache for again.
//!
//! Pruned are
//!
//! - kernels that are not whole and that nobody is building;
//! - kernels that a newer one supersedes: same source by name, same presets,
//!   same fragments by path, same `$CC`, but built later (from a newer package,
//!   an edited fragment, by a newer compiler, …);
//! - kernels whose source is gone;
//! - sources that no kernel is left of, and what interrupted downloads left.
//!
//! Never removed is what a builder has locked, or what a process of this user
//! (root: of any) runs, maps, has open or stands in: a guest, a gdb, a shell.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::FlockArg;

use super::{
    Cache, Entry, Lock, State, StorageError, UNPACKING, lock_path, remove_dir, subdirectories,
};

/// Why something was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneReason {
    /// The build did not end well.
    Incomplete,
    /// There is a newer one.
    Superseded,
    /// Its source is not there any more.
    SourceGone,
    /// No kernel of it is left.
    Unused,
}

impl PruneReason {
    /// The reason in a word or two.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::Superseded => "superseded",
            Self::SourceGone => "source gone",
            Self::Unused => "unused",
        }
    }
}

/// Something that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The directory it was in.
    pub path: PathBuf,
    /// The disk space that it took, bytes.
    pub size: u64,
    /// Why.
    pub reason: PruneReason,
}

/// What pruning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// What was removed.
    pub removed: Vec<Removed>,
    /// What would have been but is in use, and by which process.
    pub in_use: Vec<(PathBuf, i32)>,
}

impl Cache {
    /// Removes what is stale; see the module's documentation for what that is.
    ///
    /// # Errors
    ///
    /// At the first thing that cannot be removed.
    pub fn prune(&self) -> Result<Pruned, StorageError> {
        let mut pruned = Pruned::default();
        let listed = self.list()?;
        let entries = self.entries()?;
        // Asked anew under the lock: while this ran, a newer kernel may have gone.
        let stale_now = |entry: &Entry| {
            self.entries()
                .is_ok_and(|entries| stale(entry, &entries).is_some())
        };
        for kernel in &listed {
            let reason = match &kernel.state {
                State::Building => None,
                State::Incomplete => Some(PruneReason::Incomplete),
                State::Whole(entry) => stale(entry, &entries),
            };
            if let Some(reason) = reason {
                let still = || match (reason, self.slot(&kernel.key).entry()) {
                    // Somebody may have finished it since the list was made.
                    (PruneReason::Incomplete, entry) => entry.is_none(),
                    (_, entry) => entry.is_some_and(|entry| stale_now(&entry)),
                };
                let lock = lock_path(&kernel.dir);
                prune_dir(&kernel.dir, &lock, reason, still, &mut pruned)?;
            }
        }
        self.prune_sources(&mut pruned)?;
        Ok(pruned)
    }

    fn prune_sources(&self, pruned: &mut Pruned) -> Result<(), StorageError> {
        let used = || -> Result<BTreeSet<PathBuf>, StorageError> {
            let entries = self.entries()?.into_iter();
            Ok(entries.map(|entry| entry.source.path).collect())
        };
        let used_before = used()?;
        let dir = self.sources_dir();
        for name in subdirectories(&dir)? {
            let path = dir.join(&name);
            // A source is unpacked under its final name's lock.
            let (locked, reason) = match name.strip_suffix(UNPACKING) {
                Some(name) => (dir.join(name), PruneReason::Incomplete),
                None => (path.clone(), PruneReason::Unused),
            };
            if !used_before.contains(&path) {
                // A kernel of it may have been finished before the lock was taken.
                let still = || used().is_ok_and(|used| !used.contains(&path));
                prune_dir(&path, &lock_path(&locked), reason, still, pruned)?;
            }
        }
        Ok(())
    }
}

fn stale(entry: &Entry, entries: &[Entry]) -> Option<PruneReason> {
    let identity = |e: &Entry| {
        (
            e.source.name.clone(),
            e.presets.clone(),
            e.fragments.clone(),
            e.cc.clone(),
        )
    };
    if !entry.source.path.is_dir() {
        return Some(PruneReason::SourceGone);
    }
    let newer = |other: &Entry| (other.built, &other.key) > (entry.built, &entry.key);
    entries
        .iter()
        .any(|other| identity(other) == identity(entry) && newer(other))
        .then_some(PruneReason::Superseded)
}

/// Removes a directory of the cache and its lock file, unless it is locked, in
/// use, or `still` says that there is no reason any more.
fn prune_dir(
    dir: &Path,
    lock: &Path,
    reason: PruneReason,
    still: impl FnOnce() -> bool,
    pruned: &mut Pruned,
) -> Result<(), StorageError> {
    let Some(held) = Lock::now(lock, FlockArg::LockExclusiveNonblock)? else {
        return Ok(());
    };
    if !still() {
        return Ok(());
    }
    if let Some(pid) = user_of(dir) {
        pruned.in_use.push((dir.to_owned(), pid));
        return Ok(());
    }
    let size = disk_usage(dir);
    // The entry goes first: what is left of it, should this be interrupted, is
    // not whole.
    super::remove_file(&dir.join("entry.json"))?;
    remove_dir(dir)?;
    super::remove_file(lock)?;
    drop(held);
    pruned.removed.push(Removed {
        path: dir.to_owned(),
        size,
        reason,
    });
    Ok(())
}

/// A process that runs, maps, has open or stands in something below `dir`,
/// among those whose /proc this user may read.
fn user_of(dir: &Path) -> Option<i32> {
    let dir = fs::canonicalize(dir).ok()?;
    let below = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(&dir));
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let path = process.path();
        let has_open =
            fs::read_dir(path.join("fd")).is_ok_and(|fds| fds.flatten().any(|fd| below(fd.path())));
        if has_open || below(path.join("exe")) || below(path.join("cwd")) || maps(&path, &dir) {
            return Some(pid);
        }
    }
    None
}

/// Whether a process maps a file below `dir`.
fn maps(process: &Path, dir: &Path) -> bool {
    let Ok(maps) = fs::read_to_string(process.join("maps")) else {
        return false;
    };
    maps.lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .any(|path| Path::new(path).starts_with(dir))
}

/// The disk space that a directory takes, bytes; what cannot be read counts
/// nothing.
pub fn disk_usage(dir: &Path) -> u64 {
    let mut total = 0;
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else {
                continue;
            };
            total += meta.blocks() * 512;
            // metadata() does not follow links: no cycles.
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}
