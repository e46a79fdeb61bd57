//! The symbols of loaded modules, as the kernel itself keeps them for kallsyms.

use std::cell::OnceCell;
use std::ops::Range;

use crate::addr::KernelAddr;
use crate::layout::Member;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError};
use crate::unwind::Frame;

/// The loaded modules. Their symbols are read when one of them is asked for.
pub(super) struct Modules<'r, M> {
    modules: Vec<Module>,
    reader: &'r Reader<'r, M>,
}

struct Module {
    name: String,
    addr: KernelAddr,
    areas: Vec<Range<u64>>,
    symbols: OnceCell<Vec<Symbol>>,
}

#[derive(Clone, Copy)]
struct Symbol {
    addr: u64,
    size: u64,
    /// Where its name is.
    name: KernelAddr,
    is_function: bool,
}

/// Modules that are looked at, and bytes of one's symbol table.
const MAX_MODULES: usize = 1 << 12;
const MAX_TABLE: u64 = 1 << 20;

/// Bytes of a symbol's name (KSYM_NAME_LEN of include/linux/kallsyms.h).
const MAX_NAME: usize = 512;

impl<'r, M: Memory> Modules<'r, M> {
    pub(super) fn read(reader: &'r Reader<'_, M>) -> Modules<'r, M> {
        let head = reader.kernel().image().symbol("modules");
        let list = head.and_then(|head| {
            let list = reader.list(head, "struct module", "list", "modules");
            reader.or_warn(list)
        });
        let modules = list.into_iter().flatten().take(MAX_MODULES);
        Modules {
            modules: modules
                .filter_map(|module| Module::read(&module).ok())
                .collect(),
            reader,
        }
    }

    /// Whether an address is in a module.
    pub(super) fn contains(&self, addr: KernelAddr) -> bool {
        self.module(addr).is_some()
    }

    /// The function at an address: `do_write [locks]`.
    pub(super) fn function(&self, addr: KernelAddr) -> Option<String> {
        let module = self.module(addr)?;
        Some(match self.symbol(module, addr, true) {
            Some((name, _)) => format!("{name} [{}]", module.name),
            None => format!("{addr} [{}]", module.name),
        })
    }

    /// A frame in a module, as /proc/PID/stack has it: `do_write+0x12 [locks]`.
    pub(super) fn place(&self, frame: Frame) -> Option<String> {
        let module = self.module(frame.lookup())?;
        let (name, offset) = self.symbol(module, frame.lookup(), true)?;
        let offset = offset + u64::from(frame.is_return_address);
        Some(format!("{name}+{offset:#x} [{}]", module.name))
    }

    /// The variable at an address: `lock_b [locks]`, `locks+0x18 [locks]`.
    pub(super) fn variable(&self, addr: KernelAddr) -> Option<String> {
        let module = self.module(addr)?;
        let (name, offset) = self.symbol(module, addr, false)?;
        Some(match offset {
            0 => format!("{name} [{}]", module.name),
            _ => format!("{name}+{offset:#x} [{}]", module.name),
        })
    }

    fn module(&self, addr: KernelAddr) -> Option<&Module> {
        let covers = |area: &Range<u64>| area.contains(&addr.get());
        let mut modules = self.modules.iter();
        modules.find(|module| module.areas.iter().any(covers))
    }

    /// The symbol that covers an address, and how far into it that is.
    fn symbol(&self, module: &Module, addr: KernelAddr, function: bool) -> Option<(String, u64)> {
        let symbols = module.symbols.get_or_init(|| {
            let module = self.reader.object("struct module", module.addr);
            // Without CONFIG_KALLSYMS there are none.
            symbols(&module).unwrap_or_default()
        });
        let covers = |symbol: &&Symbol| {
            let within = addr.get().checked_sub(symbol.addr);
            symbol.is_function == function && within.is_some_and(|at| at < symbol.size.max(1))
        };
        let symbol = symbols
            .iter()
            .filter(covers)
            .max_by_key(|symbol| symbol.addr)?;
        let name = self.reader.kernel().read_cstr(symbol.name, MAX_NAME).ok()?;
        Some((name, addr.get() - symbol.addr))
    }
}

impl Module {
    fn read<M: Memory>(module: &Object<'_, M>) -> Result<Module, ViewError> {
        let mut areas = Vec::new();
        let mut area = |base: &str, size: &str| -> Result<(), ViewError> {
            let (base, size) = (module.u64(base)?, module.u64(size)?);
            areas.push(base..base.saturating_add(size));
            Ok(())
        };
        // Two areas before 6.4, an array of them since.
        if module.has("mem") {
            for at in 0..module.len("mem")? {
                area(&format!("mem[{at}].base"), &format!("mem[{at}].size"))?;
            }
        } else {
            area("core_layout.base", "core_layout.size")?;
            area("init_layout.base", "init_layout.size")?;
        }
        Ok(Module {
            name: module.text("name")?,
            addr: module.addr(),
            areas,
            symbols: OnceCell::new(),
        })
    }
}

/// A module's symbol table: ELF's own, with addresses in place of offsets.
fn symbols<M: Memory>(module: &Object<'_, M>) -> Result<Vec<Symbol>, ViewError> {
    let reader = module.reader();
    let layout = reader.kernel().image().layout()?;
    let tables = reader.object("struct mod_kallsyms", module.addr_value("kallsyms")?);
    let size = layout.size_of("struct elf64_sym")?.max(1);
    let count = tables.u64("num_symtab")?.min(MAX_TABLE / size);
    let table = tables.addr_value("symtab")?;
    let strings = tables.addr_value("strtab")?;
    let bytes = reader.kernel().read_vec(table, (count * size) as usize);
    let bytes = bytes.unwrap_or_default();
    let member = |name| layout.member("struct elf64_sym", name);
    let (name, info, section) = (member("st_name")?, member("st_info")?, member("st_shndx")?);
    let (value, length) = (member("st_value")?, member("st_size")?);
    let mut found = Vec::new();
    for symbol in bytes.chunks_exact(size as usize) {
        let field = |member: Member| {
            let at = member.offset as usize;
            let bytes = symbol.get(at..at + member.size.min(8) as usize);
            let bytes = bytes.unwrap_or_default().iter().rev();
            bytes.fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
        };
        // ELF's STT_OBJECT and STT_FUNC; section 0 is where undefined symbols are.
        const OBJECT: u64 = 1;
        const FUNCTION: u64 = 2;
        let kind = field(info) & 0xf;
        if field(section) != 0 && (kind == OBJECT || kind == FUNCTION) {
            found.push(Symbol {
                addr: field(value),
                size: field(length),
                name: strings + field(name),
                is_function: kind == FUNCTION,
            });
        }
    }
    Ok(found)
}
