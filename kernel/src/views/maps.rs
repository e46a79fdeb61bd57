//! The memory mappings of a process, as /proc/PID/maps lists them.

use std::fmt;

use serde::Serialize;

use crate::addr::{GuestPid, KernelAddr, UserAddr};
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};
use crate::table::Table;
use crate::views::device::Device;
use crate::views::path::Paths;

/// The mappings of a process, by their addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Maps {
    /// The process.
    pub pid: GuestPid,
    /// Its name.
    pub comm: String,
    /// The address of its `struct mm_struct`.
    pub mm: KernelAddr,
    /// Its mappings.
    pub mappings: Vec<Mapping>,
}

/// A range of a process's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// Its first address.
    pub start: UserAddr,
    /// The address behind it.
    pub end: UserAddr,
    /// What may be done with it.
    pub perms: Perms,
    /// Bytes into the file, 0 without one.
    pub offset: u64,
    /// The device of the file's file system, 0:0 without a file.
    pub device: Device,
    /// The file's inode number, 0 without a file.
    pub inode: u64,
    /// The path of the file, or what it is otherwise: `[heap]`. Empty for memory without a name.
    pub name: String,
    /// Whether the path leads to the file no longer.
    pub deleted: bool,
    /// Bytes of it that are in memory. Untouched memory that reads as zeros does not count.
    pub resident: u64,
    /// The address of its `struct vm_area_struct`.
    pub addr: KernelAddr,
}

/// What may be done with a mapping; `r-xp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perms {
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// Running code.
    pub exec: bool,
    /// Whether others see what is written.
    pub shared: bool,
}

impl Perms {
    /// From `vm_flags`. VM_READ and so on of include/linux/mm.h: macros before 6.18, the same in
    /// all versions.
    fn from_bits(flags: u64) -> Perms {
        const MAY_SHARE: u64 = 0x80;
        Perms {
            read: flags & 1 != 0,
            write: flags & 2 != 0,
            exec: flags & 4 != 0,
            shared: flags & MAY_SHARE != 0,
        }
    }
}

impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |set, letter| if set { letter } else { '-' };
        let shared = if self.shared { 's' } else { 'p' };
        write!(
            f,
            "{}{}{}{shared}",
            letter(self.read, 'r'),
            letter(self.write, 'w'),
            letter(self.exec, 'x')
        )
    }
}

impl Serialize for Perms {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is the same for all mappings of a process.
struct Process<'r, M> {
    mm: Object<'r, M>,
    /// From the heap's start to its end.
    heap: (u64, u64),
    /// An address in the stack.
    stack: u64,
    /// Where the kernel puts its vDSO, when it does so at a fixed place.
    vdso: Option<u64>,
    paths: Paths<'r, M>,
}

impl<M: Memory> Reader<'_, M> {
    /// The mappings of the process with this pid, and how much of each is in memory.
    ///
    /// # Errors
    ///
    /// When there is no such task or it has no memory of its own.
    pub fn maps(&self, pid: GuestPid) -> Result<Maps, ViewError> {
        let (task, object) = self.find_task(pid)?;
        let Some(mm) = object.follow("mm")? else {
            let reason = match task.kernel_thread {
                true => "is one of the kernel's threads, which have no memory of a process",
                false => "has ended: its memory is gone",
            };
            let problem = format!("task {pid} ({}) {reason}", task.comm);
            return Err(ViewError::Invalid(problem));
        };
        let addr = mm.addr();
        let mut mappings = self.mappings(&object, &mm)?;
        self.add_resident(addr, &mut mappings);
        Ok(Maps {
            pid,
            comm: task.comm,
            mm: addr,
            mappings,
        })
    }

    /// The mappings of a task, without what of them is in memory.
    ///
    /// # Errors
    ///
    /// When this kernel's types are not known, or the `mm_struct` cannot be read.
    pub fn mappings(
        &self,
        task: &Object<'_, M>,
        mm: &Object<'_, M>,
    ) -> Result<Vec<Mapping>, ViewError> {
        let vdso = self.global("um_vdso_addr").and_then(|addr| addr.u64(""));
        let process = Process {
            heap: (mm.u64("start_brk")?, mm.u64("brk")?),
            stack: mm.u64("start_stack")?,
            vdso: vdso.ok(),
            paths: self.paths_of(task)?,
            mm: mm.clone(),
        };
        let mut mappings = Vec::new();
        for entry in self.kernel().maple_tree(mm.addr_of("mm_mt")?) {
            let Some(entry) = self.or_warn(entry) else {
                continue;
            };
            let area = self.object("struct vm_area_struct", entry.value).fetched();
            let mapping = self.mapping(&area, &process);
            mappings.extend(self.or_warn(mapping));
        }
        Ok(mappings)
    }

    fn mapping(&self, area: &Object<'_, M>, of: &Process<'_, M>) -> Result<Mapping, ViewError> {
        let mut mapping = Mapping {
            start: UserAddr(area.u64("vm_start")?),
            end: UserAddr(area.u64("vm_end")?),
            perms: Perms::from_bits(area.u64("vm_flags")?),
            offset: 0,
            device: Device::default(),
            inode: 0,
            name: String::new(),
            deleted: false,
            resident: 0,
            addr: area.addr(),
        };
        // A structure that was freed and is used anew.
        let mm = area.pointer("vm_mm")?;
        if mm != of.mm.addr() || mapping.start >= mapping.end {
            return Err(ViewError::Corruption(crate::kernel::Corruption::Torn {
                what: "vm_area_struct",
                addr: area.addr(),
            }));
        }
        let Some(file) = area.follow("vm_file")? else {
            mapping.name = self.name(area, &mapping, of)?;
            return Ok(mapping);
        };
        mapping.offset = area
            .u64("vm_pgoff")?
            .saturating_mul(self.kernel().page_size());
        let opened = of.paths.opened(&file)?;
        let inode = match opened.mount == file.addr_value("f_path.mnt")? {
            true => file.deref("f_inode")?,
            false => {
                let dentry = self.object("struct dentry", opened.dentry);
                dentry.deref("d_inode")?
            }
        };
        mapping.device = Device::from_bits(inode.deref("i_sb")?.u64("s_dev")?);
        mapping.inode = inode.u64("i_ino")?;
        // In 6.1 the name's place is a file's link into the file's mappings.
        let anonymous =
            match area.has("anon_name") && area.addr_of("anon_name")? != area.addr_of("shared")? {
                true => self.anonymous_name(area)?,
                false => None,
            };
        match anonymous {
            Some(name) => mapping.name = format!("[anon_shmem:{name}]"),
            None => {
                let path = of.paths.path(opened)?;
                mapping.name = path.path;
                mapping.deleted = path.deleted;
            }
        }
        Ok(mapping)
    }

    /// What memory without a file is: `get_vma_name()` of fs/proc/task_mmu.c.
    fn name(
        &self,
        area: &Object<'_, M>,
        mapping: &Mapping,
        of: &Process<'_, M>,
    ) -> Result<String, ViewError> {
        if let Some(operations) = area.follow("vm_ops")? {
            let function = operations.addr_value("name")?;
            let symbol = self.kernel().image().symbol_at(function);
            if symbol.is_some_and(|(name, _)| name == "special_mapping_name") {
                let special = area.pointer("vm_private_data")?;
                let special = self.object("struct vm_special_mapping", special);
                return special.text("name");
            }
        }
        let (start, end) = (mapping.start.get(), mapping.end.get());
        if of.vdso == Some(start) {
            return Ok("[vdso]".to_owned());
        }
        if start < of.heap.1 && end > of.heap.0 {
            return Ok("[heap]".to_owned());
        }
        if start <= of.stack && end >= of.stack {
            return Ok("[stack]".to_owned());
        }
        Ok(match self.anonymous_name(area)? {
            Some(name) => format!("[anon:{name}]"),
            None => String::new(),
        })
    }

    /// The name that the process has given to memory (`PR_SET_VMA_ANON_NAME` of prctl(2)).
    fn anonymous_name(&self, area: &Object<'_, M>) -> Result<Option<String>, ViewError> {
        if !area.has("anon_name") {
            return Ok(None);
        }
        let name = area.follow("anon_name")?;
        name.map(|name| name.text("name")).transpose()
    }

    /// Counts the pages that are in memory.
    fn add_resident(&self, mm: KernelAddr, mappings: &mut [Mapping]) {
        let zeros = self.zero_page();
        let page = self.kernel().page_size();
        for entry in self.kernel().user_pages(mm) {
            let Some((addr, phys)) = self.or_warn(entry) else {
                continue;
            };
            if self.kernel().phys_to_virt(phys).ok() == zeros {
                continue;
            }
            let at = mappings.partition_point(|mapping| mapping.end <= addr);
            let mapping = mappings.get_mut(at);
            if let Some(mapping) = mapping.filter(|mapping| mapping.start <= addr) {
                mapping.resident = mapping.resident.saturating_add(page);
            }
        }
    }

    /// The page that stands for memory that was read but never written.
    fn zero_page(&self) -> Option<KernelAddr> {
        let variable = self.global("empty_zero_page").ok()?;
        // A pointer to the page, or the page itself.
        match variable.size_of("").ok()? {
            8 => variable.addr_value("").ok(),
            _ => Some(variable.addr()),
        }
    }
}

impl fmt::Display for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "ADDRESS", "PERMS", "OFFSET", "DEV", ">INODE", ">SIZE", ">RSS", "NAME",
        ]);
        for mapping in &self.mappings {
            let Mapping { start, end, .. } = mapping;
            let Device { major, minor } = mapping.device;
            let deleted = if mapping.deleted { " (deleted)" } else { "" };
            table.row([
                format!("{start:08x}-{end:08x}"),
                mapping.perms.to_string(),
                format!("{:08x}", mapping.offset),
                format!("{major:02x}:{minor:02x}"),
                mapping.inode.to_string(),
                kib(*end - *start),
                kib(mapping.resident),
                format!("{}{deleted}", mapping.name),
            ]);
        }
        table.fmt(f)
    }
}

fn kib(bytes: u64) -> String {
    format!("{}K", bytes / 1024)
}
