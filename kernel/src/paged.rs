//! Memory of a guest that stands still, of which each page is read once.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::addr::KernelAddr;
use crate::memory::{Memory, ReadError};

/// The unit in which it is read. What the guest's own pages measure does not matter.
const PAGE: u64 = 4096;

/// The most pages that are kept; beyond, everything is forgotten.
const MOST: usize = 16_384;

/// The memory beneath, read by pages, and each once. A page that cannot be read as a whole is read as asked for.
///
/// For what reads many members of structures that lie side by side, such as a list of tasks, each of whose reads is a
/// system call.
#[derive(Debug)]
pub struct Paged<M> {
    under: M,
    /// None is a page that cannot be read as a whole.
    pages: RefCell<HashMap<u64, Option<Box<[u8]>>>>,
}

impl<M: Memory> Paged<M> {
    /// Nothing has been read yet.
    pub fn new(under: M) -> Paged<M> {
        Paged {
            under,
            pages: RefCell::default(),
        }
    }

    /// Copies what a page has from `offset` on. False when it cannot be read as a whole.
    fn copy(&self, page: u64, offset: usize, buf: &mut [u8]) -> bool {
        let mut pages = self.pages.borrow_mut();
        if pages.len() >= MOST {
            pages.clear();
        }
        let bytes = pages.entry(page).or_insert_with(|| {
            let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
            let read = self.under.read(KernelAddr(page), &mut bytes);
            read.ok().map(|()| bytes)
        });
        let part = bytes.as_ref().and_then(|bytes| {
            let end = offset.checked_add(buf.len())?;
            bytes.get(offset..end)
        });
        if let Some(part) = part {
            buf.copy_from_slice(part);
        }
        part.is_some()
    }
}

impl<M: Memory> Memory for Paged<M> {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut rest = &mut *buf;
        let mut at = addr.get();
        while !rest.is_empty() {
            let offset = at % PAGE;
            let len = rest.len().min((PAGE - offset) as usize);
            let (part, after) = rest.split_at_mut(len);
            if !self.copy(at - offset, offset as usize, part) {
                return self.under.read(addr, buf);
            }
            rest = after;
            at = at.wrapping_add(len as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::memory::MemoryExt;
    use crate::memory::fixture::Sparse;

    /// Counts the reads.
    struct Counted(Sparse, Cell<usize>);

    impl Memory for Counted {
        fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
            self.1.set(self.1.get() + 1);
            self.0.read(addr, buf)
        }
    }

    #[test]
    fn pages_are_read_once_and_parts_of_pages_as_asked() {
        let mut memory = Sparse::default();
        let bytes: Vec<u8> = (0..2 * PAGE).map(|at| (at / 7) as u8).collect();
        memory.write(0x10000, &bytes);
        memory.write_u64(0x20ff8, 7);
        let counted = Counted(memory, Cell::new(0));
        let paged = Paged::new(&counted);
        for at in (0..2 * PAGE - 16).step_by(13) {
            let at = at as usize;
            let read = paged.read_vec(KernelAddr(0x10000 + at as u64), 16);
            assert_eq!(read.as_deref(), Ok(&bytes[at..at + 16]));
        }
        assert_eq!(counted.1.get(), 2);
        // There is no more of its page.
        assert_eq!(paged.read_u64(KernelAddr(0x20ff8)), Ok(7));
        assert!(paged.read_u64(KernelAddr(0x20ffc)).is_err());
        assert!(paged.read_u64(KernelAddr(0x10000 + 2 * PAGE - 4)).is_err());
        assert!(paged.read_u64(KernelAddr(u64::MAX - 3)).is_err());
    }
}
