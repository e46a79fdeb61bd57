//! What an unwinder needs from one ELF file that is mapped into the guest's kernel process.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use framehop::ExplicitModuleSectionInfo;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, SymbolKind, elf,
};

use crate::image::{ElfFile, Slice};

/// One mapped file: the kernel itself, libc, the vDSO.
pub(super) struct Mapped {
    /// Where its code is in the process.
    pub(super) range: Range<u64>,
    /// What to add to an address in the file to get one in the process.
    bias: u64,
    segments: Vec<Segment>,
    /// Exported functions: start, end, name. By address in the file.
    functions: Vec<(u64, u64, String)>,
    file: Arc<ElfFile>,
}

#[derive(Clone, Copy)]
struct Segment {
    vaddr: u64,
    offset: u64,
    len: u64,
}

/// Why a file's unwind tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is no ELF file that can be parsed: {0}")]
    NotElf(#[from] object::Error),
    #[error("nothing in it belongs at file offset {0:#x}")]
    NoSegment(u64),
}

impl Mapped {
    /// The kernel: mapped where it was linked.
    pub(super) fn kernel(
        file: &Arc<ElfFile>,
    ) -> Result<(Mapped, framehop::Module<Slice>), Unusable> {
        let elf = ElfFile64::<LittleEndian>::parse(file.bytes())?;
        let segments = segments(&elf);
        let start = segments.iter().map(|segment| segment.vaddr).min();
        let end = segments
            .iter()
            .map(|segment| segment.vaddr.saturating_add(segment.len))
            .max();
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Unusable::NoSegment(0));
        };
        // The image answers for the kernel's symbols.
        let mapped = Mapped {
            range: start..end,
            bias: 0,
            segments,
            functions: Vec::new(),
            file: Arc::clone(file),
        };
        let module = mapped.module(&elf, start, start);
        Ok((mapped, module))
    }

    /// A shared object whose code is mapped at `range` from `file_offset` of its file.
    pub(super) fn shared(
        file: &Arc<ElfFile>,
        range: Range<u64>,
        file_offset: u64,
    ) -> Result<(Mapped, framehop::Module<Slice>), Unusable> {
        let elf = ElfFile64::<LittleEndian>::parse(file.bytes())?;
        let segments = segments(&elf);
        const PAGE: u64 = 4096;
        let segment = segments
            .iter()
            .find(|segment| {
                let first = segment.offset - segment.offset % PAGE;
                (first..segment.offset.saturating_add(segment.len)).contains(&file_offset)
            })
            .ok_or(Unusable::NoSegment(file_offset))?;
        let vaddr = segment
            .vaddr
            .wrapping_add(file_offset)
            .wrapping_sub(segment.offset);
        let bias = range.start.wrapping_sub(vaddr);
        let mapped = Mapped {
            range,
            bias,
            functions: functions(&elf),
            segments,
            file: Arc::clone(file),
        };
        let module = mapped.module(&elf, 0, bias);
        Ok((mapped, module))
    }

    fn module(
        &self,
        elf: &ElfFile64<'_, LittleEndian>,
        base_svma: u64,
        base_avma: u64,
    ) -> framehop::Module<Slice> {
        let range = |name: &str| {
            let section = elf.section_by_name(name)?;
            Some(section.address()..section.address().checked_add(section.size())?)
        };
        let data = |name: &str| {
            let (offset, len) = elf.section_by_name(name)?.file_range()?;
            Slice::new(&self.file, offset, len)
        };
        let sections = ExplicitModuleSectionInfo {
            base_svma,
            text_svma: range(".text"),
            got_svma: range(".got"),
            eh_frame_svma: range(".eh_frame"),
            eh_frame: data(".eh_frame"),
            eh_frame_hdr_svma: range(".eh_frame_hdr"),
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
        framehop::Module::new(name, self.range.clone(), base_avma, sections)
    }

    /// The bytes of code at an address in the process, from the file.
    pub(super) fn code_at(&self, addr: u64, len: usize) -> Option<&[u8]> {
        let vaddr = addr.wrapping_sub(self.bias);
        let segment = self
            .segments
            .iter()
            .find(|segment| vaddr.wrapping_sub(segment.vaddr) < segment.len)?;
        let at = usize::try_from(segment.offset + (vaddr - segment.vaddr)).ok()?;
        self.file.bytes().get(at..at.checked_add(len)?)
    }

    /// The file's name without its directory.
    pub(super) fn name(&self) -> &str {
        self.file
            .path()
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("?")
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The exported function that covers an address in the process, and how far into it that is.
    pub(super) fn function_at(&self, addr: u64) -> Option<(&str, u64)> {
        let vaddr = addr.wrapping_sub(self.bias);
        let end = self
            .functions
            .partition_point(|&(start, ..)| start <= vaddr);
        // Aliases share an address, and short functions may lie in longer ones.
        const MAX_BACK: usize = 16;
        self.functions[end.saturating_sub(MAX_BACK)..end]
            .iter()
            .rev()
            .find(|&&(_, end, _)| vaddr < end)
            .map(|(start, _, name)| (name.as_str(), vaddr - start))
    }
}

fn segments(elf: &ElfFile64<'_, LittleEndian>) -> Vec<Segment> {
    let endian = elf.endian();
    elf.elf_program_headers()
        .iter()
        .filter(|header| header.p_type(endian) == elf::PT_LOAD)
        .map(|header| Segment {
            vaddr: header.p_vaddr(endian),
            offset: header.p_offset(endian),
            len: header.p_filesz(endian),
        })
        .collect()
}

fn functions(elf: &ElfFile64<'_, LittleEndian>) -> Vec<(u64, u64, String)> {
    let Some(table) = elf.symbol_table().or_else(|| elf.dynamic_symbol_table()) else {
        return Vec::new();
    };
    let mut functions: Vec<_> = table
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let start = symbol.address();
            let end = start.checked_add(symbol.size())?;
            Some((start, end, symbol.name().ok()?.to_owned()))
        })
        .filter(|(start, end, name)| start < end && !name.is_empty())
        .collect();
    // Of several names for one function the one with the fewest underscores in front comes last,
    // where the search backwards finds it first: `wait4` rather than `__wait4`.
    functions.sort_by(|a, b| {
        let underscores = |name: &str| name.len() - name.trim_start_matches('_').len();
        (a.0, a.1, underscores(&b.2), &b.2).cmp(&(b.0, b.1, underscores(&a.2), &a.2))
    });
    functions
}
