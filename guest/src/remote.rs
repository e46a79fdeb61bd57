//! Talking to a running guest from any process of the same user, over the guest's `control.sock`.
//!
//! Reading needs no help from the supervisor beyond the open `/proc/PID/mem`, which it hands over; what changes the
//! guest, or stops it for a moment, goes as a request. `record -- CMD` and `coverage -- CMD`, which launch a guest of
//! their own, use a [`Connection`] to their own supervisor thread: there is one path for both.

mod channel;
mod hold;
mod protocol;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kscope_kernel::KernelAddr;

use crate::mem::ProcMem;
use crate::registry::{Entry, Registry, RegistryError};

pub(crate) use channel::{Channel, trusted_peer};
pub use hold::Hold;
pub use protocol::{
    Description, MAX_HOLD, MAX_HZ, MIN_HZ, PROTOCOL_VERSION, RawSample, SampleCounts, SampleEnd,
    SampleMessage, SampleRequest, SampledTask, StackCopy,
};
pub(crate) use protocol::{
    FrameError, Hello, MAGIC, MAX_FRAME, MAX_REQUEST, PEER_TIMEOUT, PROGRESS_PERIOD, Request,
    Response, WRITE_CHUNK, Welcome, encode,
};

/// Why a request to a guest's supervisor failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The socket cannot be connected.
    #[error("cannot connect to {path}: {error}: is the guest still running? (see `kscope list`)")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// Somebody else's process listens there.
    #[error("{path} belongs to a process of user {uid}: not talking to it")]
    ForeignPeer {
        /// The socket.
        path: PathBuf,
        /// User id of the listener.
        uid: u32,
    },
    /// The listener is no kscope supervisor.
    #[error("{path} is not answered by a kscope supervisor")]
    NotKscope {
        /// The socket.
        path: PathBuf,
    },
    /// The supervisor is of another kscope version.
    #[error(
        "the supervisor behind {path} speaks protocol {theirs}, this kscope speaks {ours}: use the kscope that started the guest"
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// The supervisor's version.
        theirs: u16,
        /// This program's version.
        ours: u16,
    },
    /// The supervisor closed the connection, most likely because the guest ended.
    #[error("the guest's supervisor closed the connection")]
    Closed,
    /// The supervisor did not answer in time.
    #[error("the guest's supervisor did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The supervisor could not do it.
    #[error("{0}")]
    Refused(String),
    /// The guest was let run before the reader had done.
    #[error("the guest was held for {} s, the longest allowed, and runs again: what was read may be torn", MAX_HOLD.as_secs())]
    HoldExpired,
    /// The supervisor answered something else than what was asked.
    #[error("the guest's supervisor answered out of turn ({0})")]
    OutOfTurn(&'static str),
    /// Bytes that are no message.
    #[error("bad message from the guest's supervisor: {0}")]
    Malformed(String),
    /// There is no such guest.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The host refused something.
    #[error("control connection: {0}")]
    Io(#[from] io::Error),
}

impl From<FrameError> for RemoteError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Closed => Self::Closed,
            FrameError::Io(error) => match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut(PEER_TIMEOUT),
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::UnexpectedEof => Self::Closed,
                _ => Self::Io(error),
            },
            other => Self::Malformed(other.to_string()),
        }
    }
}

/// How a sample stream went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleSummary {
    /// Final counts, or the last ones heard of.
    pub counts: SampleCounts,
    /// Why it ended.
    pub end: SampleEnd,
}

/// A connection to a guest's supervisor.
#[derive(Debug)]
pub struct Connection {
    channel: Arc<Channel>,
}

/// Ends a sample stream from another thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SampleStopper {
    channel: Arc<Channel>,
}

impl SampleStopper {
    /// Asks for the end of the stream; what was sampled until then still arrives.
    ///
    /// Without effect when no stream runs, or the guest is gone.
    pub fn stop(&self) {
        if let Err(error) = self.channel.send(&Request::StopSampling, MAX_REQUEST) {
            log::debug!("stop sampling: {error}");
        }
    }
}

impl Connection {
    /// Connects to the guest called `name`.
    ///
    /// # Errors
    ///
    /// No such guest, or it does not answer; see [`RemoteError`].
    pub fn open(name: &str) -> Result<Self, RemoteError> {
        Self::to(&Registry::open()?.find(Some(name))?)
    }

    /// Connects to a guest found in the registry.
    ///
    /// # Errors
    ///
    /// It does not answer; see [`RemoteError`].
    pub fn to(entry: &Entry) -> Result<Self, RemoteError> {
        Self::connect(&entry.control_socket())
    }

    /// Connects to the supervisor listening on the socket at `path`.
    ///
    /// # Errors
    ///
    /// Nobody listens, a foreign process listens, or the versions differ.
    pub fn connect(path: &Path) -> Result<Self, RemoteError> {
        let stream = UnixStream::connect(path).map_err(|error| RemoteError::Connect {
            path: path.to_owned(),
            error,
        })?;
        if let Err(uid) = trusted_peer(&stream)? {
            return Err(RemoteError::ForeignPeer {
                path: path.to_owned(),
                uid,
            });
        }
        let channel = Channel::new(stream)?;
        channel.send(
            &Hello {
                magic: MAGIC,
                version: PROTOCOL_VERSION,
            },
            MAX_REQUEST,
        )?;
        let not_kscope = || RemoteError::NotKscope {
            path: path.to_owned(),
        };
        let welcome: Welcome = match channel.receive(MAX_REQUEST, Some(PEER_TIMEOUT)) {
            Ok((welcome, _)) => welcome,
            Err(FrameError::Malformed(_) | FrameError::TooLong { .. }) => return Err(not_kscope()),
            Err(error) => return Err(error.into()),
        };
        if welcome.magic != MAGIC {
            return Err(not_kscope());
        }
        if welcome.version != PROTOCOL_VERSION {
            return Err(RemoteError::Version {
                path: path.to_owned(),
                theirs: welcome.version,
                ours: PROTOCOL_VERSION,
            });
        }
        Ok(Self {
            channel: Arc::new(channel),
        })
    }

    /// What guest this is.
    ///
    /// # Errors
    ///
    /// The supervisor is gone or does not answer.
    pub fn describe(&mut self) -> Result<Description, RemoteError> {
        match self.ask(&Request::Describe)? {
            Response::Description(description) => Ok(description),
            other => Err(out_of_turn(&other)),
        }
    }

    /// The guest's memory, readable at full speed for as long as the guest lives, stopped or not.
    ///
    /// # Errors
    ///
    /// The supervisor is gone or does not answer.
    pub fn memory(&mut self) -> Result<ProcMem, RemoteError> {
        self.ask_for_file(&Request::Memory).map(ProcMem::from_fd)
    }

    /// The file that is the guest's RAM: offsets are physical addresses, and holes are memory that was never used.
    ///
    /// Unlike reading the same bytes from [`Connection::memory`], reading a hole here does not make the host give the
    /// guest a page for it.
    ///
    /// # Errors
    ///
    /// The supervisor is gone, does not answer, or cannot find the file.
    pub fn physical_memory(&mut self) -> Result<File, RemoteError> {
        self.ask_for_file(&Request::PhysicalMemory).map(File::from)
    }

    #[cfg(test)]
    pub(crate) fn channel_for_tests(&self) -> &Channel {
        &self.channel
    }

    fn ask_for_file(&mut self, request: &Request) -> Result<OwnedFd, RemoteError> {
        self.channel.send(request, MAX_REQUEST)?;
        let (response, fd) = self.channel.receive(MAX_FRAME, Some(PEER_TIMEOUT))?;
        match (response, fd) {
            (Response::Memory, Some(fd)) => Ok(fd),
            (Response::Memory, None) => Err(RemoteError::OutOfTurn("memory without descriptor")),
            (Response::Failed(reason), _) => Err(RemoteError::Refused(reason)),
            (other, _) => Err(out_of_turn(&other)),
        }
    }

    /// The text of the kernel process's `/proc/PID/maps`.
    ///
    /// # Errors
    ///
    /// The guest is gone.
    pub fn maps(&mut self) -> Result<String, RemoteError> {
        match self.ask(&Request::Maps)? {
            Response::Maps(text) => Ok(text),
            other => Err(out_of_turn(&other)),
        }
    }

    /// Writes to the guest's memory, even where its own mapping is read-only.
    ///
    /// The guest keeps running, so that it may see half of a write longer than a word.
    ///
    /// # Errors
    ///
    /// The range is not mapped, or the guest is gone.
    pub fn write_memory(&mut self, addr: KernelAddr, bytes: &[u8]) -> Result<(), RemoteError> {
        let mut at = addr;
        for chunk in bytes.chunks(WRITE_CHUNK) {
            let request = Request::WriteMemory {
                addr: at,
                bytes: chunk.to_vec(),
            };
            match self.ask(&request)? {
                Response::Written => {}
                other => return Err(out_of_turn(&other)),
            }
            at = KernelAddr(at.0.wrapping_add(chunk.len() as u64));
        }
        Ok(())
    }

    /// One sample of every CPU, taken while all of them are stopped for a moment.
    ///
    /// # Errors
    ///
    /// The guest cannot be stopped, or is gone.
    pub fn snapshot(&mut self) -> Result<Vec<RawSample>, RemoteError> {
        match self.ask(&Request::Snapshot)? {
            Response::Snapshot(samples) => Ok(samples),
            other => Err(out_of_turn(&other)),
        }
    }

    /// Ends the guest. Returns when its supervisor has taken note, not when the guest is gone.
    ///
    /// # Errors
    ///
    /// The supervisor is gone or refuses.
    pub fn stop_guest(&mut self) -> Result<(), RemoteError> {
        match self.ask(&Request::StopGuest)? {
            Response::Stopping => Ok(()),
            other => Err(out_of_turn(&other)),
        }
    }

    /// What ends [`Connection::sample`] from another thread.
    pub fn sample_stopper(&self) -> SampleStopper {
        SampleStopper {
            channel: Arc::clone(&self.channel),
        }
    }

    /// Samples the guest until the time is up, [`SampleStopper::stop`] is called or the guest ends, and hands every
    /// message but the last to `sink`.
    ///
    /// A guest that ends, or is killed together with its supervisor, is no error: what was sampled has arrived, and
    /// [`SampleSummary::end`] tells.
    ///
    /// # Errors
    ///
    /// The rate is out of range, the guest cannot be attached, or its supervisor sends nonsense.
    pub fn sample(
        &mut self,
        request: SampleRequest,
        mut sink: impl FnMut(SampleMessage),
    ) -> Result<SampleSummary, RemoteError> {
        self.channel.send(&Request::Sample(request), MAX_REQUEST)?;
        let mut counts = SampleCounts::default();
        loop {
            let response = match self.channel.receive(MAX_FRAME, Some(PEER_TIMEOUT)) {
                Ok((response, _)) => response,
                Err(error) => match RemoteError::from(error) {
                    RemoteError::Closed => {
                        return Ok(SampleSummary {
                            counts,
                            end: SampleEnd::Disconnected,
                        });
                    }
                    error => return Err(error),
                },
            };
            match response {
                Response::Sample(SampleMessage::Done { counts, end }) => {
                    return Ok(SampleSummary { counts, end });
                }
                Response::Sample(message) => {
                    match &message {
                        SampleMessage::Sample(_) => counts.samples += 1,
                        // What the supervisor has put into the stream and what has arrived differ by what is under
                        // way; at a sudden end only the latter was sampled.
                        SampleMessage::Progress(latest) => {
                            counts = SampleCounts {
                                samples: counts.samples,
                                ..*latest
                            };
                        }
                        SampleMessage::Started | SampleMessage::Done { .. } => {}
                    }
                    sink(message);
                }
                Response::Failed(reason) => return Err(RemoteError::Refused(reason)),
                other => return Err(out_of_turn(&other)),
            }
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Response, RemoteError> {
        ask(&self.channel, request)
    }
}

fn ask(channel: &Channel, request: &Request) -> Result<Response, RemoteError> {
    channel.send(request, MAX_REQUEST)?;
    match channel.receive(MAX_FRAME, Some(PEER_TIMEOUT))?.0 {
        Response::Failed(reason) => Err(RemoteError::Refused(reason)),
        response => Ok(response),
    }
}

fn out_of_turn(response: &Response) -> RemoteError {
    RemoteError::OutOfTurn(match response {
        Response::Description(_) => "description",
        Response::Memory => "memory",
        Response::Maps(_) => "maps",
        Response::Written => "written",
        Response::Sample(_) => "sample",
        Response::Snapshot(_) => "snapshot",
        Response::Held { .. } => "held",
        Response::Kept => "kept",
        Response::Released { .. } => "released",
        Response::Stopping => "stopping",
        Response::Failed(_) => "failure",
    })
}
