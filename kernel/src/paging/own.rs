//! What the kernel's own page tables map.

use crate::addr::{KernelAddr, PhysAddr};
use crate::kernel::{Corruption, Kernel};
use crate::memory::{Memory, MemoryExt};

use super::{PRESENT, PROT_NONE};

/// Pages that follow each other in the kernel's address space and in physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelMapping {
    /// The first address.
    pub virt: KernelAddr,
    /// What it is mapped to.
    pub phys: PhysAddr,
    /// Bytes, a multiple of the page size.
    pub len: u64,
}

/// A walk through all of the tables.
struct Walk<'k, M> {
    kernel: &'k Kernel<M>,
    mappings: Vec<KernelMapping>,
    corruption: Vec<Corruption>,
    /// How many tables there can be, each a page of physical memory, and how many were read.
    limit: usize,
    tables: usize,
}

/// Tables for 128 GiB of vmalloc areas.
const MAX_TABLES: usize = 1 << 16;

/// More broken entries are not told apart.
const MAX_CORRUPTION: usize = 16;

impl<M: Memory> Kernel<M> {
    /// All that the kernel's own page tables (`swapper_pg_dir`) map: vmalloc areas, modules, and
    /// stacks that are in either; by address. With it, what is corrupt and was passed over.
    pub fn own_mappings(&self) -> (Vec<KernelMapping>, Vec<Corruption>) {
        let fields = &self.paging_fields;
        let pages = self.physmem().end.get() / fields.page_size();
        let mut walk = Walk {
            kernel: self,
            mappings: Vec::new(),
            corruption: Vec::new(),
            limit: usize::try_from(pages).unwrap_or(usize::MAX).min(MAX_TABLES),
            tables: 0,
        };
        let depth = fields.levels.len() as u32;
        walk.table(fields.swapper_pg_dir, depth, 0);
        (walk.mappings, walk.corruption)
    }
}

impl<M: Memory> Walk<'_, M> {
    /// Reads a table that has `depth` levels of tables including itself, for addresses from `virt`.
    fn table(&mut self, table: KernelAddr, depth: u32, virt: u64) {
        let fields = &self.kernel.paging_fields;
        let Some(below) = depth.checked_sub(1) else {
            return;
        };
        if self.tables >= self.limit {
            return self.corrupt(Corruption::TooLong {
                what: "page table",
                limit: self.limit,
            });
        }
        self.tables += 1;
        let what = fields
            .levels
            .len()
            .checked_sub(depth as usize)
            .and_then(|at| fields.levels.get(at).copied())
            .unwrap_or("table");
        let page = usize::try_from(fields.page_size()).unwrap_or(0);
        let entries = match self.kernel.memory().read_vec(table, page) {
            Ok(entries) => entries,
            Err(source) => {
                return self.corrupt(Corruption::Unreadable {
                    what,
                    addr: table,
                    source,
                });
            }
        };
        let end = self.kernel.physmem().end.get();
        let shift = fields.page_bits + below * fields.index_bits;
        let present = if below == 0 {
            PRESENT | PROT_NONE
        } else {
            PRESENT
        };
        for (index, entry) in (0_u64..).zip(entries.chunks_exact(8)) {
            let entry = entry.try_into().map_or(0, u64::from_le_bytes);
            if entry & present == 0 {
                continue;
            }
            let virt = virt | index.checked_shl(shift).unwrap_or(0);
            let phys = PhysAddr(entry & !(fields.page_size() - 1));
            if phys.get() >= end {
                self.corrupt(Corruption::WildEntry {
                    level: what,
                    addr: table + index * 8,
                    entry,
                });
            } else if below == 0 {
                self.page(KernelAddr(virt), phys);
            } else {
                match self.kernel.phys_to_virt(phys) {
                    Ok(table) => self.table(table, below, virt),
                    Err(error) => self.corrupt(error),
                }
            }
        }
    }

    fn page(&mut self, virt: KernelAddr, phys: PhysAddr) {
        let len = self.kernel.page_size();
        if let Some(last) = self.mappings.last_mut()
            && last.virt + last.len == virt
            && last.phys + last.len == phys
        {
            last.len += len;
            return;
        }
        self.mappings.push(KernelMapping { virt, phys, len });
    }

    fn corrupt(&mut self, corruption: Corruption) {
        if self.corruption.len() < MAX_CORRUPTION {
            self.corruption.push(corruption);
        }
    }
}
