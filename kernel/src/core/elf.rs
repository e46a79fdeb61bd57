//! The ELF side of a core file: header and program headers, as far as they can be believed.

use object::elf;

use super::CoreError;
use super::bytes::Bytes;

/// Size of `Elf64_Ehdr`.
pub(super) const HEADER: usize = 64;
/// Size of `Elf64_Phdr`.
pub(super) const PROGRAM_HEADER: usize = 56;
/// The most program headers. A core has one per area of memory; kscope's own have some hundred.
const MAX_HEADERS: u32 = 1 << 18;
/// `e_phnum` when the number does not fit: it is in the first section header then.
pub(super) const PN_XNUM: u16 = 0xffff;

/// One program header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) offset: u64,
    pub(super) addr: u64,
    pub(super) file_len: u64,
    pub(super) mem_len: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    if let Some(field) = bytes.get(at..at + N) {
        number[..N].copy_from_slice(field);
    }
    u64::from_le_bytes(number)
}

/// Reads the program headers of an x86-64 core.
pub(super) fn segments(bytes: &Bytes) -> Result<Vec<Segment>, CoreError> {
    let not_core = |found: &str| CoreError::not_core(found);
    let damaged = |reason: &str| CoreError::damaged(reason);
    let mut magic = [0; 4];
    if !bytes.read_at(0, &mut magic) {
        return Err(not_core(match bytes.len() {
            0 => "it is empty",
            _ => "it is too short",
        }));
    }
    if magic != elf::ELFMAG {
        return Err(not_core("it is not an ELF file"));
    }
    let mut header = [0; HEADER];
    if !bytes.read_at(0, &mut header) {
        return Err(damaged("it ends within its ELF header"));
    }
    if header[4] != elf::ELFCLASS64.0 || header[5] != elf::ELFDATA2LSB.0 {
        return Err(not_core("it is for a 32-bit or big-endian machine"));
    }
    if number::<2>(&header, 16) != u64::from(elf::ET_CORE.0) {
        return Err(not_core(
            "it is an ELF file of another kind, such as a program",
        ));
    }
    if number::<2>(&header, 18) != u64::from(elf::EM_X86_64.0) {
        return Err(not_core("it is of another machine than x86-64"));
    }
    let size = number::<2>(&header, 54);
    let mut count = number::<2>(&header, 56) as u32;
    if count == u32::from(PN_XNUM) {
        let mut info = [0; 4];
        let at = number::<8>(&header, 40).checked_add(44);
        if !at.is_some_and(|at| bytes.read_at(at, &mut info)) {
            return Err(damaged("the number of its program headers is missing"));
        }
        count = u32::from_le_bytes(info);
    }
    if size != PROGRAM_HEADER as u64 || count > MAX_HEADERS {
        return Err(damaged("its ELF header tells no sensible program headers"));
    }
    let offset = number::<8>(&header, 32);
    let len = count as usize * PROGRAM_HEADER;
    if offset
        .checked_add(len as u64)
        .is_none_or(|end| end > bytes.len())
    {
        return Err(damaged("it ends within its program headers"));
    }
    let mut table = vec![0; len];
    if !bytes.read_at(offset, &mut table) {
        return Err(damaged("its program headers cannot be read"));
    }
    let segment = |entry: &[u8]| Segment {
        kind: number::<4>(entry, 0) as u32,
        flags: number::<4>(entry, 4) as u32,
        offset: number::<8>(entry, 8),
        addr: number::<8>(entry, 16),
        file_len: number::<8>(entry, 32),
        mem_len: number::<8>(entry, 40),
    };
    Ok(table.chunks_exact(PROGRAM_HEADER).map(segment).collect())
}

/// The ELF header and the program headers of a core; they come first in the file.
pub(super) fn headers(segments: &[Segment]) -> Vec<u8> {
    let many = segments.len() >= usize::from(PN_XNUM);
    let mut bytes = Vec::with_capacity(HEADER + segments.len() * PROGRAM_HEADER);
    bytes.extend_from_slice(&elf::ELFMAG);
    bytes.extend_from_slice(&[elf::ELFCLASS64.0, elf::ELFDATA2LSB.0, elf::EV_CURRENT.0]);
    bytes.resize(16, 0);
    bytes.extend_from_slice(&elf::ET_CORE.0.to_le_bytes());
    bytes.extend_from_slice(&elf::EM_X86_64.0.to_le_bytes());
    bytes.extend_from_slice(&1_u32.to_le_bytes());
    // Entry, program headers, section headers: the first section header tells how many program
    // headers there are when that does not fit here.
    let after = headers_len(segments.len()) - if many { SECTION_HEADER } else { 0 };
    let sections = if many { after as u64 } else { 0 };
    for word in [0, HEADER as u64, sections] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    let count = u16::try_from(segments.len()).unwrap_or(PN_XNUM);
    let sizes = [
        HEADER as u16,
        PROGRAM_HEADER as u16,
        count,
        if many { SECTION_HEADER as u16 } else { 0 },
        u16::from(many),
        0,
    ];
    for half in sizes {
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    for segment in segments {
        bytes.extend_from_slice(&segment.kind.to_le_bytes());
        bytes.extend_from_slice(&segment.flags.to_le_bytes());
        let align = if segment.kind == elf::PT_LOAD.0 {
            4096
        } else {
            4
        };
        let words = [
            segment.offset,
            segment.addr,
            0,
            segment.file_len,
            segment.mem_len,
            align,
        ];
        for word in words {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    if many {
        let start = bytes.len();
        bytes.resize(start + SECTION_HEADER, 0);
        bytes[start + 44..start + 48].copy_from_slice(&(segments.len() as u32).to_le_bytes());
    }
    bytes
}

/// Size of `Elf64_Shdr`.
const SECTION_HEADER: usize = 64;

/// Length of what [`headers`] gives for so many segments.
pub(super) fn headers_len(segments: usize) -> usize {
    let extra = if segments >= usize::from(PN_XNUM) {
        SECTION_HEADER
    } else {
        0
    };
    HEADER + segments * PROGRAM_HEADER + extra
}
