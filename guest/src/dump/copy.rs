//! Copies what a core consists of into a sink.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use kscope_kernel::{Core, CorePart, CorePlan, KernelAddr, PartContent};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::DumpError;
use super::sink::{Broken, Sink};
use crate::mem::ProcMem;

/// Pages of zeros are not stored.
const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// Bytes that are read at a time.
const CHUNK: usize = 256 << 10;

/// The memory of a guest that stands still.
pub(super) struct Sources<'a> {
    /// None before the kernel has set it up.
    pub(super) ram: Option<&'a File>,
    pub(super) memory: &'a ProcMem,
}

/// Why copying has ended early.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The sink takes no more, and tells why.
    Broken,
    Failed(DumpError),
}

impl From<Broken> for Stopped {
    fn from(_: Broken) -> Stopped {
        Stopped::Broken
    }
}

impl From<DumpError> for Stopped {
    fn from(error: DumpError) -> Stopped {
        Stopped::Failed(error)
    }
}

/// Copies every part. `step` is called now and then, and ends it when it fails.
pub(super) fn parts(
    plan: &CorePlan,
    from: &Sources<'_>,
    sink: &mut Sink,
    step: &mut dyn FnMut(&Sink) -> Result<(), DumpError>,
) -> Result<(), Stopped> {
    sink.put(0, &plan.head)?;
    for part in &plan.parts {
        match &part.content {
            PartContent::Ram => {
                if let Some(file) = from.ram {
                    ram(part, file, sink, step)?;
                }
            }
            PartContent::Memory(start) => {
                chunks(part, sink, step, |at, buf| {
                    memory(from.memory, *start + at, buf)
                })?;
            }
            PartContent::Bytes(bytes) => these(part, bytes, sink, step)?,
            PartContent::File(file) => these(part, file.bytes(), sink, step)?,
        }
    }
    Ok(())
}

/// Copies bytes that are there.
fn these(
    part: &CorePart,
    bytes: &[u8],
    sink: &mut Sink,
    step: &mut dyn FnMut(&Sink) -> Result<(), DumpError>,
) -> Result<(), Stopped> {
    chunks(part, sink, step, |at, buf| {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let rest = bytes.get(start..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
    })
}

/// Copies the content of another core.
pub(super) fn content(
    core: &Core,
    sink: &mut Sink,
    step: &mut dyn FnMut(&Sink) -> Result<(), DumpError>,
) -> Result<(), Stopped> {
    let mut buf = vec![0; CHUNK];
    let len = core.content_len();
    for at in (0..len).step_by(CHUNK) {
        let want = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        let buf = &mut buf[..want];
        if !core.read_content(at, buf) {
            return Err(DumpError::Unreadable {
                path: core.path().to_owned(),
                offset: at,
            }
            .into());
        }
        put(sink, at, buf)?;
        step(sink)?;
    }
    Ok(())
}

/// Copies RAM. Its holes are passed over without touching them.
fn ram(
    part: &CorePart,
    file: &File,
    sink: &mut Sink,
    step: &mut dyn FnMut(&Sink) -> Result<(), DumpError>,
) -> Result<(), Stopped> {
    let seek = |offset: u64, whence| {
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let found = lseek(file.as_fd(), offset, whence)?;
        u64::try_from(found).map_err(|_| Errno::EINVAL)
    };
    let mut at = 0;
    while at < part.len {
        let (data, hole) = match seek(at, Whence::SeekData) {
            Ok(data) => (data, seek(data, Whence::SeekHole).unwrap_or(part.len)),
            // Nothing but a hole until the end.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(DumpError::Ram(errno.into()).into()),
        };
        let hole = hole.clamp(data, part.len);
        let data_part = CorePart {
            offset: part.offset + data,
            len: hole - data,
            content: PartContent::Ram,
        };
        let mut failed = None;
        chunks(&data_part, sink, step, |within, buf| {
            if let Err(error) = file.read_exact_at(buf, data + within) {
                failed = Some(error);
            }
        })?;
        if let Some(error) = failed {
            return Err(DumpError::Ram(error).into());
        }
        at = hole.max(data + 1);
    }
    Ok(())
}

/// Fills `buf` with memory; what cannot be read is zero.
fn memory(memory: &ProcMem, addr: KernelAddr, buf: &mut [u8]) {
    let mut at = 0;
    while at < buf.len() {
        at += memory.read_some(addr + at as u64, &mut buf[at..]);
        // To the next page.
        let page = (at + 1).next_multiple_of(PAGE).min(buf.len());
        if let Some(hole) = buf.get_mut(at..page) {
            hole.fill(0);
        }
        at = page;
    }
}

/// Copies a part of which `read` fills a buffer with what is so far into it.
fn chunks(
    part: &CorePart,
    sink: &mut Sink,
    step: &mut dyn FnMut(&Sink) -> Result<(), DumpError>,
    mut read: impl FnMut(u64, &mut [u8]),
) -> Result<(), Stopped> {
    let mut buf = vec![0; CHUNK];
    for at in (0..part.len).step_by(CHUNK) {
        let want = usize::try_from(part.len - at).unwrap_or(CHUNK).min(CHUNK);
        let buf = &mut buf[..want];
        buf.fill(0);
        read(at, buf);
        put(sink, part.offset + at, buf)?;
        step(sink)?;
    }
    Ok(())
}

/// Puts in the pages that are not zero, as many as follow each other at a time.
fn put(sink: &mut Sink, offset: u64, bytes: &[u8]) -> Result<(), Broken> {
    let is_zero = |page: &[u8]| ZEROS.get(..page.len()) == Some(page);
    let mut start = None;
    let mut at = 0;
    for page in bytes.chunks(PAGE) {
        match (start, is_zero(page)) {
            (None, false) => start = Some(at),
            (Some(from), true) => {
                sink.put(offset + from as u64, &bytes[from..at])?;
                start = None;
            }
            _ => {}
        }
        at += page.len();
    }
    match start {
        Some(from) => sink.put(offset + from as u64, &bytes[from..]),
        None => Ok(()),
    }
}
