//! Zstandard files that can be read from anywhere: many frames, and at the end a table of them.
//!
//! The table is the skippable frame of the [seekable format][format], so that `zstd -d` passes over
//! it. A file without one is read frame by frame to find where they are; one whose frames do not
//! tell their size, or are large, is not for this reader.
//!
//! [format]: https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;
use zstd::zstd_safe;

/// First bytes of a zstd frame.
pub(super) const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// First bytes of skippable frames, of which there are 16 kinds.
const SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184D_2A50..=0x184D_2A5F;
/// First bytes of the frame that is the table.
pub(super) const TABLE_MAGIC: u32 = 0x184D_2A5E;
/// Last bytes of it.
pub(super) const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
/// Length of its end: the number of frames, a descriptor, the magic number.
const FOOTER: usize = 9;
/// Bit of the descriptor: entries have a checksum.
const HAS_CHECKSUMS: u8 = 0x80;
/// Bits of the descriptor that must be zero.
const RESERVED: u8 = 0x7c;

/// The most content that one frame may have, in bytes.
const MAX_FRAME_CONTENT: u64 = 8 << 20;
/// The most frames: with frames as kscope makes them, 256 GiB of content.
const MAX_FRAMES: usize = 1 << 20;
/// Bytes of content that are kept.
const CACHE: usize = 48 << 20;

/// One frame with content.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where its content begins in that of the file.
    content: u64,
    content_len: u32,
    start: usize,
    len: u32,
}

/// Why a file cannot be read this way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unseekable {
    /// It can be read, but only from its beginning.
    Stream,
    /// It is not what it should be.
    Damaged(&'static str),
}

/// A compressed file of which the frames are known.
pub(super) struct Seekable {
    map: Mmap,
    frames: Vec<Frame>,
    content_len: u64,
    cache: Mutex<Cache>,
}

struct Cache {
    decompressor: zstd::bulk::Decompressor<'static>,
    /// By index: content, and when it was last used.
    frames: HashMap<usize, (Arc<[u8]>, u64)>,
    bytes: usize,
    clock: u64,
}

impl Seekable {
    /// Finds the frames. Gives the reader, and whether the file is cut off.
    pub(super) fn new(map: Mmap) -> Result<(Seekable, bool), (Mmap, Unseekable)> {
        let found = match from_table(&map) {
            Some(frames) => Ok((frames, false)),
            None => from_scan(&map),
        };
        let (frames, cut) = match found {
            Ok(found) => found,
            Err(reason) => return Err((map, reason)),
        };
        let Ok(decompressor) = zstd::bulk::Decompressor::new() else {
            return Err((map, Unseekable::Damaged("zstd cannot be initialised")));
        };
        let content_len = frames
            .last()
            .map_or(0, |frame| frame.content + u64::from(frame.content_len));
        let seekable = Seekable {
            map,
            frames,
            content_len,
            cache: Mutex::new(Cache {
                decompressor,
                frames: HashMap::new(),
                bytes: 0,
                clock: 0,
            }),
        };
        Ok((seekable, cut))
    }

    /// Bytes of content.
    pub(super) fn len(&self) -> u64 {
        self.content_len
    }

    /// Fills `buf` with the content at `offset`; tells whether all of it could be had.
    pub(super) fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> bool {
        while !buf.is_empty() {
            let Some(index) = self
                .frames
                .partition_point(|frame| frame.content <= offset)
                .checked_sub(1)
            else {
                return false;
            };
            let Some((frame, content)) = self.content(index) else {
                return false;
            };
            let within = usize::try_from(offset - frame.content).unwrap_or(usize::MAX);
            let Some(rest) = content.get(within..).filter(|rest| !rest.is_empty()) else {
                return false;
            };
            let len = rest.len().min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            now.copy_from_slice(&rest[..len]);
            buf = later;
            offset += len as u64;
        }
        true
    }

    /// The content of a frame, from the cache or decompressed now. `None` when it is damaged.
    fn content(&self, index: usize) -> Option<(Frame, Arc<[u8]>)> {
        let frame = *self.frames.get(index)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.clock += 1;
        let clock = cache.clock;
        if let Some((content, used)) = cache.frames.get_mut(&index) {
            *used = clock;
            return Some((frame, Arc::clone(content)));
        }
        let compressed = self
            .map
            .get(frame.start..frame.start.checked_add(frame.len as usize)?)?;
        // At most MAX_FRAME_CONTENT.
        let mut content = vec![0; frame.content_len as usize];
        let len = cache
            .decompressor
            .decompress_to_buffer(compressed, content.as_mut_slice())
            .ok()?;
        if len != content.len() {
            return None;
        }
        let content: Arc<[u8]> = content.into();
        cache.bytes += content.len();
        cache.frames.insert(index, (Arc::clone(&content), clock));
        cache.shrink();
        Some((frame, content))
    }
}

impl Cache {
    /// Forgets what was not used for longest, until what is kept is within its bounds.
    fn shrink(&mut self) {
        while self.bytes > CACHE && self.frames.len() > 1 {
            let oldest = self.frames.iter().min_by_key(|(_, (_, used))| *used);
            let Some((&index, _)) = oldest else {
                return;
            };
            if let Some((content, _)) = self.frames.remove(&index) {
                self.bytes = self.bytes.saturating_sub(content.len());
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The frames as the table at the end of the file has them; `None` without a table that fits.
fn from_table(file: &[u8]) -> Option<Vec<Frame>> {
    let footer = file.len().checked_sub(FOOTER)?;
    let count = usize::try_from(u32_at(file, footer)?).ok()?;
    let descriptor = *file.get(footer + 4)?;
    if u32_at(file, footer + 5)? != FOOTER_MAGIC || descriptor & RESERVED != 0 || count > MAX_FRAMES
    {
        return None;
    }
    let entry = match descriptor & HAS_CHECKSUMS {
        0 => 8,
        _ => 12,
    };
    let entries_len = count.checked_mul(entry)?;
    let entries_start = footer.checked_sub(entries_len)?;
    let table = entries_start.checked_sub(8)?;
    let table_len = u32::try_from(entries_len + FOOTER).ok()?;
    if u32_at(file, table)? != TABLE_MAGIC || u32_at(file, table + 4)? != table_len {
        return None;
    }
    let mut frames = Vec::with_capacity(count);
    let (mut start, mut content) = (0_usize, 0_u64);
    for at in (entries_start..footer).step_by(entry) {
        let len = u32_at(file, at)?;
        let content_len = u32_at(file, at + 4)?;
        if u64::from(content_len) > MAX_FRAME_CONTENT {
            return None;
        }
        if content_len > 0 {
            frames.push(Frame {
                content,
                content_len,
                start,
                len,
            });
        }
        start = start.checked_add(len as usize)?;
        content = content.checked_add(u64::from(content_len))?;
    }
    (start == table).then_some(frames)
}

/// The frames as they follow each other, and whether the last is cut off.
fn from_scan(file: &[u8]) -> Result<(Vec<Frame>, bool), Unseekable> {
    let mut frames = Vec::new();
    let (mut start, mut content) = (0_usize, 0_u64);
    while let Some(rest) = file.get(start..).filter(|rest| !rest.is_empty()) {
        let Some(magic) = u32_at(rest, 0) else {
            return Ok((frames, true));
        };
        if SKIPPABLE.contains(&magic) {
            let end = u32_at(rest, 4)
                .and_then(|len| start.checked_add(8)?.checked_add(len as usize))
                .filter(|&end| end <= file.len());
            match end {
                Some(end) => start = end,
                None => return Ok((frames, true)),
            }
            continue;
        }
        if !rest.starts_with(&MAGIC) {
            if frames.is_empty() {
                return Err(Unseekable::Damaged("its first frame is no zstd frame"));
            }
            return Ok((frames, true));
        }
        let content_len = match zstd_safe::get_frame_content_size(rest) {
            Ok(Some(len)) if len <= MAX_FRAME_CONTENT => len,
            // One large frame, or one from a pipe.
            Ok(_) if frames.is_empty() => return Err(Unseekable::Stream),
            Ok(_) => return Err(Unseekable::Damaged("its frames differ too much in size")),
            Err(_) => return Ok((frames, true)),
        };
        let Ok(len) = zstd_safe::find_frame_compressed_size(rest) else {
            return Ok((frames, true));
        };
        let Ok(frame_len) = u32::try_from(len) else {
            return Err(Unseekable::Damaged("a frame is longer than 4 GiB"));
        };
        if len == 0 || frames.len() >= MAX_FRAMES {
            return Err(Unseekable::Damaged(
                "it has more frames than a core can have",
            ));
        }
        if content_len > 0 {
            frames.push(Frame {
                content,
                content_len: content_len as u32,
                start,
                len: frame_len,
            });
        }
        // Both bounded: the file is in memory, and there are few frames of few bytes.
        start += len;
        content += content_len;
    }
    Ok((frames, false))
}

impl fmt::Debug for Seekable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seekable")
            .field("frames", &self.frames.len())
            .field("content_len", &self.content_len)
            .finish_non_exhaustive()
    }
}
