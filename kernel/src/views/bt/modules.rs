//! The functions of loaded modules, from the symbols that the kernel keeps of them.

use std::ops::Range;

use crate::addr::KernelAddr;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError};
use crate::views::modules::areas;

/// A loaded module.
pub(super) struct Loaded {
    pub(super) name: String,
    areas: Vec<Range<u64>>,
    /// `struct mod_kallsyms`: its array of `Elf64_Sym`, their number, and their names.
    symbols: Option<(KernelAddr, u64, KernelAddr)>,
}

/// Symbols of the largest module that are looked at.
const MAX_SYMBOLS: u64 = 1 << 18;

/// Bytes of an `Elf64_Sym`: name (4), info, other, section (2), value (8), size (8).
const SYMBOL: usize = 24;

/// The loaded modules; none when the kernel has no modules.
pub(super) fn loaded<M: Memory>(reader: &Reader<'_, M>) -> Vec<Loaded> {
    let Some(head) = reader.kernel().image().symbol("modules") else {
        return Vec::new();
    };
    let modules = reader.list(head, "struct module", "list", "modules");
    let modules = reader.or_warn(modules).into_iter().flatten();
    modules
        .filter_map(|module| reader.or_warn(one(&module)))
        .collect()
}

fn one<M: Memory>(module: &Object<'_, M>) -> Result<Loaded, ViewError> {
    let areas = areas(module)?;
    // Without CONFIG_KALLSYMS the kernel keeps none.
    let symbols = match module.has("kallsyms") {
        true => module.follow("kallsyms")?,
        false => None,
    };
    let symbols = match symbols {
        Some(symbols) => Some((
            symbols.pointer("symtab")?,
            symbols.u64("num_symtab")?.min(MAX_SYMBOLS),
            symbols.pointer("strtab")?,
        )),
        None => None,
    };
    Ok(Loaded {
        name: module.text("name")?,
        areas,
        symbols,
    })
}

impl Loaded {
    pub(super) fn contains(&self, addr: KernelAddr) -> bool {
        self.areas.iter().any(|area| area.contains(&addr.get()))
    }

    /// The function that covers an address, and how far into it that is.
    pub(super) fn function_at<M: Memory>(
        &self,
        reader: &Reader<'_, M>,
        addr: KernelAddr,
    ) -> Option<(String, u64)> {
        let (table, count, names) = self.symbols?;
        let kernel = reader.kernel();
        let table = kernel.read_vec(table, count as usize * SYMBOL).ok()?;
        let mut nearest: Option<(u64, u32)> = None;
        for symbol in table.chunks_exact(SYMBOL) {
            let name = u32::from_le_bytes(symbol.get(..4)?.try_into().ok()?);
            let start = u64::from_le_bytes(symbol.get(8..16)?.try_into().ok()?);
            let is_code = self.areas.iter().any(|area| area.contains(&start));
            let is_nearer = nearest.is_none_or(|(other, _)| start > other);
            if name != 0 && is_code && start <= addr.get() && is_nearer {
                nearest = Some((start, name));
            }
        }
        let (start, name) = nearest?;
        let name = kernel.read_cstr(names + u64::from(name), 512).ok()?;
        Some((name, addr.get() - start))
    }
}
