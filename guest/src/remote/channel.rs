//! One end of a control connection: whole frames in, whole frames out, each within a deadline.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt,
};
use serde::{Deserialize, Serialize};

use super::protocol::{FrameError, PEER_TIMEOUT, decode, encode};

/// A framed connection. Any thread may send; only one may receive.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    /// Keeps the frames of several senders apart.
    sending: Mutex<()>,
}

/// Tells whether the peer runs as this process's user or as root; its user id when not.
pub(crate) fn trusted_peer(stream: &UnixStream) -> io::Result<Result<(), u32>> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?.uid();
    let own = nix::unistd::geteuid().as_raw();
    Ok(if peer == own || peer == 0 {
        Ok(())
    } else {
        Err(peer)
    })
}

impl Channel {
    /// Takes a connected stream.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        // All waiting is done by poll(2), with deadlines.
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            sending: Mutex::new(()),
        })
    }

    /// Ends both directions; a thread that waits in [`Channel::receive`] returns.
    pub(crate) fn shut_down(&self) {
        // Fails only when the peer was faster.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Sends one message.
    pub(crate) fn send<T: Serialize>(&self, message: &T, max: usize) -> Result<(), FrameError> {
        self.send_frame(&encode(message, max)?, None)
    }

    /// Sends one message and a descriptor with it.
    pub(crate) fn send_with_fd<T: Serialize>(
        &self,
        message: &T,
        max: usize,
        fd: &impl AsFd,
    ) -> Result<(), FrameError> {
        self.send_frame(&encode(message, max)?, Some(fd.as_fd().as_raw_fd()))
    }

    /// Sends the bytes of a frame made by [`encode`].
    pub(crate) fn send_frame(&self, frame: &[u8], fd: Option<RawFd>) -> Result<(), FrameError> {
        let _guard = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + PEER_TIMEOUT;
        let mut sent = 0;
        let fds = fd.as_slice();
        while sent < frame.len() {
            // The descriptor travels with the first byte.
            let messages: &[ControlMessage] = if sent == 0 && !fds.is_empty() {
                &[ControlMessage::ScmRights(fds)]
            } else {
                &[]
            };
            match sendmsg::<()>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(&frame[sent..])],
                messages,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait_for(PollFlags::POLLOUT, Some(deadline))?,
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    /// Receives one message of at most `max` bytes, and the descriptor that came with it.
    ///
    /// Waits at most `timeout` for its first byte, for ever when `None`; the rest must follow within
    /// [`PEER_TIMEOUT`].
    pub(crate) fn receive<T: for<'a> Deserialize<'a>>(
        &self,
        max: usize,
        timeout: Option<Duration>,
    ) -> Result<(T, Option<OwnedFd>), FrameError> {
        let mut fd = None;
        let mut header = [0; 4];
        let first = timeout.map(|timeout| Instant::now() + timeout);
        if self.fill(&mut header, first, &mut fd)? == Filled::Closed {
            return Err(FrameError::Closed);
        }
        let len = u32::from_le_bytes(header) as usize;
        if len > max {
            return Err(FrameError::TooLong { len, max });
        }
        let mut payload = vec![0; len];
        let rest = Some(Instant::now() + PEER_TIMEOUT);
        if self.fill(&mut payload, rest, &mut fd)? == Filled::Closed {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok((decode(&payload)?, fd))
    }

    /// Fills `buf`; `Closed` when the peer had closed before its first byte.
    fn fill(
        &self,
        buf: &mut [u8],
        mut deadline: Option<Instant>,
        fd: &mut Option<OwnedFd>,
    ) -> Result<Filled, FrameError> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.receive_some(&mut buf[filled..], fd) {
                Ok(0) if filled == 0 => return Ok(Filled::Closed),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => {
                    if filled == 0 {
                        // The wait for a message is over, the wait for its rest begins.
                        deadline = Some(Instant::now() + PEER_TIMEOUT);
                    }
                    filled += n;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait_for(PollFlags::POLLIN, deadline)?,
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(Filled::Whole)
    }

    fn receive_some(&self, buf: &mut [u8], fd: &mut Option<OwnedFd>) -> Result<usize, Errno> {
        // Room for one descriptor: the kernel closes what does not fit.
        let mut space = nix::cmsg_space!(RawFd);
        let mut slices = [IoSliceMut::new(buf)];
        let message = recvmsg::<()>(
            self.stream.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                for raw in fds {
                    // SAFETY: recvmsg has just made this descriptor for us, and nobody else knows it.
                    *fd = Some(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
        }
        Ok(message.bytes)
    }

    fn wait_for(&self, flags: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            let timeout = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    // Rounded up, so that the last wait does not turn into a spin.
                    PollTimeout::try_from(left + Duration::from_millis(1))
                        .unwrap_or(PollTimeout::MAX)
                }
            };
            match poll(&mut [PollFd::new(self.stream.as_fd(), flags)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                // Errors and hang-ups show at the next send or receive.
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Filled {
    Whole,
    Closed,
}
