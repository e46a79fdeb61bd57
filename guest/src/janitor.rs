//! The process that cleans up after a supervisor that was killed
//! (`kscope __janitor`).
//!
//! The guest's processes die with the supervisor by themselves
//! (PR_SET_PDEATHSIG); what the host does not undo is the guest's directory,
//! and a terminal left in raw mode. The janitor is in a session of its own, so
//! that what kills the supervisor's whole process group does not reach it. It
//! holds the read end of a socket whose other end only the supervisor has, and
//! sleeps until that closes. It is started before there is anything to clean up.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::termios::{self, SetArg, Termios};
use nix::unistd::Pid;

use crate::pidfd::PidFd;
use crate::registry::Registry;

/// The hidden verb that runs [`main`].
pub const VERB: &str = "__janitor";

const GUEST: u8 = b'g';
const DIRECTORY: u8 = b'd';
const DONE: u8 = b'x';
/// Longer messages are a mistake: they carry a path or a number.
const MAX_MESSAGE: usize = 1 << 16;

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct Janitor {
    socket: UnixStream,
    child: Child,
}

impl Janitor {
    /// Starts a janitor that runs `program`'s hidden verb. It restores the
    /// present settings of `terminal`, if there is one.
    pub(crate) fn start(program: &Path, terminal: Option<&OwnedFd>) -> io::Result<Janitor> {
        let (socket, theirs) = UnixStream::pair()?;
        let output = match terminal {
            Some(fd) => Stdio::from(fd.try_clone()?),
            None => Stdio::null(),
        };
        let child = Command::new(program)
            .arg0("kscope")
            .arg(VERB)
            .stdin(OwnedFd::from(theirs))
            .stdout(output)
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        let mut janitor = Janitor { socket, child };
        // It says when it can no longer be killed along with the supervisor.
        let mut ready = [0];
        janitor.socket.read_exact(&mut ready)?;
        Ok(janitor)
    }

    /// Hands over the guest's kernel process, which is to be killed.
    pub(crate) fn guest(&mut self, pid: u32, process: &PidFd) -> io::Result<()> {
        self.send(GUEST, &pid.to_le_bytes())?;
        // As a descriptor: by the time that the janitor gets to it, the number
        // could be another process's.
        let fds = [process.as_fd().as_raw_fd()];
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&[0])],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Names a directory to be removed.
    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.send(DIRECTORY, path.as_os_str().as_bytes())
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let mut message = vec![kind];
        message.extend_from_slice(&(body.len() as u32).to_le_bytes());
        message.extend_from_slice(body);
        self.socket.write_all(&message)
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // The supervisor has cleaned up itself.
        let _ = self.send(DONE, &[]);
        let _ = self.child.wait();
    }
}

/// Runs the hidden verb. Standard input is the socket to the supervisor,
/// standard output the terminal, if there is one.
pub fn main() -> u8 {
    let parent = nix::unistd::getppid().as_raw().unsigned_abs();
    let (Ok(_), Ok(supervisor)) = (nix::unistd::setsid(), PidFd::open(parent)) else {
        return 1;
    };
    for number in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGPIPE,
        Signal::SIGTTOU,
    ] {
        // SAFETY: ignoring a signal installs no handler.
        let _ = unsafe { signal(number, SigHandler::SigIgn) };
    }
    let terminal = io::stdout();
    let settings = termios::tcgetattr(terminal.as_fd()).ok();
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else {
        return 1;
    };
    let mut socket = UnixStream::from(input);
    let mut charge = Charge::default();
    if socket.write_all(&[1]).is_err() {
        return 1;
    }
    while let Ok(Some((kind, body))) = receive(&mut socket) {
        match kind {
            DONE => return 0,
            GUEST => charge.take_guest(&body, &socket),
            DIRECTORY => charge
                .directories
                .push(PathBuf::from(OsString::from_vec(body))),
            _ => {}
        }
    }
    // Its locks are free when it has ended entirely, and not before.
    supervisor.wait();
    charge.clean_up();
    if let Some(settings) = settings {
        restore(&terminal, &settings);
    }
    0
}

fn receive(socket: &mut UnixStream) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut header = [0; 5];
    match socket.read_exact(&mut header) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let [kind, a, b, c, d] = header;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > MAX_MESSAGE {
        return Err(io::Error::other("message too long"));
    }
    let mut body = vec![0; len];
    socket.read_exact(&mut body)?;
    Ok(Some((kind, body)))
}

/// The descriptor that comes with one byte.
fn receive_fd(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made this descriptor for us.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok(received)
}

/// What there is to clean up.
#[derive(Default)]
struct Charge {
    guest: Option<(Pid, PidFd)>,
    directories: Vec<PathBuf>,
}

impl Charge {
    fn take_guest(&mut self, body: &[u8], socket: &UnixStream) {
        let pid = body.first_chunk::<4>().map(|b| u32::from_le_bytes(*b));
        if let (Some(pid), Ok(Some(fd))) = (pid, receive_fd(socket)) {
            self.guest = Some((Pid::from_raw(pid as i32), PidFd::from(fd)));
        }
    }

    fn clean_up(self) {
        if let Some((pid, fd)) = &self.guest {
            fd.kill_group(*pid);
            fd.wait();
        }
        for directory in &self.directories {
            let _ = fs::remove_dir_all(directory);
        }
        // The guest's own directory is one that nobody holds any more.
        if let Ok(registry) = Registry::open() {
            let _ = registry.list();
        }
    }
}

/// Puts the terminal back, unless the supervisor's shell has been quicker and
/// somebody else's program is already using it in its own way.
fn restore(terminal: &impl AsFd, settings: &Termios) {
    let now = termios::tcgetattr(terminal.as_fd());
    let raw = now.is_ok_and(|t| !t.local_flags.contains(termios::LocalFlags::ISIG));
    if raw {
        let result = termios::tcsetattr(terminal.as_fd(), SetArg::TCSANOW, settings);
        if result == Err(Errno::EIO) {
            // The terminal itself is gone.
            return;
        }
        if let Ok(mut tty) = terminal.as_fd().try_clone_to_owned().map(File::from) {
            let _ = tty.write_all(b"\r\n");
        }
    }
}
