//! What is needed from one ELF file to unwind through its code and to name it.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use framehop::ExplicitModuleSectionInfo;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, SymbolKind, elf,
};

use super::rules::CallFrames;
use crate::image::{ElfFile, Slice};

/// An ELF file with code: the kernel, libc, the vDSO, a program. Addresses are the file's own.
pub(crate) struct Binary {
    file: Arc<ElfFile>,
    segments: Vec<Segment>,
    frames: CallFrames,
    /// Its functions: start, end, name. Looked up when a name is first asked for.
    functions: OnceLock<Vec<(u64, u64, String)>>,
}

/// A part of the file that is loaded.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) vaddr: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Binary {
    pub(crate) fn new(file: Arc<ElfFile>) -> Result<Binary, object::Error> {
        let elf = ElfFile64::<LittleEndian>::parse(file.bytes())?;
        let endian = elf.endian();
        let segments = elf
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD)
            .map(|header| Segment {
                vaddr: header.p_vaddr(endian),
                offset: header.p_offset(endian),
                len: header.p_filesz(endian),
            })
            .collect();
        Ok(Binary {
            segments,
            frames: CallFrames::new(&file, &elf),
            functions: OnceLock::new(),
            file,
        })
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The address that belongs at an offset of the file, if a segment has it.
    pub(crate) fn address_of(&self, offset: u64) -> Option<u64> {
        // Mappings begin at pages, segments where they like.
        const PAGE: u64 = 4096;
        let segment = self.segments.iter().find(|segment| {
            let first = segment.offset - segment.offset % PAGE;
            (first..segment.offset.saturating_add(segment.len)).contains(&offset)
        })?;
        let address = segment.vaddr.wrapping_add(offset);
        Some(address.wrapping_sub(segment.offset))
    }

    /// The bytes at an address, from the file.
    pub(super) fn code_at(&self, addr: u64, len: usize) -> Option<&[u8]> {
        let segment = self
            .segments
            .iter()
            .find(|segment| addr.wrapping_sub(segment.vaddr) < segment.len)?;
        let within = addr.wrapping_sub(segment.vaddr);
        let at = usize::try_from(segment.offset.checked_add(within)?).ok()?;
        self.file.bytes().get(at..at.checked_add(len)?)
    }

    /// How to get from a frame to its caller.
    pub(super) fn frames(&self) -> &CallFrames {
        &self.frames
    }

    /// The file's name without its directory.
    pub(crate) fn name(&self) -> &str {
        let name = self.file.path().file_name();
        name.and_then(|name| name.to_str()).unwrap_or("?")
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The function that covers an address, by the symbol table or, in a stripped file, by what is
    /// exported; and how far into it the address is.
    pub(crate) fn function_at(&self, addr: u64) -> Option<(&str, u64)> {
        let functions = self.functions.get_or_init(|| {
            let elf = ElfFile64::<LittleEndian>::parse(self.file.bytes());
            elf.map(|elf| functions(&elf)).unwrap_or_default()
        });
        let end = functions.partition_point(|&(start, ..)| start <= addr);
        // Aliases share an address, and short functions may lie in longer ones.
        const MAX_BACK: usize = 16;
        let near = functions.get(end.saturating_sub(MAX_BACK)..end)?;
        near.iter()
            .rev()
            .find(|&&(_, end, _)| addr < end)
            .map(|(start, _, name)| (name.as_str(), addr - start))
    }

    /// The file for framehop, loaded so that `base_svma` of its addresses is at `base_avma`.
    pub(super) fn module(
        &self,
        range: std::ops::Range<u64>,
        base_svma: u64,
        base_avma: u64,
    ) -> framehop::Module<Slice> {
        let elf = ElfFile64::<LittleEndian>::parse(self.file.bytes()).ok();
        let section = |name: &str| elf.as_ref()?.section_by_name(name);
        let range_of = |name: &str| {
            let section = section(name)?;
            Some(section.address()..section.address().checked_add(section.size())?)
        };
        let data = |name: &str| {
            let (offset, len) = section(name)?.file_range()?;
            Slice::new(&self.file, offset, len)
        };
        let sections = ExplicitModuleSectionInfo {
            base_svma,
            text_svma: range_of(".text"),
            got_svma: range_of(".got"),
            eh_frame_svma: range_of(".eh_frame"),
            eh_frame: data(".eh_frame"),
            eh_frame_hdr_svma: range_of(".eh_frame_hdr"),
            eh_frame_hdr: data(".eh_frame_hdr"),
            debug_frame: data(".debug_frame"),
            // Of other systems.
            text: None,
            stubs_svma: None,
            stub_helper_svma: None,
            unwind_info: None,
            text_segment_svma: None,
            text_segment: None,
        };
        let name = self.file.path().display().to_string();
        framehop::Module::new(name, range, base_avma, sections)
    }
}

/// The most functions whose names are kept, and the most bytes of these names: in a file that is
/// made to do so, all may be called by the same long one.
const MAX_FUNCTIONS: usize = 1 << 20;
const MAX_NAMES: usize = 64 << 20;

fn functions(elf: &ElfFile64<'_, LittleEndian>) -> Vec<(u64, u64, String)> {
    let mut left = MAX_NAMES;
    let Some(table) = elf.symbol_table().or_else(|| elf.dynamic_symbol_table()) else {
        return Vec::new();
    };
    let mut functions: Vec<_> = table
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let start = symbol.address();
            let end = start.checked_add(symbol.size())?;
            Some((start, end, symbol.name().ok()?))
        })
        .filter(|(start, end, name)| start < end && !name.is_empty())
        .take(MAX_FUNCTIONS)
        .map_while(|(start, end, name)| {
            left = left.checked_sub(name.len())?;
            Some((start, end, name.to_owned()))
        })
        .collect();
    // Of several names for one function the one with the fewest underscores in front comes last,
    // where the search backwards finds it first: `wait4` rather than `__wait4`.
    functions.sort_by(|a, b| {
        let underscores = |name: &str| name.len() - name.trim_start_matches('_').len();
        (a.0, a.1, underscores(&b.2), &b.2).cmp(&(b.0, b.1, underscores(&a.2), &a.2))
    });
    functions
}
