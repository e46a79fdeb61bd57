//! The bytes of an ELF file, mapped and shared.

use std::fs::{File, Metadata};
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

/// An ELF file in memory. Mapped, because a kernel with its DWARF is 80 MB and most commands look
/// at a tenth of it.
#[derive(Debug)]
pub(crate) struct ElfFile {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Mapped(Mmap),
    /// Images without a file, such as the vDSO.
    Owned(Vec<u8>),
}

impl ElfFile {
    pub(crate) fn open(path: &Path) -> io::Result<ElfFile> {
        let check = |meta: Metadata| match meta.is_file() {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )),
        };
        // Before it is opened: opening a pipe waits for a writer.
        check(std::fs::metadata(path)?)?;
        let file = File::open(path)?;
        // Again, as another file may have taken the name.
        check(file.metadata()?)?;
        // SAFETY: the mapping is read-only and private. It is undefined behaviour only if somebody
        // rewrites the file in place while it is mapped; linkers unlink their output first, so a
        // kernel that is rebuilt leaves this mapping on the old inode.
        let map = unsafe { Mmap::map(&file)? };
        Ok(ElfFile {
            path: path.to_owned(),
            content: Content::Mapped(map),
        })
    }

    pub(crate) fn from_bytes(name: &Path, bytes: Vec<u8>) -> ElfFile {
        ElfFile {
            path: name.to_owned(),
            content: Content::Owned(bytes),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(map) => map,
            Content::Owned(bytes) => bytes,
        }
    }
}

/// Part of an [`ElfFile`], which it keeps alive.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    file: Arc<ElfFile>,
    range: Range<usize>,
}

impl Slice {
    /// The bytes at `offset` of `file`, or `None` when the file is shorter.
    pub(crate) fn new(file: &Arc<ElfFile>, offset: u64, len: u64) -> Option<Slice> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        file.bytes().get(start..end)?;
        Some(Slice {
            file: Arc::clone(file),
            range: start..end,
        })
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // In range: `new` checked, and the file's bytes never change their length.
        self.file
            .bytes()
            .get(self.range.clone())
            .unwrap_or_default()
    }
}
