//! A module's file, and the same with its sections where they were loaded.
//!
//! The file is relocatable: none of its sections has an address. A debugger that is told of a
//! library can add one number to all of them, which is not how the kernel has placed them.

mod made;

use std::ops::Range;

use object::read::elf::{ElfFile64, FileHeader, SectionHeader};
use object::{LittleEndian, Object, ObjectSection, elf};

use crate::addr::KernelAddr;
use crate::views::modules::{LoadedSection, LoadedSymbol};

/// Where a section's address is in its header (`Elf64_Shdr`).
const SH_ADDR: usize = 16;

/// Sections that are no more, such as those of a module whose init function has returned, come
/// here: to addresses that nothing can have, each in a piece of its own.
const NOWHERE: u64 = 0xffff_8000_0000_0000;

/// The section that says which build a file is: a note (`Elf64_Nhdr`: three words, and the name
/// `GNU`), whose type comes third.
const BUILD_ID: &str = ".note.gnu.build-id";
const NOTE_TYPE: usize = 8;
const NOTE_HEADER: usize = 16;

/// The contents of a module's file.
#[derive(Clone, Copy, Debug)]
pub struct ModuleFile<'f> {
    bytes: &'f [u8],
}

impl<'f> ModuleFile<'f> {
    /// None when the bytes are not a module's file.
    pub fn new(bytes: &'f [u8]) -> Option<ModuleFile<'f>> {
        let file = elf(bytes)?;
        let is_relocatable = file.elf_header().e_type(file.endian()) == elf::ET_REL;
        is_relocatable.then_some(ModuleFile { bytes })
    }

    /// Whether this is the build that was loaded, whose sections are read with `read`. A file that
    /// does not say which build it is may be.
    pub fn is_build_of(
        &self,
        sections: &[LoadedSection],
        read: impl Fn(KernelAddr, usize) -> Option<Vec<u8>>,
    ) -> bool {
        let file = elf(self.bytes);
        let section = file
            .as_ref()
            .and_then(|file| file.section_by_name(BUILD_ID));
        let Some(note) = section.and_then(|section| section.data().ok()) else {
            return true;
        };
        let loaded = sections.iter().find(|section| section.name == BUILD_ID);
        let loaded = loaded.and_then(|section| read(section.addr, note.len()));
        loaded.is_some_and(|loaded| {
            let id = |note: &[u8]| note.get(NOTE_HEADER..).map(<[u8]>::to_vec);
            id(&loaded) == id(note)
        })
    }

    /// The file with its sections at the addresses where they were loaded. To a debugger it has no
    /// build id: what it remembers of a build would be of other addresses.
    ///
    /// `in_use` says of an address whether a section is there still.
    pub fn placed(
        &self,
        sections: &[LoadedSection],
        in_use: impl Fn(KernelAddr) -> bool,
    ) -> Option<Vec<u8>> {
        let file = elf(self.bytes)?;
        let endian = file.endian();
        let header = file.elf_header();
        let (table, size) = (header.e_shoff(endian), header.e_shentsize(endian));
        // Several may have one name: both lists are in the file's order.
        let mut left: Vec<_> = sections.iter().collect();
        let mut placed = self.bytes.to_vec();
        for (index, section) in file.elf_section_table().iter().enumerate() {
            if !section.sh_flags(endian).contains(elf::SHF_ALLOC) {
                continue;
            }
            let name = file
                .elf_section_table()
                .section_name(endian, section)
                .ok()?;
            let is_this = |known: &&LoadedSection| known.name.as_bytes() == name;
            let at = left.iter().position(is_this);
            let addr = at
                .map(|at| left.remove(at).addr)
                .filter(|&addr| in_use(addr));
            let nowhere = NOWHERE + ((index as u64) << 32);
            let addr = addr.map_or(nowhere, KernelAddr::get);
            let field = usize::try_from(table)
                .ok()?
                .checked_add(index.checked_mul(size.into())?)?
                .checked_add(SH_ADDR)?;
            let field = placed.get_mut(field..field.checked_add(8)?)?;
            field.copy_from_slice(&addr.to_le_bytes());
            if name == BUILD_ID.as_bytes() {
                let start = usize::try_from(section.sh_offset(endian)).ok()?;
                let kind = start.checked_add(NOTE_TYPE)?;
                placed.get_mut(kind..kind.checked_add(4)?)?.fill(0);
            }
        }
        Some(placed)
    }

    /// A file with the sections, where they are, and the symbols of a module that is loaded, for
    /// want of its own; without types and lines. None when nothing is known of it.
    ///
    /// `read` reads the guest's memory.
    pub fn from_memory(
        sections: &[LoadedSection],
        areas: &[Range<u64>],
        symbols: &[LoadedSymbol],
        read: impl Fn(KernelAddr, usize) -> Option<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        made::made(sections, areas, symbols, read)
    }

    /// Whether an address is of a section that was nowhere when the file was placed.
    pub fn is_nowhere(addr: KernelAddr) -> bool {
        addr.get() >= NOWHERE
    }
}

fn elf(bytes: &[u8]) -> Option<ElfFile64<'_, LittleEndian>> {
    ElfFile64::parse(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with a note, code, code of an init function, and what is not loaded.
    fn module() -> Vec<u8> {
        const ALLOC: u64 = 2;
        let sections: [(&str, u32, u64, &[u8]); 5] = [
            (
                BUILD_ID,
                7,
                ALLOC,
                b"\x04\0\0\0\x04\0\0\0\x03\0\0\0GNU\0same",
            ),
            (".text", 1, ALLOC, b"code"),
            (".init.text", 1, ALLOC, b"init"),
            (".debug_info", 1, 0, b"debug"),
            (".shstrtab", 3, 0, b""),
        ];
        let names: Vec<u8> = sections
            .iter()
            .flat_map(|(name, ..)| [b"\0", name.as_bytes()].concat())
            .chain([0])
            .collect();
        let mut file = vec![0; 64];
        let mut table = vec![0; 64];
        let mut name = 1_u32;
        for (title, kind, flags, data) in sections {
            let data = if title == ".shstrtab" { &names } else { data };
            table.extend([name.to_le_bytes(), kind.to_le_bytes()].concat());
            for word in [flags, 0, file.len() as u64, data.len() as u64, 0, 1, 0] {
                table.extend(word.to_le_bytes());
            }
            file.extend(data);
            name += title.len() as u32 + 1;
        }
        let start = file.len() as u64;
        file.extend(table);
        file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        // Relocatable, x86-64, version 1.
        file[16..24].copy_from_slice(&[1, 0, 62, 0, 1, 0, 0, 0]);
        file[40..48].copy_from_slice(&start.to_le_bytes());
        // The sizes of this header and of a section's, their number, and which has the names.
        file[52..54].copy_from_slice(&[64, 0]);
        file[58..64].copy_from_slice(&[64, 0, 6, 0, 5, 0]);
        file
    }

    fn loaded() -> Vec<LoadedSection> {
        let section = |name: &str, addr| LoadedSection {
            name: name.to_owned(),
            addr: KernelAddr(addr),
        };
        vec![
            section(BUILD_ID, 0x1000),
            section(".text", 0x2000),
            section(".init.text", 0x9000),
        ]
    }

    #[test]
    fn sections_are_placed_and_what_is_gone_is_nowhere() {
        let bytes = module();
        let module = ModuleFile::new(&bytes).unwrap();
        let placed = module
            .placed(&loaded(), |addr| addr.get() < 0x9000)
            .unwrap();
        let file = elf(&placed).unwrap();
        let addr = |name: &str| file.section_by_name(name).unwrap().address();
        assert_eq!(addr(".text"), 0x2000);
        assert!(ModuleFile::is_nowhere(KernelAddr(addr(".init.text"))));
        assert_eq!(addr(".debug_info"), 0);
        assert_eq!(file.build_id().unwrap(), None);
        assert_eq!(
            file.section_by_name(".text").unwrap().data().unwrap(),
            b"code"
        );
    }

    #[test]
    fn builds_are_told_apart() {
        let bytes = module();
        let module = ModuleFile::new(&bytes).unwrap();
        let note = |id: &[u8]| Some([&[0; NOTE_HEADER], id].concat());
        assert!(module.is_build_of(&loaded(), |_, _| note(b"same")));
        assert!(!module.is_build_of(&loaded(), |_, _| note(b"else")));
        assert!(!module.is_build_of(&loaded(), |_, _| None));
        assert!(!module.is_build_of(&[], |_, _| note(b"same")));
        // Of one that was placed as of the original.
        let placed = module.placed(&loaded(), |_| true).unwrap();
        let placed = ModuleFile::new(&placed).unwrap();
        assert!(placed.is_build_of(&loaded(), |_, _| note(b"same")));
    }

    #[test]
    fn garbage_is_no_module() {
        assert!(ModuleFile::new(b"").is_none());
        let bytes = module();
        assert!(ModuleFile::new(&bytes[..40]).is_none());
        let executable = std::fs::read("/proc/self/exe").unwrap();
        assert!(ModuleFile::new(&executable).is_none());
    }
}
