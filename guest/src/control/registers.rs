//! The host's register structure and the guest's [`Registers`].

use kscope_kernel::{Reg, Registers};
use libc::user_regs_struct;

/// The place of `reg` in the host's structure.
fn field(regs: &mut user_regs_struct, reg: Reg) -> &mut u64 {
    match reg {
        Reg::Rax => &mut regs.rax,
        Reg::Rbx => &mut regs.rbx,
        Reg::Rcx => &mut regs.rcx,
        Reg::Rdx => &mut regs.rdx,
        Reg::Rsi => &mut regs.rsi,
        Reg::Rdi => &mut regs.rdi,
        Reg::Rbp => &mut regs.rbp,
        Reg::Rsp => &mut regs.rsp,
        Reg::R8 => &mut regs.r8,
        Reg::R9 => &mut regs.r9,
        Reg::R10 => &mut regs.r10,
        Reg::R11 => &mut regs.r11,
        Reg::R12 => &mut regs.r12,
        Reg::R13 => &mut regs.r13,
        Reg::R14 => &mut regs.r14,
        Reg::R15 => &mut regs.r15,
        Reg::Rip => &mut regs.rip,
        Reg::Eflags => &mut regs.eflags,
        Reg::Cs => &mut regs.cs,
        Reg::Ss => &mut regs.ss,
        Reg::Ds => &mut regs.ds,
        Reg::Es => &mut regs.es,
        Reg::Fs => &mut regs.fs,
        Reg::Gs => &mut regs.gs,
        Reg::FsBase => &mut regs.fs_base,
        Reg::GsBase => &mut regs.gs_base,
        Reg::OrigRax => &mut regs.orig_rax,
    }
}

/// The value of one register.
pub(super) fn get(regs: &user_regs_struct, reg: Reg) -> u64 {
    let mut regs = *regs;
    *field(&mut regs, reg)
}

/// All registers of a stopped thread.
pub(super) fn from_host(mut regs: user_regs_struct) -> Registers {
    Reg::ALL
        .into_iter()
        .map(|reg| (reg, *field(&mut regs, reg)))
        .collect()
}

/// Puts the known ones of `registers` into `regs`.
pub(super) fn into_host(registers: &Registers, regs: &mut user_regs_struct) {
    for (reg, value) in registers.iter() {
        *field(regs, reg) = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_registers_keep_their_value() {
        // SAFETY: the structure is plain numbers, for which zero is a value.
        let mut regs: user_regs_struct = unsafe { std::mem::zeroed() };
        regs.rbx = 3;
        let known: Registers = [(Reg::Rip, 7), (Reg::FsBase, 9)].into_iter().collect();
        into_host(&known, &mut regs);
        assert_eq!((regs.rip, regs.fs_base, regs.rbx), (7, 9, 3));
        let all = from_host(regs);
        assert_eq!(all.iter().count(), Reg::ALL.len());
        assert_eq!(all.get(Reg::Rbx), Some(3));
    }
}
