//! GDB's remote protocol on top of guest control and kernel views: `target remote` for a kernel.
//!
//! A client sees the guest's tasks as threads. Those on a CPU have all their registers; those that sleep have what they
//! saved when they were switched away from, which is enough for their backtraces. The guest stops when a client
//! connects, and runs on when it detaches, disconnects or dies. Until somebody connects, a listening stub costs nothing.
//!
//! The base of the protocol is [gdbstub]'s; what it lacks is in a layer of our own in front of it. Nothing here calls
//! ptrace or parses DWARF.

mod agent;
mod arch;
mod condition;
mod connection;
mod console;
mod format;
mod listen;
mod modules;
mod monitor;
mod ops;
mod peer;
mod process;
mod resume;
mod rsp;
mod session;
mod signals;
mod space;
mod target;
mod threads;
mod trouble;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kscope_guest::control::Control;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use format::{DebugFormat, debug_format, set_debug_format};
pub use listen::{BindError, Listeners, bind_tcp, bind_unix};

use connection::Stream;
use rsp::encode::Reply;
use session::End;

/// A stub that waits for clients on a thread of its own. When it is dropped, the client is disconnected and the guest
/// runs on.
#[derive(Debug)]
pub struct Server {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Serves GDB clients, one at a time, until the guest ends or the [`Server`] is dropped.
///
/// # Errors
///
/// The host is out of descriptors or threads.
pub fn serve(listeners: Listeners, control: Control) -> io::Result<Server> {
    let stop = Arc::new(EventFd::from_flags(
        EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
    )?);
    let stopped = Arc::clone(&stop);
    let thread = thread::Builder::new()
        .name("gdb stub".to_owned())
        .spawn(move || {
            if let Err(error) = accept(&Arc::new(listeners), &control, &stopped) {
                log::error!("the debugger stub has ended: {error}");
            }
        })?;
    Ok(Server {
        stop,
        thread: Some(thread),
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        // A full counter has been read by nobody yet: it will be.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the debugger stub has crashed");
        }
    }
}

/// How the debugging of a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// The process runs on.
    Detached,
    /// The process is to be killed, if it is not dead.
    Killed,
    /// The only client is gone, and has said nothing of the process.
    Gone,
    /// The process has ended.
    Ended,
}

/// Serves the clients of an ordinary process ([`Control::start_process`]), one after the other, until one of them has
/// let it go or killed it, or it has ended. With `once`, there is no next.
///
/// `said` is called when nobody is connected any more, and when somebody is.
///
/// # Errors
///
/// The host is out of descriptors.
pub fn serve_process(
    listeners: &Arc<Listeners>,
    control: &Control,
    once: bool,
    said: &mut dyn FnMut(Connection<'_>),
) -> io::Result<Parting> {
    let stop = Arc::new(EventFd::from_flags(
        EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
    )?);
    loop {
        let Some((stream, peer)) = next_client(listeners, control, &stop)? else {
            return Ok(Parting::Ended);
        };
        said(Connection::Begun(&peer));
        match session::run(stream, listeners, control, &stop) {
            End::Detached => return Ok(Parting::Detached),
            End::Killed => return Ok(Parting::Killed),
            End::Ended(_) | End::Stopped => return Ok(Parting::Ended),
            End::Client(_) if once => return Ok(Parting::Gone),
            End::Client(how) => said(Connection::Lost(&how)),
        }
    }
}

/// What becomes of a connection to a process's debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection<'c> {
    /// Somebody has come; who that is, in words.
    Begun(&'c str),
    /// The connection has ended, in this way, and the next may come.
    Lost(&'c str),
}

/// Waits for a client. None when the guest has ended, or the server is to.
fn next_client(
    listeners: &Listeners,
    control: &Control,
    stop: &EventFd,
) -> io::Result<Option<(Stream, String)>> {
    let pidfd = kscope_guest::control::pidfd(control.pid())?;
    loop {
        let mut fds: Vec<_> = listeners.fds().collect();
        fds.push(PollFd::new(stop.as_fd(), PollFlags::POLLIN));
        fds.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
        let timeout = match listeners.has_pair() {
            true => PollTimeout::ZERO,
            false => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if is_readable(stop.as_fd()) || is_readable(pidfd.as_fd()) {
            return Ok(None);
        }
        if let Some(stream) = listeners.accept() {
            let peer = stream.peer();
            return Ok(Some((stream, peer)));
        }
    }
}

/// Waits for clients, and serves one at a time.
fn accept(listeners: &Arc<Listeners>, control: &Control, stop: &Arc<EventFd>) -> io::Result<()> {
    while let Some((stream, _)) = next_client(listeners, control, stop)? {
        match session::run(stream, listeners, control, stop) {
            End::Stopped => return Ok(()),
            how => log::info!("debugger: {how}"),
        }
    }
    Ok(())
}

fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Tells a client why it is not served, and closes.
fn refuse(mut stream: Stream, reason: &str) {
    const PATIENCE: Duration = Duration::from_secs(1);
    /// How many may be answered at once; more are closed without a word.
    const MOST: usize = 8;
    /// How many pieces of what a client says are looked at.
    const READS: usize = 16;
    static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
    /// Counts one.
    struct Place;
    impl Drop for Place {
        fn drop(&mut self) {
            UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let before = UNDER_WAY.fetch_add(1, Ordering::Relaxed);
    let place = Place;
    if before >= MOST {
        return;
    }
    let reason = reason.to_owned();
    let refuse = move || {
        let _place = place;
        let _ = stream.set_read_timeout(PATIENCE);
        // The first request is what the answer is taken for; to close with a part of it unread would take the answer
        // back. gdb sends its `+` apart from the packet.
        let mut request = [0; 4096];
        for _ in 0..READS {
            match stream.read(&mut request) {
                Ok(len) if len > 0 && !request[..len].contains(&b'#') => {}
                _ => break,
            }
        }
        let mut message = vec![b'+'];
        message.extend(Reply::text(&format!("E.{}", printable(&reason))).finish());
        if stream.write_all(&message).is_ok() {
            stream.shutdown_write();
            // Until it closes its side.
            for _ in 0..READS {
                match stream.read(&mut request) {
                    Ok(len) if len > 0 => {}
                    _ => break,
                }
            }
        }
    };
    // Not on the stub's own thread: it has a client, or others to wait for.
    if let Err(error) = thread::Builder::new()
        .name("gdb refusal".to_owned())
        .spawn(refuse)
    {
        log::debug!("refusing a client: {error}");
    }
}

/// Text without the bytes that mean something in a packet.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '#' | '$' | '}' | '*' => '_',
            c if c.is_ascii() && !c.is_ascii_control() => c,
            _ => '?',
        })
        .collect()
}
