//! A client's socket, of either kind.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use crate::peer::process_at;

/// How long a client that does not read may keep the stub waiting. After that it is taken for dead.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connected socket of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Two descriptors of this process: one that is read and one that is written.
    Pair(File, File),
}

impl Stream {
    /// Prepares the socket: no delays, no blocking reads, bounded writes.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))
            }
            Stream::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))
            }
            Stream::Pair(..) => Ok(()),
        }
    }

    /// Who is at the other end, in words: the process, where the host says which it is, else its address.
    pub(crate) fn peer(&self) -> String {
        match self {
            Stream::Tcp(stream) => match stream.peer_addr() {
                Ok(addr) => format!("from {addr}"),
                Err(_) => "which is about to go".to_owned(),
            },
            Stream::Unix(stream) => process_at(stream),
            Stream::Pair(..) => "at standard input and output".to_owned(),
        }
    }

    /// Sets how long a read may take.
    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Pair(..) => Ok(()),
        }
    }

    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buf),
            Stream::Unix(stream) => stream.read(buf),
            Stream::Pair(input, _) => input.read(buf),
        }
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => Write::write_all(stream, bytes),
            Stream::Unix(stream) => Write::write_all(stream, bytes),
            Stream::Pair(_, output) => Write::write_all(output, bytes),
        }
    }

    /// Writes as many of the bytes as it takes without waiting.
    pub(crate) fn write_at_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fd = match self {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
            Stream::Pair(_, output) => {
                // A pipe that has room at all takes so many at once (pipe(7), `PIPE_BUF`).
                let piece = bytes.get(..libc::PIPE_BUF).unwrap_or(bytes);
                return match has_room(&*output, Duration::ZERO)? {
                    true => output.write(piece),
                    false => Ok(0),
                };
            }
        };
        match send(fd, bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(taken) => Ok(taken),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until something can be written, for so long at most. Whether it can.
    pub(crate) fn has_room(&self, timeout: Duration) -> io::Result<bool> {
        match self {
            Stream::Tcp(stream) => has_room(stream, timeout),
            Stream::Unix(stream) => has_room(stream, timeout),
            Stream::Pair(_, output) => has_room(output, timeout),
        }
    }

    pub(crate) fn shutdown_write(&self) {
        // The peer may be gone already.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(std::net::Shutdown::Write),
            Stream::Pair(..) => Ok(()),
        };
    }
}

fn has_room(fd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Pair(input, _) => input.as_fd(),
        }
    }
}
