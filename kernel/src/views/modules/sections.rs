//! Where a module's sections are, as /sys/module/NAME/sections has it.

use std::ops::Range;

use super::areas;
use crate::addr::KernelAddr;
use crate::kernel::Corruption;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

/// Bytes of the largest area of a module.
const MAX_AREA: u64 = 1 << 28;

/// Where a process's addresses end on x86-64.
const ADDRESSES: u64 = 1 << 47;

/// Sections of the largest module that are looked at.
const MAX_SECTIONS: u64 = 4096;

/// A section of a module in the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedSection {
    /// Its name in the module's file, `.text`.
    pub name: String,
    /// Where it was loaded. Those of init sections outlive the sections: see
    /// [`Reader::module_areas`].
    pub addr: KernelAddr,
}

impl<M: Memory> Reader<'_, M> {
    /// The name of the module whose `struct module` is at `addr`.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or the kernel has no modules.
    pub fn module_name(&self, addr: KernelAddr) -> Result<String, ViewError> {
        self.object("struct module", addr).text("name")
    }

    /// The memory of the module whose `struct module` is at `addr`; what only its init function
    /// needs is part of it until that has returned.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is not where modules can be (behind physical memory, of which the
    /// kernel's own code is part), or the kernel has no modules.
    pub fn module_areas(&self, addr: KernelAddr) -> Result<Vec<Range<u64>>, ViewError> {
        let mut areas = areas(&self.object("struct module", addr))?;
        areas.retain(|area| !area.is_empty());
        let kernel = self.kernel();
        let start = kernel.phys_to_virt(kernel.physmem().end)?.get();
        let is_possible = |area: &&Range<u64>| {
            let is_inside = area.start >= start && area.end <= ADDRESSES;
            is_inside
                && area.start.is_multiple_of(kernel.page_size())
                && area.end - area.start <= MAX_AREA
        };
        match areas.iter().find(|area| !is_possible(area)) {
            None => Ok(areas),
            Some(area) => Err(Corruption::WildPointer {
                what: "module's memory",
                addr,
                value: KernelAddr(area.start),
            }
            .into()),
        }
    }

    /// The sections that were loaded of the module whose `struct module` is at `addr`, in the order
    /// of its file. None when the kernel does not keep them (CONFIG_KALLSYMS).
    ///
    /// # Errors
    ///
    /// When they cannot be read, or the kernel has no modules.
    pub fn module_sections(&self, addr: KernelAddr) -> Result<Vec<LoadedSection>, ViewError> {
        let module = self.object("struct module", addr);
        if !module.has("sect_attrs") {
            return Ok(Vec::new());
        }
        let Some(attributes) = module.follow("sect_attrs")? else {
            return Ok(Vec::new());
        };
        // A structure around the attribute and the address, or the attribute alone (6.14), which
        // has the address in what it may use as it likes.
        let first = attributes.element("attrs", 0)?;
        let (name, address) = match first.has("address") {
            true => ("battr.attr.name", "address"),
            false => ("attr.name", "private"),
        };
        let count = match attributes.has("nsections") {
            true => attributes.u64("nsections")?,
            false => self.attributes(&attributes)?,
        };
        (0..count.min(MAX_SECTIONS))
            .map(|at| {
                let section = attributes.element("attrs", at)?;
                Ok(LoadedSection {
                    name: section.text(name)?,
                    addr: section.addr_value(address)?,
                })
            })
            .collect()
    }

    /// How many attributes a group has: the array of pointers to them ends with a null pointer.
    fn attributes(&self, group: &Object<'_, M>) -> Result<u64, ViewError> {
        let array = group.pointer("grp.bin_attrs")?;
        for at in 0..MAX_SECTIONS {
            if self.pointer(array + at * 8, "section")?.is_null() {
                return Ok(at);
            }
        }
        Ok(MAX_SECTIONS)
    }
}
