//! The frames that the in-guest init and the supervisor exchange.
//!
//! They travel over one raw User Mode Linux console line (`con1=fd:IN,fd:OUT`),
//! a byte stream in each direction. A frame is a kind byte, a 24-bit
//! little-endian payload length and the payload. Both ends speak the same
//! version, since the supervisor carries the init inside itself; the version in
//! [`ToHost::Hello`] is a check, not a negotiation.
//!
//! Neither end may ever overrun the line: each stream has a window
//! ([`OUTPUT_WINDOW`], [`INPUT_WINDOW`]) that the receiver reopens with credit
//! frames, so that a slow reader holds up the writer and loses nothing. Towards
//! the guest there is a second, smaller window on the line itself
//! ([`LINE_WINDOW`]), since User Mode Linux stops reading a line for good when
//! the guest's terminal buffer has once been full.
//!
//! What the guest is to run is a [`Job`], a file of the initramfs: it is known
//! before boot, and a console line reads one byte per host system call.

mod bytes;
mod job;

pub use job::{Job, Terminal};

use std::fmt;

use bytes::{Reader, put_bytes};

/// The version that [`ToHost::Hello`] carries.
pub const VERSION: u16 = 2;
/// The longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Output bytes, per stream, that the guest may send ahead of credit.
pub const OUTPUT_WINDOW: usize = 256 * 1024;
/// Standard input bytes that the supervisor may send ahead of credit.
pub const INPUT_WINDOW: usize = 64 * 1024;
/// Bytes of frames that the supervisor may send ahead of [`ToHost::Taken`].
///
/// The guest's terminal layer holds 4096 bytes and throttles the line when fewer
/// than 128 are free. User Mode Linux takes the line's interrupt away then, and
/// never gives it back (`line_throttle` in `arch/um/drivers/line.c`).
pub const LINE_WINDOW: usize = 3584;
/// The init reports what it has taken in steps of this many bytes.
pub const TAKEN_STEP: usize = LINE_WINDOW / 4;
/// Where the initramfs holds the encoded [`Job`].
pub const JOB_PATH: &str = "job";

const HEADER: usize = 4;

/// An output stream of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output, or all output when the command has a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It called exit with this code, 0 to 255.
    Code(u8),
    /// This signal, 1 to 64, killed it.
    Signal(u8),
}

impl Status {
    /// The code a shell reports: the exit code, or 128 plus the signal's number.
    pub fn shell_code(self) -> u8 {
        match self {
            Status::Code(code) => code,
            Status::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// What the guest's root file system turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Root {
    /// A writable overlay over the host's root.
    Overlay,
    /// The host's root itself, read-only: the kernel has no overlay file system.
    ReadOnly,
}

/// A frame from the supervisor to the init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// Start the command.
    Go,
    /// Bytes for the command's standard input or terminal.
    Stdin(Vec<u8>),
    /// Standard input has ended.
    StdinEof,
    /// The terminal has this size now.
    Winsize {
        /// Rows of characters.
        rows: u16,
        /// Columns of characters.
        columns: u16,
    },
    /// Send this signal to the command's process group.
    Signal(u8),
    /// This many bytes of a stream have been taken off the line.
    Credit(Stream, u32),
    /// Nobody reads this stream any more: the command is to see a closed pipe.
    Close(Stream),
    /// Power off.
    Bye,
}

/// A frame from the init to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToHost {
    /// The guest is up and waits for [`ToGuest::Go`].
    Hello {
        /// [`VERSION`] of the init.
        version: u16,
        /// What the command sees as `/`.
        root: Root,
    },
    /// Something worth telling the user that does not stop the guest.
    Warning(String),
    /// The guest cannot be set up; the text names the reason.
    Failed(String),
    /// The command runs, with this guest pid.
    Started(u32),
    /// The command could not be executed.
    NotStarted {
        /// 126 or 127, as a shell would report it.
        code: u8,
        /// The reason, as a shell would word it.
        message: String,
    },
    /// The command's output.
    Output(Stream, Vec<u8>),
    /// The command has taken this many bytes of standard input.
    Credit(u32),
    /// This many bytes of frames have been taken off the line.
    Taken(u32),
    /// The command reads no more standard input.
    StdinClosed,
    /// The command has ended and all its output has been sent before this.
    Exited(Status),
}

/// Bytes on the line that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The kind byte of the offending frame.
    pub kind: u8,
    /// Its announced payload length, in bytes.
    pub len: usize,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no frame on the console line: kind {:#04x} with {} bytes",
            self.kind, self.len
        )
    }
}

impl std::error::Error for WireError {}

/// A frame that can be put on the line and taken off it.
pub trait Frame: Sized {
    /// The kind byte.
    fn kind(&self) -> u8;
    /// Appends the payload.
    fn payload(&self, out: &mut Vec<u8>);
    /// Reads a payload; `None` when it does not fit the kind.
    fn parse(kind: u8, payload: &[u8]) -> Option<Self>;

    /// Appends the whole frame.
    ///
    /// # Panics
    ///
    /// When the payload is longer than [`MAX_PAYLOAD`], which is the caller's
    /// mistake: only [`ToGuest::Stdin`] and [`ToHost::Output`] carry data, and
    /// whoever makes those splits it.
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.kind(), 0, 0, 0]);
        self.payload(out);
        let len = out.len() - start - HEADER;
        assert!(len <= MAX_PAYLOAD, "frame of {len} bytes");
        out[start + 1..start + HEADER].copy_from_slice(&(len as u32).to_le_bytes()[..3]);
    }
}

/// Takes frames off a byte stream that arrives in pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the unread part of `buffer` starts.
    start: usize,
}

impl Decoder {
    /// A decoder that has seen nothing yet.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Adds bytes from the line.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// The line carries something else. There is no way to find the next frame
    /// after that: the stream is lost.
    pub fn next_frame<F: Frame>(&mut self) -> Result<Option<F>, WireError> {
        let rest = &self.buffer[self.start..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, a, b, c] = *header;
        let len = u32::from_le_bytes([a, b, c, 0]) as usize;
        let error = WireError { kind, len };
        if len > MAX_PAYLOAD {
            return Err(error);
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let frame = F::parse(kind, payload).ok_or(error)?;
        self.start += HEADER + len;
        Ok(Some(frame))
    }
}

impl Stream {
    fn code(self) -> u8 {
        match self {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        }
    }

    fn from_code(code: u8) -> Option<Stream> {
        match code {
            1 => Some(Stream::Stdout),
            2 => Some(Stream::Stderr),
            _ => None,
        }
    }
}

impl Frame for ToGuest {
    fn kind(&self) -> u8 {
        match self {
            ToGuest::Go => 0x01,
            ToGuest::Stdin(_) => 0x02,
            ToGuest::StdinEof => 0x03,
            ToGuest::Winsize { .. } => 0x04,
            ToGuest::Signal(_) => 0x05,
            ToGuest::Credit(..) => 0x06,
            ToGuest::Close(_) => 0x07,
            ToGuest::Bye => 0x08,
        }
    }

    fn payload(&self, out: &mut Vec<u8>) {
        match self {
            ToGuest::Go | ToGuest::StdinEof | ToGuest::Bye => {}
            ToGuest::Stdin(bytes) => out.extend_from_slice(bytes),
            ToGuest::Winsize { rows, columns } => {
                out.extend_from_slice(&rows.to_le_bytes());
                out.extend_from_slice(&columns.to_le_bytes());
            }
            ToGuest::Signal(signal) => out.push(*signal),
            ToGuest::Credit(stream, bytes) => {
                out.push(stream.code());
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            ToGuest::Close(stream) => out.push(stream.code()),
        }
    }

    fn parse(kind: u8, payload: &[u8]) -> Option<ToGuest> {
        let mut r = Reader::new(payload);
        let frame = match kind {
            0x01 => ToGuest::Go,
            0x02 => return Some(ToGuest::Stdin(payload.to_vec())),
            0x03 => ToGuest::StdinEof,
            0x04 => ToGuest::Winsize {
                rows: r.u16()?,
                columns: r.u16()?,
            },
            0x05 => ToGuest::Signal(r.u8()?),
            0x06 => ToGuest::Credit(Stream::from_code(r.u8()?)?, r.u32()?),
            0x07 => ToGuest::Close(Stream::from_code(r.u8()?)?),
            0x08 => ToGuest::Bye,
            _ => return None,
        };
        r.is_empty().then_some(frame)
    }
}

impl Frame for ToHost {
    fn kind(&self) -> u8 {
        match self {
            ToHost::Hello { .. } => 0x81,
            ToHost::Warning(_) => 0x82,
            ToHost::Failed(_) => 0x83,
            ToHost::Started(_) => 0x84,
            ToHost::NotStarted { .. } => 0x85,
            ToHost::Output(Stream::Stdout, _) => 0x86,
            ToHost::Output(Stream::Stderr, _) => 0x87,
            ToHost::Credit(_) => 0x88,
            ToHost::StdinClosed => 0x89,
            ToHost::Exited(_) => 0x8a,
            ToHost::Taken(_) => 0x8b,
        }
    }

    fn payload(&self, out: &mut Vec<u8>) {
        match self {
            ToHost::Hello { version, root } => {
                out.extend_from_slice(&version.to_le_bytes());
                out.push(match root {
                    Root::Overlay => 0,
                    Root::ReadOnly => 1,
                });
            }
            ToHost::Warning(text) | ToHost::Failed(text) => put_bytes(out, text.as_bytes()),
            ToHost::Started(pid) => out.extend_from_slice(&pid.to_le_bytes()),
            ToHost::NotStarted { code, message } => {
                out.push(*code);
                put_bytes(out, message.as_bytes());
            }
            ToHost::Output(_, bytes) => out.extend_from_slice(bytes),
            ToHost::Credit(bytes) | ToHost::Taken(bytes) => {
                out.extend_from_slice(&bytes.to_le_bytes())
            }
            ToHost::StdinClosed => {}
            ToHost::Exited(Status::Code(code)) => out.extend_from_slice(&[0, *code]),
            ToHost::Exited(Status::Signal(signal)) => out.extend_from_slice(&[1, *signal]),
        }
    }

    fn parse(kind: u8, payload: &[u8]) -> Option<ToHost> {
        let mut r = Reader::new(payload);
        let frame = match kind {
            0x81 => ToHost::Hello {
                version: r.u16()?,
                root: match r.u8()? {
                    0 => Root::Overlay,
                    1 => Root::ReadOnly,
                    _ => return None,
                },
            },
            0x82 => ToHost::Warning(r.string()?),
            0x83 => ToHost::Failed(r.string()?),
            0x84 => ToHost::Started(r.u32()?),
            0x85 => ToHost::NotStarted {
                code: r.u8()?,
                message: r.string()?,
            },
            0x86 => return Some(ToHost::Output(Stream::Stdout, payload.to_vec())),
            0x87 => return Some(ToHost::Output(Stream::Stderr, payload.to_vec())),
            0x88 => ToHost::Credit(r.u32()?),
            0x8b => ToHost::Taken(r.u32()?),
            0x89 => ToHost::StdinClosed,
            0x8a => ToHost::Exited(match (r.u8()?, r.u8()?) {
                (0, code) => Status::Code(code),
                (1, signal) => Status::Signal(signal),
                _ => return None,
            }),
            _ => return None,
        };
        r.is_empty().then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_frames() -> Vec<ToHost> {
        vec![
            ToHost::Hello {
                version: VERSION,
                root: Root::ReadOnly,
            },
            ToHost::Warning("no overlay".to_owned()),
            ToHost::Failed(String::new()),
            ToHost::Started(77),
            ToHost::NotStarted {
                code: 127,
                message: "nope: not found".to_owned(),
            },
            ToHost::Output(Stream::Stdout, vec![0, 1, 255]),
            ToHost::Output(Stream::Stderr, vec![7; MAX_PAYLOAD]),
            ToHost::Credit(u32::MAX),
            ToHost::Taken(1),
            ToHost::StdinClosed,
            ToHost::Exited(Status::Code(3)),
            ToHost::Exited(Status::Signal(9)),
        ]
    }

    #[test]
    fn frames_survive_any_cut() {
        let frames = host_frames();
        let mut line = Vec::new();
        for frame in &frames {
            frame.encode(&mut line);
        }
        for size in [1, 2, 3, 5, 4096, line.len()] {
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for piece in line.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame::<ToHost>().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames, "pieces of {size} bytes");
        }
    }

    #[test]
    fn guest_frames_round_trip() {
        let frames = [
            ToGuest::Go,
            ToGuest::Stdin(b"x\0y".to_vec()),
            ToGuest::StdinEof,
            ToGuest::Winsize {
                rows: 24,
                columns: 300,
            },
            ToGuest::Signal(15),
            ToGuest::Credit(Stream::Stderr, 1 << 20),
            ToGuest::Close(Stream::Stdout),
            ToGuest::Bye,
        ];
        let mut decoder = Decoder::new();
        for frame in &frames {
            let mut line = Vec::new();
            frame.encode(&mut line);
            decoder.push(&line);
            assert_eq!(
                decoder.next_frame::<ToGuest>().unwrap().as_ref(),
                Some(frame)
            );
        }
    }

    #[test]
    fn noise_is_an_error_and_never_a_panic() {
        for noise in [
            &b"hello world"[..],
            &[0x81, 0, 0, 0],
            &[0x86, 255, 255, 255],
        ] {
            let mut decoder = Decoder::new();
            decoder.push(noise);
            assert!(decoder.next_frame::<ToHost>().is_err(), "{noise:?}");
        }
    }

    #[test]
    fn a_signal_is_reported_as_a_shell_does() {
        assert_eq!(Status::Code(42).shell_code(), 42);
        assert_eq!(Status::Signal(9).shell_code(), 137);
    }
}
