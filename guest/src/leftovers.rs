//! Processes of a guest whose supervisor and janitor were both killed.
//!
//! The host ends nearly all of them with the supervisor; old kernels have a
//! helper process (for SIGIO) that asks for no such thing.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::pidfd::PidFd;

/// Kills every process of this user whose arguments name `dir` as its uml_dir.
/// The caller knows that the guest's supervisor is gone.
pub(crate) fn end(dir: &Path) {
    let needle = [b"uml_dir=", dir.as_os_str().as_bytes(), b"/"].concat();
    let Ok(processes) = fs::read_dir("/proc") else {
        return;
    };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let is_ours = || {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line.windows(needle.len()).any(|w| w == needle)
        };
        // Looked at again when its number can no longer become another's.
        if is_ours()
            && let Ok(process) = PidFd::open(pid)
            && is_ours()
        {
            let _ = process.kill(Signal::SIGKILL);
        }
    }
}
