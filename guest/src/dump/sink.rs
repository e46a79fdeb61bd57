//! Where the content of a core goes: threads that compress and write, behind a queue that is as
//! long as memory allows, so that the guest does not wait for the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kscope_kernel::{CORE_FRAME, FrameCompressor, FrameTable};

/// The most threads that compress. More than can be fed.
const MAX_WORKERS: usize = 8;

/// A piece of content, at its place in the core.
struct Piece {
    offset: u64,
    /// Empty for a frame of zeros.
    bytes: Vec<u8>,
    len: usize,
    _room: Room,
}

/// How many bytes wait in queues, and how many may.
#[derive(Debug)]
struct Budget {
    used: Mutex<usize>,
    freed: Condvar,
    limit: usize,
}

/// A part of the budget, given back when dropped.
struct Room {
    budget: Arc<Budget>,
    len: usize,
}

impl Budget {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room. There always is for one that is alone.
    fn take(self: &Arc<Budget>, len: usize) -> Room {
        let mut used = self.lock();
        while *used > 0 && used.saturating_add(len) > self.limit {
            used = self
                .freed
                .wait(used)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *used += len;
        Room {
            budget: Arc::clone(self),
            len,
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *self.budget.lock() -= self.len;
        self.budget.freed.notify_all();
    }
}

/// Content is put in by ascending offset; what is left out is zero.
pub(super) struct Sink {
    /// Dropped to end the threads.
    pieces: Option<Sender<Piece>>,
    budget: Arc<Budget>,
    frames: Option<Frames>,
    workers: Vec<JoinHandle<io::Result<()>>>,
    writer: Option<JoinHandle<io::Result<u64>>>,
    written: Arc<AtomicU64>,
    abandoned: Arc<AtomicBool>,
}

/// The frame that is being filled.
struct Frames {
    index: u64,
    content: Vec<u8>,
}

impl Sink {
    /// A sink that fills a file, compressed or as it is, with `limit` bytes waiting at most.
    pub(super) fn new(file: File, compress: bool, limit: usize) -> io::Result<Sink> {
        let (pieces, receiver) = unbounded();
        let written = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&written);
        let abandoned = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        let writer = if compress {
            let (compressed, ready) = unbounded();
            let threads = thread::available_parallelism().map_or(1, usize::from);
            for number in 0..threads.min(MAX_WORKERS) {
                let (pieces, compressed) = (receiver.clone(), compressed.clone());
                let abandoned = Arc::clone(&abandoned);
                let worker = thread::Builder::new()
                    .name(format!("compress/{number}"))
                    .spawn(move || work(&pieces, &compressed, &abandoned))?;
                workers.push(worker);
            }
            spawn_writer(move || write_frames(file, &ready, &count))?
        } else {
            let abandoned = Arc::clone(&abandoned);
            spawn_writer(move || write_pieces(&file, &receiver, &count, &abandoned))?
        };
        Ok(Sink {
            pieces: Some(pieces),
            budget: Arc::new(Budget {
                used: Mutex::new(0),
                freed: Condvar::new(),
                limit,
            }),
            frames: compress.then(|| Frames {
                index: 0,
                content: Vec::new(),
            }),
            workers,
            writer: Some(writer),
            written,
            abandoned,
        })
    }

    /// Bytes of content that are written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether all that was put in is written, or nothing will be any more.
    pub(super) fn is_idle(&self) -> bool {
        let ended = self.writer.as_ref().is_none_or(JoinHandle::is_finished);
        ended || *self.budget.lock() == 0
    }

    /// Puts in some content. Waits when too much of it waits already.
    ///
    /// Fails when nothing can be written any more; [`finish`](Sink::finish) tells why.
    pub(super) fn put(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Broken> {
        if self.frames.is_none() {
            return self.send(offset, bytes.to_vec(), bytes.len());
        }
        while !bytes.is_empty() {
            self.begin_frame(offset / CORE_FRAME as u64)?;
            let within = (offset % CORE_FRAME as u64) as usize;
            let len = (CORE_FRAME - within).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            if let Some(frames) = &mut self.frames {
                if frames.content.len() < within {
                    frames.content.resize(within, 0);
                }
                frames.content.truncate(within);
                frames.content.extend_from_slice(now);
            }
            bytes = later;
            offset += len as u64;
        }
        Ok(())
    }

    /// Sends what is before this frame.
    fn begin_frame(&mut self, index: u64) -> Result<(), Broken> {
        while let Some(frames) = &mut self.frames
            && frames.index < index
        {
            let offset = frames.index * CORE_FRAME as u64;
            frames.index += 1;
            let content = std::mem::take(&mut frames.content);
            self.send(offset, content, CORE_FRAME)?;
        }
        Ok(())
    }

    fn send(&self, offset: u64, mut bytes: Vec<u8>, len: usize) -> Result<(), Broken> {
        let room = self.budget.take(bytes.len());
        if !bytes.is_empty() {
            // The rest of a frame.
            bytes.resize(len, 0);
        }
        let piece = Piece {
            offset,
            bytes,
            len,
            _room: room,
        };
        let pieces = self.pieces.as_ref().ok_or(Broken)?;
        pieces.send(piece).map_err(|_| Broken)
    }

    /// Waits until everything of a content of `len` bytes is written; gives the bytes that the file takes.
    pub(super) fn finish(mut self, len: u64) -> io::Result<u64> {
        // What it fails with is what the writer failed with.
        let _ = self.end_frames(len);
        self.join()
    }

    fn end_frames(&mut self, len: u64) -> Result<(), Broken> {
        let last = len / CORE_FRAME as u64;
        self.begin_frame(last)?;
        let rest = (len % CORE_FRAME as u64) as usize;
        match &mut self.frames {
            Some(frames) if rest > 0 => {
                let content = std::mem::take(&mut frames.content);
                self.send(last * CORE_FRAME as u64, content, rest)
            }
            Some(_) => Ok(()),
            None => self.send(len, Vec::new(), 0),
        }
    }

    fn join(&mut self) -> io::Result<u64> {
        self.pieces = None;
        let panicked = || io::Error::other("a thread that writes the core has panicked");
        let mut result = Ok(());
        for worker in self.workers.drain(..) {
            let worked = worker.join().unwrap_or_else(|_| Err(panicked()));
            result = result.and(worked);
        }
        let writer = self.writer.take().map(JoinHandle::join);
        // A writer that has given up is why workers have.
        let written = writer
            .unwrap_or_else(|| Ok(Err(panicked())))
            .unwrap_or_else(|_| Err(panicked()))?;
        result.map(|()| written)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Before its end: what waits is not worth the wait. Nobody asks for a failure any more.
        self.abandoned.store(true, Ordering::Relaxed);
        let _ = self.join();
    }
}

/// The sink takes nothing any more.
#[derive(Debug)]
pub(super) struct Broken;

fn spawn_writer(
    write: impl FnOnce() -> io::Result<u64> + Send + 'static,
) -> io::Result<JoinHandle<io::Result<u64>>> {
    thread::Builder::new()
        .name("core writer".into())
        .spawn(write)
}

/// Writes pieces where they belong, and nothing where zeros are.
fn write_pieces(
    file: &File,
    pieces: &Receiver<Piece>,
    count: &AtomicU64,
    abandoned: &AtomicBool,
) -> io::Result<u64> {
    let (mut end, mut stored) = (0, 0);
    for piece in pieces {
        if abandoned.load(Ordering::Relaxed) {
            break;
        }
        file.write_all_at(&piece.bytes, piece.offset)?;
        end = piece.offset + piece.len as u64;
        stored += piece.bytes.len() as u64;
        count.store(stored, Ordering::Relaxed);
    }
    file.set_len(end)?;
    Ok(stored)
}

/// A frame that is ready: its number, its bytes, and the length of its content.
type Frame = (u64, Vec<u8>, usize, Option<Room>);

fn work(
    pieces: &Receiver<Piece>,
    compressed: &Sender<Frame>,
    abandoned: &AtomicBool,
) -> io::Result<()> {
    let mut compressor = FrameCompressor::new()?;
    // Most of a core is zeros.
    let mut zeros: Option<(usize, Vec<u8>)> = None;
    for piece in pieces {
        let frame = match &mut zeros {
            _ if !piece.bytes.is_empty() => compressor.frame(&piece.bytes)?,
            Some((len, frame)) if *len == piece.len => frame.clone(),
            zeros => {
                let frame = compressor.frame(&vec![0; piece.len])?;
                zeros.insert((piece.len, frame)).1.clone()
            }
        };
        let number = piece.offset / CORE_FRAME as u64;
        let frame = (number, frame, piece.len, Some(piece._room));
        // A writer that has failed tells itself.
        if compressed.send(frame).is_err() || abandoned.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

/// Writes frames in their order, and their table.
fn write_frames(file: File, ready: &Receiver<Frame>, count: &AtomicU64) -> io::Result<u64> {
    let mut file = io::BufWriter::with_capacity(1 << 20, file);
    let mut table = FrameTable::default();
    let mut early = BTreeMap::new();
    let (mut next, mut len) = (0, 0);
    for (number, frame, content_len, room) in ready {
        early.insert(number, (frame, content_len, room));
        while let Some((frame, content_len, room)) = early.remove(&next) {
            file.write_all(&frame)?;
            table.push(frame.len(), content_len);
            len += frame.len() as u64;
            next += 1;
            count.fetch_add(content_len as u64, Ordering::Relaxed);
            drop(room);
        }
    }
    let table = table.to_bytes();
    file.write_all(&table)?;
    file.flush()?;
    Ok(len + table.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use kscope_kernel::Core;
    use proptest::prelude::*;

    use super::*;

    /// What a sink made of these pieces, as `Core` decompresses it or as the file is.
    fn through(pieces: &[(u64, Vec<u8>)], len: u64, compress: bool, limit: usize) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(file.try_clone().unwrap(), compress, limit).unwrap();
        for (offset, bytes) in pieces {
            sink.put(*offset, bytes).unwrap();
        }
        let written = sink.finish(len).unwrap();
        let stored: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(
            written,
            match compress {
                true => file.metadata().unwrap().len(),
                false => stored as u64,
            }
        );
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        if !compress {
            return bytes;
        }
        // The table is a frame that decoders pass over.
        zstd::stream::decode_all(&bytes[..]).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn content_comes_out_where_it_went_in(
            gaps in prop::collection::vec((0..300_000_u64, 1..200_000_usize), 0..6),
            tail in 0..300_000_u64,
            limit in prop_oneof![Just(1), Just(1 << 30)],
        ) {
            let (mut pieces, mut at) = (Vec::new(), 0);
            for (number, (gap, len)) in gaps.into_iter().enumerate() {
                at += gap;
                pieces.push((at, vec![number as u8 + 1; len]));
                at += len as u64;
            }
            let len = at + tail;
            let mut expected = vec![0; len as usize];
            for (offset, bytes) in &pieces {
                let start = *offset as usize;
                expected[start..start + bytes.len()].copy_from_slice(bytes);
            }
            for compress in [false, true] {
                prop_assert!(through(&pieces, len, compress, limit) == expected);
            }
        }
    }

    #[test]
    fn a_full_disk_is_told_and_holds_nobody_up() {
        for compress in [false, true] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let mut sink = Sink::new(full, compress, 1 << 20).unwrap();
            let mut noise = vec![0; 1 << 20];
            for (at, byte) in noise.iter_mut().enumerate() {
                *byte = (at.wrapping_mul(2_654_435_761) >> 13) as u8;
            }
            let broken = (0..1000).any(|number| sink.put(number << 20, &noise).is_err());
            assert!(broken);
            let error = sink.finish(1000 << 20).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        }
        // What is given up ends at once, too.
        let file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(file, true, 1 << 20).unwrap();
        sink.put(0, &[1; 1 << 20]).unwrap();
        drop(sink);
    }

    #[test]
    fn compressed_content_is_found_by_its_table() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut sink = Sink::new(file.reopen().unwrap(), true, 1 << 20).unwrap();
        sink.put(1 << 20, b"far away").unwrap();
        sink.finish(3 << 20).unwrap();
        // It is no core, but it could be read so far.
        let error = Core::open(file.path()).unwrap_err();
        assert!(error.to_string().contains("not an ELF file"), "{error}");
    }
}
