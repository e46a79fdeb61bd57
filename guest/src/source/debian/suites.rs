//! Debian's suites beyond those that the machine is configured for.
//!
//! Each suite that is looked into has a directory in the cache with a
//! `sources.list` of one entry and a configuration that keeps apt's lists
//! there, so that neither the machine's configuration nor its lists are
//! touched. The entry is the machine's own for Debian's archive (its mirror,
//! its key), with another suite.
//!
//! apt verifies what it reads, as ever. A suite newer than the machine may be
//! signed with a key that the machine does not have yet; then the package
//! `debian-archive-keyring` that the machine's own suites offer, and its own
//! keys verify, is unpacked beside the lists and believed. There is no way
//! around a signature.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::FlockArg;

use super::Package;
use super::apt::Apt;
use crate::cache::{Cache, Lock, LockError, StorageError, lock_path, remove_dir};
use crate::hostjob::{Cancel, JobError, capture};
use crate::progress::{Event, Progress};
use crate::source::SourceError;

mod mirror;
use mirror::Mirror;

/// Where kernels that the machine's own suites lack are looked for, in this
/// order: backports have a short list; the rest from the newest down. Code
/// names, since a mirror's aliases (`stable`) may lag. What Debian has not made
/// yet is skipped.
const SUITES: &[&str] = &[
    "trixie-backports",
    "forky-backports",
    "sid",
    "experimental",
    "forky",
    "trixie",
    "bookworm-backports",
    "bookworm",
];

/// How long lists are believed before apt is asked for newer ones.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

const KEYRING: &str = "debian-archive-keyring";

/// What looking into the suites found.
#[derive(Debug)]
pub(super) enum Found {
    /// The package.
    Package(Package),
    /// Only these versions, if it could look at all.
    Others(Vec<String>),
    /// Not it, but some suite could not be read.
    Unread {
        /// Which one, the first of them.
        suite: &'static str,
        /// What apt said.
        said: String,
        /// What may help; with its own separator.
        hint: &'static str,
    },
}

/// Looks for a package in the suites that the machine does not have, and
/// brings their lists up to date where they are old.
pub(super) fn find(
    name: &str,
    cache: &Cache,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Found, SourceError> {
    let Some(mirror) = Mirror::of_machine(cancel)? else {
        return Ok(Found::Others(Vec::new()));
    };
    let mut versions = Vec::new();
    let mut unread = None;
    let mut offline = false;
    for &suite in SUITES.iter().filter(|suite| !mirror.has(suite)) {
        let lists = Lists::of(cache, suite);
        let _lock = lists.lock(FlockArg::LockExclusiveNonblock, progress, cancel)?;
        if !offline && !lists.are_fresh(&mirror) {
            progress.event(Event::Phase {
                verb: "Reading",
                what: &format!("Debian's list of {suite}"),
                amount: None,
            });
            match lists.update(&mirror, cache, cancel)? {
                Update::Done => {}
                Update::Failed { said, hint } => {
                    // Not once more for each suite: it may take long to fail.
                    offline |= hint == OFFLINE;
                    unread.get_or_insert((suite, said, hint));
                }
            }
        }
        if lists.are_there() {
            let apt = lists.apt();
            if let Some(package) = apt.offers(name, Some(suite), cancel)? {
                return Ok(Found::Package(package));
            }
            versions.extend(apt.versions(cancel)?);
        }
    }
    Ok(match unread {
        Some((suite, said, hint)) => Found::Unread { suite, said, hint },
        None => Found::Others(versions),
    })
}

/// apt for a suite that [`find`] has found something in; the lists stay as they
/// are while the lock is held.
pub(super) fn apt_for(
    suite: &'static str,
    cache: &Cache,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<(Apt, Lock), SourceError> {
    let lists = Lists::of(cache, suite);
    let lock = lists.lock(FlockArg::LockSharedNonblock, progress, cancel)?;
    Ok((lists.apt(), lock))
}

const OFFLINE: &str = "; is the network there?";
const NO_KEY: &str = "; the key may be in a newer package debian-archive-keyring: install it";

enum Update {
    /// The lists are up to date, or it is known that there is no such suite.
    Done,
    /// The lists are as they were.
    Failed { said: String, hint: &'static str },
}

/// apt's private lists of one suite.
struct Lists {
    dir: PathBuf,
    suite: &'static str,
}

impl Lists {
    fn of(cache: &Cache, suite: &'static str) -> Self {
        Self {
            dir: cache.apt_dir().join(suite),
            suite,
        }
    }

    fn lock(
        &self,
        kind: FlockArg,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Lock, LockError> {
        Lock::wait(&lock_path(&self.dir), kind, cancel, || {
            progress.event(Event::Phase {
                verb: "Waiting",
                what: &format!("for another kscope that reads {}", self.suite),
                amount: None,
            });
        })
    }

    fn sources(&self) -> PathBuf {
        self.dir.join("debian.sources")
    }

    /// Written when the lists have been read: what for, or that there are none.
    fn stamp(&self) -> PathBuf {
        self.dir.join("read")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("apt.conf")
    }

    fn apt(&self) -> Apt {
        Apt::with(&self.config())
    }

    /// Whether there are lists, however old.
    fn are_there(&self) -> bool {
        fs::read_to_string(self.stamp()).is_ok_and(|text| text != ABSENT)
    }

    fn are_fresh(&self, mirror: &Mirror) -> bool {
        let age = fs::metadata(self.stamp())
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        let of_mirror = fs::read_to_string(self.sources())
            .is_ok_and(|text| text.starts_with(&mirror.entry(self.suite)));
        of_mirror && age.is_some_and(|age| age < FRESH)
    }

    /// Has apt read the suite's lists; with the keys of the machine, else with
    /// those that the machine's suites offer.
    fn update(
        &self,
        mirror: &Mirror,
        cache: &Cache,
        cancel: &Cancel,
    ) -> Result<Update, SourceError> {
        let mut said = self.try_update(mirror, mirror.signed_by.as_deref(), cancel)?;
        if let Some(text) = &said
            && is_unverified(text)
            && let Some(keyring) = offered_keyring(cache, cancel)?
        {
            let keyring = format!(" {}", keyring.display());
            said = self.try_update(mirror, Some(&keyring), cancel)?;
        }
        let stamp = self.stamp();
        let text = match said {
            None => "there\n",
            Some(said) if is_absent(&said) => ABSENT,
            Some(said) => {
                let hint = if is_unverified(&said) {
                    NO_KEY
                } else {
                    OFFLINE
                };
                // What that means for the rest of apt's life.
                let lines = said
                    .lines()
                    .filter(|line| !line.contains("Some index files"));
                let said = super::last_words(&lines.collect::<Vec<_>>().join("\n"));
                return Ok(Update::Failed { said, hint });
            }
        };
        fs::write(&stamp, text).map_err(StorageError::at(&stamp))?;
        Ok(Update::Done)
    }

    /// Returns what apt said when it could not.
    fn try_update(
        &self,
        mirror: &Mirror,
        signed_by: Option<&str>,
        cancel: &Cancel,
    ) -> Result<Option<String>, SourceError> {
        for dir in ["lists/partial", "cache/archives/partial"] {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).map_err(StorageError::at(&dir))?;
        }
        let mut sources = mirror.entry(self.suite);
        if let Some(signed_by) = signed_by {
            // Last: `are_fresh` compares what is before.
            sources.push_str(&format!("Signed-By:{signed_by}\n"));
        }
        for (path, text) in [
            (self.sources(), sources),
            (self.config(), config(&self.dir, &self.sources())),
        ] {
            fs::write(&path, text).map_err(StorageError::at(&path))?;
        }
        let mut command = self.apt().command("apt-get");
        command.arg("update");
        let (status, said) = capture(command, cancel)?;
        Ok((!status.success()).then_some(said))
    }
}

/// The stamp of a suite that the mirror does not have.
const ABSENT: &str = "absent\n";

/// Laid over the machine's configuration of apt: lists, cache and sources in
/// `dir`, and nothing done to the machine on the way.
fn config(dir: &Path, sources: &Path) -> String {
    format!(
        "#clear APT::Default-Release;\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         APT::Update::Error-Mode \"any\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::http::Timeout \"20\";\n\
         Acquire::https::Timeout \"20\";\n\
         Dir::Etc::sourcelist \"{sources}\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State::lists \"{dir}/lists\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         Dir::Cache::archives \"archives\";\n\
         Dir::Cache::pkgcache \"\";\n\
         Dir::Cache::srcpkgcache \"\";\n",
        sources = sources.display(),
        dir = dir.display(),
    )
}

/// Whether apt found no such suite on the mirror.
fn is_absent(said: &str) -> bool {
    said.contains("does not have a Release file")
}

/// Whether apt could not verify the suite.
fn is_unverified(said: &str) -> bool {
    // The last is what apt says that verifies with sqv.
    ["NO_PUBKEY", "is not signed", "Missing key"]
        .iter()
        .any(|words| said.contains(words))
}

/// The keyring in the package that the machine's own suites offer: got and
/// verified as the machine's configuration says, and unpacked into the cache.
fn offered_keyring(cache: &Cache, cancel: &Cancel) -> Result<Option<PathBuf>, SourceError> {
    let dir = cache.apt_dir().join("keyring");
    let _lock = Lock::wait(
        &lock_path(&dir),
        FlockArg::LockExclusiveNonblock,
        cancel,
        || {},
    )?;
    let apt = Apt::machine();
    let Some(package) = apt.offers(KEYRING, None, cancel)? else {
        return Ok(None);
    };
    let content = dir.join(package.version.replace(':', "-"));
    if !content.is_dir() {
        remove_dir(&dir)?;
        let unpacking = dir.join("unpacking");
        fs::create_dir_all(&unpacking).map_err(StorageError::at(&unpacking))?;
        let mut command = apt.command("apt-get");
        command
            .arg("download")
            .arg(format!("{KEYRING}={}", package.version))
            .current_dir(&dir);
        if !run(command, cancel)? {
            return Ok(None);
        }
        let Some(deb) = super::find_deb(&dir)? else {
            return Ok(None);
        };
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(&deb).arg(&unpacking);
        if !run(command, cancel)? {
            return Ok(None);
        }
        fs::remove_file(&deb).map_err(StorageError::at(&deb))?;
        fs::rename(&unpacking, &content).map_err(StorageError::at(&content))?;
    }
    // `.pgp` from Debian 13 on.
    Ok(["gpg", "pgp"]
        .into_iter()
        .map(|end| content.join(format!("usr/share/keyrings/{KEYRING}.{end}")))
        .find(|path| path.is_file()))
}

fn run(command: Command, cancel: &Cancel) -> Result<bool, JobError> {
    Ok(capture(command, cancel)?.0.success())
}
