//! A module's file made of what is in memory, for want of the one that was loaded.

use std::ops::Range;

use crate::addr::KernelAddr;
use crate::views::modules::{LoadedSection, LoadedSymbol};

/// The most bytes that are taken over of the rules of unwinding.
const MAX_CONTENTS: u64 = 1 << 22;

/// The sections that are in a file only.
const SYMTAB: &str = ".symtab";
const STRTAB: &str = ".strtab";
const SHSTRTAB: &str = ".shstrtab";

/// The rules of unwinding, which the kernel loads as it loads everything.
const EH_FRAME: &str = ".eh_frame";

// `Elf64_Ehdr`, `Elf64_Shdr` and `Elf64_Sym`: System V ABI, "Object Files".
const EHDR_LEN: u16 = 64;
const SHDR_LEN: u16 = 64;
const SYM_LEN: u64 = 24;
const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const SHF_WRITE: u64 = 1;
const SHF_ALLOC: u64 = 2;
const SHF_EXECINSTR: u64 = 4;
/// The bits of `st_info` that say how a symbol is bound, which are 0 for a local one.
const BINDING: u8 = 0xf0;

/// A file in the making.
#[derive(Default)]
struct Elf {
    contents: Vec<u8>,
    headers: Vec<u8>,
    names: Vec<u8>,
    sections: u16,
}

/// A section in the making.
#[derive(Default)]
struct Section<'s> {
    name: &'s str,
    kind: u32,
    flags: u64,
    addr: u64,
    size: u64,
    /// What of it is in the file.
    contents: &'s [u8],
    link: u32,
    info: u32,
    entry: u64,
}

impl Elf {
    fn add(&mut self, section: &Section<'_>) {
        let words = [self.names.len() as u32, section.kind].map(u32::to_le_bytes);
        self.names.extend(section.name.bytes().chain([0]));
        let offset = u64::from(EHDR_LEN) + self.contents.len() as u64;
        self.contents.extend(section.contents);
        let longs = [section.flags, section.addr, offset, section.size];
        self.headers.extend(words.concat());
        self.headers.extend(longs.map(u64::to_le_bytes).concat());
        let words = [section.link, section.info].map(u32::to_le_bytes);
        self.headers.extend(words.concat());
        // No alignment is asked for.
        self.headers
            .extend([1, section.entry].map(u64::to_le_bytes).concat());
        self.sections += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let last = self.sections;
        // The names of all sections are the contents of one, whose own is the last.
        let names = [&self.names, SHSTRTAB.as_bytes(), &[0]].concat();
        self.add(&Section {
            name: SHSTRTAB,
            kind: SHT_STRTAB,
            size: names.len() as u64,
            contents: &names,
            ..Section::default()
        });
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        // Relocatable, as a module's file is; x86-64; version 1.
        file.extend([1, 0, 62, 0, 1, 0, 0, 0]);
        let table = u64::from(EHDR_LEN) + self.contents.len() as u64;
        file.extend([0, 0, table].map(u64::to_le_bytes).concat());
        file.extend(0_u32.to_le_bytes());
        let shorts = [EHDR_LEN, 0, 0, SHDR_LEN, self.sections, last];
        file.extend(shorts.map(u16::to_le_bytes).concat());
        file.extend(self.contents);
        file.extend(self.headers);
        file
    }
}

/// A module's file with its sections where they are and the symbols that the kernel keeps; with the
/// rules of unwinding, but no other contents, types or lines. None when nothing is known of it.
pub(super) fn made(
    sections: &[LoadedSection],
    areas: &[Range<u64>],
    symbols: &[LoadedSymbol],
    read: impl Fn(KernelAddr, usize) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let loaded = extents(sections, areas);
    if symbols.is_empty() || loaded.is_empty() {
        return None;
    }
    let mut elf = Elf::default();
    // The first is none, and has no name.
    elf.add(&Section::default());
    // A corrupt list may call many sections so.
    let first_rules = loaded
        .iter()
        .position(|(section, _)| section.name == EH_FRAME);
    for (index, (section, extent)) in loaded.iter().enumerate() {
        let size = extent.end - extent.start;
        let is_rules = first_rules == Some(index) && size <= MAX_CONTENTS;
        let rules = is_rules
            .then(|| read(section.addr, size as usize))
            .flatten();
        let is_code = section.name.contains(".text");
        let is_data = [".data", ".bss"]
            .iter()
            .any(|part| section.name.contains(part));
        elf.add(&Section {
            name: &section.name,
            kind: match rules {
                Some(_) => SHT_PROGBITS,
                None => SHT_NOBITS,
            },
            flags: match (is_code, is_data) {
                (true, _) => SHF_ALLOC | SHF_EXECINSTR,
                (_, true) => SHF_ALLOC | SHF_WRITE,
                _ => SHF_ALLOC,
            },
            addr: extent.start,
            size,
            contents: rules.as_deref().unwrap_or_default(),
            ..Section::default()
        });
    }
    let (mut names, mut table) = (vec![0], vec![0; SYM_LEN as usize]);
    let is_local = |symbol: &&LoadedSymbol| symbol.info & BINDING == 0;
    let (local, global): (Vec<_>, Vec<_>) = symbols.iter().partition(is_local);
    let mut locals = 1;
    for (at, symbol) in local.iter().chain(&global).enumerate() {
        let addr = symbol.addr.get();
        // They are in order, and none is in another.
        let after = loaded.partition_point(|(_, extent)| extent.start <= addr);
        let found = after.checked_sub(1).and_then(|index| {
            let (_, extent) = loaded.get(index)?;
            extent.contains(&addr).then_some((index, extent.start))
        });
        let Some((index, start)) = found else {
            continue;
        };
        table.extend((names.len() as u32).to_le_bytes());
        table.extend([symbol.info, 0]);
        table.extend((index as u16 + 1).to_le_bytes());
        // In a relocatable file, from the beginning of its section.
        table.extend([addr - start, symbol.size].map(u64::to_le_bytes).concat());
        names.extend(symbol.name.bytes().chain([0]));
        locals += u32::from(at < local.len());
    }
    elf.add(&Section {
        name: SYMTAB,
        kind: SHT_SYMTAB,
        size: table.len() as u64,
        contents: &table,
        link: u32::from(elf.sections) + 1,
        info: locals,
        entry: SYM_LEN,
        ..Section::default()
    });
    elf.add(&Section {
        name: STRTAB,
        kind: SHT_STRTAB,
        size: names.len() as u64,
        contents: &names,
        ..Section::default()
    });
    Some(elf.finish())
}

/// The sections that are there, in the order of their addresses, each up to the next or to the end
/// of its area: how long it is, the kernel does not keep.
fn extents<'s>(
    sections: &'s [LoadedSection],
    areas: &[Range<u64>],
) -> Vec<(&'s LoadedSection, Range<u64>)> {
    let mut sections: Vec<_> = sections.iter().collect();
    sections.sort_by_key(|section| section.addr);
    sections.dedup_by_key(|section| section.addr);
    let nexts = sections.iter().skip(1).map(|next| next.addr.get());
    let nexts = nexts.chain([u64::MAX]);
    let with_extent = |(section, next): (&&'s LoadedSection, u64)| {
        let start = section.addr.get();
        let area = areas.iter().find(|area| area.contains(&start))?;
        Some((*section, start..area.end.min(next)))
    };
    sections.iter().zip(nexts).filter_map(with_extent).collect()
}

#[cfg(test)]
mod tests {
    use object::read::elf::ElfFile64;
    use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SectionKind};

    use super::*;

    fn section(name: &str, addr: u64) -> LoadedSection {
        LoadedSection {
            name: name.to_owned(),
            addr: KernelAddr(addr),
        }
    }

    fn symbol(name: &str, addr: u64, info: u8) -> LoadedSymbol {
        LoadedSymbol {
            name: name.to_owned(),
            addr: KernelAddr(addr),
            size: 4,
            info,
        }
    }

    #[test]
    fn symbols_are_in_the_sections_that_are_there() {
        let sections = [
            section(".text", 0x2000),
            section(".eh_frame", 0x2800),
            section(".init.text", 0x9000),
            section(".text.unlikely", 0x2100),
            section(".data", 0x4000),
        ];
        let symbols = [
            symbol("global", 0x2000, 0x12),
            symbol("local", 0x2010, 2),
            symbol("cold", 0x2100, 2),
            symbol("gone", 0x9000, 2),
            symbol("value", 0x4008, 1),
        ];
        let areas = [0x2000..0x3000, 0x4000..0x5000];
        let read = |addr: KernelAddr, len| (addr.get() == 0x2800).then(|| vec![7; len]);
        let bytes = made(&sections, &areas, &symbols, read).unwrap();
        let file = ElfFile64::<LittleEndian>::parse(&*bytes).unwrap();
        let found = |name: &str| {
            let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
            let section = file.section_by_index(symbol.section_index()?).ok()?;
            let addr = section.address() + symbol.address();
            Some((addr, section.name().ok()?.to_owned(), symbol.is_local()))
        };
        let expected = |addr, name: &str, is_local| Some((addr, name.to_owned(), is_local));
        assert_eq!(found("global"), expected(0x2000, ".text", false));
        assert_eq!(found("local"), expected(0x2010, ".text", true));
        assert_eq!(found("cold"), expected(0x2100, ".text.unlikely", true));
        assert_eq!(found("value"), expected(0x4008, ".data", true));
        assert_eq!(found("gone"), None);
        let text = file.section_by_name(".text").unwrap();
        assert_eq!((text.address(), text.size()), (0x2000, 0x100));
        let rules = file.section_by_name(".eh_frame").unwrap();
        assert_eq!(rules.data().unwrap(), [7; 0x800]);
        let data = file.section_by_name(".data").unwrap();
        assert_eq!(
            (data.size(), data.kind()),
            (0x1000, SectionKind::UninitializedData)
        );
        // It is treated like the one that was loaded.
        let file = crate::ModuleFile::new(&bytes).unwrap();
        assert!(file.is_build_of(&sections, |_, _| None));
        assert!(file.placed(&sections, |_| true).is_some());
    }

    #[test]
    fn of_nothing_nothing_is_made() {
        let sections = [section(".text", 0x2000)];
        let symbols = [symbol("global", 0x2000, 0x12)];
        let made = |areas, symbols: &[_]| made(&sections, areas, symbols, |_, _| None);
        assert!(made(&[], &symbols).is_none());
        let areas = [0x2000..0x3000, 0x4000..0x5000];
        assert!(made(&areas, &[]).is_none());
        assert!(made(&areas, &symbols).is_some());
    }
}
