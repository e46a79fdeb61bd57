//! The bytes of a core file, however it is stored.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

use memmap2::Mmap;

use super::seekable::{MAGIC, Seekable, Unseekable};

/// The most memory that a compressed core takes which can be read from its beginning only.
const MAX_KEPT: usize = 256 << 20;
/// The most content such a core may have: most of a core is zeros, which compress to nothing.
const MAX_CONTENT: u64 = 4 << 30;
/// Granularity in which such a core is kept.
const CHUNK: usize = 64 << 10;

/// A core file's content.
#[derive(Debug)]
pub(super) enum Bytes {
    /// As it is.
    Plain(Mmap),
    /// Compressed; decompressed where it is read.
    Seekable(Seekable),
    /// Compressed in one piece; its parts that are not zeros.
    Kept {
        chunks: HashMap<u64, Box<[u8]>>,
        len: u64,
    },
}

/// What is wrong with the file.
#[derive(Debug)]
pub(super) enum BytesError {
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for BytesError {
    fn from(error: io::Error) -> BytesError {
        BytesError::Io(error)
    }
}

impl Bytes {
    /// Opens the content. Gives it with a warning when it is cut off.
    pub(super) fn new(file: &File) -> Result<(Bytes, Option<String>), BytesError> {
        if !file.metadata()?.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(error.into());
        }
        // SAFETY: the mapping is read-only and private. It is undefined behaviour only if somebody
        // rewrites the file in place while it is mapped; kscope renames a finished core into place.
        let map = unsafe { Mmap::map(file)? };
        if !map.starts_with(&MAGIC) {
            return Ok((Bytes::Plain(map), None));
        }
        match Seekable::new(map) {
            Ok((seekable, true)) if seekable.len() == 0 => Err(BytesError::Damaged(
                "it is cut off within its first zstd frame".to_owned(),
            )),
            Ok((seekable, cut)) => {
                let warning = cut.then(|| {
                    "the compressed file is cut off: the end of the core is missing".to_owned()
                });
                Ok((Bytes::Seekable(seekable), warning))
            }
            Err((map, Unseekable::Stream)) => keep(&map),
            Err((_, Unseekable::Damaged(reason))) => Err(BytesError::Damaged(reason.to_owned())),
        }
    }

    /// Length of the content in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Bytes::Plain(map) => map.len() as u64,
            Bytes::Seekable(seekable) => seekable.len(),
            Bytes::Kept { len, .. } => *len,
        }
    }

    /// Fills `buf` with the content at `offset`; tells whether all of it could be had.
    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8]) -> bool {
        match self {
            Bytes::Plain(map) => {
                let content = usize::try_from(offset)
                    .ok()
                    .and_then(|start| map.get(start..start.checked_add(buf.len())?));
                content.is_some_and(|content| {
                    buf.copy_from_slice(content);
                    true
                })
            }
            Bytes::Seekable(seekable) => seekable.read_at(offset, buf),
            Bytes::Kept { chunks, len } => {
                let end = offset.checked_add(buf.len() as u64);
                if end.is_none_or(|end| end > *len) {
                    return false;
                }
                read_kept(chunks, offset, buf);
                true
            }
        }
    }
}

/// Decompresses a file from its beginning, and keeps what is not zero.
fn keep(map: &Mmap) -> Result<(Bytes, Option<String>), BytesError> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(&map[..])?;
    let mut chunks = HashMap::new();
    let mut len = 0_u64;
    let mut warning = None;
    let mut chunk = vec![0; CHUNK];
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            match decoder.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if len == 0 && filled == 0 => {
                    return Err(BytesError::Damaged(format!("zstd: {error}")));
                }
                Err(error) => {
                    warning = Some(format!("the end of the core is missing: zstd: {error}"));
                    break;
                }
            }
        }
        // Nothing more is needed to refuse it, however long it is.
        if len == 0 && !chunk.starts_with(&object::elf::ELFMAG) {
            let len = filled as u64;
            chunks.insert(0, chunk[..filled].into());
            return Ok((Bytes::Kept { chunks, len }, warning));
        }
        if chunk[..filled].iter().any(|&byte| byte != 0) {
            if (chunks.len() + 1) * CHUNK > MAX_KEPT {
                return Err(BytesError::Damaged(format!(
                    "it is compressed in one piece and holds more than {} MiB: compress it again \
                     with `kscope dump --core`, or decompress it with `zstd -d`",
                    MAX_KEPT >> 20
                )));
            }
            chunks.insert(len / CHUNK as u64, chunk[..filled].into());
        }
        len += filled as u64;
        if len > MAX_CONTENT {
            return Err(BytesError::Damaged(format!(
                "it is compressed in one piece and longer than {} GiB: decompress it with `zstd -d`",
                MAX_CONTENT >> 30
            )));
        }
        if filled < CHUNK || warning.is_some() {
            return Ok((Bytes::Kept { chunks, len }, warning));
        }
    }
}

/// The caller has checked that the range is within the content.
fn read_kept(chunks: &HashMap<u64, Box<[u8]>>, mut offset: u64, mut buf: &mut [u8]) {
    while !buf.is_empty() {
        let within = (offset % CHUNK as u64) as usize;
        let len = (CHUNK - within).min(buf.len());
        let (now, later) = buf.split_at_mut(len);
        let chunk = chunks.get(&(offset / CHUNK as u64));
        match chunk.and_then(|chunk| chunk.get(within..within + len)) {
            Some(content) => now.copy_from_slice(content),
            None => now.fill(0),
        }
        buf = later;
        offset += len as u64;
    }
}
