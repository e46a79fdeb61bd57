//! The guest's root: an overlay in memory over the host's `/`.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use kscope_wire::Root;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// The host's root, read-only.
const LOWER: &str = "/lower";
/// The tmpfs that takes everything the guest writes.
const UPPER: &str = "/upper";
/// What becomes `/`.
const NEW: &str = "/new";

/// Mounts everything, moves into the new root, brings up the loopback
/// interface. `warnings` takes what is missing but not needed by every command.
pub(crate) fn set_up(hostname: &[u8], warnings: &mut Vec<String>) -> Result<Root, String> {
    for dir in [LOWER, UPPER, NEW] {
        fs::create_dir(dir).map_err(|e| format!("{dir}: {e}"))?;
    }
    // The option names the host directory.
    mount_at("none", LOWER, "hostfs", MsFlags::MS_RDONLY, "/").map_err(|e| {
        explain(
            e,
            "hostfs",
            "CONFIG_HOSTFS",
            "cannot mount the host's root directory",
        )
    })?;
    let root = match overlay() {
        Ok(()) => Root::Overlay,
        Err(reason) => {
            warnings.push(format!("{reason}; the guest's root is read-only"));
            mount_at(LOWER, NEW, "none", MsFlags::MS_BIND, "")
                .map_err(|e| format!("cannot bind the host's root directory: {e}"))?;
            Root::ReadOnly
        }
    };
    file_systems(warnings);
    enter().map_err(|e| format!("cannot move into the new root: {e}"))?;
    if let Err(e) = nix::unistd::sethostname(std::ffi::OsStr::new(
        std::str::from_utf8(hostname).unwrap_or("guest"),
    )) {
        warnings.push(format!("cannot set the host name: {e}"));
    }
    if let Err(e) = loopback_up() {
        warnings.push(format!("the loopback interface is down: {e}"));
    }
    Ok(root)
}

fn overlay() -> Result<(), String> {
    mount_at(
        "none",
        UPPER,
        "tmpfs",
        MsFlags::empty(),
        "mode=755,size=90%",
    )
    .map_err(|e| explain(e, "tmpfs", "CONFIG_TMPFS", "cannot mount a tmpfs"))?;
    for dir in ["/upper/upper", "/upper/work"] {
        fs::create_dir(dir).map_err(|e| format!("{dir}: {e}"))?;
    }
    mount_at(
        "kscope",
        NEW,
        "overlay",
        MsFlags::empty(),
        // Inode numbers of hostfs use all 64 bits, so there is no room for xino.
        "xino=off,lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work",
    )
    .map_err(|e| {
        explain(
            e,
            "overlay",
            "CONFIG_OVERLAY_FS",
            "cannot mount an overlay over the host's root",
        )
    })
}

/// What programs expect under `/`. A kernel that lacks one of these can still
/// run commands that do not need it.
fn file_systems(warnings: &mut Vec<String>) {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let open = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mut try_mount = |source: &str, dir: &str, kind: &str, flags, data: &str| {
        let target = format!("{NEW}{dir}");
        // Present on every distribution's root; made where the root is writable.
        let _ = fs::create_dir(&target);
        let result = mount_at(source, &target, kind, flags, data);
        if let Err(e) = result {
            warnings.push(format!("{dir}: cannot mount {kind}: {e}"));
        }
        result.is_ok()
    };
    try_mount("proc", "/proc", "proc", safe, "");
    try_mount("sys", "/sys", "sysfs", safe, "");
    if !try_mount("dev", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755")
        && try_mount("dev", "/dev", "tmpfs", MsFlags::MS_NOSUID, "mode=755")
    {
        make_nodes();
    }
    try_mount(
        "pts",
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    );
    try_mount("shm", "/dev/shm", "tmpfs", open, "mode=1777");
    try_mount("run", "/run", "tmpfs", open, "mode=755");
    // Programs look for these; a root that is read-only everywhere lacks them.
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (target, name) in links {
        let _ = symlink(target, format!("{NEW}/dev/{name}"));
    }
    // The line to the supervisor is open here and nobody else's business.
    let _ = fs::remove_file(format!("{NEW}/dev/tty1"));
    let _ = fs::DirBuilder::new()
        .mode(0o1777)
        .create(format!("{NEW}/run/lock"));
}

/// The device nodes that devtmpfs would have made.
fn make_nodes() {
    let nodes = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
        ("console", 5, 1),
        ("ptmx", 5, 2),
    ];
    for (name, major, minor) in nodes {
        let path = format!("{NEW}/dev/{name}");
        let mode = Mode::from_bits_truncate(0o666);
        let _ = mknod(
            Path::new(&path),
            SFlag::S_IFCHR,
            mode,
            makedev(major, minor),
        );
    }
}

/// Makes [`NEW`] the root. The initramfs cannot be pivoted away from; moving
/// the new root on top of it is what switch_root does as well.
fn enter() -> nix::Result<()> {
    nix::unistd::chdir(NEW)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> nix::Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(data))
}

/// Words a failed mount; a file system the kernel does not have is named with
/// the option that brings it.
fn explain(error: Errno, kind: &str, option: &str, what: &str) -> String {
    match error {
        Errno::ENODEV => format!("{what}: this kernel lacks {kind} ({option}=y)"),
        _ => format!("{what}: {error}"),
    }
}

/// Sets IFF_UP on `lo`.
fn loopback_up() -> Result<(), std::io::Error> {
    use std::io::Error;
    use std::os::fd::{FromRawFd, OwnedFd};

    // SAFETY: no memory is passed; the result is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: `fd` is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    use std::os::fd::AsRawFd;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives across the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    if done < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}
