//! The sandbox where namespaces are refused: Landlock (Linux 5.13 and later).

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::sandbox::Needs;

/// Why Landlock is of no help either.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LandlockError {
    /// The host's kernel has it not, or not enabled.
    #[error("Landlock is not available")]
    Unavailable,
    /// A rule was refused.
    #[error("Landlock: {0}")]
    Rules(#[from] RulesetError),
    /// A directory of the rules cannot be opened.
    #[error("Landlock: {0}")]
    Path(#[from] landlock::PathFdError),
    /// The guest's memory has no place.
    #[error(
        "no directory to keep {} MiB of guest memory in: {}", memory >> 20, tried.join(", ")
    )]
    NoRoom {
        /// Bytes.
        memory: u64,
        /// What is wrong with each candidate.
        tried: Vec<String>,
    },
}

/// Lets the calling process and its children read everything and write only to
/// the guest's directory and to its memory file. Returns the directory for the
/// latter; the supervisor removes it.
pub(crate) fn enter(needs: &Needs<'_>) -> Result<PathBuf, LandlockError> {
    let tmpdir = tmpdir(needs)?;
    restrict(needs, &tmpdir).inspect_err(|_| {
        if tmpdir != needs.scratch {
            let _ = fs::remove_dir(&tmpdir);
        }
    })?;
    Ok(tmpdir)
}

fn restrict(needs: &Needs<'_>, tmpdir: &Path) -> Result<(), LandlockError> {
    // Version 1 has every right that could change a file's content or name,
    // except for moving between directories and truncating, which later
    // versions deny where the host knows them.
    let all = AccessFs::from_all(ABI::V3);
    let read = AccessFs::from_read(ABI::V3);
    let devices = read | AccessFs::WriteFile;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, read))?
        .add_rule(PathBeneath::new(PathFd::new(needs.writable)?, all))?
        .add_rule(PathBeneath::new(PathFd::new(tmpdir)?, all))?
        // Opened for writing by the kernel's start-up checks: /dev/null, ptys.
        .add_rule(PathBeneath::new(PathFd::new("/dev")?, devices))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(LandlockError::Unavailable);
    }
    Ok(())
}

/// A private directory whose files can be mapped executable, with room for the
/// guest's memory; on a tmpfs if there is one, since elsewhere the memory is
/// written out to a disk.
fn tmpdir(needs: &Needs<'_>) -> Result<PathBuf, LandlockError> {
    let mut tried = Vec::new();
    let mut on_disk = None;
    let configured = std::env::var_os("TMPDIR").map(PathBuf::from);
    let candidates = [
        Some(needs.scratch.to_owned()),
        Some(PathBuf::from("/dev/shm")),
        configured,
        Some(PathBuf::from("/tmp")),
        Some(PathBuf::from("/var/tmp")),
    ];
    for dir in candidates.into_iter().flatten() {
        match look(&dir, needs.memory) {
            Ok(fs) if fs == TMPFS_MAGIC => return private(dir, needs),
            Ok(_) => {
                on_disk.get_or_insert(dir);
            }
            Err(reason) => tried.push(format!("{} {reason}", dir.display())),
        }
    }
    match on_disk {
        Some(dir) => private(dir, needs),
        None => Err(LandlockError::NoRoom {
            memory: needs.memory,
            tried,
        }),
    }
}

/// A directory of the guest's own inside a shared one.
fn private(dir: PathBuf, needs: &Needs<'_>) -> Result<PathBuf, LandlockError> {
    if dir == needs.scratch {
        return Ok(dir);
    }
    let path = dir.join(format!("kscope-{}", std::process::id()));
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(LandlockError::NoRoom {
            memory: needs.memory,
            tried: vec![format!("{} cannot be made ({error})", path.display())],
        }),
    }
}

fn look(dir: &Path, memory: u64) -> Result<FsType, String> {
    let describe = |e: nix::Error| format!("cannot be used ({})", io::Error::from(e));
    let vfs = statvfs(dir).map_err(describe)?;
    if vfs.flags().contains(FsFlags::ST_NOEXEC) {
        return Err("is mounted noexec".to_owned());
    }
    if vfs.flags().contains(FsFlags::ST_RDONLY) {
        return Err("is mounted read-only".to_owned());
    }
    let free = vfs.blocks_available() * vfs.fragment_size();
    if free < memory {
        return Err(format!("has only {} MiB free", free >> 20));
    }
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).map_err(describe)?;
    Ok(statfs(dir).map_err(describe)?.filesystem_type())
}
