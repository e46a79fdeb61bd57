//! Telling a full disk from other reasons why a program failed.

use std::path::Path;

use nix::sys::statvfs::statvfs;

/// A disk with less free space than this counts as full, bytes. Programs stop
/// at their next block, which may leave less than a block or a few.
const FULL: u64 = 4 << 20;

/// Whether there is next to no space for this user where `path` is.
pub(crate) fn is_full(path: &Path) -> bool {
    statvfs(path).is_ok_and(|vfs| vfs.blocks_available() * vfs.fragment_size() < FULL)
}

/// Whether a program's output says that the disk is full.
pub(crate) fn says_disk_full(text: &str) -> bool {
    text.contains("No space left on device") || text.contains("Disk quota exceeded")
}
