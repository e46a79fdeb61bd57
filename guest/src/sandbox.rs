//! What a guest's kernel process may do to the host: read it, and nothing else.
//!
//! User Mode Linux is an ordinary program with the user's rights, and hostfs
//! would pass the guest's writes on to the user's files. So the launched process
//! gets a mount namespace of its own in which every mount is read-only, except
//! for a private tmpfs (the guest's memory) and the guest's `uml_dir`. The tmpfs
//! can be executed from, whatever the options of the host's `/dev/shm`, and is
//! gone with the last process that sees it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::landlock;

/// Room in the private tmpfs beyond the guest's memory, in bytes: User Mode
/// Linux tries out a page of it before it makes its memory file.
const SLACK: u64 = 1 << 20;

/// What the launched process needs.
#[derive(Debug)]
pub(crate) struct Needs<'a> {
    /// An empty directory for the private tmpfs.
    pub(crate) scratch: &'a Path,
    /// The one host directory that may be written to.
    pub(crate) writable: &'a Path,
    /// The guest's memory, in bytes.
    pub(crate) memory: u64,
}

/// A sandbox that holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// Where the kernel is to put its memory file (`TMPDIR`).
    pub(crate) tmpdir: PathBuf,
    /// What the user should know about it.
    pub(crate) note: Option<String>,
}

/// The host offers no way to keep the guest off its files.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot protect this machine's files from the guest: {namespaces}; {landlock}. Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces>0), or Landlock (Linux 5.13 or later), or run as root"
)]
pub(crate) struct SandboxError {
    /// Why there is no mount namespace.
    namespaces: NamespaceError,
    /// Why there is no Landlock.
    landlock: landlock::LandlockError,
}

/// One step of the mount namespace failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub(crate) struct NamespaceError {
    step: &'static str,
    error: io::Error,
}

fn failed(step: &'static str) -> impl Fn(nix::Error) -> NamespaceError {
    move |e| NamespaceError {
        step,
        error: e.into(),
    }
}

/// Puts the calling process, which must have one thread only, into a sandbox.
///
/// # Errors
///
/// Neither namespaces nor Landlock can be had.
pub(crate) fn enter(needs: &Needs<'_>) -> Result<Sandbox, SandboxError> {
    match namespaces(needs) {
        Ok(()) => Ok(Sandbox {
            tmpdir: needs.scratch.to_owned(),
            note: None,
        }),
        Err(namespaces) => match landlock::enter(needs) {
            Ok(tmpdir) => Ok(Sandbox {
                note: Some(format!(
                    "no mount namespace ({namespaces}): Landlock keeps the guest off this machine's files, and its memory is in {}",
                    tmpdir.display()
                )),
                tmpdir,
            }),
            Err(landlock) => Err(SandboxError {
                namespaces,
                landlock,
            }),
        },
    }
}

fn namespaces(needs: &Needs<'_>) -> Result<(), NamespaceError> {
    // A user namespace only where it is needed: as root, files keep their owners.
    if unshare(CloneFlags::CLONE_NEWNS).is_err() {
        user_namespace()?;
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed("cannot make mounts private"))?;
    mount(
        Some("kscope"),
        needs.scratch,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(format!("mode=700,size={}", needs.memory + SLACK).as_str()),
    )
    .map_err(failed("cannot mount a tmpfs"))?;
    mount(
        Some(needs.writable),
        needs.writable,
        none,
        MsFlags::MS_BIND,
        none,
    )
    .map_err(failed("cannot bind the guest's directory"))?;
    set_read_only(Path::new("/"), true)?;
    for dir in [needs.scratch, needs.writable] {
        set_read_only(dir, false)?;
    }
    drop_capabilities()
}

/// The capabilities that a guest's kernel may keep, from
/// `include/uapi/linux/capability.h`: to read all that root reads, and to use
/// the host's network devices where the user names one.
const KEPT: [libc::c_ulong; 4] = [
    1,  // CAP_DAC_OVERRIDE
    2,  // CAP_DAC_READ_SEARCH
    12, // CAP_NET_ADMIN
    13, // CAP_NET_RAW
];

/// Gives up all other capabilities, from the next exec on. With them, root's
/// guest could reach the host's own mounts, through `/proc/1/root` for example.
fn drop_capabilities() -> Result<(), NamespaceError> {
    for capability in 0.. {
        // SAFETY: these calls take numbers only.
        let held = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) };
        if held < 0 {
            // Past the last that the host knows.
            break;
        }
        if held == 0 || KEPT.contains(&capability) {
            continue;
        }
        // SAFETY: as above.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            return Err(NamespaceError {
                step: "cannot give up capabilities",
                error: io::Error::last_os_error(),
            });
        }
    }
    Ok(())
}

/// A user namespace in which the user is who they are.
fn user_namespace() -> Result<(), NamespaceError> {
    // Before unshare: afterwards there is no mapping yet and both are nobody.
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(failed("cannot make a user namespace"))?;
    let write = |path, text: String| {
        fs::write(path, text).map_err(|error| NamespaceError {
            step: "cannot map the user into a user namespace",
            error,
        })
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Makes the mount at `path` and all below it read-only, or just the one at
/// `path` writable.
fn set_read_only(path: &Path, read_only: bool) -> Result<(), NamespaceError> {
    let step = if read_only {
        "cannot make mounts read-only"
    } else {
        "cannot make the guest's directory writable"
    };
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|e| NamespaceError {
        step,
        error: e.into(),
    })?;
    // SAFETY: mount_attr is plain data for which all zeroes is a valid value.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    let flags = if read_only {
        attr.attr_set = libc::MOUNT_ATTR_RDONLY;
        libc::AT_RECURSIVE
    } else {
        attr.attr_clr = libc::MOUNT_ATTR_RDONLY;
        0
    };
    // SAFETY: the path is a C string and the attributes a mount_attr of the
    // length that is passed; both live across the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c_path.as_ptr(),
            flags,
            &attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done < 0 {
        return Err(NamespaceError {
            step,
            error: io::Error::last_os_error(),
        });
    }
    Ok(())
}
