//! What goes over `control.sock`: a versioned hello, then frames of [postcard](https://docs.rs/postcard).
//!
//! A frame is a little-endian `u32` length followed by that many bytes. The client sends [`Hello`] first and the
//! server answers with a [`Welcome`]; these two never change their encoding, so that any two versions can tell each
//! other that they do not match. After that the client sends [`Request`]s and the server one [`Response`] for each,
//! except during sampling, where a stream of [`Response::Sample`] ends with [`SampleMessage::Done`].

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kscope_kernel::{CpuId, GuestPid, KernelAddr, Registers};
use serde::{Deserialize, Serialize};

/// The version of everything after the hello. Raised with every change of the types below.
pub const PROTOCOL_VERSION: u16 = 3;

/// First bytes of a hello.
pub(crate) const MAGIC: [u8; 8] = *b"kscope/c";

/// Upper bound of a frame in bytes, in both directions.
pub(crate) const MAX_FRAME: usize = 16 << 20;

/// Upper bound of a frame from a client, in bytes. Requests are small: a hostile length never costs the supervisor memory.
pub(crate) const MAX_REQUEST: usize = 256 << 10;

/// Bytes of one [`Request::WriteMemory`]; longer writes are cut into several.
pub(crate) const WRITE_CHUNK: usize = 128 << 10;

/// How long a peer may take for the rest of a frame, or for an answer.
pub(crate) const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a [`Request::Hold`] lasts at most. A reader that is stuck shall not be the end of the guest's clocks.
pub const MAX_HOLD: Duration = Duration::from_secs(30);

/// How often a running sample stream says that it is alive, in milliseconds.
pub(crate) const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// The lowest sampling rate in Hz.
pub const MIN_HZ: u32 = 1;
/// The highest sampling rate in Hz. A stop costs the guest 11 to 50 µs, so that above this it would mostly stand still.
pub const MAX_HZ: u32 = 20_000;

/// The first frame of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub magic: [u8; 8],
    pub version: u16,
}

/// The server's answer to [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub magic: [u8; 8],
    pub version: u16,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Answered with [`Response::Description`].
    Describe,
    /// Answered with [`Response::Memory`] and the descriptor of `/proc/PID/mem`, open for reading.
    Memory,
    /// Answered with [`Response::Memory`] and the descriptor of the file that is the guest's RAM, open for reading.
    PhysicalMemory,
    /// Answered with [`Response::Maps`].
    Maps,
    /// Answered with [`Response::Written`].
    WriteMemory {
        addr: KernelAddr,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Answered with a stream of [`Response::Sample`].
    Sample(SampleRequest),
    /// Ends the stream early. Has no answer of its own: the stream's end is the answer.
    StopSampling,
    /// One sample of every CPU, answered with [`Response::Snapshot`].
    Snapshot,
    /// Stops every CPU until [`Request::Release`], the end of the connection or [`MAX_HOLD`]; answered with
    /// [`Response::Held`].
    Hold,
    /// This connection's hold may last for another [`MAX_HOLD`] from now: its holder is at work. Answered with
    /// [`Response::Kept`].
    KeepHolding,
    /// Ends this connection's hold, answered with [`Response::Released`].
    Release,
    /// Ends the guest, answered with [`Response::Stopping`].
    StopGuest,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Response {
    Description(Description),
    Memory,
    Maps(String),
    Written,
    Sample(SampleMessage),
    Snapshot(Vec<RawSample>),
    Held {
        registers: Vec<(CpuId, Registers)>,
        /// A debugger had stopped the guest before.
        debugged: bool,
    },
    Kept,
    Released {
        /// How long the guest stood still for this, in nanoseconds.
        stood_ns: u64,
        /// The hold had ended at its deadline.
        expired: bool,
    },
    Stopping,
    /// The request could not be served; the connection stays usable.
    Failed(String),
}

/// What a supervisor tells about its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The guest's name, as in `kscope list`.
    pub name: String,
    /// Host process id of the guest's kernel process.
    pub pid: u32,
    /// Host process id of its supervisor.
    pub supervisor: u32,
    /// The `linux` binary it runs.
    pub kernel: PathBuf,
    /// The binary's build-id in hexadecimal.
    pub build_id: Option<String>,
    /// The command it runs; empty for a shell.
    pub command: Vec<String>,
}

/// How to sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRequest {
    /// Samples per second and CPU, [`MIN_HZ`] to [`MAX_HZ`].
    pub hz: u32,
    /// Milliseconds after which the stream ends; until stopped when `None`.
    pub duration_ms: Option<u64>,
}

/// The task that was current on a CPU.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SampledTask {
    /// Address of its `task_struct`.
    pub addr: KernelAddr,
    /// Its thread id in the guest (`task_struct.pid`).
    pub pid: GuestPid,
    /// Its process id in the guest (`task_struct.tgid`).
    pub tgid: GuestPid,
    /// Its name (`task_struct.comm`), at most 15 bytes.
    pub comm: String,
    /// It has no user memory of its own (`PF_KTHREAD`).
    pub kernel_thread: bool,
}

/// A copy of a piece of guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackCopy {
    /// Address of the first byte.
    pub addr: KernelAddr,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// One CPU of the guest at one moment, not yet unwound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RawSample {
    /// Host's `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// The CPU.
    pub cpu: CpuId,
    /// The task that was current there; `None` when the guest's memory made no sense (early boot, corruption).
    pub task: Option<SampledTask>,
    /// Host CPU time that the CPU's thread has had so far, in nanoseconds; `None` where the host does not tell.
    pub cpu_ns: Option<u64>,
    /// The CPU's registers.
    pub registers: Registers,
    /// The stack from the stack pointer to the end of its area; then the current task's stack, when that is another.
    pub regions: Vec<StackCopy>,
}

/// Why a sample stream ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SampleEnd {
    /// The client asked for it.
    Stopped,
    /// [`SampleRequest::duration_ms`] passed.
    Duration,
    /// The guest ended.
    GuestExited,
    /// The supervisor went away, and with it the guest. Never sent, only seen.
    Disconnected,
    /// The guest could not be stopped any more; the reason.
    Failed(String),
}

/// Counts of a sample stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleCounts {
    /// Samples put into the stream.
    pub samples: u64,
    /// Ticks that came too late to be served: the guest or the sampler was still busy with the one before.
    pub missed: u64,
    /// Ticks at which a debugger held the guest: nothing ran, nothing was sampled.
    pub held: u64,
    /// Samples thrown away because the reader was too slow.
    pub overflowed: u64,
    /// Ticks at which the guest could not be stopped in time.
    pub unstopped: u64,
    /// Time since the first tick, in nanoseconds.
    pub duration_ns: u64,
}

impl SampleCounts {
    /// Everything that should have been a sample and is none.
    pub fn lost(&self) -> u64 {
        self.missed + self.held + self.overflowed + self.unstopped
    }
}

/// One message of a sample stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SampleMessage {
    /// The guest is attached and the timer runs: what happens from now on is sampled.
    Started,
    /// A sample.
    Sample(Box<RawSample>),
    /// Counts so far, at least once a second.
    Progress(SampleCounts),
    /// The last message.
    Done {
        /// Final counts.
        counts: SampleCounts,
        /// Why the stream ended.
        end: SampleEnd,
    },
}

/// Why bytes on the socket are no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The peer closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    #[error("a frame of {len} bytes is longer than the {max} allowed")]
    TooLong { len: usize, max: usize },
    #[error("a frame cannot be decoded: {0}")]
    Malformed(postcard::Error),
    #[error("a message cannot be encoded: {0}")]
    Unencodable(postcard::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A message as the bytes of one frame, length included.
pub(crate) fn encode<T: Serialize>(message: &T, max: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; 4]).map_err(FrameError::Unencodable)?;
    let len = frame.len() - 4;
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    // `len` is at most MAX_FRAME, which fits.
    frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(frame)
}

/// The message in a frame's payload; trailing bytes are an error, since they mean that the peer speaks otherwise.
pub(crate) fn decode<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(FrameError::Malformed(
            postcard::Error::DeserializeBadEncoding,
        )),
        Err(error) => Err(FrameError::Malformed(error)),
    }
}
