//! Agent expressions: what a debugger compiles a breakpoint's condition, or a `dprintf`, to.
//!
//! GDB manual, appendix "The GDB Agent Expression Mechanism". A program for a stack machine of 64-bit words. It comes
//! from whoever is connected and runs over a guest's memory, so neither is trusted: steps, stack and output are
//! bounded, and what cannot be done is an error, never a panic.

mod printf;

use printf::Output;

/// The most instructions that are executed for one hit. A condition has some tens, and no loop.
const MOST_STEPS: usize = 10_000;

/// The deepest stack.
const MOST_WORDS: usize = 256;

/// The most arguments of a `printf`.
const MOST_ARGUMENTS: usize = 64;

/// The bytes of the longest program.
const MOST_BYTES: usize = 1 << 16;

/// What a program works on.
pub(crate) trait Machine {
    /// The value of a register by its number in the target description. None: it is unknown, or no general one.
    fn register(&mut self, number: u16) -> Option<u64>;

    /// Fills `buf` from memory. False when it cannot be filled.
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> bool;

    /// Takes what the program prints.
    fn print(&mut self, text: &[u8]);
}

/// Why a program has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it has no end")]
    NoEnd,
    #[error("it takes too long")]
    TooLong,
    #[error("its stack is too deep")]
    Overflow,
    #[error("its stack is empty")]
    Underflow,
    #[error("division by zero")]
    DivisionByZero,
    #[error("no memory to read at {0:#x}")]
    Unreadable(u64),
    #[error("no register {0}")]
    NoRegister(u16),
    #[error("instruction {0:#x} is not supported")]
    Unsupported(u8),
    #[error("its printf has a wrong format")]
    Format,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program(Box<[u8]>);

impl Program {
    /// None when it is too long.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MOST_BYTES).then(|| Self(bytes.into()))
    }

    /// Executes it. The value is what is on top of the stack at its end; without any, 0.
    pub(crate) fn run(&self, machine: &mut dyn Machine) -> Result<u64, Fault> {
        let mut run = Run {
            code: &self.0,
            at: 0,
            stack: Vec::with_capacity(16),
            output: Output::default(),
            machine,
        };
        for _ in 0..MOST_STEPS {
            if run.step()? {
                return Ok(run.stack.last().copied().unwrap_or(0));
            }
        }
        Err(Fault::TooLong)
    }
}

/// What `printf` makes of a format and its arguments. None when the format is not one of C's.
pub(crate) fn format(text: &[u8], arguments: &[u64], machine: &mut dyn Machine) -> Option<Vec<u8>> {
    let mut output = Output::default();
    output.format(text, arguments, machine).ok()?;
    Some(output.bytes().to_vec())
}

/// A program on its way.
struct Run<'p> {
    code: &'p [u8],
    at: usize,
    stack: Vec<u64>,
    output: Output,
    machine: &'p mut dyn Machine,
}

impl Run<'_> {
    /// One instruction. True at the end.
    fn step(&mut self) -> Result<bool, Fault> {
        let code = self.byte()?;
        match code {
            0x02 => self.binary(|a, b| Ok(a.wrapping_add(b)))?,
            0x03 => self.binary(|a, b| Ok(a.wrapping_sub(b)))?,
            0x04 => self.binary(|a, b| Ok(a.wrapping_mul(b)))?,
            0x05 => self.signed(|a, b| (b != 0).then(|| a.wrapping_div(b)))?,
            0x06 => self.binary(|a, b| a.checked_div(b).ok_or(Fault::DivisionByZero))?,
            0x07 => self.signed(|a, b| (b != 0).then(|| a.wrapping_rem(b)))?,
            0x08 => self.binary(|a, b| a.checked_rem(b).ok_or(Fault::DivisionByZero))?,
            0x09 => self.binary(|a, b| Ok(shift(b).map_or(0, |by| a << by)))?,
            // Of a negative number, ones come in however far it is shifted.
            0x0a => self.signed(|a, b| Some(a >> shift(b as u64).unwrap_or(63)))?,
            0x0b => self.binary(|a, b| Ok(shift(b).map_or(0, |by| a >> by)))?,
            0x0e => self.unary(|a| u64::from(a == 0))?,
            0x0f => self.binary(|a, b| Ok(a & b))?,
            0x10 => self.binary(|a, b| Ok(a | b))?,
            0x11 => self.binary(|a, b| Ok(a ^ b))?,
            0x12 => self.unary(|a| !a)?,
            0x13 => self.binary(|a, b| Ok(u64::from(a == b)))?,
            0x14 => self.signed(|a, b| Some(i64::from(a < b)))?,
            0x15 => self.binary(|a, b| Ok(u64::from(a < b)))?,
            0x16 => {
                let unused = self.unused_bits()?;
                self.unary(|a| ((a << unused) as i64 >> unused) as u64)?;
            }
            0x17 => self.reference(1)?,
            0x18 => self.reference(2)?,
            0x19 => self.reference(4)?,
            0x1a => self.reference(8)?,
            0x20 => {
                let to = self.number(2)?;
                if self.pop()? != 0 {
                    self.at = to as usize;
                }
            }
            0x21 => self.at = self.number(2)? as usize,
            0x22 => self.constant(1)?,
            0x23 => self.constant(2)?,
            0x24 => self.constant(4)?,
            0x25 => self.constant(8)?,
            0x26 => {
                let number = self.number(2)? as u16;
                let value = self.machine.register(number);
                self.push(value.ok_or(Fault::NoRegister(number))?)?;
            }
            0x27 => return Ok(true),
            0x28 => {
                let top = self.nth(0)?;
                self.push(top)?;
            }
            0x29 => {
                self.pop()?;
            }
            0x2a => {
                let unused = self.unused_bits()?;
                self.unary(|a| a << unused >> unused)?;
            }
            0x2b => {
                let (b, a) = (self.pop()?, self.pop()?);
                self.push(b)?;
                self.push(a)?;
            }
            0x32 => {
                let index = self.byte()?;
                let value = self.nth(index.into())?;
                self.push(value)?;
            }
            0x33 => {
                let (c, b, a) = (self.pop()?, self.pop()?, self.pop()?);
                for word in [c, a, b] {
                    self.push(word)?;
                }
            }
            0x34 => self.printf()?,
            // Tracepoints collect, and have variables; floating point is not computed.
            other => return Err(Fault::Unsupported(other)),
        }
        Ok(false)
    }

    /// The next byte of the program.
    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = self.code.get(self.at).copied().ok_or(Fault::NoEnd)?;
        self.at += 1;
        Ok(byte)
    }

    /// The next `len` bytes, which are a number, the highest byte first.
    fn number(&mut self, len: usize) -> Result<u64, Fault> {
        (0..len).try_fold(
            0,
            |number: u64, _| Ok(number << 8 | u64::from(self.byte()?)),
        )
    }

    /// The bits of a word that an operand, the number of used ones, leaves.
    fn unused_bits(&mut self) -> Result<u32, Fault> {
        match self.byte()? {
            // Nothing would be left, or nothing changed.
            used @ 1..=64 => Ok(64 - u32::from(used)),
            0 => Err(Fault::Unsupported(0)),
            _ => Ok(0),
        }
    }

    fn push(&mut self, word: u64) -> Result<(), Fault> {
        if self.stack.len() >= MOST_WORDS {
            return Err(Fault::Overflow);
        }
        self.stack.push(word);
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, Fault> {
        self.stack.pop().ok_or(Fault::Underflow)
    }

    /// A word of the stack, 0 the top.
    fn nth(&self, index: usize) -> Result<u64, Fault> {
        let word = self.stack.iter().rev().nth(index);
        word.copied().ok_or(Fault::Underflow)
    }

    fn unary(&mut self, f: impl FnOnce(u64) -> u64) -> Result<(), Fault> {
        let a = self.pop()?;
        self.push(f(a))
    }

    fn binary(&mut self, f: impl FnOnce(u64, u64) -> Result<u64, Fault>) -> Result<(), Fault> {
        let (b, a) = (self.pop()?, self.pop()?);
        self.push(f(a, b)?)
    }

    /// As `binary`, of numbers with a sign; None is a division by zero.
    fn signed(&mut self, f: impl FnOnce(i64, i64) -> Option<i64>) -> Result<(), Fault> {
        self.binary(|a, b| {
            f(a as i64, b as i64)
                .map(|value| value as u64)
                .ok_or(Fault::DivisionByZero)
        })
    }

    fn constant(&mut self, len: usize) -> Result<(), Fault> {
        let value = self.number(len)?;
        self.push(value)
    }

    /// Replaces an address with what is there, without a sign.
    fn reference(&mut self, len: usize) -> Result<(), Fault> {
        let addr = self.pop()?;
        let mut bytes = [0; 8];
        let space = bytes.get_mut(..len).unwrap_or_default();
        if !self.machine.read(addr, space) {
            return Err(Fault::Unreadable(addr));
        }
        self.push(u64::from_le_bytes(bytes))
    }

    /// `COUNT LENGTH(2) FORMAT`, with a function, a channel and the arguments on the stack.
    fn printf(&mut self) -> Result<(), Fault> {
        let count = usize::from(self.byte()?);
        let len = self.number(2)? as usize;
        let end = self.at.saturating_add(len);
        let format = self.code.get(self.at..end).ok_or(Fault::NoEnd)?;
        self.at = end;
        if count > MOST_ARGUMENTS {
            return Err(Fault::Overflow);
        }
        // The function and its channel are for a target that has either.
        self.pop()?;
        self.pop()?;
        let arguments = (0..count)
            .map(|_| self.pop())
            .collect::<Result<Vec<_>, _>>()?;
        let format = format.strip_suffix(&[0]).unwrap_or(format);
        self.output.clear();
        self.output.format(format, &arguments, self.machine)?;
        self.machine.print(self.output.bytes());
        Ok(())
    }
}

/// By how many bits a word is shifted, unless nothing is left of it then.
fn shift(by: u64) -> Option<u32> {
    u32::try_from(by).ok().filter(|by| *by < 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Registers that are their number, and some bytes of memory.
    #[derive(Default)]
    pub(super) struct Fixture {
        pub(super) memory: BTreeMap<u64, u8>,
        pub(super) printed: Vec<u8>,
    }

    impl Machine for Fixture {
        fn register(&mut self, number: u16) -> Option<u64> {
            (number < 24).then_some(number.into())
        }

        fn read(&mut self, addr: u64, buf: &mut [u8]) -> bool {
            (addr..)
                .zip(buf)
                .all(|(at, byte)| match self.memory.get(&at) {
                    Some(known) => {
                        *byte = *known;
                        true
                    }
                    None => false,
                })
        }

        fn print(&mut self, text: &[u8]) {
            self.printed.extend_from_slice(text);
        }
    }

    fn run(code: &[u8]) -> Result<u64, Fault> {
        let mut fixture = Fixture::default();
        fixture
            .memory
            .extend((0x100..).zip(*b"\xfe\xff\x00\x00\x12\x34\x56\x78"));
        Program::new(code).unwrap().run(&mut fixture)
    }

    #[test]
    fn what_gdb_compiles_is_computed() {
        // `maint agent -at do_sys_openat2, how->flags == 0x8000 && dfd < 0` and its like.
        assert_eq!(run(&[0x26, 0, 3, 0x22, 3, 0x13, 0x27]), Ok(1));
        // const16 0x100, ref32, const8 32 bits... a sign extended 16-bit field: -2 < 0.
        assert_eq!(
            run(&[0x23, 1, 0, 0x18, 0x16, 16, 0x22, 0, 0x14, 0x27]),
            Ok(1)
        );
        assert_eq!(run(&[0x23, 1, 0, 0x1a, 0x27]), Ok(0x7856_3412_0000_fffe));
        // 1 ? 7 : 8, with jumps.
        let code = [0x22, 1, 0x20, 0, 9, 0x22, 8, 0x21, 0, 0x22, 7, 0x27];
        assert_eq!(run(&code), Ok(7));
        // rot: a b c -> c a b.
        let code = [0x22, 1, 0x22, 2, 0x22, 3, 0x33, 0x29, 0x27];
        assert_eq!(run(&code), Ok(1));
        assert_eq!(run(&[0x22, 1, 0x22, 2, 0x2b, 0x03, 0x27]), Ok(1));
        assert_eq!(run(&[0x22, 5, 0x22, 6, 0x32, 1, 0x27]), Ok(5));
    }

    #[test]
    fn numbers_are_as_in_c() {
        let signed = |a: i8, b: i8, op| {
            run(&[0x22, a as u8, 0x16, 8, 0x22, b as u8, 0x16, 8, op, 0x27])
                .map(|value| value as i64)
        };
        assert_eq!(signed(-7, 2, 0x05), Ok(-3));
        assert_eq!(signed(-7, 2, 0x07), Ok(-1));
        assert_eq!(signed(-7, 1, 0x0a), Ok(-4));
        assert_eq!(signed(-7, 100, 0x0a), Ok(-1));
        assert_eq!(signed(1, 100, 0x09), Ok(0));
        assert_eq!(signed(-1, 1, 0x14), Ok(1));
        assert_eq!(signed(-1, 1, 0x15), Ok(0));
        assert_eq!(signed(1, 0, 0x05), Err(Fault::DivisionByZero));
        assert_eq!(signed(1, 0, 0x08), Err(Fault::DivisionByZero));
    }

    #[test]
    fn faults_are_told() {
        assert_eq!(run(&[]), Err(Fault::NoEnd));
        assert_eq!(run(&[0x21, 0, 0]), Err(Fault::TooLong));
        assert_eq!(run(&[0x22, 1, 0x21, 0, 0]), Err(Fault::Overflow));
        assert_eq!(run(&[0x02, 0x27]), Err(Fault::Underflow));
        assert_eq!(run(&[0x22, 1, 0x17, 0x27]), Err(Fault::Unreadable(1)));
        assert_eq!(run(&[0x26, 1, 0, 0x27]), Err(Fault::NoRegister(256)));
        assert_eq!(run(&[0x2c, 0, 1, 0x27]), Err(Fault::Unsupported(0x2c)));
        assert_eq!(run(&[0x21, 0xff, 0xff]), Err(Fault::NoEnd));
        // Without a value there is none.
        assert_eq!(run(&[0x27]), Ok(0));
    }

    proptest! {
        #[test]
        fn any_program_ends(code in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Whatever the outcome: it comes, and nothing panics.
            let _ = run(&code);
        }

        #[test]
        fn any_program_of_instructions_ends(
            code in proptest::collection::vec(prop_oneof![0x02_u8..0x35, Just(0x22_u8)], 0..200)
        ) {
            let _ = run(&code);
        }

        #[test]
        fn arithmetic_is_the_processors(a: u64, b: u64) {
            let binary = |op: u8| {
                let mut code = vec![0x25];
                code.extend(a.to_be_bytes());
                code.push(0x25);
                code.extend(b.to_be_bytes());
                code.extend([op, 0x27]);
                run(&code)
            };
            prop_assert_eq!(binary(0x02), Ok(a.wrapping_add(b)));
            prop_assert_eq!(binary(0x03), Ok(a.wrapping_sub(b)));
            prop_assert_eq!(binary(0x04), Ok(a.wrapping_mul(b)));
            prop_assert_eq!(binary(0x11), Ok(a ^ b));
            prop_assert_eq!(binary(0x15), Ok(u64::from(a < b)));
            prop_assert_eq!(binary(0x14), Ok(u64::from((a as i64) < (b as i64))));
            prop_assert_eq!(binary(0x06), a.checked_div(b).ok_or(Fault::DivisionByZero));
            if b != 0 {
                prop_assert_eq!(binary(0x05), Ok((a as i64).wrapping_div(b as i64) as u64));
            }
        }
    }
}
