//! Kernel sources: a tree on disk, or Debian's source package.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::cache::{Cache, Lock, LockError, StorageError};
use crate::hostjob::{Cancel, JobError};
use crate::progress::Progress;

mod debian;
pub use debian::Package;

/// Where to get the source of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A kernel tree, by its canonical path.
    Tree(PathBuf),
    /// The package `linux-source-VERSION` of the configured Debian suites, else
    /// of Debian's others.
    Debian(String),
}

impl Source {
    /// What is meant when nothing is said: the tree that `dir` is in, else
    /// Debian's 6.12.
    pub fn default_in(dir: &Path) -> Self {
        enclosing_tree(dir).map_or_else(|| Self::Debian("6.12".into()), Self::Tree)
    }

    /// The name, as on the command line.
    pub fn name(&self) -> String {
        match self {
            Self::Tree(path) => path.display().to_string(),
            Self::Debian(version) => format!("debian:{version}"),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(version) = text.strip_prefix("debian:") {
            let is_version = version.split('.').count() >= 2
                && version
                    .split('.')
                    .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
            return if is_version {
                Ok(Self::Debian(version.to_owned()))
            } else {
                Err(SourceError::NoVersion(text.to_owned()))
            };
        }
        let path = Path::new(text);
        let tree = fs::canonicalize(path).map_err(StorageError::at(path))?;
        if is_tree(&tree) {
            Ok(Self::Tree(tree))
        } else {
            Err(SourceError::NoTree(tree))
        }
    }
}

/// A source cannot be had.
#[derive(Debug, Error)]
pub enum SourceError {
    /// `debian:` with something else than a version.
    #[error("`{0}` names no kernel version: write for example debian:6.12")]
    NoVersion(String),
    /// A directory that holds no kernel, or one without UML.
    #[error(
        "{0} is no kernel tree (no Makefile, Kconfig and arch/um in it): give the top of a tree, or debian:6.12"
    )]
    NoTree(PathBuf),
    /// The kernel's Makefile does not say its version.
    #[error("{0}/Makefile does not say which version it is (VERSION, PATCHLEVEL)")]
    NoKernelVersion(PathBuf),
    /// Kbuild refuses such paths.
    #[error(
        "{0}: the kernel's build does not work in a path with spaces or colons: move it (the cache: set XDG_CACHE_HOME)"
    )]
    BadPath(PathBuf),
    /// The tree was built in place; a build elsewhere would take its files.
    #[error(
        "{tree} was configured or built in place ({found} is there), so it cannot be built elsewhere: \
         run `make -C {tree} ARCH=um mrproper` (it deletes .config: save yours first)",
        tree = .tree.display()
    )]
    NotClean {
        /// The tree.
        tree: PathBuf,
        /// What gives it away.
        found: &'static str,
    },
    /// Programs for getting Debian's sources are missing.
    #[error("cannot get {name}: {} not found ({fix})", .missing.join(", "))]
    NoTools {
        /// The source's name.
        name: String,
        /// The programs.
        missing: Vec<&'static str>,
        /// What to do.
        fix: String,
    },
    /// apt knows no kernel sources at all.
    #[error(
        "cannot get {0}: apt on this machine knows no linux-source package: run `apt-get update` as root \
         (on another system than Debian give the path of a kernel tree)"
    )]
    NoLists(String),
    /// There are other versions.
    #[error("cannot get {name}: {who} offers only {}", .offered.join(", "))]
    NotOffered {
        /// The source's name.
        name: String,
        /// Who has the others.
        who: &'static str,
        /// What would work, as `debian:VERSION`.
        offered: Vec<String>,
    },
    /// The machine's own suites do not have it, and another could not be read.
    #[error(
        "cannot get {name}: apt on this machine offers only {}, and Debian's {suite} cannot be read: {said}{hint}",
        .offered.join(", ")
    )]
    Suite {
        /// The source's name.
        name: String,
        /// What the machine's own suites have, as `debian:VERSION`.
        offered: Vec<String>,
        /// The other suite.
        suite: &'static str,
        /// What apt said.
        said: String,
        /// What may help; with its own separator.
        hint: &'static str,
    },
    /// A step of getting the package failed.
    #[error("cannot get {package}: {program} failed: {said}{hint}")]
    Fetch {
        /// The package.
        package: String,
        /// The program.
        program: &'static str,
        /// The end of its output.
        said: String,
        /// What may help; with its own separator.
        hint: &'static str,
    },
    /// A file or directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A host command.
    #[error(transparent)]
    Job(#[from] JobError),
}

impl From<LockError> for SourceError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Storage(error) => Self::Storage(error),
            LockError::Cancelled => Self::Job(JobError::Cancelled),
        }
    }
}

/// A source that is known exactly, if not yet there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// As the user says it.
    pub name: String,
    /// What exactly it is; for a tree the version it says of itself.
    pub version: String,
    /// The directory where it is or will be.
    pub dir: PathBuf,
    /// The package to unpack there; `None` for a tree.
    pub package: Option<Package>,
}

impl Resolved {
    /// The kernel's version and patch level: 6 and 12 of 6.12.117.
    pub fn series(&self) -> Option<(u32, u32)> {
        let version = match &self.package {
            Some(package) => package.name.rsplit('-').next()?,
            None => &self.version,
        };
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// The part of the cache key that stands for the source: a package by name
    /// and version, a tree by its path alone, since it changes.
    pub fn identity(&self) -> String {
        match &self.package {
            Some(package) => format!("package {} {}", package.name, package.version),
            None => format!("tree {}", self.dir.display()),
        }
    }
}

/// A source that is there, and stays while this is held.
#[derive(Debug)]
pub struct Ready {
    /// The directory.
    pub dir: PathBuf,
    /// Keeps `kscope build --prune` off; a tree needs no lock.
    _lock: Option<Lock>,
}

impl Source {
    /// Finds out what exactly is meant; downloads nothing.
    ///
    /// # Errors
    ///
    /// When there is no such source, or the tree is not fit for building.
    pub fn resolve(
        &self,
        cache: &Cache,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Resolved, SourceError> {
        let resolved = match self {
            Self::Debian(version) => debian::resolve(version, cache, progress, cancel)?,
            Self::Tree(dir) => {
                check_clean(dir)?;
                Resolved {
                    name: self.name(),
                    version: kernel_version(dir)?,
                    dir: dir.clone(),
                    package: None,
                }
            }
        };
        // What the kernel's Makefile checks, said before minutes are spent.
        if resolved
            .dir
            .to_string_lossy()
            .contains([' ', ':', '\t', '\n'])
        {
            return Err(SourceError::BadPath(resolved.dir));
        }
        Ok(resolved)
    }
}

impl Resolved {
    /// Gets the source, unless it is there already.
    ///
    /// # Errors
    ///
    /// When it cannot be downloaded or unpacked; nothing half-unpacked is left
    /// where it would be taken for whole.
    pub fn get(
        &self,
        cache: &Cache,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Ready, SourceError> {
        let lock = match &self.package {
            Some(package) => Some(debian::get(package, &self.dir, cache, progress, cancel)?),
            None => None,
        };
        Ok(Ready {
            dir: self.dir.clone(),
            _lock: lock,
        })
    }
}

/// The kernel tree that `dir` is in, by its canonical path.
pub fn enclosing_tree(dir: &Path) -> Option<PathBuf> {
    let dir = fs::canonicalize(dir).ok()?;
    dir.ancestors().find(|dir| is_tree(dir)).map(Path::to_owned)
}

fn is_tree(dir: &Path) -> bool {
    ["Makefile", "Kconfig", "arch/um/Makefile"]
        .iter()
        .all(|file| dir.join(file).is_file())
}

/// Refuses a tree that kbuild would refuse for an `O=` build, or worse, mix up
/// with what was built in it.
fn check_clean(tree: &Path) -> Result<(), SourceError> {
    let traces = [
        ".config",
        "include/config",
        "include/generated",
        "arch/um/include/generated",
        "arch/x86/include/generated",
    ];
    match traces.into_iter().find(|file| tree.join(file).exists()) {
        Some(found) => Err(SourceError::NotClean {
            tree: tree.to_owned(),
            found,
        }),
        None => Ok(()),
    }
}

/// The version that a tree's Makefile says: `6.12.117`, `7.3.0-rc1`.
fn kernel_version(tree: &Path) -> Result<String, SourceError> {
    let path = tree.join("Makefile");
    let text = fs::read(&path).map_err(StorageError::at(&path))?;
    let text = String::from_utf8_lossy(&text);
    let value = |name: &str| {
        text.lines().take(20).find_map(|line| {
            let (left, right) = line.split_once('=')?;
            (left.trim() == name).then(|| right.trim().to_owned())
        })
    };
    match (value("VERSION"), value("PATCHLEVEL")) {
        (Some(major), Some(minor)) => {
            let sublevel = value("SUBLEVEL").unwrap_or_default();
            let sublevel = if sublevel.is_empty() {
                sublevel
            } else {
                format!(".{sublevel}")
            };
            let extra = value("EXTRAVERSION").unwrap_or_default();
            Ok(format!("{major}.{minor}{sublevel}{extra}"))
        }
        _ => Err(SourceError::NoKernelVersion(tree.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("arch/um")).unwrap();
        fs::create_dir_all(dir.path().join("kernel/sched")).unwrap();
        fs::write(dir.path().join("Kconfig"), "").unwrap();
        fs::write(dir.path().join("arch/um/Makefile"), "").unwrap();
        fs::write(
            dir.path().join("Makefile"),
            "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 0\nEXTRAVERSION = -rc1\nNAME = x\n",
        )
        .unwrap();
        dir
    }

    #[test]
    fn parses_names() {
        assert_eq!(
            "debian:6.12".parse::<Source>().unwrap(),
            Source::Debian("6.12".into())
        );
        for wrong in [
            "debian:",
            "debian:sid",
            "debian:6",
            "debian:6.",
            "debian:6.12;rm",
        ] {
            let error = wrong.parse::<Source>().unwrap_err();
            assert!(matches!(error, SourceError::NoVersion(_)), "{error}");
        }
        let error = "/no/such/tree".parse::<Source>().unwrap_err().to_string();
        assert!(error.contains("/no/such/tree"), "{error}");
        let error = "/usr".parse::<Source>().unwrap_err();
        assert!(matches!(error, SourceError::NoTree(_)), "{error}");
    }

    #[test]
    fn finds_the_tree_around_a_directory() {
        let tree = fake_tree();
        let root = fs::canonicalize(tree.path()).unwrap();
        let inside = tree.path().join("kernel/sched");
        assert_eq!(enclosing_tree(&inside), Some(root.clone()));
        assert_eq!(Source::default_in(&inside), Source::Tree(root));
        assert_eq!(
            Source::default_in(Path::new("/")),
            Source::Debian("6.12".into())
        );
    }

    #[test]
    fn reads_the_version() {
        let tree = fake_tree();
        assert_eq!(kernel_version(tree.path()).unwrap(), "7.3.0-rc1");
        fs::write(tree.path().join("Makefile"), "all:\n").unwrap();
        assert!(matches!(
            kernel_version(tree.path()),
            Err(SourceError::NoKernelVersion(_))
        ));
    }

    #[test]
    fn a_tree_built_in_place_is_refused_with_the_fix() {
        let tree = fake_tree();
        check_clean(tree.path()).unwrap();
        fs::write(tree.path().join(".config"), "").unwrap();
        let error = check_clean(tree.path()).unwrap_err().to_string();
        assert!(
            error.contains(".config") && error.contains("mrproper"),
            "{error}"
        );
    }
}
