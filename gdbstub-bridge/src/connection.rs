//! A client's socket, buffered.
//!
//! gdbstub's own connections write byte by byte, a system call each; a memory dump then runs at a fifth of a megabyte a
//! second.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gdbstub::conn::Connection;

/// How long a client that does not read may keep the stub waiting. After that it is taken for dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connected socket of either kind.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
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
        }
    }

    /// Sets how long a read may take.
    pub(crate) fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }

    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buf),
            Stream::Unix(stream) => stream.read(buf),
        }
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => Write::write_all(stream, bytes),
            Stream::Unix(stream) => Write::write_all(stream, bytes),
        }
    }

    pub(crate) fn shutdown_write(&self) {
        // The peer may be gone already.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(std::net::Shutdown::Write),
        };
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

/// What gdbstub writes to: bytes collect until it flushes.
#[derive(Debug)]
pub(crate) struct Buffered {
    stream: Stream,
    out: Vec<u8>,
}

impl Buffered {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            out: Vec::new(),
        }
    }

    /// Reads what has arrived; 0 at the end.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Shows the client's user a message, while the client waits for the guest to stop.
    pub(crate) fn say(&mut self, text: &str) -> io::Result<()> {
        self.out
            .extend(packet(&format!("O{}", hex(text.as_bytes()))));
        self.flush()
    }
}

impl Connection for Buffered {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.out.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.stream.write_all(&self.out);
        self.out.clear();
        result
    }
}

impl AsFd for Buffered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A packet of the remote protocol. `body` must not have bytes that need escaping.
pub(crate) fn packet(body: &str) -> Vec<u8> {
    let sum = body.bytes().fold(0_u8, u8::wrapping_add);
    format!("${body}#{sum:02x}").into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_their_checksum() {
        assert_eq!(packet("OK"), b"$OK#9a");
        assert_eq!(hex(b"a\n"), "610a");
    }
}
