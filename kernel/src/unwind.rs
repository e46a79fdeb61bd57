//! Call stacks, from registers and stack memory.

pub(crate) mod binary;
pub(crate) mod evaluate;
mod maps;
pub(crate) mod module;
mod rules;
pub(crate) mod walk;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Unwinder as _};
use serde::{Deserialize, Serialize};

use crate::addr::KernelAddr;
use crate::image::{ElfFile, Image, Slice};
use crate::memory::{Memory, MemoryExt};
use crate::registers::{Reg, Registers};
use module::{Mapped, Unusable};
pub use walk::{CallStack, StackFrame};

/// Unwinds the stacks of a guest's kernel.
///
/// It uses the kernel's `.eh_frame` and follows frame pointers where that says nothing. Stacks of
/// running CPUs pass through the host's libc, so that is added from the memory map of the guest's
/// kernel process (see [`add_modules_from_maps`](Unwinder::add_modules_from_maps)); without it,
/// frames next to libc's can be missing.
pub struct Unwinder {
    unwinder: UnwinderX86_64<Slice>,
    cache: CacheX86_64,
    /// The kernel first.
    modules: Vec<Arc<Mapped>>,
}

/// One frame of a call stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// Where execution is, or goes on when the callee returns.
    pub pc: KernelAddr,
    /// Whether `pc` is a return address, that is, the call is before it. Not so for the innermost
    /// frame and for a frame that a signal interrupted.
    pub is_return_address: bool,
}

impl Frame {
    /// The address to look up functions and source lines with: the byte before a return address,
    /// which may be the first of the next line or even of the next function.
    pub fn lookup(self) -> KernelAddr {
        if self.is_return_address {
            self.pc - 1
        } else {
            self.pc
        }
    }
}

/// A call stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Backtrace {
    /// The innermost frame first.
    pub frames: Vec<Frame>,
    /// Whether the last frame is the outermost.
    pub end: UnwindEnd,
}

impl Backtrace {
    /// Whether the stack was followed to its beginning.
    pub fn is_complete(&self) -> bool {
        self.end == UnwindEnd::Complete
    }
}

/// How a call stack ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UnwindEnd {
    /// At the beginning of the stack.
    Complete,
    /// Before that.
    Truncated(Truncation),
}

/// Why a call stack could not be followed further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Truncation {
    /// There is nothing to start from.
    #[error("rip or rsp is not known")]
    NoRegisters,
    /// The task has ended, and the kernel has taken its stack away.
    #[error("the task has ended, and its stack is freed")]
    Freed,
    /// The next frame is not in readable memory.
    #[error("the stack is not readable at {addr}")]
    Unreadable {
        /// The word that was needed.
        addr: KernelAddr,
    },
    /// The next frame is not above the last: a corrupt frame pointer.
    #[error("the frame pointer does not advance beyond {sp}")]
    NotAdvancing {
        /// The stack pointer of the last good frame.
        sp: KernelAddr,
    },
    /// The return address cannot be code.
    #[error("the return address {pc} is not code")]
    NotCode {
        /// The return address.
        pc: KernelAddr,
    },
    /// More frames than a kernel stack holds.
    #[error("there are more than {limit} frames")]
    TooDeep {
        /// How many were followed.
        limit: u32,
    },
}

/// Why a file's unwind tables are not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnwinderError {
    /// The file cannot be read.
    #[error("cannot read the unwind tables of `{path}`: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file is not the one that is mapped, or is damaged.
    #[error("cannot use the unwind tables of `{path}`: {reason}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Deeper than any kernel stack: 16 bytes are the least that a frame takes, but 32 KiB stacks with
/// more than a thousand frames do not occur.
const MAX_FRAMES: usize = 1024;

/// How many signals may have interrupted each other.
const MAX_SIGNALS: usize = 16;

/// Where a process of the host can have code: not in the first page, and below the kernel's half.
const CODE: Range<u64> = 0x1000..1 << 47;

impl Unwinder {
    /// An unwinder for a kernel.
    ///
    /// # Errors
    ///
    /// When the kernel's program headers cannot be parsed. A kernel without unwind tables is
    /// unwound by its frame pointers.
    pub fn new(image: &Image) -> Result<Unwinder, UnwinderError> {
        let (mapped, module) = Mapped::kernel(image.file())
            .map_err(|unusable| unusable_file(image.path(), &unusable))?;
        let mut unwinder = UnwinderX86_64::new();
        unwinder.add_module(module);
        Ok(Unwinder {
            unwinder,
            cache: CacheX86_64::new(),
            modules: vec![Arc::new(mapped)],
        })
    }

    /// Adds a shared object: its path, and the addresses and the file offset of its executable
    /// mapping as `/proc/PID/maps` has them.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or does not fit the mapping.
    pub fn add_module(
        &mut self,
        path: &Path,
        range: Range<u64>,
        file_offset: u64,
    ) -> Result<(), UnwinderError> {
        let file = ElfFile::open(path).map_err(|source| UnwinderError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        self.add_file(Arc::new(file), range, file_offset)
    }

    fn add_file(
        &mut self,
        file: Arc<ElfFile>,
        range: Range<u64>,
        file_offset: u64,
    ) -> Result<(), UnwinderError> {
        let (mapped, module) = Mapped::shared(&file, range, file_offset)
            .map_err(|unusable| unusable_file(file.path(), &unusable))?;
        self.unwinder.add_module(module);
        self.modules.push(Arc::new(mapped));
        Ok(())
    }

    /// The name of the shared object that has code at `addr`, and the exported function there with
    /// the distance from its start. `None` for the kernel's own code; ask the [`Image`].
    pub fn foreign_function(&self, addr: KernelAddr) -> Option<(&str, Option<(&str, u64)>)> {
        let module = self
            .modules
            .iter()
            .skip(1)
            .find(|m| m.range.contains(&addr.get()))?;
        Some((module.name(), module.function_at(addr.get())))
    }

    /// Unwinds from `registers`, of which `rip` and `rsp` must be known.
    ///
    /// `stacks` are the stacks this can be on (see [`Kernel::stacks_of`](crate::Kernel::stacks_of)):
    /// the outermost frame is the one that begins at the end of one of them, whatever its return
    /// address says. When empty, a return address of 0 is the only good end.
    ///
    /// Never fails: what cannot be followed ends the backtrace, and its `end` says why.
    pub fn unwind<M: Memory + ?Sized>(
        &mut self,
        registers: &Registers,
        memory: &M,
        stacks: &[Range<u64>],
    ) -> Backtrace {
        let mut frames = Vec::new();
        let (Some(pc), Some(sp)) = (registers.pc(), registers.sp()) else {
            return Backtrace {
                frames,
                end: UnwindEnd::Truncated(Truncation::NoRegisters),
            };
        };
        let start = UnwindRegsX86_64::new(pc, sp, registers.fp().unwrap_or(0));
        let end = match self.walk(start, memory, stacks, &mut frames) {
            Ok(()) => UnwindEnd::Complete,
            Err(truncation) => UnwindEnd::Truncated(truncation),
        };
        Backtrace { frames, end }
    }

    fn walk<M: Memory + ?Sized>(
        &mut self,
        mut regs: UnwindRegsX86_64,
        memory: &M,
        stacks: &[Range<u64>],
        frames: &mut Vec<Frame>,
    ) -> Result<(), Truncation> {
        let mut address = FrameAddress::InstructionPointer(regs.ip());
        let mut signals = 0;
        let mut read = |addr| memory.read_u64(KernelAddr(addr)).map_err(|_| ());
        while frames.len() < MAX_FRAMES {
            let pc = address.address();
            frames.push(Frame {
                pc: KernelAddr(pc),
                is_return_address: address.is_return_address(),
            });
            let sp = regs.sp();
            if self.is_signal_return(pc, memory) {
                signals += 1;
                if signals > MAX_SIGNALS {
                    return Err(Truncation::NotAdvancing { sp: KernelAddr(sp) });
                }
                regs = interrupted(sp, memory)?;
                // The interrupted instruction itself, not a return address.
                address = FrameAddress::InstructionPointer(regs.ip());
                continue;
            }
            let stack = stacks.iter().find(|stack| stack.contains(&sp));
            let next = self
                .unwinder
                .unwind_frame(address, &mut regs, &mut self.cache, &mut read);
            let at_end = |addr: u64| stack.is_some_and(|stack| addr >= stack.end);
            let next = match next {
                Ok(None | Some(0)) | Err(framehop::Error::ReturnAddressIsNull) => return Ok(()),
                Ok(Some(next)) => next,
                Err(framehop::Error::CouldNotReadStack(addr)) if at_end(addr) => return Ok(()),
                Err(framehop::Error::CouldNotReadStack(addr)) => {
                    return Err(Truncation::Unreadable {
                        addr: KernelAddr(addr),
                    });
                }
                Err(_) => return Err(Truncation::NotAdvancing { sp: KernelAddr(sp) }),
            };
            // A new thread starts with a stack pointer one word below the end of its stack and
            // with nothing to return to: what that word holds is left over.
            if at_end(regs.sp()) {
                return Ok(());
            }
            if regs.sp() <= sp {
                return Err(Truncation::NotAdvancing { sp: KernelAddr(sp) });
            }
            if !CODE.contains(&next) {
                return Err(Truncation::NotCode {
                    pc: KernelAddr(next),
                });
            }
            address = FrameAddress::from_return_address(next).ok_or(Truncation::NotCode {
                pc: KernelAddr(next),
            })?;
        }
        Err(Truncation::TooDeep {
            limit: MAX_FRAMES as u32,
        })
    }

    /// Whether `pc` is where a signal handler returns to.
    fn is_signal_return<M: Memory + ?Sized>(&self, pc: u64, memory: &M) -> bool {
        let module = self
            .modules
            .iter()
            .find(|module| module.range.contains(&pc));
        RESTORERS.iter().any(|restorer| match module {
            Some(module) => module.code_at(pc, restorer.len()) == Some(restorer),
            None => memory
                .read_vec(KernelAddr(pc), restorer.len())
                .is_ok_and(|code| code == *restorer),
        })
    }
}

/// libc's `__restore_rt`, to which signal handlers return: `mov $15 (rt_sigreturn), %rax` or
/// `%eax`, then `syscall`. It has no symbol that is exported; debuggers know it by its code, too.
const RESTORERS: [&[u8]; 2] = [
    &[0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05],
    &[0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05],
];

/// A register by its number in the DWARF of x86-64 (System V ABI, figure 3.36).
pub(crate) fn registers_by_dwarf(register: gimli::Register) -> Option<Reg> {
    const NUMBERED: [Reg; 17] = [
        Reg::Rax,
        Reg::Rdx,
        Reg::Rcx,
        Reg::Rbx,
        Reg::Rsi,
        Reg::Rdi,
        Reg::Rbp,
        Reg::Rsp,
        Reg::R8,
        Reg::R9,
        Reg::R10,
        Reg::R11,
        Reg::R12,
        Reg::R13,
        Reg::R14,
        Reg::R15,
        Reg::Rip,
    ];
    NUMBERED.get(usize::from(register.0)).copied()
}

/// The registers that a signal interrupted, from the `ucontext_t` that the host's kernel left at
/// the stack pointer with which the handler returned.
fn interrupted<M: Memory + ?Sized>(sp: u64, memory: &M) -> Result<UnwindRegsX86_64, Truncation> {
    // The host's ABI (asm/ucontext.h, asm/sigcontext.h of x86-64): uc_flags, uc_link and uc_stack
    // are 40 bytes; then r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    const MCONTEXT: u64 = 40;
    let register = |index: u64| {
        let addr = KernelAddr(sp) + (MCONTEXT + index * 8);
        memory
            .read_u64(addr)
            .map_err(|_| Truncation::Unreadable { addr })
    };
    let (rbp, rsp, rip) = (register(10)?, register(15)?, register(16)?);
    if !CODE.contains(&rip) {
        return Err(Truncation::NotCode {
            pc: KernelAddr(rip),
        });
    }
    Ok(UnwindRegsX86_64::new(rip, rsp, rbp))
}

fn unusable_file(path: &Path, unusable: &Unusable) -> UnwinderError {
    UnwinderError::Unusable {
        path: path.to_owned(),
        reason: unusable.to_string(),
    }
}

impl std::fmt::Debug for Unwinder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.modules.iter().map(|module| module.path()))
            .finish()
    }
}
