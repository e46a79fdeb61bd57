//! The other side of `seekable`: frames, and the table of them.

use std::io;

use super::seekable::{FOOTER_MAGIC, TABLE_MAGIC};

/// Bytes of content in a frame of a compressed core: small enough to read a few hundred places in
/// a blink, large enough to compress well.
pub const CORE_FRAME: usize = 128 << 10;

/// Compresses frames of a core, one after the other. Each thread has its own.
pub struct FrameCompressor(zstd::bulk::Compressor<'static>);

/// The frames of a compressed core, for the table at its end.
#[derive(Clone, Debug, Default)]
pub struct FrameTable {
    entries: Vec<u8>,
    frames: u32,
}

impl FrameCompressor {
    /// A compressor.
    ///
    /// # Errors
    ///
    /// When there is no memory for it.
    pub fn new() -> io::Result<FrameCompressor> {
        // Zstandard's fastest level but the negative ones. Level 3 makes a core of a kernel a tenth
        // smaller and takes half as long again.
        const LEVEL: i32 = 1;
        zstd::bulk::Compressor::new(LEVEL).map(FrameCompressor)
    }

    /// One frame, which tells the length of its content. That is at most [`CORE_FRAME`] bytes.
    ///
    /// # Errors
    ///
    /// What zstd says.
    pub fn frame(&mut self, content: &[u8]) -> io::Result<Vec<u8>> {
        self.0.compress(content)
    }
}

impl FrameTable {
    /// Adds a frame: its length in the file and that of its content, bytes.
    pub fn push(&mut self, len: usize, content_len: usize) {
        // A frame is far below 4 GiB.
        for number in [len, content_len] {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            self.entries.extend_from_slice(&number.to_le_bytes());
        }
        self.frames += 1;
    }

    /// What follows the last frame in the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        const FOOTER: usize = 9;
        let len = u32::try_from(self.entries.len() + FOOTER).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(self.entries.len() + FOOTER + 8);
        bytes.extend_from_slice(&TABLE_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&self.entries);
        bytes.extend_from_slice(&self.frames.to_le_bytes());
        // Entries without checksums.
        bytes.push(0);
        bytes.extend_from_slice(&FOOTER_MAGIC.to_le_bytes());
        bytes
    }
}
