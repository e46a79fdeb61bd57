//! The ELF symbol table, sorted for look-ups by address and by name.

use std::sync::OnceLock;

use object::read::elf::{ElfFile64, SectionHeader, Sym};
use object::{LittleEndian, ObjectSection, elf};

use crate::addr::KernelAddr;

/// A function or a variable of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// As the linker spells it. Static functions of several files may share one.
    pub name: &'a str,
    /// Where it starts.
    pub addr: KernelAddr,
    /// Its length in bytes. 0 when the symbol table does not say (labels, some assembly).
    pub size: u64,
    /// Whether it is code.
    pub is_function: bool,
}

/// Offsets into the file instead of strings, so that the table borrows nothing.
#[derive(Clone, Copy, Debug)]
struct Entry {
    addr: u64,
    size: u64,
    name: NameAt,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
struct NameAt {
    start: usize,
    len: usize,
}

/// In order of preference when several symbols share an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Function,
    Object,
    Label,
}

/// The table. Its strings are in the file, which every look-up is given.
#[derive(Debug)]
pub(crate) struct Symbols {
    /// By address; at one address, the preferred symbol first.
    entries: Vec<Entry>,
    /// Start and end of the sections that hold code.
    text: Vec<(u64, u64)>,
    /// Start and end of all sections in memory.
    sections: Vec<(u64, u64)>,
    /// Hashes of names and positions in `entries`, sorted: a hash table that costs no allocation
    /// per name.
    by_name: OnceLock<Vec<(u64, u32)>>,
}

impl Symbols {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Symbols, object::Error> {
        let file = ElfFile64::<LittleEndian>::parse(bytes)?;
        let endian = file.endian();
        let table = file.elf_symbol_table();
        let section = file
            .elf_section_table()
            .iter()
            .nth(table.string_section().0);
        let (strings_at, strings_len) = section.map_or((0, 0), |section| {
            let (offset, size) = (section.sh_offset(endian), section.sh_size(endian));
            (offset as usize, size as usize)
        });
        // All at once is much faster than name by name; what is between two NULs is UTF-8 then.
        let strings = bytes.get(strings_at..strings_at.saturating_add(strings_len));
        let is_all_text = strings.is_some_and(|strings| std::str::from_utf8(strings).is_ok());
        let is_text = |name| is_all_text || std::str::from_utf8(name).is_ok();
        let mut entries = Vec::with_capacity(table.len());
        for symbol in table.iter() {
            let kind = match symbol.st_type() {
                elf::STT_FUNC | elf::STT_GNU_IFUNC => Kind::Function,
                elf::STT_OBJECT => Kind::Object,
                elf::STT_NOTYPE => Kind::Label,
                _ => continue,
            };
            if symbol.is_undefined(endian) || symbol.st_name(endian) == 0 {
                continue;
            }
            let Ok(name) = symbol.name(endian, table.strings()) else {
                continue;
            };
            if name.is_empty() || !is_text(name) {
                continue;
            }
            entries.push(Entry {
                addr: symbol.st_value(endian),
                size: symbol.st_size(endian),
                name: NameAt {
                    start: strings_at + symbol.st_name(endian) as usize,
                    len: name.len(),
                },
                kind,
            });
        }
        // Sized symbols before labels, so that `schedule` wins over `__sched_text_start`; else as in
        // the file. Numbers that stand for the entries are sorted faster than they are.
        let positions = (0u32..).zip(&entries);
        let mut order: Vec<_> = positions
            .map(|(at, entry)| {
                let rank = (entry.kind as u64) << 1 | u64::from(entry.size == 0);
                (entry.addr, rank << 32 | u64::from(at))
            })
            .collect();
        order.sort_unstable();
        let at = |&(_, at): &(u64, u64)| entries.get(at as u32 as usize).copied();
        let entries: Vec<_> = order.iter().filter_map(at).collect();

        let mut text = Vec::new();
        let mut sections = Vec::new();
        for section in object::Object::sections(&file) {
            let flags = section.elf_section_header().sh_flags(endian);
            let range = (
                section.address(),
                section.address().saturating_add(section.size()),
            );
            if !flags.contains(elf::SHF_ALLOC) || section.size() == 0 {
                continue;
            }
            sections.push(range);
            if flags.contains(elf::SHF_EXECINSTR) {
                text.push(range);
            }
        }
        text.sort_unstable();
        sections.sort_unstable();
        Ok(Symbols {
            entries,
            text,
            sections,
            by_name: OnceLock::new(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn is_text(&self, addr: u64) -> bool {
        containing(&self.text, addr).is_some()
    }

    pub(crate) fn iter<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = Symbol<'a>> + 'a {
        self.entries.iter().map(|entry| resolve(entry, bytes))
    }

    pub(crate) fn named<'a>(
        &'a self,
        bytes: &'a [u8],
        name: &str,
    ) -> impl Iterator<Item = Symbol<'a>> + use<'a> {
        let index = self.by_name.get_or_init(|| {
            let positions = (0u32..).zip(&self.entries);
            let mut index: Vec<_> = positions
                .map(|(at, entry)| (hash(name_of(entry, bytes)), at))
                .collect();
            index.sort_unstable();
            index
        });
        let hash = hash(name.as_bytes());
        let first = index.partition_point(|&(other, _)| other < hash);
        let name = name.to_owned();
        index[first..]
            .iter()
            .take_while(move |&&(other, _)| other == hash)
            .filter_map(|&(_, at)| self.entries.get(at as usize))
            .map(|entry| resolve(entry, bytes))
            .filter(move |symbol| symbol.name == name)
    }

    /// The symbol that covers `addr`. A symbol without a size reaches up to the next one, but
    /// never out of its section.
    pub(crate) fn at<'a>(&'a self, bytes: &'a [u8], addr: u64) -> Option<Symbol<'a>> {
        let section = containing(&self.sections, addr)?;
        let end = self.entries.partition_point(|entry| entry.addr <= addr);
        // Symbols nest rarely and shallowly (a label inside a function); a few steps back are
        // enough, and a bound keeps a table of garbage from costing time.
        const MAX_BACK: usize = 64;
        let mut label = None;
        for entry in self
            .entries
            .get(end.saturating_sub(MAX_BACK)..end)?
            .iter()
            .rev()
        {
            if entry.addr < section.0 {
                break;
            }
            if entry.size > addr - entry.addr {
                return Some(resolve(self.preferred(entry, addr), bytes));
            }
            if entry.size == 0 && label.is_none() {
                label = Some(entry);
            }
        }
        label.map(|entry| resolve(self.preferred(entry, addr), bytes))
    }

    /// The first of the symbols that share `entry`'s address and cover `addr` as well.
    fn preferred<'a>(&'a self, entry: &'a Entry, addr: u64) -> &'a Entry {
        let first = self
            .entries
            .partition_point(|other| other.addr < entry.addr);
        self.entries
            .iter()
            .skip(first)
            .take_while(|other| other.addr == entry.addr)
            .find(|other| other.size > addr - other.addr || (entry.size == 0 && other.size == 0))
            .unwrap_or(entry)
    }
}

/// Of some 50 000 names at every start of a command, which nobody chooses to collide: the
/// standard library's hash takes longer than all else that is done with them.
fn hash(name: &[u8]) -> u64 {
    let words = name.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(0, |hash: u64, word| {
        (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

fn name_of<'a>(entry: &Entry, bytes: &'a [u8]) -> &'a [u8] {
    let NameAt { start, len } = entry.name;
    bytes.get(start..start + len).unwrap_or_default()
}

fn resolve<'a>(entry: &Entry, bytes: &'a [u8]) -> Symbol<'a> {
    // `parse` found UTF-8 there, so the fallback is for a file that changed under the mapping.
    let name = std::str::from_utf8(name_of(entry, bytes)).unwrap_or("?");
    Symbol {
        name,
        addr: KernelAddr(entry.addr),
        size: entry.size,
        is_function: entry.kind == Kind::Function,
    }
}

fn containing(ranges: &[(u64, u64)], addr: u64) -> Option<(u64, u64)> {
    let end = ranges.partition_point(|&(start, _)| start <= addr);
    let &range = ranges.get(end.checked_sub(1)?)?;
    (addr < range.1).then_some(range)
}
