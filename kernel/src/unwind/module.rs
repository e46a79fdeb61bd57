//! Where in the guest's kernel process an ELF file is mapped.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::binary::Binary;
use crate::image::{ElfFile, Slice};

/// One mapped file: the kernel itself, libc, the vDSO, a program of the guest.
pub(crate) struct Mapped {
    /// Where its code is in the process.
    pub(crate) range: Range<u64>,
    /// What to add to an address in the file to get one in the process.
    bias: u64,
    pub(crate) binary: Arc<Binary>,
}

/// Why a file's unwind tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is no ELF file that can be parsed: {0}")]
    NotElf(#[from] object::Error),
    #[error("nothing in it belongs at file offset {0:#x}")]
    NoSegment(u64),
}

impl Mapped {
    /// The kernel: mapped where it was linked.
    pub(super) fn kernel(
        file: &Arc<ElfFile>,
    ) -> Result<(Mapped, framehop::Module<Slice>), Unusable> {
        let binary = Binary::new(Arc::clone(file))?;
        let segments = binary.segments().iter();
        let start = segments.clone().map(|segment| segment.vaddr).min();
        let end = segments.map(|segment| segment.vaddr.saturating_add(segment.len));
        let (Some(start), Some(end)) = (start, end.max()) else {
            return Err(Unusable::NoSegment(0));
        };
        let module = binary.module(start..end, start, start);
        let mapped = Mapped {
            range: start..end,
            bias: 0,
            binary: Arc::new(binary),
        };
        Ok((mapped, module))
    }

    /// A shared object whose code is mapped at `range` from `file_offset` of its file.
    pub(super) fn shared(
        file: &Arc<ElfFile>,
        range: Range<u64>,
        file_offset: u64,
    ) -> Result<(Mapped, framehop::Module<Slice>), Unusable> {
        let binary = Arc::new(Binary::new(Arc::clone(file))?);
        let mapped = Mapped::new(binary, range, file_offset);
        let mapped = mapped.ok_or(Unusable::NoSegment(file_offset))?;
        let module = mapped.binary.module(mapped.range.clone(), 0, mapped.bias);
        Ok((mapped, module))
    }

    /// A file that is mapped at `range` from `file_offset` on; `None` when nothing of it belongs
    /// there.
    pub(crate) fn new(binary: Arc<Binary>, range: Range<u64>, file_offset: u64) -> Option<Mapped> {
        let bias = range.start.wrapping_sub(binary.address_of(file_offset)?);
        Some(Mapped {
            range,
            bias,
            binary,
        })
    }

    /// An address in the process as the file has it.
    pub(super) fn in_file(&self, addr: u64) -> u64 {
        addr.wrapping_sub(self.bias)
    }

    /// The bytes of code at an address in the process, from the file.
    pub(super) fn code_at(&self, addr: u64, len: usize) -> Option<&[u8]> {
        self.binary.code_at(self.in_file(addr), len)
    }

    /// The file's name without its directory.
    pub(crate) fn name(&self) -> &str {
        self.binary.name()
    }

    pub(super) fn path(&self) -> &Path {
        self.binary.path()
    }

    /// The function that covers an address in the process, and how far into it that is.
    pub(crate) fn function_at(&self, addr: u64) -> Option<(&str, u64)> {
        self.binary.function_at(self.in_file(addr))
    }
}
