//! Which pages of a process are in memory.

use std::collections::HashSet;

use crate::addr::{KernelAddr, PhysAddr, UserAddr};
use crate::kernel::{Corruption, Kernel};
use crate::memory::{Memory, MemoryExt};
use crate::paging::{PRESENT, PROT_NONE};

/// The iterator of [`Kernel::user_pages`].
///
/// It reads no table twice and ends on every memory. A corrupt table comes as an error in its
/// place and costs the pages below it.
#[derive(Debug)]
pub struct UserPages<'k, M> {
    kernel: &'k Kernel<M>,
    /// Bytes of physical memory.
    end: u64,
    seen: HashSet<KernelAddr>,
    /// The tables that are being read, the highest level first.
    open: Vec<Table>,
    failed: Option<Corruption>,
}

#[derive(Debug)]
struct Table {
    at: KernelAddr,
    /// The first address that it translates.
    first: u64,
    entries: std::vec::IntoIter<u64>,
    /// Entries that were taken.
    taken: u64,
}

impl<M: Memory> Kernel<M> {
    /// The pages of a process that are in memory now, by their addresses; its `mm_struct` is at
    /// `mm`. Whole page tables are read, so this is much quicker than
    /// [`translate_user`](Kernel::translate_user) for every page. Pages that only the kernel may
    /// touch (of the stub that runs the process) are among them where the kernel maps them so.
    pub fn user_pages(&self, mm: KernelAddr) -> UserPages<'_, M> {
        let mut pages = UserPages {
            kernel: self,
            end: self.physmem().end.get(),
            seen: HashSet::new(),
            open: Vec::new(),
            failed: None,
        };
        let pgd = self.read_pointer("mm_struct", mm + self.paging_fields.pgd.offset);
        match pgd.and_then(|table| pages.table(table, 0)) {
            Ok(table) => pages.open.push(table),
            Err(corruption) => pages.failed = Some(corruption),
        }
        pages
    }
}

impl<M: Memory> UserPages<'_, M> {
    /// Reads a table that was not read before: tables have one parent.
    fn table(&mut self, at: KernelAddr, first: u64) -> Result<Table, Corruption> {
        let what = "page table";
        if !self.seen.insert(at) {
            return Err(Corruption::Cycle { what, addr: at });
        }
        let bytes = self
            .kernel
            .memory()
            .read_vec(at, self.kernel.page_size() as usize)
            .map_err(|source| Corruption::Unreadable {
                what,
                addr: at,
                source,
            })?;
        let words = bytes.chunks_exact(8).map(|word| {
            let word = word.try_into().unwrap_or_default();
            u64::from_le_bytes(word)
        });
        Ok(Table {
            at,
            first,
            entries: words.collect::<Vec<_>>().into_iter(),
            taken: 0,
        })
    }
}

impl<M: Memory> Iterator for UserPages<'_, M> {
    type Item = Result<(UserAddr, PhysAddr), Corruption>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(corruption) = self.failed.take() {
            return Some(Err(corruption));
        }
        let fields = &self.kernel.paging_fields;
        let mask = fields.page_size() - 1;
        loop {
            let depth = self.open.len();
            let table = self.open.last_mut()?;
            let Some(entry) = table.entries.next() else {
                self.open.pop();
                continue;
            };
            let index = table.taken;
            table.taken += 1;
            let below = fields.levels.len().checked_sub(depth)?;
            let is_leaf = below == 0;
            let present = match is_leaf {
                true => PRESENT | PROT_NONE,
                false => PRESENT,
            };
            if entry & present == 0 {
                continue;
            }
            let shift = fields.page_bits + below as u32 * fields.index_bits;
            let addr = table.first + index.checked_shl(shift).unwrap_or(0);
            let phys = PhysAddr(entry & !mask);
            if phys.get() >= self.end {
                return Some(Err(Corruption::WildEntry {
                    level: fields.levels.get(depth - 1).copied().unwrap_or("pte"),
                    addr: table.at + index * 8,
                    entry,
                }));
            }
            if is_leaf {
                return Some(Ok((UserAddr(addr), phys)));
            }
            let table = self
                .kernel
                .phys_to_virt(phys)
                .and_then(|at| self.table(at, addr));
            match table {
                Ok(table) => self.open.push(table),
                Err(corruption) => return Some(Err(corruption)),
            }
        }
    }
}
