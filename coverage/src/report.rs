//! A whole kernel's coverage: the objects' together, by source file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, io, thread};

use rustc_hash::FxHashMap;

use crate::counters::{Counters, ObjectCounters};
use crate::gcno::{Notes, NotesError};
use crate::object::{ObjectBranch, ObjectCoverage, ObjectFile, solve};
use crate::tree::BuildTree;

/// What a kernel's counters mean for its source.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    /// By path.
    pub files: BTreeMap<String, FileCoverage>,
    /// How many objects went into it.
    pub objects: usize,
    /// Objects that did not, and why.
    pub skipped: Vec<Skipped>,
    /// What may be inexact.
    pub doubts: Doubts,
    /// The root of the kernel's source tree, as far as the objects tell.
    pub source_root: Option<String>,
    /// The directory in which it was built.
    pub build_root: String,
}

/// Counts of what may be inexact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Doubts {
    /// Functions whose checksums are not those of the notes; they count as not run.
    pub mismatched: usize,
    /// Functions with counters that contradict each other.
    pub torn: usize,
    /// Lines and branches whose count came out negative and is shown as 0.
    pub negative: usize,
}

/// An object that was left out.
#[derive(Debug)]
pub struct Skipped {
    /// Its notes.
    pub notes: PathBuf,
    /// Why.
    pub reason: SkipReason,
}

impl Clone for Skipped {
    fn clone(&self) -> Self {
        let reason = match &self.reason {
            SkipReason::Missing => SkipReason::Missing,
            SkipReason::Stale => SkipReason::Stale,
            SkipReason::Unreadable(error) => {
                SkipReason::Unreadable(io::Error::new(error.kind(), error.to_string()))
            }
            SkipReason::Damaged(error) => SkipReason::Damaged(error.clone()),
        };
        Self {
            notes: self.notes.clone(),
            reason,
        }
    }
}

/// Why an object was left out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkipReason {
    /// There is no such file.
    #[error("the file does not exist")]
    Missing,
    /// The notes are of another compilation than the one that runs.
    #[error("stale: the object was compiled again after the kernel was linked")]
    Stale,
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// The file makes no sense.
    #[error("{0}")]
    Damaged(NotesError),
}

/// No object's notes could be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "none of the {objects} .gcno files of the kernel can be used (`{first}`: {reason}): coverage \
     needs the tree that the running kernel was built in; name it with --build-tree, or build \
     kernel and tree anew with `kscope build --preset coverage`",
    first = first.display()
)]
pub struct NoNotes {
    /// How many were looked for.
    pub objects: usize,
    /// The first one.
    pub first: PathBuf,
    /// What is wrong with it.
    #[source]
    pub reason: SkipReason,
}

/// One source file's coverage.
#[derive(Debug, Clone, Default)]
pub struct FileCoverage {
    /// Lines with code, by number from 1.
    pub lines: BTreeMap<u32, LineCoverage>,
    /// By name.
    pub functions: BTreeMap<String, FunctionCoverage>,
}

/// A line of a source file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LineCoverage {
    /// How often it ran.
    pub count: u64,
    /// The ways out of it, where there are several. Those of a header's line
    /// are added up over the objects that include it, first to first and so
    /// on, even though the compiler may have made different ones of it.
    pub branches: Vec<BranchCoverage>,
}

/// One way out of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BranchCoverage {
    /// How often it was taken.
    pub count: u64,
    /// Whether the choice was ever come to.
    pub reached: bool,
}

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionCoverage {
    /// From 1.
    pub start_line: u32,
    /// The last line.
    pub end_line: u32,
    /// How often it was entered.
    pub count: u64,
}

/// Found and hit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Ratio {
    /// How many there are.
    pub found: u64,
    /// How many of them ran.
    pub hit: u64,
}

/// The totals of a file, a directory, or all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Lines with code.
    pub lines: Ratio,
    /// Functions.
    pub functions: Ratio,
    /// Branches.
    pub branches: Ratio,
}

impl Ratio {
    /// Hundredths of what was found, or `None` of nothing.
    pub fn percent(self) -> Option<f64> {
        (self.found > 0).then(|| self.hit as f64 * 100.0 / self.found as f64)
    }

    fn note(&mut self, hit: bool) {
        self.found += 1;
        self.hit += u64::from(hit);
    }
}

impl std::ops::AddAssign for Ratio {
    fn add_assign(&mut self, other: Self) {
        self.found += other.found;
        self.hit += other.hit;
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.lines += other.lines;
        self.functions += other.functions;
        self.branches += other.branches;
    }
}

impl FileCoverage {
    /// The file's totals.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for line in self.lines.values() {
            totals.lines.note(line.count > 0);
            line.branches
                .iter()
                .for_each(|b| totals.branches.note(b.count > 0));
        }
        self.functions
            .values()
            .for_each(|f| totals.functions.note(f.count > 0));
        totals
    }

    fn add(&mut self, file: ObjectFile, doubts: &mut Doubts) {
        let mut clamp = |count: i64| {
            doubts.negative += usize::from(count < 0);
            u64::try_from(count).unwrap_or(0)
        };
        for function in file.functions {
            let count = clamp(function.count);
            let entry = self
                .functions
                .entry(function.name)
                .or_insert(FunctionCoverage {
                    start_line: function.start_line,
                    end_line: function.end_line,
                    count: 0,
                });
            entry.count = entry.count.saturating_add(count);
        }
        // Lines that several functions have for themselves come more than
        // once; their branches are different ones, and follow each other.
        let mut lines: BTreeMap<u32, (u64, Vec<ObjectBranch>)> = BTreeMap::new();
        for line in file.lines {
            let (count, branches) = lines.entry(line.number).or_default();
            *count = count.saturating_add(clamp(line.count));
            branches.extend(line.branches);
        }
        for (number, (count, branches)) in lines {
            let line = self.lines.entry(number).or_default();
            line.count = line.count.saturating_add(count);
            if line.branches.len() < branches.len() {
                line.branches
                    .resize(branches.len(), BranchCoverage::default());
            }
            for (sum, branch) in line.branches.iter_mut().zip(branches) {
                sum.count = sum.count.saturating_add(clamp(branch.count));
                sum.reached |= branch.reached;
            }
        }
    }

    fn merge(&mut self, other: FileCoverage) {
        for (name, function) in other.functions {
            let entry = self.functions.entry(name).or_insert(FunctionCoverage {
                count: 0,
                ..function
            });
            entry.count = entry.count.saturating_add(function.count);
        }
        for (number, line) in other.lines {
            let sum = self.lines.entry(number).or_default();
            sum.count = sum.count.saturating_add(line.count);
            if sum.branches.len() < line.branches.len() {
                sum.branches
                    .resize(line.branches.len(), BranchCoverage::default());
            }
            for (sum, branch) in sum.branches.iter_mut().zip(line.branches) {
                sum.count = sum.count.saturating_add(branch.count);
                sum.reached |= branch.reached;
            }
        }
    }
}

impl Coverage {
    /// Solves `counters` with the notes in `tree`, on `threads` threads.
    ///
    /// # Errors
    ///
    /// When not a single object's notes can be used.
    pub fn solve(
        counters: &Counters,
        tree: &BuildTree,
        threads: NonZeroUsize,
    ) -> Result<Self, NoNotes> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut part = Part::default();
            while let Some(object) = counters.objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                part.add(object, tree);
            }
            part
        };
        let whole = thread::scope(|scope| {
            let others: Vec<_> = (1..threads.get()).map(|_| scope.spawn(work)).collect();
            others.into_iter().fold(work(), |mut whole, other| {
                match other.join() {
                    Ok(part) => whole.merge(part),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
                whole
            })
        });
        whole.finish(tree)
    }

    /// All files' totals.
    pub fn totals(&self) -> Totals {
        self.files
            .values()
            .fold(Totals::default(), |mut sum, file| {
                sum += file.totals();
                sum
            })
    }

    /// Keeps the files whose [`Coverage::relative`] path `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        let files = std::mem::take(&mut self.files);
        self.files = files
            .into_iter()
            .filter(|(path, _)| keep(self.relative(path)))
            .collect();
    }

    /// A path below the kernel's source or build directory, or as it is.
    pub fn relative<'a>(&self, path: &'a str) -> &'a str {
        let below = |root: &str| path.strip_prefix(root)?.strip_prefix('/');
        // A build directory can be within the source tree, but not the other way round.
        below(&self.build_root)
            .or_else(|| below(self.source_root.as_deref()?))
            .unwrap_or(path)
    }

    /// Totals by directory, no more than `depth` levels below the kernel's root.
    pub fn directories(&self, depth: usize) -> BTreeMap<String, Totals> {
        let mut directories: BTreeMap<String, Totals> = BTreeMap::new();
        for (path, file) in &self.files {
            let relative = self.relative(path);
            let directory = Path::new(relative).parent().unwrap_or(Path::new(""));
            let root = usize::from(directory.is_absolute());
            let directory: PathBuf = directory.components().take(depth.max(1) + root).collect();
            let name = match directory.to_string_lossy() {
                name if name.is_empty() => ".".to_owned(),
                name => name.into_owned(),
            };
            *directories.entry(name).or_default() += file.totals();
        }
        directories
    }
}

/// One thread's share.
#[derive(Default)]
struct Part {
    files: FxHashMap<String, FileCoverage>,
    objects: usize,
    skipped: Vec<Skipped>,
    doubts: Doubts,
    /// How many objects say that the source tree has this root.
    roots: FxHashMap<String, usize>,
}

impl Part {
    fn add(&mut self, object: &ObjectCounters, tree: &BuildTree) {
        let notes = match read_notes(object, tree) {
            Ok(notes) => notes,
            Err(skipped) => return self.skipped.push(skipped),
        };
        self.objects += 1;
        let ObjectCoverage {
            files,
            mismatched,
            torn,
            ..
        } = solve(&notes, Some(object));
        self.doubts.mismatched += mismatched;
        self.doubts.torn += torn;
        for file in files {
            let path = tree.source(notes.cwd.as_deref(), &file.name);
            if let Some(root) = source_root(object, notes.cwd.as_deref(), &path) {
                *self.roots.entry(root).or_default() += 1;
            }
            self.files
                .entry(path)
                .or_default()
                .add(file, &mut self.doubts);
        }
    }

    fn merge(&mut self, other: Part) {
        for (path, file) in other.files {
            match self.files.entry(path) {
                std::collections::hash_map::Entry::Occupied(mut entry) => {
                    entry.get_mut().merge(file);
                }
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(file);
                }
            }
        }
        self.objects += other.objects;
        self.skipped.extend(other.skipped);
        self.doubts.mismatched += other.doubts.mismatched;
        self.doubts.torn += other.doubts.torn;
        self.doubts.negative += other.doubts.negative;
        for (root, count) in other.roots {
            *self.roots.entry(root).or_default() += count;
        }
    }

    fn finish(mut self, tree: &BuildTree) -> Result<Coverage, NoNotes> {
        self.skipped.sort_by(|a, b| a.notes.cmp(&b.notes));
        if self.objects == 0 && !self.skipped.is_empty() {
            let objects = self.skipped.len();
            let Skipped {
                notes: first,
                reason,
            } = self.skipped.swap_remove(0);
            return Err(NoNotes {
                objects,
                first,
                reason,
            });
        }
        let root = self
            .roots
            .into_iter()
            .max_by(|a, b| (a.1, &b.0).cmp(&(b.1, &a.0)));
        Ok(Coverage {
            files: self.files.into_iter().collect(),
            objects: self.objects,
            skipped: self.skipped,
            doubts: self.doubts,
            source_root: root.map(|(root, _)| root),
            build_root: tree.root().to_string_lossy().into_owned(),
        })
    }
}

/// The source tree's root, if `path` is the file that `object` was made from:
/// what `kernel/fork.c` and `kernel/fork.gcda` do not have in common.
fn source_root(object: &ObjectCounters, cwd: Option<&str>, path: &str) -> Option<String> {
    let data = crate::gcno::tidy(&object.data_file);
    let data = data.strip_prefix(cwd?)?.strip_prefix('/')?;
    let stem = data.strip_suffix(".gcda")?;
    let root = path.strip_suffix(".c")?.strip_suffix(stem)?;
    root.strip_suffix('/')
        .filter(|r| !r.is_empty())
        .map(str::to_owned)
}

fn read_notes(object: &ObjectCounters, tree: &BuildTree) -> Result<Notes, Skipped> {
    let mut trouble = None;
    for path in tree.notes_of(&object.data_file) {
        let reason = match fs::read(&path) {
            Ok(bytes) => match Notes::parse(&bytes) {
                Ok(notes) if notes.stamp == object.stamp => return Ok(notes),
                Ok(_) => SkipReason::Stale,
                Err(error) => SkipReason::Damaged(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => SkipReason::Missing,
            Err(error) => SkipReason::Unreadable(error),
        };
        // Of two places, the one with something in it is the one to tell of.
        if !matches!(
            trouble,
            Some(Skipped {
                reason: SkipReason::Stale | SkipReason::Damaged(_),
                ..
            })
        ) {
            trouble = Some(Skipped {
                notes: path,
                reason,
            });
        }
    }
    Err(trouble.unwrap_or_else(|| Skipped {
        notes: PathBuf::from(&object.data_file),
        reason: SkipReason::Missing,
    }))
}
