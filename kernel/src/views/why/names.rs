//! What an address of the kernel is called.

use std::collections::HashMap;

use super::Named;
use super::look::Look;
use crate::addr::{KernelAddr, PhysAddr};
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader};

/// Slab caches that are looked at.
const MAX_CACHES: usize = 1 << 13;

/// The slab caches by address.
pub(super) fn caches<M: Memory>(reader: &Reader<'_, M>) -> HashMap<KernelAddr, String> {
    let head = reader.kernel().image().symbol("slab_caches");
    let list = head.map(|head| reader.list(head, "struct kmem_cache", "list", "slab caches"));
    let list = list.and_then(|list| reader.or_warn(list));
    let caches = list.into_iter().flatten().take(MAX_CACHES);
    let named = caches.filter_map(|cache| Some((cache.addr(), cache.text("name").ok()?)));
    named.collect()
}

fn plus(name: &str, offset: u64) -> String {
    match offset {
        0 => name.to_owned(),
        _ => format!("{name}+{offset:#x}"),
    }
}

impl<M: Memory> Look<'_, '_, M> {
    /// An address with what is there; `owner` is the type of that.
    pub(super) fn named(&self, addr: KernelAddr, owner: &str) -> Named {
        let global = self.reader.kernel().image().symbol_at(addr);
        let global = global.map(|(name, offset)| plus(name, offset));
        let name = global
            .or_else(|| self.modules().variable(addr))
            .or_else(|| self.member_of_known(addr, owner))
            .or_else(|| self.on_stack(addr))
            .or_else(|| self.in_slab(addr));
        Named { addr, name }
    }

    fn on_stack(&self, addr: KernelAddr) -> Option<String> {
        let task = self.on_stack_of(addr)?;
        Some(format!("on the stack of {}[{}]", task.comm, task.pid))
    }

    /// A lock in one of the structures that most are in, if it makes sense as one.
    fn member_of_known(&self, addr: KernelAddr, owner: &str) -> Option<String> {
        let layout = self.layout()?;
        let within = |outer: &'static str, path: &str| {
            let offset = layout.member(outer, path).ok()?.offset;
            Some(
                self.reader
                    .object(outer, KernelAddr(addr.get().checked_sub(offset)?)),
            )
        };
        match owner {
            "struct rw_semaphore" => {
                let inode = within("struct inode", "i_rwsem");
                let inode = inode.and_then(|inode| self.describe_inode(inode.addr()));
                if let Some(inode) = inode {
                    return Some(format!("i_rwsem of {inode}"));
                }
                let links = self.links();
                let of_task = |task: Option<&KernelAddr>, what: &str| {
                    let task = self.task(*task?)?;
                    Some(format!("{what} of {}[{}]", task.comm, task.tgid))
                };
                let mm = within("struct mm_struct", "mmap_lock");
                let mm = mm.and_then(|mm| of_task(links.by_mm.get(&mm.addr()), "mmap_lock"));
                let exec = || {
                    let path = "exec_update_lock";
                    let signal = within("struct signal_struct", path)?;
                    of_task(links.by_signal.get(&signal.addr()), path)
                };
                let umount = || {
                    let block = within("struct super_block", "s_umount")?;
                    let root = block.addr_value("s_root").ok()?;
                    let root = self.reader.object("struct dentry", root);
                    let own = root.addr_value("d_sb").ok()? == block.addr();
                    own.then_some(())?;
                    Some(format!("s_umount of {}", self.file_system(block.addr())?))
                };
                mm.or_else(exec).or_else(umount)
            }
            "struct mutex" => {
                let file = within("struct file", "f_pos_lock")?;
                let file = self.describe_file(file.addr())?;
                Some(format!("f_pos_lock of {file}"))
            }
            _ => None,
        }
    }

    /// The type of a file system, from its `super_block`.
    fn file_system(&self, block: KernelAddr) -> Option<String> {
        let block = self.reader.object("struct super_block", block);
        let kind = block.addr_value("s_type").ok()?;
        let kind = self.reader.object("struct file_system_type", kind);
        let name = self
            .reader
            .kernel()
            .read_cstr(kind.addr_value("name").ok()?, 32);
        name.ok().filter(|name| !name.is_empty())
    }

    /// An inode in a few words, if there is one: `pipe:[12]`, `a.txt (inode 12 of ext4)`.
    pub(super) fn describe_inode(&self, addr: KernelAddr) -> Option<String> {
        if addr.is_null() || !addr.get().is_multiple_of(8) {
            return None;
        }
        let inode = self.reader.object("struct inode", addr);
        if inode.addr_value("i_data.host").ok()? != addr {
            return None;
        }
        let number = inode.u64("i_ino").ok()?;
        let kind = self.file_system(inode.addr_value("i_sb").ok()?)?;
        let alias = inode.addr_value("i_dentry.first").ok()?;
        // In a union without a name in 7.x.
        let layout = self.layout()?;
        let member = |path| layout.member("struct dentry", path);
        let offset = member("d_u.d_alias").or_else(|_| member("d_alias"));
        let name = offset.ok().filter(|_| !alias.is_null()).and_then(|member| {
            let dentry = self.reader.object("struct dentry", alias - member.offset);
            self.dentry_name(&dentry)
        });
        Some(match (&*kind, name) {
            ("pipefs", _) => format!("pipe:[{number}]"),
            ("sockfs", _) => format!("socket:[{number}]"),
            (_, Some(name)) => format!("{name} (inode {number} of {kind})"),
            (_, None) => format!("inode {number} of {kind}"),
        })
    }

    fn dentry_name(&self, dentry: &Object<'_, M>) -> Option<String> {
        let name = dentry.addr_value("d_name.name").ok()?;
        let name = self.reader.kernel().read_cstr(name, 256).ok()?;
        (!name.is_empty()).then_some(name)
    }

    /// An open file in a few words, if there is one.
    pub(super) fn describe_file(&self, addr: KernelAddr) -> Option<String> {
        let file = self.reader.object("struct file", addr);
        let inode = file.addr_value("f_inode").ok()?;
        let dentry = file.addr_value("f_path.dentry").ok()?;
        let dentry = self.reader.object("struct dentry", dentry);
        if dentry.addr_value("d_inode").ok()? != inode {
            return None;
        }
        // The path; it begins where the mount namespace does, not where some process does.
        let path = self.paths.file(&file).ok();
        path.map(|path| path.to_string())
            .or_else(|| self.describe_inode(inode))
    }

    /// The slab cache that an object is in, and where in the object the address is.
    fn in_slab(&self, addr: KernelAddr) -> Option<String> {
        let kernel = self.reader.kernel();
        let layout = self.layout()?;
        let start = kernel.phys_to_virt(PhysAddr(0)).ok()?;
        let phys = addr.get().checked_sub(start.get())?;
        if phys >= kernel.physmem().end.get() {
            return None;
        }
        let pages = self.reader.global("mem_map").ok()?.addr_value("").ok()?;
        let size = layout.size_of("struct page").ok()?.max(1);
        let page = pages + (phys / kernel.page_size()).checked_mul(size)?;
        let head = self.compound_head(page, size)?;
        let index = (head.get().checked_sub(pages.get())?) / size;
        let base = start + index.checked_mul(kernel.page_size())?;
        let slab = self.reader.object("struct slab", head);
        let cache = slab.addr_value("slab_cache").ok()?;
        let name = self.caches().get(&cache)?;
        let cache = self.reader.object("struct kmem_cache", cache);
        let pad = cache.u64("red_left_pad").unwrap_or(0);
        let within = addr.get().checked_sub(base.get())?;
        let within = within % cache.u64("size").ok()?.max(1);
        Some(format!("{name}+{:#x}", within.checked_sub(pad)?))
    }

    /// The first page of the block that a page is in.
    fn compound_head(&self, page: KernelAddr, size: u64) -> Option<KernelAddr> {
        let object = self.reader.object("struct page", page);
        if let Ok(head) = object.u64("compound_head") {
            return Some(KernelAddr(if head & 1 == 1 {
                head - 1
            } else {
                page.get()
            }));
        }
        // Since 7.0, of pages whose description is a power of two in size, a mask.
        let info = object.u64("compound_info").ok()?;
        Some(KernelAddr(match (info & 1, size.is_power_of_two()) {
            (0, _) => page.get(),
            (_, true) => page.get() & info,
            (_, false) => info - 1,
        }))
    }
}
