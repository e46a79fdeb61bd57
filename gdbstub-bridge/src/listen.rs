//! The sockets that clients come to.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::unistd::geteuid;

use crate::connection::Stream;
use crate::peer::{uid_of_tcp, uid_of_unix};
use crate::{is_readable, refuse};

/// Where a stub listens.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For `target remote HOST:PORT`. From [`bind_tcp`]: it has to be loopback.
    pub tcp: Option<TcpListener>,
    /// For `target remote PATH`. From [`bind_unix`].
    pub unix: Option<UnixListener>,
    /// A client that is there already, at two descriptors: one that is read and one that is written.
    pub pair: Mutex<Option<(File, File)>>,
}

/// No socket to listen on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Anybody on the network could take the guest over.
    #[error(
        "the debugger stub does not listen on {0}: only loopback addresses such as 127.0.0.1 are safe"
    )]
    NotLoopback(SocketAddr),
    /// The address is taken, or not allowed.
    #[error("cannot listen for a debugger on {addr}: {error}")]
    Tcp {
        /// The address; of several, the first.
        addr: SocketAddr,
        /// What the host said.
        error: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen for a debugger on {}: {error}", path.display())]
    Unix {
        /// The path.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
}

/// Listens on a loopback address, or, of `tries` ports from that on, on the first that is free.
///
/// # Errors
///
/// The address is not loopback, or all are taken.
pub fn bind_tcp(addr: SocketAddr, tries: u16) -> Result<TcpListener, BindError> {
    if !addr.ip().is_loopback() {
        return Err(BindError::NotLoopback(addr));
    }
    let mut first = None;
    for port in (addr.port()..=u16::MAX).take(usize::from(tries.max(1))) {
        match TcpListener::bind(SocketAddr::new(addr.ip(), port)) {
            Ok(listener) => {
                listener
                    .set_nonblocking(true)
                    .map_err(|error| BindError::Tcp { addr, error })?;
                return Ok(listener);
            }
            Err(error) => first = first.or(Some(error)),
        }
    }
    let error = first.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
    Err(BindError::Tcp { addr, error })
}

/// Listens on a Unix socket at `path`, in a directory that only its owner can enter.
///
/// # Errors
///
/// The path exists, is too long, or its directory cannot be written.
pub fn bind_unix(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |error| BindError::Unix {
        path: path.to_owned(),
        error,
    };
    let listener = UnixListener::bind(path).map_err(failed)?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(path, private).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

impl Listeners {
    /// The directory of the Unix socket: the guest's own, which is gone with it.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        let addr = self.unix.as_ref()?.local_addr().ok()?;
        Some(addr.as_pathname()?.parent()?.to_owned())
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let tcp = self.tcp.as_ref().map(AsFd::as_fd);
        let unix = self.unix.as_ref().map(AsFd::as_fd);
        tcp.into_iter()
            .chain(unix)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
    }

    /// Whether there is a client that need not be waited for.
    pub fn has_pair(&self) -> bool {
        let pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        pair.is_some()
    }

    /// Takes one client that waits, if it may be served.
    pub(crate) fn accept(&self) -> Option<Stream> {
        let mut pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((input, output)) = pair.take() {
            return Some(Stream::Pair(input, output));
        }
        drop(pair);
        self.accept_if(|| true)
    }

    /// As [`Listeners::accept`], if something still holds when a client waits already.
    pub(crate) fn accept_if(&self, holds: impl Fn() -> bool) -> Option<Stream> {
        if let Some(listener) = &self.unix
            && is_readable(listener)
            && holds()
            && let Some((stream, _)) = accepted(listener.accept())
        {
            let uid = uid_of_unix(&stream).map(Some);
            return vetted(Stream::Unix(stream), uid, "the Unix socket");
        }
        if let Some(listener) = &self.tcp
            && is_readable(listener)
            && holds()
            && let Some((stream, addr)) = accepted(listener.accept())
        {
            let uid = uid_of_tcp(&stream);
            return vetted(Stream::Tcp(stream), uid, &addr.to_string());
        }
        None
    }
}

fn accepted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => {
            // Out of descriptors, mostly: a pause keeps this from being a busy loop.
            log::warn!("a debugger could not connect: {error}");
            thread::sleep(Duration::from_millis(100));
            None
        }
    }
}

/// The stream, if the client is the guest's own user.
fn vetted(stream: Stream, uid: io::Result<Option<u32>>, from: &str) -> Option<Stream> {
    let own = geteuid().as_raw();
    if let Err(error) = stream.prepare() {
        log::warn!("a debugger from {from} could not connect: {error}");
        return None;
    }
    match uid {
        Ok(Some(uid)) if uid == own => Some(stream),
        Ok(Some(uid)) => {
            log::warn!(
                "refused a debugger from {from}: it is user {uid}'s, this guest is user {own}'s"
            );
            refuse(stream, "this guest is another user's");
            None
        }
        Ok(None) => {
            log::warn!("refused a debugger from {from}: the host does not say whose it is");
            refuse(stream, "the host does not say whose connection this is");
            None
        }
        Err(error) => {
            log::warn!("refused a debugger from {from}: cannot tell whose it is: {error}");
            refuse(stream, "cannot tell whose connection this is");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_leads_to_the_next() {
        let first = bind_tcp("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let taken = first.local_addr().unwrap();
        assert!(bind_tcp(taken, 1).is_err());
        let second = bind_tcp(taken, 50).unwrap();
        assert!(second.local_addr().unwrap().port() > taken.port());
    }

    #[test]
    fn the_world_is_not_listened_to() {
        let error = bind_tcp("0.0.0.0:0".parse().unwrap(), 1).unwrap_err();
        assert!(error.to_string().contains("0.0.0.0"), "{error}");
    }
}
