//! Debian's `linux-source-*` packages, unpacked into the cache.
//!
//! Nothing is installed and nothing of the system is written: `apt-get
//! download` into a private directory works without root, and so do dpkg-deb
//! and tar. What the machine's own suites offer is taken; what they do not, is
//! looked for in Debian's other suites (see [`suites`]).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::FlockArg;

use super::{Resolved, SourceError};
use crate::cache::{Cache, Lock, StorageError, UNPACKING, lock_path, remove_dir};
use crate::disk::{is_full, says_disk_full};
use crate::hostjob::{Cancel, Job, capture, feed};
use crate::progress::{Amount, Event, Progress, Unit};
use crate::toolchain::find_program;

mod apt;
mod suites;

use apt::{Apt, SOURCE};
use suites::Found;

/// One version of a source package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// `linux-source-6.12`.
    pub name: String,
    /// `6.12.117-1~deb12u1`.
    pub version: String,
    /// The size of the download, bytes; `None` when only the cache has it.
    pub size: Option<u64>,
    /// The suite that it is in when the machine's own have it not.
    pub suite: Option<&'static str>,
}

impl Package {
    fn dir(&self, cache: &Cache) -> PathBuf {
        let version: String = self
            .version
            .chars()
            .map(|c| match c {
                // Kbuild and make refuse colons, people dislike tildes.
                'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '+' | '-' => c,
                _ => '-',
            })
            .collect();
        cache.sources_dir().join(format!("{}_{version}", self.name))
    }
}

/// The file that an unpacked source says its package version in.
const VERSION_FILE: &str = ".kscope-package";

/// Which package is meant by `debian:VERSION`: the one that apt would install
/// now, else the one in another of Debian's suites, else, when that cannot be
/// said, the one that was unpacked last.
pub(super) fn resolve(
    version: &str,
    cache: &Cache,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Resolved, SourceError> {
    let name = format!("{SOURCE}{version}");
    let package = match offered(&name, version, cache, progress, cancel) {
        Ok(package) => package,
        Err(error @ SourceError::Job(_)) => return Err(error),
        Err(error) => match newest_unpacked(&name, cache) {
            Some(package) => {
                progress.event(Event::Note(&format!(
                    "{}; taking the cached {}",
                    match &error {
                        SourceError::Suite { suite, said, .. } =>
                            format!("Debian's {suite} cannot be read now ({said})"),
                        _ => format!("apt does not offer {name} now"),
                    },
                    package.version
                )));
                package
            }
            None => return Err(error),
        },
    };
    Ok(Resolved {
        name: format!("debian:{version}"),
        version: format!("{name} {}", package.version),
        dir: package.dir(cache),
        package: Some(package),
    })
}

/// What apt would download, from the machine's own suites if they have it.
fn offered(
    name: &str,
    version: &str,
    cache: &Cache,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Package, SourceError> {
    check_tools(version)?;
    let apt = Apt::machine();
    if let Some(package) = apt.offers(name, None, cancel)? {
        return Ok(package);
    }
    let source = format!("debian:{version}");
    let own = apt.versions(cancel)?;
    if own.is_empty() {
        return Err(SourceError::NoLists(source));
    }
    // apt's configuration, make and the entry of a list are all written with it.
    if !cache.root().to_str().is_some_and(is_plain) {
        return Err(SourceError::BadPath(cache.root().to_owned()));
    }
    match suites::find(name, cache, progress, cancel)? {
        Found::Package(package) => Ok(package),
        Found::Others(others) => Err(SourceError::NotOffered {
            name: source,
            who: if others.is_empty() {
                "apt on this machine"
            } else {
                "Debian"
            },
            offered: as_sources(own.into_iter().chain(others)),
        }),
        Found::Unread { suite, said, hint } => Err(SourceError::Suite {
            name: source,
            offered: as_sources(own),
            suite,
            said,
            hint,
        }),
    }
}

fn is_plain(path: &str) -> bool {
    !path.contains([' ', ':', '"', '\t', '\n'])
}

/// Versions as the user writes them, each once, the oldest first.
fn as_sources(versions: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut versions: Vec<String> = versions.into_iter().collect();
    let numbers = |version: &str| -> Vec<u32> {
        let parts = version.split('.');
        parts.map_while(|part| part.parse().ok()).collect()
    };
    versions.sort_by_cached_key(|version| (numbers(version), version.clone()));
    versions.dedup();
    let named = versions
        .into_iter()
        .map(|version| format!("debian:{version}"));
    named.collect()
}

fn check_tools(version: &str) -> Result<(), SourceError> {
    let missing_of = |programs: &[&'static str]| -> Vec<&'static str> {
        let missing = programs.iter().filter(|p| find_program(p).is_none());
        missing.copied().collect()
    };
    let name = format!("debian:{version}");
    let missing = missing_of(&["apt-get", "apt-cache", "dpkg-deb"]);
    if !missing.is_empty() {
        return Err(SourceError::NoTools {
            name,
            missing,
            fix: "this is no Debian: give the path of a kernel tree with --source".into(),
        });
    }
    let missing = missing_of(&["tar", "xz"]);
    if !missing.is_empty() {
        return Err(SourceError::NoTools {
            name,
            missing,
            fix: "install them: apt-get install tar xz-utils".into(),
        });
    }
    Ok(())
}

fn newest_unpacked(name: &str, cache: &Cache) -> Option<Package> {
    let dirs = fs::read_dir(cache.sources_dir()).ok()?.flatten();
    dirs.filter(|dir| {
        let file = dir.file_name();
        let rest = file.to_str().and_then(|file| file.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with('_') && !rest.ends_with(UNPACKING))
    })
    .filter_map(|dir| {
        let said = dir.path().join(VERSION_FILE);
        let when = fs::metadata(&said).and_then(|m| m.modified()).ok()?;
        let version = fs::read_to_string(&said).ok()?;
        Some((when, version.trim().to_owned()))
    })
    .max()
    .map(|(_, version)| Package {
        name: name.to_owned(),
        version,
        size: None,
        suite: None,
    })
}

/// Makes sure that the package is unpacked in `dir`; the lock keeps it there.
pub(super) fn get(
    package: &Package,
    dir: &Path,
    cache: &Cache,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Lock, SourceError> {
    let lock_file = lock_path(dir);
    let wait = |kind, progress: &mut dyn Progress| {
        Lock::wait(&lock_file, kind, cancel, || {
            progress.event(Event::Phase {
                verb: "Waiting",
                what: &format!("for another kscope that unpacks {}", package.name),
                amount: None,
            });
        })
    };
    loop {
        let lock = wait(FlockArg::LockSharedNonblock, progress)?;
        if dir.join(VERSION_FILE).is_file() {
            return Ok(lock);
        }
        drop(lock);
        let _lock = wait(FlockArg::LockExclusiveNonblock, progress)?;
        if !dir.join(VERSION_FILE).is_file() {
            let mut temporary = dir.as_os_str().to_owned();
            temporary.push(UNPACKING);
            let temporary = PathBuf::from(temporary);
            remove_dir(&temporary)?;
            remove_dir(dir)?;
            let result = unpack(package, dir, &temporary, cache, progress, cancel);
            // Also what fills the disk after a failure.
            let cleaned = remove_dir(&temporary);
            result?;
            cleaned?;
        }
    }
}

fn unpack(
    package: &Package,
    dir: &Path,
    temporary: &Path,
    cache: &Cache,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    let tree = temporary.join("tree");
    fs::create_dir_all(&tree).map_err(StorageError::at(&tree))?;
    let deb = download(package, temporary, cache, progress, cancel)?;

    progress.event(Event::Phase {
        verb: "Unpacking",
        what: &package.name,
        amount: None,
    });
    let content = temporary.join("deb");
    let mut command = Command::new("dpkg-deb");
    command.env("LC_ALL", "C").arg("-x").arg(&deb).arg(&content);
    let (status, said) = capture(command, cancel)?;
    if !status.success() {
        return Err(failed(package, "dpkg-deb", &said, temporary));
    }
    fs::remove_file(&deb).map_err(StorageError::at(&deb))?;

    let archive = find_archive(&content.join("usr/src")).ok_or_else(|| {
        failed(
            package,
            "dpkg-deb",
            "no linux-source-*.tar.* in it",
            temporary,
        )
    })?;
    let input = File::open(&archive).map_err(StorageError::at(&archive))?;
    let total = input.metadata().map_err(StorageError::at(&archive))?.len();
    progress.event(Event::Phase {
        verb: "Unpacking",
        what: &format!("{} into {}", package.name, dir.display()),
        amount: Some(Amount {
            unit: Unit::Bytes,
            total: Some(total),
            exact: true,
        }),
    });
    let mut command = Command::new("tar");
    command
        .envs([("LC_ALL", "C"), ("XZ_OPT", "-T0")])
        .args(["-x", "--strip-components=1", "--no-same-owner"])
        .arg(match archive.extension().and_then(|e| e.to_str()) {
            Some("bz2") => "-j",
            Some("gz") => "-z",
            Some("zst") => "--zstd",
            _ => "-J",
        })
        .arg("-C")
        .arg(&tree);
    let (status, said) = feed(
        command,
        input,
        |n| progress.event(Event::Advance(n)),
        cancel,
    )?;
    if !status.success() {
        return Err(failed(package, "tar", &said, temporary));
    }
    let said = tree.join(VERSION_FILE);
    fs::write(&said, format!("{}\n", package.version)).map_err(StorageError::at(&said))?;
    fs::rename(&tree, dir).map_err(StorageError::at(dir))?;
    Ok(())
}

fn download(
    package: &Package,
    temporary: &Path,
    cache: &Cache,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<PathBuf, SourceError> {
    let (apt, _lock) = match package.suite {
        None => (Apt::machine(), None),
        Some(suite) => {
            let (apt, lock) = suites::apt_for(suite, cache, progress, cancel)?;
            (apt, Some(lock))
        }
    };
    let mut about: Vec<String> = Vec::new();
    about.extend(package.suite.map(|suite| format!("from {suite}")));
    about.extend(
        package
            .size
            .map(|size| format!("{} MB", size.div_ceil(1_000_000))),
    );
    let about = if about.is_empty() {
        String::new()
    } else {
        format!(" ({})", about.join(", "))
    };
    progress.event(Event::Phase {
        verb: "Downloading",
        what: &format!("{} {}{about}", package.name, package.version),
        amount: Some(Amount {
            unit: Unit::Percent,
            total: Some(100),
            exact: true,
        }),
    });
    let mut command = apt.command("apt-get");
    command
        .args(["-o", "APT::Status-Fd=1", "download"])
        .arg(format!("{}={}", package.name, package.version))
        .current_dir(temporary);
    let mut said = String::new();
    let mut job = Job::start(command, false, cancel)?;
    job.for_each_line(|line| {
        let line = String::from_utf8_lossy(line);
        match line
            .strip_prefix("dlstatus:")
            .map(|rest| rest.split(':').nth(1))
        {
            Some(percent) => {
                let percent: Option<f64> = percent.and_then(|p| p.parse().ok());
                if let Some(percent) = percent {
                    progress.event(Event::Advance(percent.clamp(0.0, 100.0) as u64));
                }
            }
            None if said.len() < 4096 => said.push_str(&format!("{line}\n")),
            None => {}
        }
        Ok(())
    })?;
    let status = job.finish()?;
    match find_deb(temporary)? {
        Some(deb) if status.success() => Ok(deb),
        _ => Err(failed(package, "apt-get", &said, cache.root())),
    }
}

/// The package file in a directory.
fn find_deb(dir: &Path) -> Result<Option<PathBuf>, StorageError> {
    let entries = fs::read_dir(dir).map_err(StorageError::at(dir))?.flatten();
    let mut paths = entries.map(|entry| entry.path());
    Ok(paths.find(|path| path.extension().is_some_and(|e| e == "deb")))
}

/// The archive in the package: `usr/src/linux-source-6.12.tar.xz`, or one
/// directory further down.
fn find_archive(dir: &Path) -> Option<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let is_archive = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("linux-source-") && name.contains(".tar."))
            && path.is_file()
    };
    let top = list(dir);
    let below = top.iter().flat_map(|path| list(path));
    top.iter().cloned().chain(below).find(is_archive)
}

fn failed(package: &Package, program: &'static str, said: &str, dir: &Path) -> SourceError {
    if says_disk_full(said) || is_full(dir) {
        return StorageError::at(dir)(Errno::ENOSPC.into()).into();
    }
    let hint = if said.contains("404") || said.contains("Hash Sum mismatch") {
        "; apt's lists are out of date: run `apt-get update` as root"
    } else if program == "apt-get" {
        "; is the network there?"
    } else {
        ""
    };
    SourceError::Fetch {
        package: format!("{} {}", package.name, package.version),
        program,
        said: last_words(said),
        hint,
    }
}

/// The last lines of what a program said, as one.
fn last_words(said: &str) -> String {
    let said: Vec<&str> = said
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with("W:"))
        .collect();
    said[said.len().saturating_sub(3)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(version: &str) -> Package {
        Package {
            name: "linux-source-6.12".into(),
            version: version.into(),
            size: None,
            suite: None,
        }
    }

    #[test]
    fn versions_are_told_in_order() {
        let versions = ["6.12", "7.3", "6.1", "6.12", "7.2-rc1"].map(String::from);
        assert_eq!(
            as_sources(versions),
            ["debian:6.1", "debian:6.12", "debian:7.2-rc1", "debian:7.3"]
        );
    }

    #[test]
    fn directories_are_fit_for_make() {
        let dir = package("1:6.12.117-1~deb12u1").dir(&Cache::at("/c".into()));
        assert_eq!(
            dir,
            Path::new("/c/sources/linux-source-6.12_1-6.12.117-1-deb12u1")
        );
    }

    #[test]
    fn falls_back_to_what_is_unpacked() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().into());
        assert_eq!(newest_unpacked("linux-source-6.1", &cache), None);
        for (dir, version) in [
            ("linux-source-6.1_6.1.9-1", "6.1.9-1"),
            ("linux-source-6.12_6.12.1-1", "6.12.1-1"),
            ("linux-source-6.1_6.1.10-1.tmp", "6.1.10-1"),
        ] {
            let dir = cache.sources_dir().join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(VERSION_FILE), version).unwrap();
        }
        let package = newest_unpacked("linux-source-6.1", &cache).unwrap();
        assert_eq!(package.version, "6.1.9-1");
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let package = package("6.12.117-1~deb12u1");
        let said = "tar: x/y: Cannot write: No space left on device\n";
        let error = failed(&package, "tar", said, Path::new("/cache"));
        assert!(matches!(error, SourceError::Storage(_)), "{error}");
        assert!(error.to_string().contains("/cache"), "{error}");
        let error = failed(
            &package,
            "apt-get",
            "E: Failed to fetch x  404  Not Found\n",
            Path::new("/"),
        );
        assert!(error.to_string().contains("apt-get update"), "{error}");
    }
}
