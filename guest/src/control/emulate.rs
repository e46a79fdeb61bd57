//! Executes one common instruction in the place of the processor.
//!
//! To run on from a breakpoint, the real instruction has to be executed, which takes another stop of the thread: as
//! long as all the rest of a hit. Most breakpoints are at instructions that do hardly anything: the first ones of
//! functions and lines. Those are executed here; what is not known here, the processor has to step through.
//!
//! Memory is written only below the stack pointer: elsewhere a write could be one that the guest would not be allowed,
//! and calls and returns are left to the processor, which may check them. The encoding is that of the "Intel 64 and
//! IA-32 Architectures Software Developer's Manual", volume 2.

use libc::user_regs_struct;

/// What instructions read and push.
pub(super) trait Bus {
    /// Fills `buf`. False when it cannot be filled.
    fn load(&self, addr: u64, buf: &mut [u8]) -> bool;

    /// Writes all bytes, or none and returns false.
    fn store(&self, addr: u64, bytes: &[u8]) -> bool;
}

/// The longest instruction.
pub(super) const LONGEST: usize = 15;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// Executes the instruction that `code` begins with. None when it is not known, or cannot read what it needs; then
/// nothing has changed.
pub(super) fn emulate(regs: &mut user_regs_struct, code: &[u8], bus: &dyn Bus) -> Option<()> {
    let mut decoder = Decoder::new(regs, code, bus);
    decoder.execute()?;
    *regs = decoder.regs;
    Some(())
}

/// An operand in a register or in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Register(u8),
    Memory(u64),
}

/// Arithmetic of two operands, by its number in the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Or,
    And,
    Sub,
    Xor,
    Cmp,
}

impl Operation {
    fn new(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Add),
            1 => Some(Self::Or),
            4 => Some(Self::And),
            5 => Some(Self::Sub),
            6 => Some(Self::Xor),
            7 => Some(Self::Cmp),
            // With carry.
            _ => None,
        }
    }
}

struct Decoder<'c> {
    regs: user_regs_struct,
    code: &'c [u8],
    at: usize,
    bus: &'c dyn Bus,
    rex: u8,
    /// The prefixes 0x66 and 0xf3.
    narrow: bool,
    repeat: bool,
}

impl<'c> Decoder<'c> {
    fn new(regs: &user_regs_struct, code: &'c [u8], bus: &'c dyn Bus) -> Self {
        Self {
            regs: *regs,
            code: code.get(..LONGEST).unwrap_or(code),
            at: 0,
            bus,
            rex: 0,
            narrow: false,
            repeat: false,
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.code.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    /// A number of `size` bytes with its sign extended.
    fn immediate(&mut self, size: usize) -> Option<u64> {
        let bytes = self.code.get(self.at..self.at + size)?;
        self.at += size;
        let number = from_bytes(bytes);
        Some(sign_extend(number, size))
    }

    /// Bytes of an operand that is no byte.
    fn size(&self) -> usize {
        match (self.rex & 8 != 0, self.narrow) {
            (true, _) => 8,
            (_, true) => 2,
            _ => 4,
        }
    }

    fn execute(&mut self) -> Option<()> {
        let opcode = loop {
            match self.byte()? {
                0x66 if self.rex == 0 => self.narrow = true,
                0xf3 if self.rex == 0 => self.repeat = true,
                // Without an effect in front of a jump or a `nop`; anything else is left to the processor.
                0x2e if self.rex == 0 => {
                    return self.long_nop();
                }
                rex @ 0x40..=0x4f if self.rex == 0 => {
                    self.rex = rex;
                    break self.byte()?;
                }
                opcode => break opcode,
            }
        };
        if self.repeat {
            return self.with_repeat(opcode);
        }
        match opcode {
            0x50..=0x57 if !self.narrow => {
                let value = self.get(opcode & 7 | (self.rex & 1) << 3, 8);
                self.push(value)?;
            }
            0x58..=0x5f if !self.narrow => {
                let mut bytes = [0; 8];
                self.bus.load(self.regs.rsp, &mut bytes).then_some(())?;
                self.regs.rsp = self.regs.rsp.wrapping_add(8);
                self.set(
                    opcode & 7 | (self.rex & 1) << 3,
                    8,
                    u64::from_le_bytes(bytes),
                );
            }
            0x0f => self.two_bytes()?,
            0x00..=0x3f => self.arithmetic(opcode)?,
            0x63 if self.size() == 8 => {
                let (reg, operand) = self.modrm(0)?;
                let value = sign_extend(self.load(operand, 4)?, 4);
                self.set(reg, 8, value);
            }
            0x70..=0x7f => self.jump_if(opcode & 0xf, 1)?,
            0x80 | 0x81 | 0x83 => {
                let size = if opcode == 0x80 { 1 } else { self.size() };
                let immediate = if opcode == 0x81 { size.min(4) } else { 1 };
                let (operation, operand) = self.modrm(immediate)?;
                let value = self.immediate(immediate)?;
                let operation = Operation::new(operation & 7)?;
                self.compute(operation, operand, size, value)?;
            }
            0x84 | 0x85 => {
                let size = if opcode == 0x84 { 1 } else { self.size() };
                let (reg, operand) = self.modrm(0)?;
                let value = self.load(operand, size)? & self.get(reg, size);
                self.logic_flags(value, size);
            }
            0x88..=0x8b => {
                let size = if opcode & 1 == 0 { 1 } else { self.size() };
                let (reg, operand) = self.modrm(0)?;
                if opcode & 2 == 0 {
                    let Operand::Register(to) = operand else {
                        return None;
                    };
                    let value = self.get(reg, size);
                    self.set(to, size, value);
                } else {
                    let value = self.load(operand, size)?;
                    self.set(reg, size, value);
                }
            }
            0x8d => {
                let (reg, Operand::Memory(addr)) = self.modrm(0)? else {
                    return None;
                };
                let size = self.size();
                self.set(reg, size, addr);
            }
            0x90 if self.rex & 1 == 0 => {}
            0xa8 | 0xa9 => {
                let size = if opcode == 0xa8 { 1 } else { self.size() };
                let value = self.immediate(size.min(4))? & self.get(0, size);
                self.logic_flags(value, size);
            }
            0xb0..=0xbf => {
                let size = if opcode < 0xb8 { 1 } else { self.size() };
                let value = self.immediate(size)?;
                self.set(opcode & 7 | (self.rex & 1) << 3, size, value);
            }
            0xc6 | 0xc7 => {
                let size = if opcode == 0xc6 { 1 } else { self.size() };
                let (0 | 8, Operand::Register(to)) = self.modrm(size.min(4))? else {
                    return None;
                };
                let value = self.immediate(size.min(4))?;
                self.set(to, size, value);
            }
            0xe9 if !self.narrow => self.jump(4)?,
            0xeb if !self.narrow => self.jump(1)?,
            0xf6 | 0xf7 => {
                let size = if opcode == 0xf6 { 1 } else { self.size() };
                let (0 | 8, operand) = self.modrm(size.min(4))? else {
                    return None;
                };
                let value = self.immediate(size.min(4))? & self.load(operand, size)?;
                self.logic_flags(value, size);
            }
            _ => return None,
        }
        self.regs.rip = self.regs.rip.wrapping_add(self.at as u64);
        Some(())
    }

    /// `endbr64`, and `rep` in front of what does not repeat.
    fn with_repeat(&mut self, opcode: u8) -> Option<()> {
        let rest = self.code.get(self.at..self.at + 2);
        if opcode != 0x0f || rest != Some(&[0x1e, 0xfa]) {
            return None;
        }
        self.regs.rip = self.regs.rip.wrapping_add(self.at as u64 + 2);
        Some(())
    }

    /// `cs nopw`, which compilers pad with.
    fn long_nop(&mut self) -> Option<()> {
        let [0x0f, 0x1f] = [self.byte()?, self.byte()?] else {
            return None;
        };
        self.modrm(0)?;
        self.regs.rip = self.regs.rip.wrapping_add(self.at as u64);
        Some(())
    }

    fn two_bytes(&mut self) -> Option<()> {
        let opcode = self.byte()?;
        match opcode {
            0x1f => {
                self.modrm(0)?;
            }
            0x40..=0x4f => {
                let size = self.size();
                let (reg, operand) = self.modrm(0)?;
                // It is read in any case, and in 32 bits the upper half is cleared in any case.
                let value = self.load(operand, size)?;
                let value = if self.condition(opcode & 0xf) {
                    value
                } else {
                    self.get(reg, size)
                };
                self.set(reg, size, value);
            }
            0x80..=0x8f if !self.narrow => self.jump_if(opcode & 0xf, 4)?,
            0x90..=0x9f => {
                let (_, Operand::Register(to)) = self.modrm(0)? else {
                    return None;
                };
                let value = u64::from(self.condition(opcode & 0xf));
                self.set(to, 1, value);
            }
            0xb6 | 0xb7 | 0xbe | 0xbf => {
                let from = if opcode & 1 == 0 { 1 } else { 2 };
                let size = self.size();
                let (reg, operand) = self.modrm(0)?;
                let mut value = self.load(operand, from)?;
                if opcode & 8 != 0 {
                    value = sign_extend(value, from);
                }
                self.set(reg, size, value);
            }
            _ => return None,
        }
        Some(())
    }

    /// The six forms of an operation: its number is in bits 3 to 5.
    fn arithmetic(&mut self, opcode: u8) -> Option<()> {
        let operation = Operation::new(opcode >> 3 & 7)?;
        let size = if opcode & 1 == 0 { 1 } else { self.size() };
        match opcode & 7 {
            0 | 1 => {
                let (reg, operand) = self.modrm(0)?;
                let value = self.get(reg, size);
                self.compute(operation, operand, size, value)
            }
            2 | 3 => {
                let (reg, operand) = self.modrm(0)?;
                let value = self.load(operand, size)?;
                self.compute(operation, Operand::Register(reg), size, value)
            }
            4 | 5 => {
                let value = self.immediate(size.min(4))?;
                self.compute(operation, Operand::Register(0), size, value)
            }
            // Of old, segment registers; now prefixes and nothing.
            _ => None,
        }
    }

    fn compute(&mut self, operation: Operation, to: Operand, size: usize, b: u64) -> Option<()> {
        let a = self.load(to, size)?;
        let b = b & mask(size);
        let result = match operation {
            Operation::Add => {
                let result = a.wrapping_add(b) & mask(size);
                self.flags(
                    result,
                    size,
                    a ^ b ^ result,
                    !(a ^ b) & (a ^ result),
                    result < a,
                );
                result
            }
            Operation::Sub | Operation::Cmp => {
                let result = a.wrapping_sub(b) & mask(size);
                self.flags(result, size, a ^ b ^ result, (a ^ b) & (a ^ result), a < b);
                result
            }
            Operation::Or => a | b,
            Operation::And => a & b,
            Operation::Xor => a ^ b,
        };
        if matches!(operation, Operation::Or | Operation::And | Operation::Xor) {
            self.logic_flags(result, size);
        }
        match to {
            _ if operation == Operation::Cmp => {}
            Operand::Register(to) => self.set(to, size, result),
            Operand::Memory(_) => return None,
        }
        Some(())
    }

    fn logic_flags(&mut self, result: u64, size: usize) {
        self.flags(result & mask(size), size, 0, 0, false);
    }

    /// Sets the flags for a result. `adjust` has the carry from bit 3 in bit 4, `overflow` its own in the sign's.
    fn flags(&mut self, result: u64, size: usize, adjust: u64, overflow: u64, carry: bool) {
        let sign = 1 << (8 * size - 1);
        let mut flags = self.regs.eflags & !STATUS;
        let mut set = |flag, on: bool| flags |= if on { flag } else { 0 };
        set(CF, carry);
        set(PF, (result as u8).count_ones().is_multiple_of(2));
        set(AF, adjust & 0x10 != 0);
        set(ZF, result == 0);
        set(SF, result & sign != 0);
        set(OF, overflow & sign != 0);
        self.regs.eflags = flags;
    }

    /// Whether a condition, by its number in the encoding, holds.
    fn condition(&self, number: u8) -> bool {
        let flag = |flag| self.regs.eflags & flag != 0;
        let less = flag(SF) != flag(OF);
        let holds = match number >> 1 {
            0 => flag(OF),
            1 => flag(CF),
            2 => flag(ZF),
            3 => flag(CF) || flag(ZF),
            4 => flag(SF),
            5 => flag(PF),
            6 => less,
            _ => flag(ZF) || less,
        };
        holds != (number & 1 != 0)
    }

    fn jump(&mut self, size: usize) -> Option<()> {
        let distance = self.immediate(size)?;
        self.regs.rip = self.regs.rip.wrapping_add(distance);
        Some(())
    }

    fn jump_if(&mut self, condition: u8, size: usize) -> Option<()> {
        if self.narrow {
            return None;
        }
        let distance = self.immediate(size)?;
        if self.condition(condition) {
            self.regs.rip = self.regs.rip.wrapping_add(distance);
        }
        Some(())
    }

    fn push(&mut self, value: u64) -> Option<()> {
        let sp = self.regs.rsp.wrapping_sub(8);
        self.bus.store(sp, &value.to_le_bytes()).then_some(())?;
        self.regs.rsp = sp;
        Some(())
    }

    /// The register and the operand of a ModRM byte. An immediate of `behind` bytes follows it: addresses relative to
    /// the instruction's end need to know.
    fn modrm(&mut self, behind: usize) -> Option<(u8, Operand)> {
        let modrm = self.byte()?;
        let reg = modrm >> 3 & 7 | (self.rex & 4) << 1;
        let base = modrm & 7 | (self.rex & 1) << 3;
        let mode = modrm >> 6;
        if mode == 3 {
            return Some((reg, Operand::Register(base)));
        }
        let addr = match (modrm & 7, mode) {
            (4, _) => {
                let sib = self.byte()?;
                let index = sib >> 3 & 7 | (self.rex & 2) << 2;
                let base = sib & 7 | (self.rex & 1) << 3;
                let index = match index {
                    4 => 0,
                    index => self.get(index, 8) << (sib >> 6),
                };
                match (sib & 7, mode) {
                    (5, 0) => index.wrapping_add(self.immediate(4)?),
                    _ => index.wrapping_add(self.get(base, 8)),
                }
            }
            (5, 0) => {
                let distance = self.immediate(4)?;
                let end = self.regs.rip.wrapping_add((self.at + behind) as u64);
                end.wrapping_add(distance)
            }
            _ => self.get(base, 8),
        };
        let displacement = match mode {
            1 => self.immediate(1)?,
            2 => self.immediate(4)?,
            _ => 0,
        };
        Some((reg, Operand::Memory(addr.wrapping_add(displacement))))
    }

    fn load(&self, operand: Operand, size: usize) -> Option<u64> {
        match operand {
            Operand::Register(number) => Some(self.get(number, size)),
            Operand::Memory(addr) => {
                let mut bytes = [0; 8];
                let space = bytes.get_mut(..size)?;
                self.bus.load(addr, space).then_some(())?;
                Some(u64::from_le_bytes(bytes))
            }
        }
    }

    /// Whether a byte register's number means the second byte of one of the first four.
    fn is_high(&self, number: u8, size: usize) -> bool {
        size == 1 && self.rex == 0 && (4..8).contains(&number)
    }

    fn get(&self, number: u8, size: usize) -> u64 {
        let mut regs = self.regs;
        if self.is_high(number, size) {
            return *register(&mut regs, number - 4) >> 8 & 0xff;
        }
        *register(&mut regs, number) & mask(size)
    }

    fn set(&mut self, number: u8, size: usize, value: u64) {
        let is_high = self.is_high(number, size);
        if is_high {
            let register = register(&mut self.regs, number - 4);
            *register = *register & !0xff00 | (value & 0xff) << 8;
            return;
        }
        let register = register(&mut self.regs, number);
        *register = match size {
            // The upper half is cleared.
            4 | 8 => value & mask(size),
            _ => *register & !mask(size) | value & mask(size),
        };
    }
}

/// A register by its number in the encoding.
fn register(regs: &mut user_regs_struct, number: u8) -> &mut u64 {
    match number & 0xf {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

fn mask(size: usize) -> u64 {
    match size {
        8 => u64::MAX,
        size => (1 << (8 * size)) - 1,
    }
}

fn sign_extend(value: u64, size: usize) -> u64 {
    let unused = 64 - 8 * size as u32;
    ((value << unused) as i64 >> unused) as u64
}

fn from_bytes(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests;
