//! Who is running: one directory per guest, found by name.
//!
//! `$XDG_RUNTIME_DIR/kscope/NAME/` (mode 0700) holds `guest.json`, the sockets
//! and the kernel's log. A supervisor holds a lock on its guest's directory
//! until it ends, however it ends; a directory whose lock is free belongs to
//! nobody and is removed by whoever comes by.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::leftovers;
use crate::processors::Mode;

/// The version of `guest.json`, and of `kscope list --format json`.
pub const FORMAT_VERSION: u32 = 1;

/// The longest name: socket paths have room for 107 bytes in all.
const MAX_NAME: usize = 40;
/// The longest path that a socket address holds, in bytes.
const MAX_SOCKET_PATH: usize = 107;

/// What `guest.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// [`FORMAT_VERSION`].
    pub version: u32,
    /// The version of the protocol on `control.sock`.
    pub protocol: u16,
    /// The guest's name.
    pub name: String,
    /// The guest's directory.
    pub dir: PathBuf,
    /// Host process id of the guest's kernel process.
    pub pid: u32,
    /// Host process id of the supervisor.
    pub supervisor: u32,
    /// The `linux` binary.
    pub kernel: PathBuf,
    /// Its build-id in hexadecimal.
    pub build_id: Option<String>,
    /// Where gdb connects, `HOST:PORT`; `None` without a gdb server.
    pub gdb: Option<String>,
    /// When the guest was started, in seconds since 1970-01-01 UTC.
    pub started: u64,
    /// The host CPU that the guest is kept on, if it is.
    pub cpu: Option<u32>,
    /// How many CPUs the guest has.
    #[serde(default = "one")]
    pub cpus: u32,
    /// How its processes are run.
    #[serde(default)]
    pub mode: Mode,
    /// The guest's memory, in bytes.
    pub memory: u64,
    /// The command that runs in the guest.
    pub command: Vec<String>,
}

fn one() -> u32 {
    1
}

/// A running guest, as found in the registry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its directory.
    pub dir: PathBuf,
    /// What it says about itself.
    pub record: Record,
}

impl Entry {
    /// The socket that `kscope_guest::remote::Connection` speaks to.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join(CONTROL_SOCKET)
    }

    /// The private socket of the gdb server.
    pub fn gdb_socket(&self) -> PathBuf {
        self.dir.join(GDB_SOCKET)
    }
}

/// File name of the control socket.
pub const CONTROL_SOCKET: &str = "control.sock";
/// File name of the gdb server's socket.
pub const GDB_SOCKET: &str = "gdb.sock";
const RECORD: &str = "guest.json";
const LOCK: &str = "lock";
const CPU: &str = "cpu";

/// The registry cannot be used, or does not have what is asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A file or directory of it cannot be made, read or removed.
    #[error("cannot {action} {}: {error}{}", path.display(), hint(error))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The directory under the temp dir is not this user's alone.
    #[error(
        "{} is not a directory that only this user can enter: set XDG_RUNTIME_DIR to one",
        path.display()
    )]
    Untrusted {
        /// The directory.
        path: PathBuf,
    },
    /// Sockets in the guest's directory would have too long a path.
    #[error(
        "{} is too long a path for sockets (at most {MAX_SOCKET_PATH} bytes): set XDG_RUNTIME_DIR to a shorter one",
        path.display()
    )]
    PathTooLong {
        /// The longest of them.
        path: PathBuf,
    },
    /// No name for a guest.
    #[error(
        "{name:?} cannot be a guest's name: use up to {MAX_NAME} letters, digits, '-', '_' and '.', beginning with a letter or digit"
    )]
    BadName {
        /// What was asked for.
        name: String,
    },
    /// Another guest has this name.
    #[error("a guest called {name} is running already: choose another --name")]
    Taken {
        /// The name.
        name: String,
    },
    /// No guest has this name.
    #[error("no guest called {name} is running: see `kscope list`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A name is needed, since there is no or more than one guest.
    #[error("{}", match names.len() {
        0 => "no guest is running: start one with `kscope run`".to_owned(),
        _ => format!("several guests are running ({}): say which", names.join(", ")),
    })]
    Ambiguous {
        /// Those that are running.
        names: Vec<String>,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => ": free some space, or set XDG_RUNTIME_DIR to a directory elsewhere",
        Some(libc::EACCES | libc::EROFS | libc::ENOENT | libc::EPERM) => {
            ": set XDG_RUNTIME_DIR to a directory of yours"
        }
        _ => "",
    }
}

/// The registry of the calling user.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The registry in `$XDG_RUNTIME_DIR`; in a private directory under the
    /// temp dir when that is unset or cannot be written.
    ///
    /// # Errors
    ///
    /// Neither can be used.
    pub fn open() -> Result<Registry, RegistryError> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        if let Some(runtime) = runtime.filter(|d| d.is_absolute())
            && let Ok(registry) = Registry::at(&runtime.join("kscope"))
        {
            return Ok(registry);
        }
        Registry::at(&std::env::temp_dir().join(format!("kscope-{}", geteuid())))
    }

    /// The registry in `dir`, which is made if need be.
    ///
    /// # Errors
    ///
    /// It cannot be made, or is open to others.
    pub fn at(dir: &Path) -> Result<Registry, RegistryError> {
        let registry = Registry {
            dir: dir.to_owned(),
        };
        // Fails here, and not in the middle of something, on a read-only or full disk.
        drop(registry.lock()?);
        Ok(registry)
    }

    /// Makes the directory if need be; whether it was still there afterwards,
    /// since whoever leaves it empty removes it.
    fn make(&self) -> Result<bool, RegistryError> {
        let io = |action| {
            move |error| RegistryError::Io {
                action,
                path: self.dir.clone(),
                error,
            }
        };
        let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            // Whatever the umask left of it.
            Ok(()) => {
                let mode = Permissions::from_mode(0o700);
                match fs::set_permissions(&self.dir, mode) {
                    Err(e) if gone(&e) => return Ok(false),
                    result => result.map_err(io("open"))?,
                }
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(io("make")(e)),
        }
        // Anybody may have made it, under the temp dir.
        let meta = match fs::symlink_metadata(&self.dir) {
            Err(e) if gone(&e) => return Ok(false),
            result => result.map_err(io("look at"))?,
        };
        if !meta.is_dir() || meta.uid() != geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(RegistryError::Untrusted {
                path: self.dir.clone(),
            });
        }
        Ok(true)
    }

    /// The directory that holds the guests' directories. It is there while a
    /// guest is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Held while the set of guests changes. The lock is on the directory
    /// itself, so that nothing is left when the last guest has gone.
    pub(crate) fn lock(&self) -> Result<RegistryLock<'_>, RegistryError> {
        let io = |action| {
            move |error| RegistryError::Io {
                action,
                path: self.dir.clone(),
                error,
            }
        };
        // Each round somebody else has removed the directory in between.
        for _ in 0..1000 {
            if !self.make()? {
                continue;
            }
            let file = match File::open(&self.dir) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(io("open")(e)),
            };
            let lock = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| io("lock")(errno.into()))?;
            let locked = lock.metadata().map_err(io("look at"))?;
            if let Ok(present) = fs::symlink_metadata(&self.dir)
                && (present.dev(), present.ino()) == (locked.dev(), locked.ino())
            {
                return Ok(RegistryLock {
                    registry: self,
                    _lock: lock,
                });
            }
        }
        Err(io("lock")(io::ErrorKind::TimedOut.into()))
    }

    /// Makes a guest's directory, under `name` or the first free one of `g1`, `g2`, …
    ///
    /// # Errors
    ///
    /// The name is taken or no name, or the directory cannot be made.
    pub fn claim(&self, name: Option<&str>) -> Result<GuestDir, RegistryError> {
        if let Some(name) = name
            && !is_name(name)
        {
            return Err(RegistryError::BadName {
                name: name.to_owned(),
            });
        }
        let _lock = self.lock()?;
        self.sweep();
        let mut number = 1u32;
        loop {
            let candidate = match name {
                Some(name) => name.to_owned(),
                None => format!("g{number}"),
            };
            let path = self.dir.join(&candidate);
            let longest = path.join(CONTROL_SOCKET);
            if longest.as_os_str().len() > MAX_SOCKET_PATH {
                return Err(RegistryError::PathTooLong { path: longest });
            }
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return GuestDir::new(candidate, path, self),
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(RegistryError::Io {
                        action: "make",
                        path,
                        error: e,
                    });
                }
                Err(_) if name.is_some() => return Err(RegistryError::Taken { name: candidate }),
                Err(_) => number += 1,
            }
        }
    }

    /// Removes the directories of guests whose supervisor is gone. The caller
    /// holds the lock, so that none of them is just being made.
    fn sweep(&self) {
        for (_, path) in self.names() {
            if is_abandoned(&path) {
                leftovers::end(&path);
                let _ = fs::remove_dir_all(&path);
            }
        }
    }

    fn names(&self) -> Vec<(String, PathBuf)> {
        let Ok(dir) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut names: Vec<_> = dir
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())))
            .filter(|(name, _)| is_name(name))
            .collect();
        names.sort();
        names
    }

    /// Every guest that is running, by name.
    ///
    /// # Errors
    ///
    /// The registry cannot be locked.
    pub fn list(&self) -> Result<Vec<Entry>, RegistryError> {
        {
            let _lock = self.lock()?;
            self.sweep();
        }
        Ok(self
            .names()
            .into_iter()
            .filter_map(|(_, dir)| read(dir))
            .collect())
    }

    /// How many guests have claimed each host CPU. The caller holds the lock.
    pub(crate) fn claimed_cpus(&self) -> BTreeMap<u32, usize> {
        let mut claimed = BTreeMap::new();
        for (_, dir) in self.names() {
            let cpu = fs::read_to_string(dir.join(CPU)).ok();
            if let Some(cpu) = cpu.and_then(|text| text.trim().parse().ok()) {
                *claimed.entry(cpu).or_default() += 1;
            }
        }
        claimed
    }

    /// The guest called `name`; without a name, the only one that is running.
    ///
    /// # Errors
    ///
    /// There is no such guest, or more than one to choose from.
    pub fn find(&self, name: Option<&str>) -> Result<Entry, RegistryError> {
        let mut entries = self.list()?;
        match name {
            Some(name) => entries
                .into_iter()
                .find(|e| e.record.name == name)
                .ok_or_else(|| RegistryError::Unknown {
                    name: name.to_owned(),
                }),
            None if entries.len() == 1 => Ok(entries.remove(0)),
            None => Err(RegistryError::Ambiguous {
                names: entries.into_iter().map(|e| e.record.name).collect(),
            }),
        }
    }
}

/// Nobody else changes the set of guests. Dropping it removes the registry's
/// directory if no guest is in it.
#[derive(Debug)]
pub(crate) struct RegistryLock<'a> {
    registry: &'a Registry,
    _lock: Flock<File>,
}

impl Drop for RegistryLock<'_> {
    fn drop(&mut self) {
        // Fails when it is not empty.
        let _ = fs::remove_dir(&self.registry.dir);
    }
}

/// A guest that has not written its record yet, or one of a newer version, is
/// not listed.
fn read(dir: PathBuf) -> Option<Entry> {
    let text = fs::read(dir.join(RECORD)).ok()?;
    let record = serde_json::from_slice(&text).ok()?;
    Some(Entry { dir, record })
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_abandoned(dir: &Path) -> bool {
    match File::open(dir.join(LOCK)) {
        Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok(),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

fn open_lock(path: &Path) -> Result<File, RegistryError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| RegistryError::Io {
            action: "open",
            path: path.to_owned(),
            error,
        })
}

/// A guest's directory, held by its supervisor. Dropping it removes it.
#[derive(Debug)]
pub struct GuestDir {
    name: String,
    path: PathBuf,
    registry: Registry,
    _lock: Flock<File>,
}

impl GuestDir {
    fn new(name: String, path: PathBuf, registry: &Registry) -> Result<GuestDir, RegistryError> {
        let made = GuestDir::lock(&path);
        match made {
            Ok(lock) => Ok(GuestDir {
                name,
                path,
                registry: registry.clone(),
                _lock: lock,
            }),
            Err(e) => {
                let _ = fs::remove_dir_all(&path);
                Err(e)
            }
        }
    }

    fn lock(path: &Path) -> Result<Flock<File>, RegistryError> {
        let io = |error| RegistryError::Io {
            action: "open",
            path: path.to_owned(),
            error,
        };
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io)?;
        let file = open_lock(&path.join(LOCK))?;
        // Only this process knows of the file.
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e): (_, Errno)| io(e.into()))
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes which host CPU the guest has. The caller holds the registry's lock.
    pub(crate) fn claim_cpu(&self, cpu: u32) -> Result<(), RegistryError> {
        let path = self.path.join(CPU);
        fs::write(&path, cpu.to_string()).map_err(|error| RegistryError::Io {
            action: "write",
            path,
            error,
        })
    }

    /// Publishes the guest: from here on others find it.
    ///
    /// # Errors
    ///
    /// The record cannot be written.
    pub fn publish(&self, record: &Record) -> Result<(), RegistryError> {
        let path = self.path.join(RECORD);
        let io = |error| RegistryError::Io {
            action: "write",
            path: path.clone(),
            error,
        };
        let text = serde_json::to_vec_pretty(record).map_err(|e| io(e.into()))?;
        // A reader sees all of it or nothing.
        let draft = self.path.join(".guest.json");
        fs::write(&draft, text).map_err(io)?;
        fs::rename(&draft, &path).map_err(io)
    }
}

impl Drop for GuestDir {
    fn drop(&mut self) {
        // The guest's lock is still held, so nobody else removes it at the same
        // time; what cannot be removed now is swept by the next command.
        let lock = self.registry.lock();
        let _ = fs::remove_dir_all(&self.path);
        drop(lock);
    }
}

#[cfg(test)]
mod tests;
