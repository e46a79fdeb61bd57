//! Locks on the cache's kernels and sources, between processes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use thiserror::Error;

use super::StorageError;
use crate::hostjob::Cancel;

/// How often a builder looks whether the one it waits for is done.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// The lock file of a directory of the cache.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// A lock could not be had.
#[derive(Debug, Error)]
pub enum LockError {
    /// The lock file is out of order.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Cancelled while waiting.
    #[error("interrupted")]
    Cancelled,
}

/// A held lock of the cache; released on drop.
///
/// The descriptor is inherited by the jobs that are started while it is held,
/// so that after a kill -9 of kscope the next builder waits until the last of
/// its compilers has ended.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock now, or returns `None` when somebody else has it.
    pub(crate) fn now(path: &Path, kind: FlockArg) -> Result<Option<Self>, StorageError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(StorageError::at(dir))?;
        }
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .map_err(StorageError::at(path))?;
            let file = match Flock::lock(file, kind) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, Errno::EINTR)) => continue,
                Err((_, errno)) => return Err(StorageError::at(path)(errno.into())),
            };
            // The holder before may have removed the file: then this lock is
            // on a file that nobody else will find.
            let ours = file.metadata().map_err(StorageError::at(path))?;
            if fs::metadata(path)
                .is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino()))
            {
                fcntl(&*file, FcntlArg::F_SETFD(FdFlag::empty()))
                    .map_err(|errno| StorageError::at(path)(errno.into()))?;
                return Ok(Some(Self { _file: file }));
            }
        }
    }

    /// Takes the lock, waiting for whoever has it; tells `on_wait` once.
    pub(crate) fn wait(
        path: &Path,
        kind: FlockArg,
        cancel: &Cancel,
        on_wait: impl FnOnce(),
    ) -> Result<Self, LockError> {
        let mut on_wait = Some(on_wait);
        loop {
            if let Some(lock) = Self::now(path, kind)? {
                return Ok(lock);
            }
            if let Some(on_wait) = on_wait.take() {
                on_wait();
            }
            std::thread::sleep(LOCK_POLL);
            if cancel.is_cancelled() {
                return Err(LockError::Cancelled);
            }
        }
    }

    /// Whether somebody holds the lock; creates nothing.
    pub(super) fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else {
            return false;
        };
        matches!(
            Flock::lock(file, FlockArg::LockSharedNonblock),
            Err((_, Errno::EWOULDBLOCK))
        )
    }
}
