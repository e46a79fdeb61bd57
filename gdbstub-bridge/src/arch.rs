//! x86-64 as GDB's Linux targets describe it, with registers that may be unknown.
//!
//! `gdbstub_arch` has an x86-64 too, but without `orig_rax`, `fs_base` and `gs_base`, and every register of it has a
//! value. A task that sleeps has saved seven; claiming zeros for the others would have a debugger believe them.

use std::num::NonZeroUsize;

use gdbstub::arch::{Arch, RegId, Registers as GdbRegisters};
use kscope_kernel::{Reg, Registers};

/// The architecture of all guests.
#[derive(Debug)]
pub(crate) enum Amd64 {}

/// Number of the first x87 register in the target description.
const ST0: usize = 24;
/// Number of the first x87 control register.
const FCTRL: usize = 32;
/// Number of the first SSE register.
const XMM0: usize = 40;
/// Number of the SSE control register.
const MXCSR: usize = 56;
/// Number of `orig_rax`, after which come the segment bases.
const ORIG_RAX: usize = 57;
/// Count of the registers.
const COUNT: usize = 60;

impl Arch for Amd64 {
    type Usize = u64;
    type Registers = Values;
    type BreakpointKind = usize;
    type RegId = Number;

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("amd64.xml"))
    }
}

/// A register by its number in the target description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number(usize);

impl RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let number = Number(id);
        Some((number, Some(number.size()?)))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

impl Number {
    /// Of the general register `reg`.
    pub(crate) fn of(reg: Reg) -> Self {
        Number(match reg {
            Reg::OrigRax => ORIG_RAX,
            Reg::FsBase => ORIG_RAX + 1,
            Reg::GsBase => ORIG_RAX + 2,
            reg => reg as usize,
        })
    }

    /// As a number.
    pub(crate) fn raw(self) -> u16 {
        // There are fewer registers.
        u16::try_from(self.0).unwrap_or(u16::MAX)
    }

    /// The general register, if it is one.
    pub(crate) fn general(self) -> Option<Reg> {
        Reg::ALL.into_iter().find(|&reg| Number::of(reg) == self)
    }

    /// Whether a value has the register's size.
    pub(crate) fn is_of(self, value: &[u8]) -> bool {
        self.size().is_some_and(|size| size.get() == value.len())
    }

    /// In bytes.
    fn size(self) -> Option<NonZeroUsize> {
        let size = match (self.general(), self.0) {
            (Some(reg), _) => reg.size(),
            (None, ST0..FCTRL) => 10,
            (None, FCTRL..XMM0 | MXCSR) => 4,
            (None, XMM0..MXCSR) => 16,
            _ => return None,
        };
        NonZeroUsize::new(size)
    }

    /// Where an FXSAVE area has the register, unless it is `ftag`, which it has in another form.
    fn in_fxsave(self) -> Option<std::ops::Range<usize>> {
        let (start, len) = match self.0 {
            number @ ST0..FCTRL => (32 + (number - ST0) * 16, 10),
            number @ XMM0..MXCSR => (160 + (number - XMM0) * 16, 16),
            MXCSR => (24, 4),
            // fctrl, fstat, fiseg, fioff, foseg, fooff, fop.
            32 => (0, 2),
            33 => (2, 2),
            35 => (12, 2),
            36 => (8, 4),
            37 => (20, 2),
            38 => (16, 4),
            39 => (6, 2),
            _ => return None,
        };
        Some(start..start + len)
    }
}

/// The x87 tag word's number.
const FTAG: usize = 34;

/// The tag word, two bits per physical register, of an FXSAVE area, which has one.
fn tag_word(area: &[u8; 512]) -> u16 {
    let top = usize::from(area[3] >> 3 & 7);
    (0..8).fold(0, |word, physical| {
        let st = 32 + (physical + 8 - top) % 8 * 16;
        let tag = if area[4] >> physical & 1 == 0 {
            3
        } else {
            let exponent = u16::from_le_bytes([area[st + 8], area[st + 9]]) & 0x7fff;
            let mantissa = &area[st..st + 8];
            match exponent {
                0 if mantissa.iter().all(|&byte| byte == 0) => 1,
                0 | 0x7fff => 2,
                _ if mantissa[7] & 0x80 == 0 => 2,
                _ => 0,
            }
        };
        word | tag << (2 * physical)
    })
}

/// The one-bit form of a tag word.
fn abridged(tags: u16) -> u8 {
    (0..8)
        .filter(|physical| tags >> (2 * physical) & 3 != 3)
        .fold(0, |bits, at| bits | 1 << at)
}

/// The registers of one thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Values {
    /// The general registers, as far as known.
    pub(crate) general: Registers,
    /// The x87 and SSE registers as FXSAVE lays them out, if known.
    pub(crate) fxsave: Option<Box<[u8; 512]>>,
}

impl Values {
    /// The bytes of a register, unless unknown.
    pub(crate) fn get(&self, number: Number) -> Option<Vec<u8>> {
        let size = number.size()?.get();
        if let Some(reg) = number.general() {
            return Some(self.general.get(reg)?.to_le_bytes()[..size].to_vec());
        }
        let area = self.fxsave.as_ref()?;
        let mut bytes = match number.in_fxsave() {
            Some(range) => area[range].to_vec(),
            None => tag_word(area).to_le_bytes().to_vec(),
        };
        bytes.resize(size, 0);
        Some(bytes)
    }

    /// Sets a register. Without effect on x87 and SSE registers when those are not known.
    pub(crate) fn set(&mut self, number: Number, bytes: &[u8]) {
        if let Some(reg) = number.general() {
            let mut value = [0; 8];
            let len = bytes.len().min(8);
            value[..len].copy_from_slice(&bytes[..len]);
            self.general.set(reg, u64::from_le_bytes(value));
            return;
        }
        let Some(area) = &mut self.fxsave else {
            return;
        };
        if let Some(range) = number.in_fxsave() {
            let len = range.len().min(bytes.len());
            area[range.start..range.start + len].copy_from_slice(&bytes[..len]);
        } else if let (FTAG, [low, high, ..]) = (number.0, bytes) {
            area[4] = abridged(u16::from_le_bytes([*low, *high]));
        }
    }
}

impl Values {
    /// Takes the x87 and SSE registers from `other`; what no register is in, such as the mask of valid control bits,
    /// stays.
    pub(crate) fn set_fp(&mut self, other: &Values) {
        for number in (ST0..=MXCSR).map(Number) {
            if let Some(bytes) = other.get(number) {
                self.set(number, &bytes);
            }
        }
    }
}

impl GdbRegisters for Values {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.general.pc().unwrap_or(0)
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for (number, size) in (0..COUNT).filter_map(Number::from_raw_id) {
            match self.get(number) {
                Some(bytes) => bytes.into_iter().for_each(|byte| write_byte(Some(byte))),
                None => (0..size.map_or(0, NonZeroUsize::get)).for_each(|_| write_byte(None)),
            }
        }
    }

    fn gdb_deserialize(&mut self, mut bytes: &[u8]) -> Result<(), ()> {
        self.fxsave.get_or_insert_with(|| Box::new([0; 512]));
        for (number, size) in (0..COUNT).filter_map(Number::from_raw_id) {
            let (value, rest) = bytes.split_at_checked(size.ok_or(())?.get()).ok_or(())?;
            self.set(number, value);
            bytes = rest;
        }
        bytes.is_empty().then_some(()).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_description() {
        let xml = Amd64::target_description_xml().unwrap();
        let mut next = 0;
        for line in xml
            .lines()
            .filter(|line| line.trim_start().starts_with("<reg "))
        {
            let attribute = |name: &str| {
                let (_, rest) = line.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value)
            };
            if let Some(number) = attribute("regnum") {
                next = number.parse().unwrap();
            }
            let (number, size) = Number::from_raw_id(next).unwrap();
            let bits: usize = attribute("bitsize").unwrap().parse().unwrap();
            assert_eq!(size.unwrap().get() * 8, bits, "{line}");
            if let Some(reg) = number.general() {
                assert_eq!(attribute("name"), Some(reg.name()));
            }
            next += 1;
        }
        assert_eq!(next, COUNT);
    }

    #[test]
    fn unknown_registers_have_no_bytes() {
        let mut values = Values::default();
        values.general.set(Reg::Rip, 0x6000_0000);
        let mut bytes = Vec::new();
        values.gdb_serialize(|byte| bytes.push(byte));
        assert_eq!(bytes[..8], [None; 8]);
        let rip = Reg::Rip as usize * 8;
        assert_eq!(
            bytes[rip..rip + 8]
                .iter()
                .map(|byte| byte.unwrap())
                .sum::<u8>(),
            0x60
        );
        assert_eq!(
            bytes.len(),
            17 * 8 + 7 * 4 + 8 * 10 + 8 * 4 + 16 * 16 + 4 + 3 * 8
        );
    }

    #[test]
    fn everything_comes_back() {
        let bytes: Vec<u8> = (0..560_u32).map(|at| (at * 7) as u8).collect();
        let mut values = Values::default();
        values.gdb_deserialize(&bytes).unwrap();
        let mut back = Vec::new();
        values.gdb_serialize(|byte| back.push(byte.unwrap()));
        // The x87 control registers have unused halves and the tag word is derived.
        let x87_control = 17 * 8 + 7 * 4 + 8 * 10..17 * 8 + 7 * 4 + 8 * 10 + 8 * 4;
        assert_eq!(back[..x87_control.start], bytes[..x87_control.start]);
        assert_eq!(back[x87_control.end..], bytes[x87_control.end..back.len()]);
        assert!(values.gdb_deserialize(&bytes[..100]).is_err());
        assert!(
            values
                .gdb_deserialize(&[&bytes[..], &[0]].concat())
                .is_err()
        );
    }

    #[test]
    fn tags_of_a_fresh_and_a_used_stack() {
        let mut area = [0; 512];
        assert_eq!(tag_word(&area), 0xffff);
        // One value, 1.0, pushed: top is 7, and physical register 7 is st0.
        area[3] = 7 << 3;
        area[4] = 1 << 7;
        area[32 + 7] = 0x80;
        area[32 + 8..32 + 10].copy_from_slice(&0x3fff_u16.to_le_bytes());
        assert_eq!(tag_word(&area), 0x3fff);
        assert_eq!(abridged(0x3fff), 1 << 7);
    }
}
