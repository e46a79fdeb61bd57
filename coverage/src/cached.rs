//! Memory that is read in large pieces.

use std::cell::RefCell;

use kscope_kernel::{KernelAddr, Memory, ReadError};
use rustc_hash::FxHashMap;

/// Reads pages once: the structures are tens of thousands of small pieces that
/// lie close together and never change.
pub(crate) struct Cached<'a, M> {
    memory: &'a M,
    chunks: RefCell<FxHashMap<u64, Option<Box<[u8]>>>>,
}

const PAGE: u64 = 4096;
const CHUNK: u64 = 64 << 10;
/// 32 MiB.
const MAX_CHUNKS: usize = 512;

impl<'a, M: Memory> Cached<'a, M> {
    /// Reads `memory` through a cache.
    pub(crate) fn new(memory: &'a M) -> Self {
        Self {
            memory,
            chunks: RefCell::new(FxHashMap::default()),
        }
    }
}

impl<M: Memory> Memory for Cached<'_, M> {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let error = ReadError {
            addr,
            len: buf.len(),
        };
        let mut chunks = self.chunks.borrow_mut();
        let mut done = 0;
        while done < buf.len() {
            let at = addr.checked_add(done as u64).ok_or(error)?;
            let number = at.get() / CHUNK;
            if chunks.len() >= MAX_CHUNKS && !chunks.contains_key(&number) {
                chunks.clear();
            }
            let chunk = chunks.entry(number).or_insert_with(|| {
                let mut bytes = vec![0; CHUNK as usize].into_boxed_slice();
                self.memory
                    .read(KernelAddr(number * CHUNK), &mut bytes)
                    .ok()?;
                Some(bytes)
            });
            let to_page_end = (PAGE - at.get() % PAGE) as usize;
            let step = to_page_end.min(buf.len() - done);
            let part = &mut buf[done..done + step];
            match chunk {
                Some(bytes) => {
                    let offset = (at.get() % CHUNK) as usize;
                    part.copy_from_slice(&bytes[offset..offset + step]);
                }
                // Not all of it is mapped.
                None => self.memory.read(at, part).map_err(|_| error)?,
            }
            done += step;
        }
        Ok(())
    }
}
