//! The supervisor's end of `control.sock`: one thread per connection, none of which can hurt another.
//!
//! What a client sends is not trusted to be sane. A frame that is too long, cannot be decoded or does not arrive in
//! time ends that connection and nothing else; the number of connections is bounded.

mod endpoint;
mod holding;

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError, bounded};
use kscope_kernel::{CpuId, KernelAddr, Registers};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::remote::{
    Channel, Description, FrameError, Hello, MAGIC, MAX_FRAME, MAX_HZ, MAX_REQUEST, MIN_HZ,
    PEER_TIMEOUT, PROTOCOL_VERSION, RawSample, Request, Response, SampleCounts, SampleMessage,
    SampleRequest, Welcome, encode, trusted_peer,
};
use crate::sampling::{self, Source, StopSignal};

pub use endpoint::GuestEndpoint;
use holding::Holding;

/// Connections served at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 64;

/// Samples that may wait for a slow reader. A sample is some kilobytes: a stack in use.
const QUEUE: usize = 1024;

/// How long the end of the server waits for running streams to deliver their last message.
const FAREWELL: Duration = Duration::from_secs(1);

/// The guest as the server sees it.
pub trait Endpoint: Send + Sync + 'static {
    /// What guest this is.
    fn describe(&self) -> Description;

    /// `/proc/PID/mem`, opened for reading only.
    ///
    /// # Errors
    ///
    /// The guest is gone.
    fn memory(&self) -> io::Result<OwnedFd>;

    /// The text of `/proc/PID/maps`.
    ///
    /// # Errors
    ///
    /// The guest is gone.
    fn maps(&self) -> io::Result<String>;

    /// Writes guest memory.
    ///
    /// # Errors
    ///
    /// Why it cannot be written, for the client's eyes.
    fn write_memory(&self, addr: KernelAddr, bytes: &[u8]) -> Result<(), String>;

    /// Attaches to the guest for sampling; dropping the source detaches.
    ///
    /// # Errors
    ///
    /// Why it cannot be sampled, for the client's eyes.
    fn sample_source(&self) -> Result<Box<dyn Source>, String>;

    /// The file that is the guest's RAM, opened for reading only.
    ///
    /// # Errors
    ///
    /// The guest is gone, or has no such file.
    fn physical_memory(&self) -> io::Result<OwnedFd>;

    /// Stops every CPU of the guest until the guard is dropped.
    ///
    /// # Errors
    ///
    /// Why it cannot be stopped, for the client's eyes.
    fn hold(&self) -> Result<Held, String>;

    /// Begins the end of the guest.
    ///
    /// # Errors
    ///
    /// Why not, for the client's eyes.
    fn stop_guest(&self) -> Result<(), String>;
}

/// A guest that stands still.
pub struct Held {
    /// The registers of each CPU.
    pub registers: Vec<(CpuId, Registers)>,
    /// A debugger had stopped it before.
    pub debugged: bool,
    /// Since when.
    pub since: Instant,
    /// When it is let go, whoever still reads.
    pub deadline: Instant,
    /// Lets it run when dropped.
    pub guard: Box<dyn Any + Send>,
}

/// Why `control.sock` cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}: {error}")]
pub struct ServerError {
    /// The socket.
    pub path: PathBuf,
    /// What the host said.
    pub error: io::Error,
}

/// A listening `control.sock`. Dropping it ends every connection and removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    closing: StopSignal,
    state: Mutex<State>,
    /// A stream or a connection has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    connections: Vec<(u64, Arc<Link>)>,
}

/// What the rest of the server needs of one connection.
#[derive(Debug)]
struct Link {
    channel: Channel,
    /// A sample stream runs.
    streaming: AtomicBool,
    stop_stream: StopSignal,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Listens on a new socket at `path`, whose directory only the user may enter.
    ///
    /// # Errors
    ///
    /// The socket cannot be made: it exists, its path is longer than the 107 bytes a socket's may have, …
    pub fn start(path: &Path, endpoint: Arc<dyn Endpoint>) -> Result<Self, ServerError> {
        let failed = |error| ServerError {
            path: path.to_owned(),
            error,
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let shared = Arc::new(Shared {
            closing: StopSignal::new().map_err(failed)?,
            state: Mutex::default(),
            ended: Condvar::new(),
        });
        let acceptor = thread::Builder::new()
            .name("control.sock".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || accept(&listener, &shared, &endpoint)
            })
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.closing.set();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic there has been reported by the panic hook.
            let _ = acceptor.join();
        }
        let deadline = Instant::now() + FAREWELL;
        let mut state = self.shared.lock();
        for (_, link) in &state.connections {
            link.stop_stream.set();
        }
        while state
            .connections
            .iter()
            .any(|(_, link)| link.streaming.load(Ordering::Acquire))
        {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = wait(&self.shared, state, left);
        }
        for (_, link) in &state.connections {
            link.channel.shut_down();
        }
        // The threads hold nothing but their connection; a thread stuck on a guest that does not stop is left behind.
        while !state.connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = wait(&self.shared, state, left);
        }
        drop(state);
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

fn wait<'a>(
    shared: &Shared,
    state: MutexGuard<'a, State>,
    left: Duration,
) -> MutexGuard<'a, State> {
    shared
        .ended
        .wait_timeout(state, left)
        .unwrap_or_else(PoisonError::into_inner)
        .0
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, endpoint: &Arc<dyn Endpoint>) {
    loop {
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.closing.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => {
                log::error!("control.sock: {errno}");
                return;
            }
        }
        if shared.closing.is_set() {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = welcome(stream, shared, endpoint) {
                    log::warn!("control.sock: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors, mostly: a pause keeps this from being a busy loop.
                log::warn!("control.sock: {error}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Starts the thread of a new connection.
fn welcome(
    stream: UnixStream,
    shared: &Arc<Shared>,
    endpoint: &Arc<dyn Endpoint>,
) -> io::Result<()> {
    if let Err(uid) = trusted_peer(&stream)? {
        log::warn!("control.sock: a process of user {uid} was turned away");
        return Ok(());
    }
    let link = Arc::new(Link {
        channel: Channel::new(stream)?,
        streaming: AtomicBool::new(false),
        stop_stream: StopSignal::new()?,
    });
    let id = {
        let mut state = shared.lock();
        if state.connections.len() >= MAX_CONNECTIONS {
            return Err(io::Error::other(format!(
                "more than {MAX_CONNECTIONS} connections: one was turned away"
            )));
        }
        state.next_id += 1;
        let id = state.next_id;
        state.connections.push((id, Arc::clone(&link)));
        id
    };
    let entry = Entry {
        shared: Arc::clone(shared),
        id,
    };
    let endpoint = Arc::clone(endpoint);
    thread::Builder::new()
        .name(format!("control.sock/{id}"))
        .spawn(move || {
            let entry = entry;
            if let Err(error) = serve(&link, &entry.shared, &endpoint) {
                log::debug!("control.sock/{}: {error}", entry.id);
            }
            link.stop_stream.set();
            link.channel.shut_down();
        })?;
    Ok(())
}

/// Takes the connection off the list, also when its thread panics or was never started.
struct Entry {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared
            .lock()
            .connections
            .retain(|(id, _)| *id != self.id);
        self.shared.ended.notify_all();
    }
}

fn serve(
    link: &Arc<Link>,
    shared: &Arc<Shared>,
    endpoint: &Arc<dyn Endpoint>,
) -> Result<(), FrameError> {
    let channel = &link.channel;
    let (hello, _): (Hello, _) = channel.receive(64, Some(PEER_TIMEOUT))?;
    if hello.magic != MAGIC {
        return Ok(());
    }
    channel.send(
        &Welcome {
            magic: MAGIC,
            version: PROTOCOL_VERSION,
        },
        MAX_FRAME,
    )?;
    if hello.version != PROTOCOL_VERSION {
        return Ok(());
    }
    let mut holding = Holding::default();
    loop {
        let request = match channel.receive(MAX_REQUEST, holding.left()) {
            Ok((request, _)) => request,
            Err(FrameError::Closed) => return Ok(()),
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                if !holding.expire() {
                    return Err(error.into());
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        // A client that keeps asking does not hold the guest any longer.
        holding.expire();
        match request {
            Request::StopSampling => link.stop_stream.set(),
            // An answer in the middle of a stream would be taken for a part of it.
            _ if link.streaming.load(Ordering::Acquire) => return Ok(()),
            Request::Memory => match endpoint.memory() {
                Ok(fd) => channel.send_with_fd(&Response::Memory, MAX_FRAME, &fd)?,
                Err(error) => channel.send(&gone("memory", &error), MAX_FRAME)?,
            },
            Request::Sample(request) => {
                if let Err(reason) = stream(link, shared, endpoint, request) {
                    channel.send(&Response::Failed(reason), MAX_FRAME)?;
                }
            }
            Request::PhysicalMemory => match endpoint.physical_memory() {
                Ok(fd) => channel.send_with_fd(&Response::Memory, MAX_FRAME, &fd)?,
                Err(error) => channel.send(&gone("RAM", &error), MAX_FRAME)?,
            },
            Request::Hold => answer(channel, &holding.begin(endpoint.as_ref()))?,
            Request::KeepHolding => answer(channel, &holding.keep())?,
            Request::Release => answer(channel, &holding.end())?,
            request => answer(channel, &respond(endpoint.as_ref(), request))?,
        }
    }
}

/// Sends an answer; one that does not fit into a frame becomes a failure, not the end of the connection.
fn answer(channel: &Channel, response: &Response) -> Result<(), FrameError> {
    match channel.send(response, MAX_FRAME) {
        Err(error @ FrameError::TooLong { .. }) => {
            channel.send(&Response::Failed(error.to_string()), MAX_FRAME)
        }
        other => other,
    }
}

fn gone(what: &str, error: &io::Error) -> Response {
    Response::Failed(format!("the guest's {what} cannot be opened: {error}"))
}

fn respond(endpoint: &dyn Endpoint, request: Request) -> Response {
    let result = match request {
        Request::Describe => Ok(Response::Description(endpoint.describe())),
        Request::Maps => match endpoint.maps() {
            Ok(text) => Ok(Response::Maps(text)),
            Err(error) => return gone("memory map", &error),
        },
        Request::WriteMemory { addr, bytes } => endpoint
            .write_memory(addr, &bytes)
            .map(|()| Response::Written),
        Request::Snapshot => snapshot(endpoint).map(Response::Snapshot),
        Request::StopGuest => endpoint.stop_guest().map(|()| Response::Stopping),
        Request::Memory
        | Request::PhysicalMemory
        | Request::Sample(_)
        | Request::StopSampling
        | Request::Hold
        | Request::KeepHolding
        | Request::Release => Err("answered elsewhere".to_owned()),
    };
    result.unwrap_or_else(Response::Failed)
}

fn snapshot(endpoint: &dyn Endpoint) -> Result<Vec<RawSample>, String> {
    match endpoint.sample_source()?.capture() {
        sampling::Capture::Samples(samples) | sampling::Capture::Held(samples) => Ok(samples),
        sampling::Capture::Unstopped(reason) => Err(reason),
        sampling::Capture::Exited => Err("the guest has ended".to_owned()),
    }
}

/// Starts a sample stream: a thread that samples, and one that writes, with a bounded queue in between, so that a slow
/// reader costs samples and never the guest's time.
fn stream(
    link: &Arc<Link>,
    shared: &Arc<Shared>,
    endpoint: &Arc<dyn Endpoint>,
    request: SampleRequest,
) -> Result<(), String> {
    if !(MIN_HZ..=MAX_HZ).contains(&request.hz) {
        return Err(format!(
            "a rate of {} Hz is out of range: {MIN_HZ} to {MAX_HZ}",
            request.hz
        ));
    }
    let mut source = endpoint.sample_source()?;
    link.stop_stream.clear();
    link.streaming.store(true, Ordering::Release);
    let active = Active {
        link: Arc::clone(link),
        shared: Arc::clone(shared),
    };
    let (sender, receiver) = bounded::<SampleMessage>(QUEUE);
    let spawned = thread::Builder::new()
        .name("sample writer".into())
        .spawn(move || {
            let active = active;
            let link = &active.link;
            for message in receiver {
                if matches!(message, SampleMessage::Done { .. }) {
                    // Before the client can know, so that its next request finds the stream ended.
                    link.streaming.store(false, Ordering::Release);
                }
                let sent = encode(&Response::Sample(message), MAX_FRAME)
                    .and_then(|frame| link.channel.send_frame(&frame, None));
                if let Err(error) = sent {
                    log::debug!("sample stream: {error}");
                    link.stop_stream.set();
                    link.channel.shut_down();
                    break;
                }
            }
        });
    spawned.map_err(|error| format!("no thread for the samples: {error}"))?;
    let link = Arc::clone(link);
    thread::Builder::new()
        .name("sampler".into())
        .spawn(move || {
            let (counts, end) = sampling::run(
                source.as_mut(),
                request,
                &link.stop_stream,
                |message, counts| {
                    offer(&sender, message, counts);
                },
            );
            drop(source);
            // Fails only when the writer is gone, and with it the reader.
            let _ = sender.send(SampleMessage::Done { counts, end });
        })
        .map(drop)
        .map_err(|error| format!("no thread for the sampler: {error}"))
}

/// Marks the stream as ended, however its writer ends.
struct Active {
    link: Arc<Link>,
    shared: Arc<Shared>,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.link.streaming.store(false, Ordering::Release);
        // Taken so that the farewell cannot miss this between its look and its wait.
        drop(self.shared.lock());
        self.shared.ended.notify_all();
    }
}

fn offer(sender: &Sender<SampleMessage>, message: SampleMessage, counts: &mut SampleCounts) {
    let is_sample = matches!(message, SampleMessage::Sample(_));
    match sender.try_send(message) {
        Ok(()) if is_sample => counts.samples += 1,
        Err(TrySendError::Full(_)) if is_sample => counts.overflowed += 1,
        // News about progress can be missed; a reader that is gone stops the stream elsewhere.
        _ => {}
    }
}

#[cfg(test)]
mod tests;
