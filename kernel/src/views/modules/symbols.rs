//! A module's symbols, as /proc/kallsyms lists them.

use std::ops::Range;

use object::elf::{SHN_UNDEF, STT_FILE, STT_SECTION, Sym64};
use object::{LittleEndian, pod};

use crate::addr::KernelAddr;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Reader, ViewError, unreadable};

/// Symbols of the largest module that are looked at.
const MAX_SYMBOLS: u64 = 1 << 18;

/// Bytes of all their names, also when a corrupt table has them overlap.
const MAX_NAMES: u64 = 1 << 22;

/// Bytes of the longest name: the kernel's `KSYM_NAME_LEN` is the same since 6.1.
const MAX_NAME: usize = 512;

/// A symbol of a module in the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedSymbol {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub addr: KernelAddr,
    /// Its size in bytes, 0 when that is not known.
    pub size: u64,
    /// What it is, as `st_info` of a file's symbol has it.
    pub info: u8,
}

impl<M: Memory> Reader<'_, M> {
    /// The symbols of the module whose `struct module` is at `addr`, with those of its init
    /// functions until these have returned. `areas` is what [`Reader::module_areas`] says. Empty
    /// when the kernel does not keep them (CONFIG_KALLSYMS).
    ///
    /// # Errors
    ///
    /// When they cannot be read, or the kernel has no modules.
    pub fn module_symbols(
        &self,
        addr: KernelAddr,
        areas: &[Range<u64>],
    ) -> Result<Vec<LoadedSymbol>, ViewError> {
        let module = self.object("struct module", addr);
        if !module.has("kallsyms") {
            return Ok(Vec::new());
        }
        let Some(kallsyms) = module.follow("kallsyms")? else {
            return Ok(Vec::new());
        };
        let read = |what, addr, len| {
            let bytes = self.kernel().read_vec(addr, len);
            bytes.map_err(|error| unreadable(what, error))
        };
        // The table is that of the module's file, with addresses as values.
        let count = kallsyms.u64("num_symtab")?.min(MAX_SYMBOLS) as usize;
        let table = kallsyms.pointer("symtab")?;
        let table = read(
            "module's symbols",
            table,
            count * size_of::<Sym64<LittleEndian>>(),
        )?;
        let (symbols, _) =
            pod::slice_from_bytes::<Sym64<LittleEndian>>(&table, count).unwrap_or_default();
        let names = kallsyms.pointer("strtab")?;
        let area = areas.iter().find(|area| area.contains(&names.get()));
        let len = area.map_or(0, |area| area.end - names.get()).min(MAX_NAMES);
        let names = read("module's symbol names", names, len as usize)?;
        let loaded = |symbol: &Sym64<LittleEndian>| {
            let is_named = !matches!(symbol.st_type(), STT_SECTION | STT_FILE)
                && symbol.st_shndx.get(LittleEndian) != SHN_UNDEF;
            let name = names.get(symbol.st_name.get(LittleEndian) as usize..)?;
            let name = name.get(..MAX_NAME.min(name.len()))?;
            let name = name.get(..name.iter().position(|&byte| byte == 0)?)?;
            let is_plain = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
            (is_named && is_plain).then(|| LoadedSymbol {
                name: String::from_utf8_lossy(name).into_owned(),
                addr: KernelAddr(symbol.st_value.get(LittleEndian)),
                size: symbol.st_size.get(LittleEndian),
                info: symbol.st_info.0,
            })
        };
        let mut left = MAX_NAMES as usize;
        let fits = |symbol: &LoadedSymbol| match left.checked_sub(symbol.name.len()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        };
        Ok(symbols.iter().filter_map(loaded).take_while(fits).collect())
    }
}
