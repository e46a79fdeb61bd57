//! The process that becomes the guest's kernel (`kscope __launch`).
//!
//! A supervisor has threads, so it cannot fork and then do what has to be done
//! before the kernel runs: namespaces, affinity, signal dispositions. It starts
//! its own program again instead, hands it a [`Spec`] and the guest's
//! descriptors over a socket on standard input, and lets it go when it has
//! looked at it (`--wait` seizes it here).

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::personality::{self, Persona};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, dup2_stdin, getppid};
use serde::{Deserialize, Serialize};

use crate::confine::confine;
use crate::sandbox::{self, Needs};

/// The hidden verb that runs [`main`].
pub const VERB: &str = "__launch";

/// Where the kernel finds what it inherits, in the order of the transfer. They
/// are part of its command line.
pub(crate) const CONSOLE_IN: RawFd = 3;
/// See [`CONSOLE_IN`].
pub(crate) const CONSOLE_OUT: RawFd = 4;
/// See [`CONSOLE_IN`].
pub(crate) const INITRD: RawFd = 5;
const TRANSFERRED: usize = 3;

/// Longer specs are a mistake: the kernel's command line has at most a few KiB.
const MAX_MESSAGE: usize = 1 << 20;

/// The byte that starts the kernel.
const GO: u8 = b'g';

/// What to become.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The supervisor's process id.
    pub(crate) parent: i32,
    /// Absolute path of the kernel.
    pub(crate) kernel: Vec<u8>,
    /// Its arguments, from the program's name on.
    pub(crate) argv: Vec<Vec<u8>>,
    /// An empty directory for the private tmpfs.
    pub(crate) scratch: Vec<u8>,
    /// The guest's uml_dir.
    pub(crate) uml_dir: Vec<u8>,
    /// Bytes.
    pub(crate) memory: u64,
    /// The host CPU to stay on.
    pub(crate) cpu: Option<u32>,
    /// Of a kernel whose processes do not end with it, the addresses that may call the host.
    pub(crate) confined_to: Option<Range<u64>>,
}

/// What the launched process answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// All is set up; it waits to be let go.
    Ready {
        /// What the user should know.
        note: Option<String>,
        /// The directory of the memory file; an empty directory to be removed.
        tmpdir: Vec<u8>,
    },
    /// It gives up, for this reason.
    Failed(String),
}

/// The supervisor's end of the socket.
#[derive(Debug)]
pub(crate) struct Handle(UnixStream);

impl Handle {
    pub(crate) fn new(socket: UnixStream) -> Handle {
        Handle(socket)
    }

    /// Sends what to become.
    pub(crate) fn send(&self, spec: &Spec, fds: [&OwnedFd; TRANSFERRED]) -> io::Result<()> {
        let message = encode(spec)?;
        let fds = fds.map(AsRawFd::as_raw_fd);
        let sent = sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&message)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        // The descriptors went with the first byte.
        (&self.0).write_all(&message[sent..])
    }

    /// Waits for the answer; `None` when the process is gone.
    pub(crate) fn answer(&self) -> io::Result<Option<Answer>> {
        decode(&self.0)
    }

    /// Starts the kernel and waits until it runs.
    pub(crate) fn go(&self) -> io::Result<Option<Answer>> {
        (&self.0).write_all(&[GO])?;
        // The socket closes when the kernel's image replaces the program's; all
        // that can come before that is a failure.
        decode(&self.0)
    }
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let mut message = (body.len() as u32).to_le_bytes().to_vec();
    message.extend_from_slice(&body);
    Ok(message)
}

fn decode<T: for<'de> Deserialize<'de>>(mut socket: &UnixStream) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    match socket.read_exact(&mut len) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_MESSAGE {
        return Err(io::Error::other("message too long"));
    }
    let mut body = vec![0; len];
    socket.read_exact(&mut body)?;
    postcard::from_bytes(&body)
        .map(Some)
        .map_err(io::Error::other)
}

/// Runs the hidden verb. Standard input is the socket to the supervisor.
///
/// Returns, with an exit code, only when the kernel could not be executed; the
/// supervisor has been told why.
pub fn main() -> u8 {
    // Everything that follows is undone by the end of this process, and it
    // ends when the supervisor's thread that started it does.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    // A group of its own from the first moment: all that the kernel will start
    // is in it, and can be killed by its number.
    let _ = nix::unistd::setsid();
    // Out of the way of what the kernel inherits.
    let Ok(input) = move_up(&io::stdin()) else {
        return 1;
    };
    let socket = UnixStream::from(input);
    let answer = match launch(&socket) {
        Ok(never) => match never {},
        Err(reason) => Answer::Failed(reason),
    };
    if let Ok(message) = encode(&answer) {
        // Nobody to tell, if this fails.
        let _ = (&socket).write_all(&message);
    }
    1
}

fn launch(socket: &UnixStream) -> Result<std::convert::Infallible, String> {
    let (spec, fds) = receive(socket).map_err(|e| format!("no word from the supervisor: {e}"))?;
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let sandbox = sandbox::enter(&Needs {
        scratch: &path(&spec.scratch),
        writable: &path(&spec.uml_dir),
        memory: spec.memory,
    })
    .map_err(|e| e.to_string())?;
    // A change of credentials clears it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("prctl: {e}"))?;
    if getppid() != Pid::from_raw(spec.parent) {
        return Err("the supervisor is gone".to_owned());
    }
    dispositions(&spec).map_err(|e| format!("cannot prepare the kernel's process: {e}"))?;
    place(fds).map_err(|e| format!("cannot hand over descriptors: {e}"))?;

    let ready = encode(&Answer::Ready {
        note: sandbox.note,
        tmpdir: sandbox.tmpdir.as_os_str().as_bytes().to_vec(),
    })
    .map_err(|e| e.to_string())?;
    let mut socket = socket;
    socket.write_all(&ready).map_err(|e| e.to_string())?;
    let mut go = [0];
    socket
        .read_exact(&mut go)
        .map_err(|_| "the supervisor changed its mind".to_owned())?;

    let c_string = |bytes: Vec<u8>| CString::new(bytes).map_err(|e| e.to_string());
    let kernel = c_string(spec.kernel.clone())?;
    let argv: Vec<CString> = spec
        .argv
        .into_iter()
        .map(c_string)
        .collect::<Result<_, _>>()?;
    let env = environment(&sandbox.tmpdir)
        .into_iter()
        .map(c_string)
        .collect::<Result<Vec<_>, _>>()?;
    // Last: this program is where the guest's processes may be.
    if let Some(image) = &spec.confined_to {
        confine(image).map_err(|e| format!("cannot confine the guest's processes: {e}"))?;
    }
    let errno = nix::unistd::execve(&kernel, &argv, &env).unwrap_err();
    Err(format!(
        "cannot execute {}: {errno}",
        String::from_utf8_lossy(&spec.kernel)
    ))
}

/// What the kernel's own process sees; the guest's environment is another.
fn environment(tmpdir: &Path) -> Vec<Vec<u8>> {
    let mut env = Vec::new();
    for name in ["PATH", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            env.push([name.as_bytes(), b"=", value.as_bytes()].concat());
        }
    }
    env.push([b"TMPDIR=", tmpdir.as_os_str().as_bytes()].concat());
    env
}

fn dispositions(spec: &Spec) -> io::Result<()> {
    if let Some(cpu) = spec.cpu {
        let mut set = CpuSet::new();
        set.set(cpu as usize)?;
        sched_setaffinity(Pid::from_raw(0), &set)?;
    }
    // Without it, older kernels take the distance to a random brk for memory.
    personality::set(personality::get()? | Persona::ADDR_NO_RANDOMIZE)?;
    // A guest that crashes is looked at while it is there. A core file of its
    // memory in the user's directory would only be litter.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // A kernel that has panicked kills itself with SIGABRT, over and over. With
    // the signal ignored it stays, and can be looked at.
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: ignoring a signal installs no handler.
    unsafe { sigaction(Signal::SIGABRT, &ignore) }?;
    SigSet::empty().thread_set_mask()?;
    umask(Mode::from_bits_truncate(0o077));
    std::env::set_current_dir("/")
}

/// A copy of a descriptor, above those that the kernel inherits.
fn move_up(fd: &impl AsFd) -> io::Result<OwnedFd> {
    const FIRST: RawFd = 16;
    let high = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(FIRST))?;
    // SAFETY: fcntl has just made the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}

/// Puts the descriptors where the command line says, and nothing else.
fn place(fds: [OwnedFd; TRANSFERRED]) -> io::Result<()> {
    // Out of the way first, since they may sit on each other's places.
    let moved = fds.iter().map(move_up).collect::<io::Result<Vec<_>>>()?;
    drop(fds);
    for (fd, target) in moved.iter().zip([CONSOLE_IN, CONSOLE_OUT, INITRD]) {
        // SAFETY: the target is only a number here; nobody in this process
        // owns it, since what is open was moved above it.
        if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // The kernel has no input of its own.
    dup2_stdin(File::open("/dev/null")?)?;
    close_the_rest()
}

/// Keeps all other descriptors from the kernel, also those that the user's shell
/// left open: a directory among them would lead around the sandbox.
fn close_the_rest() -> io::Result<()> {
    let first = [CONSOLE_IN, CONSOLE_OUT, INITRD]
        .into_iter()
        .max()
        .map_or(3, |last| last + 1);
    // SAFETY: the call only sets flags of descriptors, which close at the exec.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn receive(socket: &UnixStream) -> io::Result<(Spec, [OwnedFd; TRANSFERRED])> {
    // One byte comes with the descriptors; the rest is an ordinary stream.
    let mut first = [0; 1];
    let mut space = nix::cmsg_space!([RawFd; TRANSFERRED]);
    let mut buffers = [IoSliceMut::new(&mut first)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fds = fds
        .try_into()
        .map_err(|_| io::Error::other("descriptors are missing"))?;
    let mut len = [first[0], 0, 0, 0];
    let mut stream = socket;
    stream.read_exact(&mut len[1..])?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_MESSAGE {
        return Err(io::Error::other("message too long"));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    let spec = postcard::from_bytes(&body).map_err(io::Error::other)?;
    Ok((spec, fds))
}
