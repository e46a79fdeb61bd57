//! The rules of `.eh_frame`: how to get from a frame to its caller with all registers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, RegisterRule,
    UnwindContext, UnwindExpression, UnwindSection,
};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};

use super::evaluate::{Read, Surroundings, number, word};
use super::registers_by_dwarf;
use crate::image::{ElfFile, Slice};
use crate::registers::{Reg, Registers};

/// How gimli reads the section.
type Section<'a> = EndianSlice<'a, LittleEndian>;

/// The unwind tables of one ELF file. Addresses are the file's.
pub(crate) struct CallFrames {
    eh_frame: Option<Slice>,
    eh_frame_hdr: Option<Slice>,
    bases: BaseAddresses,
    /// Where the entries are, for a file without a table of them: start, offset.
    index: OnceLock<Vec<(u64, usize)>>,
    /// The rules of addresses that were asked for: stacks are much alike.
    known: Mutex<HashMap<u64, Option<Arc<Row>>>>,
}

/// The rules that hold at one address.
#[derive(Debug)]
pub(crate) struct Row {
    cfa: CfaRule<usize>,
    registers: Vec<(Reg, RegisterRule<usize>)>,
    /// The register that has the return address, `rip`, has a rule: there is a caller.
    encoding: gimli::Encoding,
    /// The frame is the one that the host's kernel makes for a signal handler to return to.
    is_signal: bool,
}

/// A caller's frame.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Its registers, with `rip` and `rsp`.
    pub(crate) registers: Registers,
    /// The canonical frame address of the frame that was left.
    pub(crate) cfa: u64,
    /// Whether that was interrupted rather than called.
    pub(crate) is_interrupted: bool,
}

/// Why there is no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoCaller {
    /// The tables know nothing of the address.
    NoRules,
    /// The tables say that this is the outermost frame.
    Outermost,
    /// A register is needed that is not known.
    Unknown,
    /// The stack cannot be read there.
    Unreadable(u64),
}

/// More entries than any program has.
const MAX_ENTRIES: usize = 1 << 22;

/// What a function has to leave as it found it.
const PRESERVED: [Reg; 6] = [Reg::Rbx, Reg::Rbp, Reg::R12, Reg::R13, Reg::R14, Reg::R15];

impl CallFrames {
    pub(super) fn new(
        file: &Arc<ElfFile>,
        elf: &ElfFile64<'_, object::LittleEndian>,
    ) -> CallFrames {
        let mut bases = BaseAddresses::default();
        let mut section = |name: &str| {
            let section = elf.section_by_name(name)?;
            let at = section.address();
            bases = match name {
                ".eh_frame" => bases.clone().set_eh_frame(at),
                ".eh_frame_hdr" => bases.clone().set_eh_frame_hdr(at),
                ".text" => bases.clone().set_text(at),
                _ => bases.clone().set_got(at),
            };
            let (offset, len) = section.file_range()?;
            Slice::new(file, offset, len)
        };
        section(".text");
        section(".got");
        CallFrames {
            eh_frame: section(".eh_frame"),
            eh_frame_hdr: section(".eh_frame_hdr"),
            bases,
            index: OnceLock::new(),
            known: Mutex::default(),
        }
    }

    /// The caller of a frame at `pc`, which is looked up at `lookup` (before a return address).
    pub(super) fn caller(
        &self,
        lookup: u64,
        registers: &Registers,
        read: &Read<'_>,
    ) -> Result<Caller, NoCaller> {
        let row = self.row(lookup).ok_or(NoCaller::NoRules)?;
        let section = self.section().ok_or(NoCaller::NoRules)?;
        row.apply(&section, registers, read)
    }

    fn section(&self) -> Option<EhFrame<Section<'_>>> {
        let mut section = EhFrame::new(self.eh_frame.as_deref()?, LittleEndian);
        section.set_address_size(8);
        Some(section)
    }

    fn row(&self, addr: u64) -> Option<Arc<Row>> {
        // A cache is as good after a panic as before.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let row = known
            .entry(addr)
            .or_insert_with(|| self.find(addr).map(Arc::new));
        row.clone()
    }

    fn find(&self, addr: u64) -> Option<Row> {
        let section = self.section()?;
        let cie = EhFrame::cie_from_offset;
        let by_table = || {
            let header = EhFrameHdr::new(self.eh_frame_hdr.as_deref()?, LittleEndian);
            let header = header.parse(&self.bases, 8).ok()?;
            let entry = header.table()?.lookup(addr, &self.bases).ok();
            let start = header.eh_frame_ptr().direct().ok()?;
            // Of a damaged table, it is anywhere.
            Some(entry.and_then(|entry| entry.direct().ok()?.checked_sub(start)))
        };
        let offset = match by_table() {
            Some(offset) => usize::try_from(offset?).ok()?,
            None => {
                let index = self.index.get_or_init(|| self.entries());
                let end = index.partition_point(|&(start, _)| start <= addr);
                index.get(end.checked_sub(1)?)?.1
            }
        };
        let fde = section
            .fde_from_offset(&self.bases, offset.into(), cie)
            .ok()
            .filter(|fde| fde.contains(addr))?;
        let mut context = UnwindContext::new();
        let row = fde
            .unwind_info_for_address(&section, &self.bases, &mut context, addr)
            .ok()?;
        let rules = row.registers().filter_map(|(register, rule)| {
            let register = match *register == fde.cie().return_address_register() {
                true => Reg::Rip,
                false => registers_by_dwarf(*register)?,
            };
            Some((register, rule.clone()))
        });
        Some(Row {
            cfa: row.cfa().clone(),
            registers: rules.collect(),
            encoding: fde.cie().encoding(),
            is_signal: fde.is_signal_trampoline(),
        })
    }

    /// Every entry by its first address.
    fn entries(&self) -> Vec<(u64, usize)> {
        let Some(section) = self.section() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut entries = section.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(entry) = entry else {
                continue;
            };
            if let Ok(entry) = entry.parse(EhFrame::cie_from_offset) {
                found.push((entry.initial_address(), entry.offset()));
            }
            if found.len() >= MAX_ENTRIES {
                break;
            }
        }
        found.sort_unstable();
        found
    }
}

impl Row {
    fn apply(
        &self,
        section: &EhFrame<Section<'_>>,
        registers: &Registers,
        read: &Read<'_>,
    ) -> Result<Caller, NoCaller> {
        let evaluate = |expression: &UnwindExpression<usize>, cfa: Option<u64>| {
            let expression = expression.get(section).map_err(|_| NoCaller::Unknown)?;
            let mut evaluation = expression.evaluation(self.encoding);
            if let Some(cfa) = cfa {
                evaluation.set_initial_value(cfa);
            }
            let around = Surroundings {
                registers,
                read,
                cfa,
                frame_base: None,
                at_entry: &|_| None,
                base_type: &|_| None,
            };
            number(evaluation, &around).ok_or(NoCaller::Unknown)
        };
        let cfa = match &self.cfa {
            CfaRule::RegisterAndOffset { register, offset } => {
                let register = registers_by_dwarf(*register);
                let value = register.and_then(|register| registers.get(register));
                value.ok_or(NoCaller::Unknown)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => evaluate(expression, None)?,
        };
        let mut caller = Registers::new();
        for register in PRESERVED {
            if let Some(value) = registers.get(register) {
                caller.set(register, value);
            }
        }
        caller.set(Reg::Rsp, cfa);
        for (register, rule) in &self.registers {
            let at = |addr| word(read, addr).ok_or(NoCaller::Unreadable(addr));
            let value = match rule {
                RegisterRule::SameValue => registers.get(*register),
                RegisterRule::Offset(offset) => {
                    let addr = cfa.wrapping_add_signed(*offset);
                    match at(addr) {
                        Err(error) if *register == Reg::Rip => return Err(error),
                        value => value.ok(),
                    }
                }
                RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
                RegisterRule::Register(other) => {
                    registers_by_dwarf(*other).and_then(|other| registers.get(other))
                }
                RegisterRule::Expression(expression) => evaluate(expression, Some(cfa))
                    .ok()
                    .and_then(|addr| at(addr).ok()),
                RegisterRule::ValExpression(expression) => evaluate(expression, Some(cfa)).ok(),
                RegisterRule::Constant(value) => Some(*value),
                _ => None,
            };
            match value {
                Some(value) => caller.set(*register, value),
                None => caller.clear(*register),
            }
        }
        if caller.pc().is_none() {
            return Err(NoCaller::Outermost);
        }
        Ok(Caller {
            registers: caller,
            cfa,
            is_interrupted: self.is_signal,
        })
    }
}
