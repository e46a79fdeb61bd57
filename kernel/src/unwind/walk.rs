//! Call stacks with the registers of every frame, as a debugger wants them.

use std::ops::Range;
use std::sync::Arc;

use super::evaluate::{Read, word};
use super::module::Mapped;
use super::rules::{Caller, NoCaller};
use super::{CODE, Frame, MAX_FRAMES, MAX_SIGNALS, RESTORERS, Truncation, UnwindEnd, Unwinder};
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::registers::{Reg, Registers};

/// A frame and what is known of its registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackFrame {
    /// Where execution is.
    pub frame: Frame,
    /// The registers there. Of a frame that called another, those that a function preserves, as
    /// far as they could be restored.
    pub registers: Registers,
    /// The canonical frame address: what the stack pointer was before the call. `None` when that
    /// could not be found out.
    pub cfa: Option<u64>,
    /// Whether this is not a function but the frame that the host's kernel made for a signal: its
    /// caller was interrupted.
    pub is_signal: bool,
}

/// A call stack with registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallStack {
    /// The innermost frame first.
    pub frames: Vec<StackFrame>,
    /// Whether the last frame is the outermost.
    pub end: UnwindEnd,
}

/// How to follow a stack.
pub(crate) struct Walk<'a> {
    /// The file that is mapped at an address.
    pub(crate) module: &'a mut dyn FnMut(u64) -> Option<Arc<Mapped>>,
    pub(crate) read: &'a Read<'a>,
    /// The outermost frame begins at the end of one of these. Empty when they are not known.
    pub(crate) stacks: &'a [Range<u64>],
}

impl Unwinder {
    /// Unwinds from `registers`, of which `rip` and `rsp` must be known; `stacks` as for
    /// [`unwind`](Unwinder::unwind). This takes longer than that, but every frame has its
    /// registers, and it follows whatever the unwind tables can express.
    ///
    /// Never fails: what cannot be followed ends the stack, and its `end` says why.
    pub fn call_stack<M: Memory + ?Sized>(
        &self,
        registers: &Registers,
        memory: &M,
        stacks: &[Range<u64>],
    ) -> CallStack {
        let read = |addr, buf: &mut [u8]| memory.read(KernelAddr(addr), buf).is_ok();
        let mut walk = Walk {
            module: &mut |pc| {
                let module = self.modules.iter().find(|m| m.range.contains(&pc));
                module.cloned()
            },
            read: &read,
            stacks,
        };
        walk.follow(registers)
    }
}

impl Walk<'_> {
    /// The frames from `registers` on.
    pub(crate) fn follow(&mut self, registers: &Registers) -> CallStack {
        let mut frames = Vec::new();
        let end = match self.walk(registers, &mut frames) {
            Ok(()) => UnwindEnd::Complete,
            Err(truncation) => UnwindEnd::Truncated(truncation),
        };
        CallStack { frames, end }
    }

    fn walk(
        &mut self,
        registers: &Registers,
        frames: &mut Vec<StackFrame>,
    ) -> Result<(), Truncation> {
        let mut registers = *registers;
        let mut is_return_address = false;
        let mut signals = 0;
        while frames.len() < MAX_FRAMES {
            let (Some(pc), Some(sp)) = (registers.pc(), registers.sp()) else {
                return Err(Truncation::NoRegisters);
            };
            let frame = Frame {
                pc: KernelAddr(pc),
                is_return_address,
            };
            frames.push(StackFrame {
                frame,
                registers,
                cfa: None,
                is_signal: false,
            });
            let stack = self.stacks.iter().find(|stack| stack.contains(&sp));
            let at_end = |addr: u64| stack.is_some_and(|stack| addr >= stack.end);
            let caller = match self.caller(frame, &registers) {
                Ok(caller) => caller,
                Err(NoCaller::Outermost) => return Ok(()),
                Err(NoCaller::Unreadable(addr)) if at_end(addr) => return Ok(()),
                Err(NoCaller::Unreadable(addr)) => {
                    let addr = KernelAddr(addr);
                    return Err(Truncation::Unreadable { addr });
                }
                Err(NoCaller::NoRules | NoCaller::Unknown) => {
                    return Err(Truncation::NotAdvancing { sp: KernelAddr(sp) });
                }
            };
            if let Some(last) = frames.last_mut() {
                last.cfa = Some(caller.cfa);
                last.is_signal = caller.is_interrupted;
            }
            let next = caller.registers.pc().unwrap_or(0);
            let above = caller.registers.sp().unwrap_or(0);
            if caller.is_interrupted {
                // The interrupted code may be on another stack.
                signals += 1;
                if signals > MAX_SIGNALS {
                    return Err(Truncation::NotAdvancing { sp: KernelAddr(sp) });
                }
            } else if next == 0 || at_end(above) {
                // A new thread starts with a stack pointer one word below the end of its stack and
                // with nothing to return to: what that word holds is left over.
                return Ok(());
            } else if above <= sp {
                return Err(Truncation::NotAdvancing { sp: KernelAddr(sp) });
            }
            if !CODE.contains(&next) {
                let pc = KernelAddr(next);
                return Err(Truncation::NotCode { pc });
            }
            is_return_address = !caller.is_interrupted;
            registers = caller.registers;
        }
        Err(Truncation::TooDeep {
            limit: MAX_FRAMES as u32,
        })
    }

    fn caller(&mut self, frame: Frame, registers: &Registers) -> Result<Caller, NoCaller> {
        let pc = frame.pc.get();
        let module = (self.module)(frame.lookup().get());
        if let Some(module) = &module {
            let lookup = module.in_file(frame.lookup().get());
            match module.binary.frames().caller(lookup, registers, self.read) {
                Err(NoCaller::NoRules | NoCaller::Unknown) => {}
                known => return known,
            }
        }
        let exact = (self.module)(pc);
        if self.is_signal_return(pc, exact.as_deref()) {
            return interrupted(registers.sp().unwrap_or(0), self.read);
        }
        if !frame.is_return_address
            && let Some(caller) = self.caller_of_leaf(registers)
        {
            return Ok(caller);
        }
        by_frame_pointer(registers, self.read)
    }

    /// Whether `pc` is where a signal handler returns to.
    fn is_signal_return(&self, pc: u64, module: Option<&Mapped>) -> bool {
        RESTORERS.iter().any(|restorer| match module {
            Some(module) => module.code_at(pc, restorer.len()) == Some(restorer),
            None => {
                let mut code = [0; 16];
                let code = code.get_mut(..restorer.len()).unwrap_or_default();
                (self.read)(pc, code) && code == *restorer
            }
        })
    }

    /// The caller of code that has neither a rule nor a frame, such as `memcpy` in assembly: the
    /// return address is still where the call left it.
    fn caller_of_leaf(&mut self, registers: &Registers) -> Option<Caller> {
        let sp = registers.sp()?;
        let pc = word(self.read, sp)?;
        if !self.is_after_call(pc) {
            return None;
        }
        let cfa = sp.wrapping_add(8);
        let mut caller = *registers;
        caller.set(Reg::Rip, pc);
        caller.set(Reg::Rsp, cfa);
        for register in [Reg::Rax, Reg::Rcx, Reg::Rdx, Reg::Rsi, Reg::Rdi]
            .into_iter()
            .chain([Reg::R8, Reg::R9, Reg::R10, Reg::R11])
        {
            caller.clear(register);
        }
        Some(Caller {
            registers: caller,
            cfa,
            is_interrupted: false,
        })
    }

    /// Whether the instruction before an address is a call.
    fn is_after_call(&mut self, pc: u64) -> bool {
        const LONGEST: usize = 7;
        let Some(start) = pc
            .checked_sub(LONGEST as u64)
            .filter(|_| CODE.contains(&pc))
        else {
            return false;
        };
        let from_file = (self.module)(start).and_then(|module| {
            let code = module.code_at(start, LONGEST)?;
            code.try_into().ok()
        });
        let mut code = from_file.unwrap_or([0; LONGEST]);
        if from_file.is_none() && !(self.read)(start, &mut code) {
            return false;
        }
        // `call rel32`, or `call *` with two to seven bytes: ff /2.
        let [.., relative, _, _, _, _] = code;
        let indirect = (0..LONGEST - 1)
            .any(|at| matches!(code.get(at..at + 2), Some([0xff, mode]) if mode >> 3 & 7 == 2));
        relative == 0xe8 || indirect
    }
}

/// The caller by the frame pointer: only it and the stack pointer are then known.
fn by_frame_pointer(registers: &Registers, read: &Read<'_>) -> Result<Caller, NoCaller> {
    let Some(fp) = registers.fp() else {
        return Err(NoCaller::Unknown);
    };
    // The outermost frame of a program, by the ABI.
    if fp == 0 {
        return Err(NoCaller::Outermost);
    }
    if !fp.is_multiple_of(8) || fp < registers.sp().unwrap_or(0) {
        return Err(NoCaller::Unknown);
    }
    let load = |addr: u64| word(read, addr).ok_or(NoCaller::Unreadable(addr));
    let saved = load(fp)?;
    let pc = load(fp.wrapping_add(8))?;
    let cfa = fp.wrapping_add(16);
    let registers = [(Reg::Rip, pc), (Reg::Rsp, cfa), (Reg::Rbp, saved)];
    Ok(Caller {
        registers: registers.into_iter().collect(),
        cfa,
        is_interrupted: false,
    })
}

/// The registers that a signal interrupted, from the `ucontext_t` that the host's kernel left at
/// the stack pointer with which the handler returned.
fn interrupted(sp: u64, read: &Read<'_>) -> Result<Caller, NoCaller> {
    // The host's ABI (asm/ucontext.h, asm/sigcontext.h of x86-64): uc_flags, uc_link and uc_stack
    // are 40 bytes; then these.
    const MCONTEXT: u64 = 40;
    const ORDER: [Reg; 17] = [
        Reg::R8,
        Reg::R9,
        Reg::R10,
        Reg::R11,
        Reg::R12,
        Reg::R13,
        Reg::R14,
        Reg::R15,
        Reg::Rdi,
        Reg::Rsi,
        Reg::Rbp,
        Reg::Rbx,
        Reg::Rdx,
        Reg::Rax,
        Reg::Rcx,
        Reg::Rsp,
        Reg::Rip,
    ];
    let mut registers = Registers::new();
    for (at, register) in (0..).zip(ORDER) {
        let addr = sp.wrapping_add(MCONTEXT + at * 8);
        registers.set(
            register,
            word(read, addr).ok_or(NoCaller::Unreadable(addr))?,
        );
    }
    Ok(Caller {
        registers,
        cfa: sp,
        is_interrupted: true,
    })
}
