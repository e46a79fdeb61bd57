//! Physical memory and page tables.
//!
//! A User Mode Linux kernel has no MMU of its own to walk its tables; it keeps them all the same,
//! and makes the host map what they say. The host is behind at times: pages of vmalloc areas are
//! mapped when they are first touched. So the tables, not the host, say what memory a guest has.

mod own;
mod resident;
mod user;

use std::ops::Range;

use crate::addr::{KernelAddr, PhysAddr, UserAddr};
use crate::image::Image;
use crate::kernel::{Corruption, Kernel, area, required};
use crate::layout::{Layout, LayoutError, Member};
use crate::memory::{Memory, MemoryExt, ReadError};

pub use own::KernelMapping;
pub use resident::UserPages;
pub use user::UserReadError;

/// Where page tables are and how they are built.
#[derive(Clone, Debug)]
pub(crate) struct PagingFields {
    /// The variable that has the address of the first byte of physical memory.
    uml_physmem: KernelAddr,
    /// The variable that has the end of physical memory.
    high_physmem: KernelAddr,
    /// The kernel's own table, of the highest level.
    swapper_pg_dir: KernelAddr,
    /// Within `mm_struct`.
    pgd: Member,
    /// The levels that are tables, the highest first.
    levels: Vec<&'static str>,
    /// Bits of an address that one level translates.
    index_bits: u32,
    /// Bits of an address within a page.
    page_bits: u32,
}

/// Every level that the kernel's generic code knows, the highest first.
const LEVELS: [(&str, &str); 5] = [
    ("pgd", "pgd_t"),
    ("p4d", "p4d_t"),
    ("pud", "pud_t"),
    ("pmd", "pmd_t"),
    ("pte", "pte_t"),
];

/// Bits of an entry, from arch/um/include/asm/pgtable.h. Macros, so not in the DWARF; the same in
/// 6.1 to 7.x. Others come and go (0x2 was `_PAGE_NEWPAGE` and is `_PAGE_NEEDSYNC`), but say only
/// what the host has still to be told.
const PRESENT: u64 = 0x001;
const PROT_NONE: u64 = 0x010;
const WRITABLE: u64 = 0x020;

impl PagingFields {
    pub(crate) fn new(image: &Image, layout: &Layout) -> Result<PagingFields, LayoutError> {
        // A level that is folded into the one above is a struct around that one's entry:
        // `typedef struct { p4d_t p4d; } pud_t` (include/asm-generic/pgtable-nopud.h). One that is
        // a table has a number under its own name.
        let levels = LEVELS
            .into_iter()
            .filter(|(name, ty)| layout.has_member(ty, name))
            .map(|(name, _)| name)
            .collect();
        // A table of any level fills a page.
        let table = layout.variable("swapper_pg_dir", "")?.size;
        let entry = layout.size_of("pgd_t")?;
        let page_bits = table.checked_ilog2().unwrap_or(0);
        let index_bits = page_bits.saturating_sub(entry.checked_ilog2().unwrap_or(0));
        if !table.is_power_of_two() || !(10..=20).contains(&page_bits) || entry != 8 {
            return Err(LayoutError::NoVariable {
                name: "swapper_pg_dir".to_owned(),
            });
        }
        Ok(PagingFields {
            uml_physmem: required(image, "uml_physmem")?,
            high_physmem: required(image, "high_physmem")?,
            swapper_pg_dir: required(image, "swapper_pg_dir")?,
            pgd: layout.member("struct mm_struct", "pgd")?,
            levels,
            index_bits,
            page_bits,
        })
    }

    fn page_size(&self) -> u64 {
        1 << self.page_bits
    }
}

impl<M: Memory> Kernel<M> {
    /// The size of a page in bytes, a power of two.
    pub fn page_size(&self) -> u64 {
        self.paging_fields.page_size()
    }

    /// The guest's physical memory, which begins at 0. Its first part, up to where `uml_reserved`
    /// is, is the kernel's own image. Empty when memory cannot be read, and before the kernel has
    /// set it up.
    pub fn physmem(&self) -> Range<PhysAddr> {
        let fields = &self.paging_fields;
        let read = |addr| self.memory().read_u64(addr).unwrap_or(0);
        let len = read(fields.high_physmem).saturating_sub(read(fields.uml_physmem));
        PhysAddr(0)..PhysAddr(len)
    }

    /// Where the kernel has physical memory in its address space (`__va()`): all of it is mapped
    /// there at all times.
    ///
    /// # Errors
    ///
    /// When the variable that says so cannot be read.
    pub fn phys_to_virt(&self, phys: PhysAddr) -> Result<KernelAddr, Corruption> {
        let addr = self.paging_fields.uml_physmem;
        let start = self.read_pointer("uml_physmem", addr)?;
        Ok(start + phys.get())
    }

    /// The physical address behind an address of the kernel, by the kernel's own page tables
    /// (`swapper_pg_dir`): of vmalloc areas, modules, and stacks that are in either. `None` when
    /// they map nothing there; they have neither the kernel's image nor physical memory itself.
    ///
    /// # Errors
    ///
    /// When a table is corrupt on the way.
    pub fn translate_kernel(&self, addr: KernelAddr) -> Result<Option<PhysAddr>, Corruption> {
        let found = self.walk(self.paging_fields.swapper_pg_dir, addr.get())?;
        Ok(found.map(|(phys, _)| phys))
    }

    /// The physical address behind an address of a process, whose `mm_struct` is at `mm`. `None`
    /// when no page is there now: never touched, swapped out, or not the process's.
    ///
    /// # Errors
    ///
    /// When a table is corrupt on the way.
    pub fn translate_user(
        &self,
        mm: KernelAddr,
        addr: UserAddr,
    ) -> Result<Option<PhysAddr>, Corruption> {
        let found = self.walk_user(mm, addr)?;
        Ok(found.map(|(phys, _)| phys))
    }

    /// Whether the process whose `mm_struct` is at `mm` may now write to an address without asking
    /// the kernel. Where it may not, others may see the same page: copies that are made on the
    /// first write, the page cache. False when no page is there.
    ///
    /// # Errors
    ///
    /// When a table is corrupt on the way.
    pub fn is_user_writable(&self, mm: KernelAddr, addr: UserAddr) -> Result<bool, Corruption> {
        let found = self.walk_user(mm, addr)?;
        Ok(found.is_some_and(|(_, entry)| entry & WRITABLE != 0))
    }

    fn walk_user(
        &self,
        mm: KernelAddr,
        addr: UserAddr,
    ) -> Result<Option<(PhysAddr, u64)>, Corruption> {
        let table = self.read_pointer("mm_struct", mm + self.paging_fields.pgd.offset)?;
        self.walk(table, addr.get())
    }

    /// Walks down from a table of the highest level, to the address and the entry of the lowest.
    fn walk(
        &self,
        mut table: KernelAddr,
        addr: u64,
    ) -> Result<Option<(PhysAddr, u64)>, Corruption> {
        let fields = &self.paging_fields;
        let depth = fields.levels.len() as u32;
        let span = fields.page_bits + depth * fields.index_bits;
        // `pgd_index()` masks: beyond the span, addresses would come up again.
        if addr.checked_shr(span).unwrap_or(0) != 0 {
            return Ok(None);
        }
        let offset = addr & (fields.page_size() - 1);
        let end = self.physmem().end.get();
        for (below, &what) in (0..depth).rev().zip(&fields.levels) {
            let shift = fields.page_bits + below * fields.index_bits;
            let index = addr >> shift & ((1 << fields.index_bits) - 1);
            let at = table + index * 8;
            let entry = self.read_pointer(what, at)?.get();
            let is_leaf = below == 0;
            let present = if is_leaf {
                PRESENT | PROT_NONE
            } else {
                PRESENT
            };
            if entry & present == 0 {
                return Ok(None);
            }
            let phys = PhysAddr(entry & !(fields.page_size() - 1));
            if phys.get() >= end {
                return Err(Corruption::WildEntry {
                    level: what,
                    addr: at,
                    entry,
                });
            }
            if is_leaf {
                return Ok(Some((phys + offset, entry)));
            }
            table = self.phys_to_virt(phys)?;
        }
        Ok(None)
    }

    /// A pointer, or a word of that size, straight from memory.
    fn read_pointer(&self, what: &'static str, addr: KernelAddr) -> Result<KernelAddr, Corruption> {
        self.memory()
            .read_addr(addr)
            .map_err(|source| Corruption::Unreadable { what, addr, source })
    }

    /// Splits a range of addresses at page boundaries: the address and the part of the buffer that
    /// is in each page.
    fn pages<'b>(
        &self,
        start: u64,
        buf: &'b mut [u8],
    ) -> impl Iterator<Item = (u64, &'b mut [u8])> + use<'b, M> {
        let size = self.page_size();
        let mut rest = buf;
        let mut at = start;
        std::iter::from_fn(move || {
            let to_end = usize::try_from(size - at % size).unwrap_or(usize::MAX);
            let len = to_end.min(rest.len());
            let (page, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            let here = at;
            at = at.wrapping_add(len as u64);
            (len > 0).then_some((here, page))
        })
    }
}

/// Reads what the host maps, and what it does not map yet by the kernel's page tables: memory as
/// the kernel itself sees it.
impl<M: Memory> Memory for Kernel<M> {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let Err(error) = self.memory().read(addr, buf) else {
            return Ok(());
        };
        if area(addr.get(), buf.len() as u64).end == u64::MAX {
            return Err(error);
        }
        for (at, page) in self.pages(addr.get(), buf) {
            let at = KernelAddr(at);
            if self.memory().read(at, page).is_ok() {
                continue;
            }
            let phys = self.translate_kernel(at).ok().flatten().ok_or(error)?;
            let virt = self.phys_to_virt(phys).map_err(|_| error)?;
            self.memory().read(virt, page).map_err(|_| error)?;
        }
        Ok(())
    }
}
