//! The x86-64 registers of one vCPU or one sleeping task.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $bytes:literal;)*) => {
        /// An x86-64 register. The order is GDB's for the amd64 Linux target: core registers, then
        /// the segment bases and `orig_rax`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reg {
            $($(#[$doc])* #[doc = concat!("`", $text, "`")] $name,)*
        }

        impl Reg {
            /// Every register, in GDB's order.
            pub const ALL: [Reg; [$($bytes),*].len()] = [$(Reg::$name),*];

            /// The register's name as GDB spells it.
            pub const fn name(self) -> &'static str {
                match self { $(Reg::$name => $text,)* }
            }

            /// The register's size in GDB's target description, in bytes (4 or 8).
            pub const fn size(self) -> usize {
                match self { $(Reg::$name => $bytes,)* }
            }
        }
    };
}

registers! {
    Rax = "rax", 8;
    Rbx = "rbx", 8;
    Rcx = "rcx", 8;
    Rdx = "rdx", 8;
    Rsi = "rsi", 8;
    Rdi = "rdi", 8;
    Rbp = "rbp", 8;
    Rsp = "rsp", 8;
    R8 = "r8", 8;
    R9 = "r9", 8;
    R10 = "r10", 8;
    R11 = "r11", 8;
    R12 = "r12", 8;
    R13 = "r13", 8;
    R14 = "r14", 8;
    R15 = "r15", 8;
    Rip = "rip", 8;
    Eflags = "eflags", 4;
    Cs = "cs", 4;
    Ss = "ss", 4;
    Ds = "ds", 4;
    Es = "es", 4;
    Fs = "fs", 4;
    Gs = "gs", 4;
    FsBase = "fs_base", 8;
    GsBase = "gs_base", 8;
    OrigRax = "orig_rax", 8;
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of x86-64 registers. Each may be unknown: a task that sleeps has saved only those that a
/// function call preserves.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registers {
    values: [Option<u64>; Reg::ALL.len()],
}

impl Registers {
    /// No register is known.
    pub fn new() -> Registers {
        Registers::default()
    }

    /// The value of `reg`, if known.
    pub fn get(&self, reg: Reg) -> Option<u64> {
        self.values[reg as usize]
    }

    /// Sets `reg` to a known value.
    pub fn set(&mut self, reg: Reg, value: u64) {
        self.values[reg as usize] = Some(value);
    }

    /// Forgets the value of `reg`.
    pub fn clear(&mut self, reg: Reg) {
        self.values[reg as usize] = None;
    }

    /// The program counter, `rip`.
    pub fn pc(&self) -> Option<u64> {
        self.get(Reg::Rip)
    }

    /// The stack pointer, `rsp`.
    pub fn sp(&self) -> Option<u64> {
        self.get(Reg::Rsp)
    }

    /// The frame pointer, `rbp`.
    pub fn fp(&self) -> Option<u64> {
        self.get(Reg::Rbp)
    }

    /// The known registers and their values, in GDB's order.
    pub fn iter(&self) -> impl Iterator<Item = (Reg, u64)> + '_ {
        Reg::ALL
            .into_iter()
            .filter_map(|reg| self.get(reg).map(|value| (reg, value)))
    }
}

impl FromIterator<(Reg, u64)> for Registers {
    fn from_iter<I: IntoIterator<Item = (Reg, u64)>>(known: I) -> Registers {
        let mut registers = Registers::new();
        for (reg, value) in known {
            registers.set(reg, value);
        }
        registers
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (reg, value) in self.iter() {
            map.entry(&format_args!("{reg}"), &format_args!("{value:#x}"));
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_gdbs() {
        assert_eq!(Reg::Rsp as usize, 7);
        assert_eq!(Reg::Rip as usize, 16);
        assert_eq!(Reg::Gs as usize, 23);
        assert_eq!(Reg::ALL.len(), 27);
        assert_eq!(
            Reg::ALL
                .iter()
                .take(24)
                .map(|reg| reg.size())
                .sum::<usize>(),
            17 * 8 + 7 * 4
        );
    }

    #[test]
    fn unknown_stays_unknown() {
        let mut registers: Registers = [(Reg::Rip, 0x6000_0000)].into_iter().collect();
        assert_eq!(registers.pc(), Some(0x6000_0000));
        assert_eq!(registers.sp(), None);
        registers.set(Reg::Rsp, 8);
        registers.clear(Reg::Rip);
        assert_eq!(registers.iter().collect::<Vec<_>>(), [(Reg::Rsp, 8)]);
        assert_eq!(format!("{registers:?}"), r#"{rsp: 0x8}"#);
    }
}
