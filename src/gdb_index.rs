//! gdb's index of a kernel's symbols: with it they are read in half the time, and in a moment when
//! one is looked up.
//!
//! gdb keeps it itself, under the kernel's build id, in a directory that it is told of. The kernel's
//! file stays as it is.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kscope_guest::cache::Cache;

/// Options of gdb with which it uses the index, and makes one when there is none; nothing when there
/// is no place for it.
pub fn options() -> Vec<OsString> {
    let Some(directory) = directory() else {
        return Vec::new();
    };
    let mut set = OsString::from("set index-cache directory ");
    set.push(directory);
    vec![
        "-iex".into(),
        set,
        "-iex".into(),
        "set index-cache enabled on".into(),
    ]
}

/// Has gdb make the index of a kernel. Without gdb there is none, which nothing depends on.
pub fn prepare(kernel: &Path) {
    let made = Command::new("gdb")
        .args(["-nx", "-batch"])
        .args(options())
        .arg(kernel)
        // It is written in the background, and a symbol waits for that.
        .args(["-ex", "info line start_kernel"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if made.is_ok() {
        drop_oldest();
    }
}

/// Keeps the indexes of the last few builds.
fn drop_oldest() {
    const KEPT: usize = 16;
    let mut found: Vec<_> = directory()
        .and_then(|directory| fs::read_dir(directory).ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let more = found.len().saturating_sub(KEPT);
    for (_, path) in found.drain(..more) {
        // Somebody else may be doing the same.
        let _ = fs::remove_file(path);
    }
}

/// Where gdb keeps indexes.
fn directory() -> Option<PathBuf> {
    let cache = Cache::open().ok()?;
    Some(cache.root().join("gdb-index"))
}
