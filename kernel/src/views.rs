//! Views: what a guest's kernel holds, as facts to print or to compute with.
//!
//! A view is a method of [`Reader`]. Its result is data that serialises (the JSON of
//! the verb of that name) and displays (what people read).

pub mod bt;
pub mod config;
pub mod device;
pub mod dmesg;
pub mod files;
pub mod irq;
pub mod maps;
pub mod modules;
pub mod mounts;
pub mod net;
pub mod path;
pub mod print;
pub mod ps;
pub mod runq;
pub mod slab;
pub mod timers;
pub mod why;

use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::Reader;

impl<M: Memory> Reader<'_, M> {
    /// The name of the function that a pointer points to; its address when it is none of the
    /// kernel's own, as in a module.
    pub(crate) fn function_name(&self, addr: KernelAddr) -> String {
        match self.kernel().image().symbol_at(addr) {
            Some((name, 0)) => name.to_owned(),
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => addr.to_string(),
        }
    }
}
pub mod types;
