//! Reads a Linux kernel's memory with the help of its own DWARF.
//!
//! The guest is a User Mode Linux kernel: an ordinary ELF program whose memory another process can
//! read. Everything here is a pure function over two things, an [`Image`] (the kernel binary on
//! disk: symbols, types, lines, unwind tables) and a [`Memory`] (the bytes of a running, stopped,
//! panicked or dumped guest). Nothing here controls a process, and nothing trusts guest memory:
//! every walk is bounded and detects cycles.
//!
//! Layouts are never constants. Linux 6.1, 6.12 and 7.x differ in where they keep the same things,
//! and the kernel's DWARF says where.

mod addr;
mod backtrace;
mod core;
mod cpus;
mod expr;
mod hashtable;
mod host_maps;
mod image;
mod kernel;
mod layout;
mod maple;
mod memory;
mod module_file;
mod overlay;
mod paged;
mod paging;
mod reader;
mod registers;
mod stacks;
mod table;
mod tasks;
mod unwind;
mod value;
pub mod views;
mod wchan;
mod xarray;

pub use addr::{CpuId, GuestPid, KernelAddr, PhysAddr, UserAddr};
pub use backtrace::{describe_end, format_backtrace, format_backtrace_with, format_frame};
pub use core::{
    CORE_FRAME, Core, CoreError, CoreInput, CorePart, CorePlan, FrameCompressor, FrameTable,
    HostFile, PartContent,
};
pub use expr::ExprError;
pub use host_maps::ram_inode;
pub use image::{Image, ImageError, SourceFrame, Symbol};
pub use kernel::{Corruption, Kernel};
pub use layout::{
    Aggregate, Bare, Bits, Encoding, Enumerator, Field, Layout, LayoutError, Member, Place,
    Qualifier, Shape, Type, TypeId, TypeInfo, TypeKind, Variable,
};
pub use maple::{MapleEntry, MapleTree};
pub use memory::{Memory, MemoryExt, ReadError};
pub use module_file::ModuleFile;
pub use overlay::{Overlay, Piece, RunningCpu};
pub use paged::Paged;
pub use paging::{KernelMapping, UserPages, UserReadError};
pub use reader::{List, Object, Reader, Torn, Tree, ViewError};
pub use registers::{Reg, Registers};
pub use table::{Table, printable};
pub use tasks::{IDLE_THREADS, Task, TaskState, Tasks};
pub use unwind::{
    Backtrace, CallStack, Frame, StackFrame, Truncation, UnwindEnd, Unwinder, UnwinderError,
};
pub use value::{Location, Pointer, Style, Value};
