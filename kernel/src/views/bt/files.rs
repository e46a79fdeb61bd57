//! The ELF files that programs are made of.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::addr::{KernelAddr, PhysAddr};
use crate::image::ElfFile;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError};
use crate::unwind::binary::Binary;

/// Bytes of the largest file that is put together from the guest's own memory.
const MAX_CACHED: u64 = 64 << 20;

/// Bytes of all such files.
const MAX_ALL_CACHED: u64 = 128 << 20;

/// A file that a process has mapped.
#[derive(Clone)]
pub(super) struct ProgramFile {
    /// Its path, as the process sees it.
    pub(super) path: String,
    /// `None` when its content is not to be had, or is no program.
    pub(super) binary: Option<Arc<Binary>>,
}

/// Files by their `struct address_space`.
pub(super) struct ProgramFiles<'a, 'r, M> {
    reader: &'a Reader<'r, M>,
    known: RefCell<HashMap<KernelAddr, Option<ProgramFile>>>,
    /// Bytes of files that may still be put together.
    left: Cell<u64>,
}

impl<'a, 'r, M: Memory> ProgramFiles<'a, 'r, M> {
    pub(super) fn new(reader: &'a Reader<'r, M>) -> ProgramFiles<'a, 'r, M> {
        ProgramFiles {
            reader,
            known: RefCell::default(),
            left: Cell::new(MAX_ALL_CACHED),
        }
    }

    /// The file of a mapping of a task; `None` for memory without a file.
    pub(super) fn of(&self, task: &Object<'_, M>, area: &Object<'_, M>) -> Option<ProgramFile> {
        let file = area.follow("vm_file").ok()??;
        let pages = file.follow("f_mapping").ok()??;
        if let Some(known) = self.known.borrow().get(&pages.addr()) {
            return known.clone();
        }
        let found = self.reader.or_warn(self.find(task, &file, &pages));
        self.known.borrow_mut().insert(pages.addr(), found.clone());
        found
    }

    fn find(
        &self,
        task: &Object<'_, M>,
        file: &Object<'_, M>,
        pages: &Object<'_, M>,
    ) -> Result<ProgramFile, ViewError> {
        let paths = self.reader.paths_of(task)?;
        let path = paths.file(file)?;
        let size = pages.deref("host")?.u64("i_size")?;
        let cache = Pages {
            reader: self.reader,
            pages,
        };
        // The path within the file system, which is what hostfs shows of the host, and the path
        // that the process sees: the same, if its root is the host's.
        let within = paths.within(file.pointer("f_path.dentry")?)?;
        let header = cache.page(0)?;
        let binary = header.and_then(|header| {
            let on_host = [&within, &path.path];
            let on_host = on_host.iter().find_map(|path| same(path, size, &header));
            let file = on_host.or_else(|| {
                let left = self.left.get().checked_sub(size)?;
                let file = cache.file(&path.path, size, &header)?;
                self.left.set(left);
                Some(file)
            });
            Binary::new(Arc::new(file?)).ok().map(Arc::new)
        });
        Ok(ProgramFile {
            path: path.to_string(),
            binary,
        })
    }
}

/// The host's file, if it begins with the guest's page and is as long. The first page of an ELF
/// file has its layout and mostly its build-id.
fn same(path: &str, size: u64, header: &[u8]) -> Option<ElfFile> {
    let file = ElfFile::open(Path::new(path)).ok()?;
    let bytes = file.bytes();
    let first = bytes.len().min(header.len());
    let equal = bytes.get(..first)? == header.get(..first)?;
    (bytes.len() as u64 == size && equal).then_some(file)
}

/// The pages of a file that the guest has in memory.
struct Pages<'a, 'r, M> {
    reader: &'a Reader<'r, M>,
    /// The `struct address_space`.
    pages: &'a Object<'a, M>,
}

impl<M: Memory> Pages<'_, '_, M> {
    /// One page, if it is in memory.
    fn page(&self, index: u64) -> Result<Option<Vec<u8>>, ViewError> {
        let array = self.pages.member("i_pages")?;
        let Some(folio) = self.reader.xarray(&array, index)? else {
            return Ok(None);
        };
        let kernel = self.reader.kernel();
        let first = self.reader.object("struct folio", folio).u64("index")?;
        // One entry of the array is for all pages of a folio.
        const MAX_FOLIO: u64 = 512;
        let within = index.wrapping_sub(first);
        if within >= MAX_FOLIO {
            return Ok(None);
        }
        let Some(size) = self.page_struct()? else {
            return Ok(None);
        };
        // CONFIG_FLATMEM, the only model that User Mode Linux has.
        let map = self.reader.global("mem_map")?.pointer("")?;
        let number = folio.get().wrapping_sub(map.get()) / size;
        let phys = number
            .checked_add(within)
            .and_then(|number| number.checked_mul(kernel.page_size()));
        let Some(phys) = phys.filter(|&phys| phys < kernel.physmem().end.get()) else {
            return Ok(None);
        };
        let at = kernel.phys_to_virt(PhysAddr(phys))?;
        Ok(kernel.read_vec(at, kernel.page_size() as usize).ok())
    }

    /// Bytes of a `struct page`.
    fn page_struct(&self) -> Result<Option<u64>, ViewError> {
        let layout = self.reader.kernel().image().layout()?;
        let size = layout.size_of("struct page")?;
        Ok((size > 0).then_some(size))
    }

    /// The file as far as it is in memory. What is not, which the guest never read, is zeros.
    fn file(&self, path: &str, size: u64, header: &[u8]) -> Option<ElfFile> {
        if !header.starts_with(b"\x7fELF") || size > MAX_CACHED {
            return None;
        }
        let page = self.reader.kernel().page_size();
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        for (index, chunk) in (0..).zip(bytes.chunks_mut(page as usize)) {
            let Ok(Some(content)) = self.page(index) else {
                continue;
            };
            let content = content.get(..chunk.len()).unwrap_or_default();
            if content.len() == chunk.len() {
                chunk.copy_from_slice(content);
            }
        }
        Some(ElfFile::from_bytes(&PathBuf::from(path), bytes))
    }
}
