//! Writes a copy of a kernel that takes little room once it is compressed, for the golden tests:
//!
//! ```text
//! cargo run -p kscope-kernel --example slim -- ./linux SMALL kernel/ fs/read_write.c ...
//! ```
//!
//! It is the same ELF file, of the same length and build-id, with zeros in place of what a reader
//! of cores does not need: code and data (which cores have) and the DWARF of all files but the named
//! ones and those below the named directories.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::Path;

use gimli::{AttributeValue, EndianSlice, LittleEndian, SectionId, UnitType};
use kscope_kernel::Image;
use object::read::elf::{ElfFile64, SectionHeader};
use object::{Object, ObjectSection, elf};

/// What of the sections other than `.debug_info` belongs to units that are kept: offsets.
#[derive(Default)]
struct Used {
    abbreviations: BTreeSet<usize>,
    lines: BTreeSet<usize>,
    locations: BTreeSet<usize>,
    ranges: BTreeSet<usize>,
    strings: BTreeSet<usize>,
}

/// An abbreviation table with one entry, code 1: a DW_TAG_compile_unit without anything.
const EMPTY_TABLE: [u8; 6] = [1, 0x11, 0, 0, 0, 0];
/// The header of a unit of DWARF 5, and an entry.
const EMPTY_UNIT: usize = 13;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(from), Some(to)) = (arguments.next(), arguments.next()) else {
        return Err("usage: slim LINUX SMALL FILE-OR-DIRECTORY/...".into());
    };
    let wanted: Vec<_> = arguments.collect();
    let image = Image::open(Path::new(&from))?;
    let bytes = fs::read(&from)?;
    let mut slim = bytes.clone();
    let file = ElfFile64::<object::LittleEndian>::parse(&*bytes)?;
    for section in file.sections() {
        let header = section.elf_section_header();
        let is_loaded = header.sh_flags(file.endian()).contains(elf::SHF_ALLOC);
        let is_plain = header.sh_type(file.endian()) == elf::SHT_PROGBITS;
        let unwinds = section.name()?.starts_with(".eh_frame");
        if let (true, Some((start, len))) =
            (is_loaded && is_plain && !unwinds, section.file_range())
        {
            slim[start as usize..][..len as usize].fill(0);
        }
    }
    let range = |name: &str| -> Range<usize> {
        let range = file
            .section_by_name(name)
            .and_then(|section| section.file_range());
        let (start, len) = range.unwrap_or_default();
        start as usize..(start + len) as usize
    };
    let load = |id: SectionId| -> Result<_, gimli::Error> {
        Ok(EndianSlice::new(&bytes[range(id.name())], LittleEndian))
    };
    let dwarf = gimli::Dwarf::load(load)?;
    let mut used = Used::default();
    let mut dropped: Vec<Range<usize>> = Vec::new();
    let mut tables = BTreeSet::new();
    let mut units = dwarf.units();
    let (mut kept, mut all) = (0, 0);
    while let Some(header) = units.next()? {
        let start = header.debug_info_offset().ok_or("not .debug_info")?.0;
        let end = start + header.length_including_self();
        tables.insert(header.debug_abbrev_offset().0);
        if header.version() != 5 || header.type_() != UnitType::Compilation {
            return Err("this kernel was not compiled by GCC with DWARF 5".into());
        }
        all += 1;
        let unit = dwarf.unit(header)?;
        let name = unit
            .name
            .map(|name| name.to_string_lossy())
            .unwrap_or_default();
        let name = image.relative_path(&name);
        let is_wanted = |wanted: &String| match wanted.ends_with('/') {
            true => name.starts_with(wanted.as_str()),
            false => name == wanted,
        };
        if !wanted.iter().any(is_wanted) {
            match dropped.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => dropped.push(start..end),
            }
            continue;
        }
        kept += 1;
        used.abbreviations.insert(header.debug_abbrev_offset().0);
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            for attribute in entry.attrs() {
                match attribute.value() {
                    AttributeValue::DebugLineRef(offset) => used.lines.insert(offset.0),
                    AttributeValue::LocationListsRef(offset) => used.locations.insert(offset.0),
                    AttributeValue::RangeListsRef(offset) => used.ranges.insert(offset.0),
                    AttributeValue::DebugStrRef(offset) => used.strings.insert(offset.0),
                    _ => false,
                };
            }
        }
    }

    // Abbreviations: the first table that is not used becomes that of the empty units.
    let section = range(".debug_abbrev");
    let empty = tables
        .iter()
        .find(|table| !used.abbreviations.contains(table));
    let empty = *empty.unwrap_or(&section.len());
    let ends = tables.iter().skip(1).copied().chain([section.len()]);
    for (&table, end) in tables.iter().zip(ends) {
        if !used.abbreviations.contains(&table) {
            slim[section.start + table..section.start + end].fill(0);
        }
    }
    if !dropped.is_empty() {
        slim[section.start + empty..][..EMPTY_TABLE.len()].copy_from_slice(&EMPTY_TABLE);
    }
    // Each run of units that are dropped becomes one without anything in it.
    let section = range(".debug_info");
    for run in dropped {
        let unit = &mut slim[section.start + run.start..section.start + run.end];
        unit.fill(0);
        unit[..4].copy_from_slice(&u32::try_from(run.len() - 4)?.to_le_bytes());
        unit[4..8].copy_from_slice(&[5, 0, 1, 8]);
        unit[8..12].copy_from_slice(&u32::try_from(empty)?.to_le_bytes());
        unit[EMPTY_UNIT - 1] = 1;
    }
    for (name, used) in [
        (".debug_line", &used.lines),
        (".debug_loclists", &used.locations),
        (".debug_rnglists", &used.ranges),
    ] {
        clear_tables(&mut slim[range(name)], used);
    }
    clear_strings(&mut slim[range(".debug_str")], &used.strings);
    fs::write(&to, slim)?;
    eprintln!("{to}: the DWARF of {kept} of {all} files");
    Ok(())
}

/// Clears what of a section with tables, each of which begins with its length, is not used.
fn clear_tables(section: &mut [u8], used: &BTreeSet<usize>) {
    let mut start = 0;
    while let Some(len) = section.get(start..start + 4) {
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let end = (start + 4).saturating_add(len).min(section.len());
        if used.range(start..end).next().is_none() {
            section[start..end].fill(0);
        }
        start = end;
    }
}

/// Clears the strings that are not used, not even their ends.
fn clear_strings(section: &mut [u8], used: &BTreeSet<usize>) {
    let mut start = 0;
    while start < section.len() {
        let len = section[start..].iter().position(|&byte| byte == 0);
        let end = start + len.unwrap_or(section.len() - start - 1) + 1;
        if used.range(start..end).next().is_none() {
            section[start..end].fill(0);
        }
        start = end;
    }
}
