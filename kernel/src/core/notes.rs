//! The notes of a core file: registers as gdb reads them, and what only kscope puts in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::host_maps::Mapping;
use crate::registers::{Reg, Registers};

/// `NT_PRSTATUS` of elf.h.
pub(super) const NT_PRSTATUS: u32 = 1;
/// `NT_PRPSINFO` of elf.h.
pub(super) const NT_PRPSINFO: u32 = 3;
/// `NT_AUXV` of elf.h.
pub(super) const NT_AUXV: u32 = 6;
/// `NT_FILE` of elf.h: "FILE".
pub(super) const NT_FILE: u32 = 0x4649_4c45;
/// Owner of the notes that the host's kernel defines.
pub(super) const CORE: &str = "CORE";
/// Owner of kscope's own.
pub(super) const KSCOPE: &str = "kscope";
/// Type of the note with an [`About`] in JSON.
pub(super) const NT_KSCOPE_ABOUT: u32 = 1;
/// Version of [`About`].
pub(super) const VERSION: u32 = 1;

/// What kscope notes down about a core. In JSON, since it is read by people and scripts as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// [`VERSION`].
    pub(super) version: u32,
    /// The guest's name.
    pub(super) guest: String,
    /// Build-id of the kernel in hexadecimal.
    pub(super) build_id: Option<String>,
    /// Where the kernel binary was.
    pub(super) kernel: String,
    /// Seconds since 1970.
    pub(super) taken_at: u64,
    /// What the kernel panicked with, if it had.
    pub(super) panicked: Option<String>,
    /// The CPUs' registers by name, in CPU order.
    pub(super) cpus: Vec<AboutCpu>,
    /// The kernel process's `/proc/PID/maps`.
    pub(super) maps: String,
    /// Host libraries that are in the core as whole files.
    pub(super) libraries: Vec<AboutLibrary>,
}

/// One CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AboutCpu {
    pub(super) cpu: u32,
    pub(super) registers: BTreeMap<String, u64>,
}

/// One library.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AboutLibrary {
    /// As `maps` has it.
    pub(super) path: String,
    /// Where its bytes are in the core file, and how many.
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl AboutCpu {
    pub(super) fn new(cpu: u32, registers: &Registers) -> AboutCpu {
        let named = |(reg, value): (Reg, u64)| (reg.name().to_owned(), value);
        AboutCpu {
            cpu,
            registers: registers.iter().map(named).collect(),
        }
    }

    pub(super) fn registers(&self) -> Registers {
        Reg::ALL
            .into_iter()
            .filter_map(|reg| Some((reg, *self.registers.get(reg.name())?)))
            .collect()
    }
}

/// One note as it is in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note<'a> {
    pub(super) owner: &'a [u8],
    pub(super) kind: u32,
    pub(super) content: &'a [u8],
}

/// The notes of a segment. Ends at the first that does not fit.
pub(super) fn parse(mut bytes: &[u8]) -> impl Iterator<Item = Note<'_>> {
    std::iter::from_fn(move || {
        let number = |at: usize| {
            let field = bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes(field.try_into().ok()?))
        };
        let owner_len = number(0)? as usize;
        let content_len = number(4)? as usize;
        let kind = number(8)?;
        let owner = bytes.get(12..12_usize.checked_add(owner_len)?)?;
        let start = 12_usize.checked_add(padded(owner_len)?)?;
        let content = bytes.get(start..start.checked_add(content_len)?)?;
        // The last one may lack its padding.
        let end = start.checked_add(padded(content_len)?)?.min(bytes.len());
        bytes = bytes.get(end..)?;
        Some(Note {
            owner: owner.strip_suffix(&[0]).unwrap_or(owner),
            kind,
            content,
        })
    })
}

fn padded(len: usize) -> Option<usize> {
    len.checked_next_multiple_of(4)
}

/// Appends a note.
pub(super) fn push(notes: &mut Vec<u8>, owner: &str, kind: u32, content: &[u8]) {
    // What is written is far below 4 GiB.
    for number in [owner.len() as u32 + 1, content.len() as u32, kind] {
        notes.extend_from_slice(&number.to_le_bytes());
    }
    notes.extend_from_slice(owner.as_bytes());
    notes.push(0);
    notes.resize(notes.len().next_multiple_of(4), 0);
    notes.extend_from_slice(content);
    notes.resize(notes.len().next_multiple_of(4), 0);
}

/// Size of `struct elf_prstatus` of linux/elfcore.h.
const PRSTATUS: usize = 336;
/// Offset of `pr_cursig` in it.
const PR_CURSIG: usize = 12;
/// Offset of `pr_pid` in it.
const PR_PID: usize = 32;
/// Offset of `pr_reg`, a `struct user_regs_struct`.
const PR_REG: usize = 112;
/// The order of that.
const USER_REGS: [Reg; 27] = [
    Reg::R15,
    Reg::R14,
    Reg::R13,
    Reg::R12,
    Reg::Rbp,
    Reg::Rbx,
    Reg::R11,
    Reg::R10,
    Reg::R9,
    Reg::R8,
    Reg::Rax,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rsi,
    Reg::Rdi,
    Reg::OrigRax,
    Reg::Rip,
    Reg::Cs,
    Reg::Eflags,
    Reg::Rsp,
    Reg::Ss,
    Reg::FsBase,
    Reg::GsBase,
    Reg::Ds,
    Reg::Es,
    Reg::Fs,
    Reg::Gs,
];

/// The content of an `NT_PRSTATUS` note. Registers that are not known are zero.
pub(super) fn prstatus(tid: i32, signal: i16, registers: &Registers) -> [u8; PRSTATUS] {
    let mut content = [0; PRSTATUS];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = content.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &i32::from(signal).to_le_bytes());
    put(PR_CURSIG, &signal.to_le_bytes());
    put(PR_PID, &tid.to_le_bytes());
    for (index, reg) in USER_REGS.into_iter().enumerate() {
        let value = registers.get(reg).unwrap_or(0);
        put(PR_REG + index * 8, &value.to_le_bytes());
    }
    content
}

/// The thread and the registers of an `NT_PRSTATUS` note.
pub(super) fn parse_prstatus(content: &[u8]) -> Option<(i32, Registers)> {
    let word = |at: usize| {
        content
            .get(at..at + 8)?
            .try_into()
            .ok()
            .map(u64::from_le_bytes)
    };
    let tid = content.get(PR_PID..PR_PID + 4)?;
    let registers = USER_REGS
        .into_iter()
        .enumerate()
        .map(|(index, reg)| Some((reg, word(PR_REG + index * 8)?)))
        .collect::<Option<Registers>>()?;
    Some((i32::from_le_bytes(tid.try_into().ok()?), registers))
}

/// The content of an `NT_PRPSINFO` note (`struct elf_prpsinfo`). The last one in a file is what gdb
/// says the core was generated by; one behind each `NT_PRSTATUS` is where lldb has its names from.
pub(super) fn prpsinfo(pid: i32, state: char, name: &str, arguments: &str) -> [u8; 136] {
    const PID: std::ops::Range<usize> = 24..28;
    const FNAME: std::ops::Range<usize> = 40..56;
    const PSARGS: std::ops::Range<usize> = 56..136;
    let mut content = [0; 136];
    content[1] = u8::try_from(state).unwrap_or(b'?');
    content[PID].copy_from_slice(&pid.to_le_bytes());
    for (range, text) in [(FNAME, name), (PSARGS, arguments)] {
        // The last byte stays NUL.
        let len = text.len().min(range.len() - 1);
        content[range.start..range.start + len].copy_from_slice(&text.as_bytes()[..len]);
    }
    content
}

/// The content of an `NT_AUXV` note: pairs of a kind (`AT_*` of elf.h) and a value.
pub(super) fn auxv(pairs: &[(u64, u64)]) -> Vec<u8> {
    let end = (0, 0);
    let words = pairs
        .iter()
        .chain([&end])
        .flat_map(|&(kind, value)| [kind, value]);
    words.flat_map(u64::to_le_bytes).collect()
}

/// The content of an `NT_FILE` note: what part of which file is mapped where.
pub(super) fn files<'a>(mappings: impl Iterator<Item = Mapping<'a>>) -> Vec<u8> {
    const PAGE: u64 = 4096;
    let (mut words, mut names) = (Vec::new(), Vec::new());
    for mapping in mappings {
        words.extend([
            mapping.range.start,
            mapping.range.end,
            mapping.offset / PAGE,
        ]);
        names.extend_from_slice(mapping.path.as_bytes());
        names.push(0);
    }
    let mut content = Vec::new();
    for word in [words.len() as u64 / 3, PAGE].iter().chain(&words) {
        content.extend_from_slice(&word.to_le_bytes());
    }
    content.extend_from_slice(&names);
    content
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn notes_come_back() {
        let registers: Registers = Reg::ALL.into_iter().zip(0x1000..).collect();
        let mut notes = Vec::new();
        push(&mut notes, CORE, NT_PRSTATUS, &prstatus(31, 6, &registers));
        push(&mut notes, KSCOPE, NT_KSCOPE_ABOUT, b"odd");
        push(&mut notes, CORE, NT_AUXV, b"");
        let parsed: Vec<_> = parse(&notes).collect();
        assert_eq!(parsed.len(), 3);
        assert_eq!(parse_prstatus(parsed[0].content), Some((31, registers)));
        assert_eq!(
            (parsed[1].owner, parsed[1].content),
            (&b"kscope"[..], &b"odd"[..])
        );
        assert_eq!((parsed[2].owner, parsed[2].kind), (&b"CORE"[..], NT_AUXV));
        let cpu = AboutCpu::new(1, &registers);
        assert_eq!(cpu.registers(), registers);
    }

    #[test]
    fn mapped_files_come_with_their_names() {
        let maps = "1000-3000 r-xp 00005000 fe:00 7   /a\n3000-4000 r--p 0 fe:00 8   /b c";
        let content = files(crate::host_maps::parse(maps));
        let words: Vec<_> = content
            .chunks_exact(8)
            .take(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [2, 4096, 0x1000, 0x3000, 5, 0x3000, 0x4000, 0]);
        assert_eq!(&content[64..], b"/a\0/b c\0");
        assert_eq!(auxv(&[(9, 1)]).len(), 32);
    }

    #[test]
    fn texts_are_cut_to_their_fields() {
        let info = prpsinfo(7, 'R', "linux", &"x".repeat(200));
        assert_eq!((info[1], info[24]), (b'R', 7));
        assert_eq!(&info[40..46], b"linux\0");
        assert_eq!((info[134], info[135]), (b'x', 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for note in parse(&bytes) {
                parse_prstatus(note.content);
            }
        }
    }
}
