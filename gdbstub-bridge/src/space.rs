//! The one address space that a client sees: the kernel's, and behind it that of the selected task's process.
//!
//! Three things overlap in it. The kernel has its image, its physical memory and what its own page tables map (vmalloc
//! areas, modules); the host may not map the last yet. A process of the guest has addresses that only its page tables
//! know. And the kernel is itself a process of the host, with a C library, a heap and a stack at addresses where the
//! guest's processes have theirs. What is the kernel's wins; then comes the process, unless the thread is in the
//! middle of that library itself; then what the host maps.

use std::ops::Range;
use std::sync::OnceLock;

use kscope_guest::mem::ProcMem;
use kscope_kernel::{Kernel, KernelAddr, MemoryExt, PhysAddr, Task, UserAddr};

/// The address space, whoever looks at it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Space {
    memory: ProcMem,
    /// None when the kernel has no types.
    kernel: Option<Kernel<ProcMem>>,
    /// Offset of `task_struct.mm`.
    mm: Option<u64>,
    /// The kernel's image and its physical memory, once it has set that up.
    linear: OnceLock<Range<u64>>,
}

/// Whose process is seen behind the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The process's `mm_struct`; None for a thread of the kernel's own.
    mm: Option<KernelAddr>,
    /// Where the thread is.
    pc: Option<u64>,
}

/// Where something in the address space really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Where it seems to be, in the host's process.
    Here,
    /// In physical memory, which the host's process has here.
    Physical {
        at: KernelAddr,
        /// It belongs to a process, which may not write it: others may see the same page.
        shared: bool,
    },
}

/// Why memory was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unwritable {
    /// Nothing is there.
    Unmapped,
    /// The process itself may not write there.
    ReadOnly,
}

impl Space {
    pub(crate) fn new(memory: ProcMem, kernel: Option<Kernel<ProcMem>>) -> Self {
        let mm = kernel.as_ref().and_then(|kernel| {
            let layout = kernel.image().layout().ok()?;
            Some(layout.member("struct task_struct", "mm").ok()?.offset)
        });
        Self {
            memory,
            kernel,
            mm,
            linear: OnceLock::new(),
        }
    }

    /// What a task sees, or its kernel at `pc`.
    pub(crate) fn view(&self, task: Option<&Task>, pc: Option<u64>) -> View {
        let mm = task.zip(self.mm).and_then(|(task, offset)| {
            let mm = self.memory.read_addr(task.addr + offset).ok()?;
            (mm.get() != 0).then_some(mm)
        });
        View { mm, pc }
    }

    /// Whether it matters who looks at these addresses.
    pub(crate) fn needs_view(&self, addr: u64, len: usize) -> bool {
        !self.is_linear(addr..addr.saturating_add(len as u64))
    }

    /// Reads as many of the bytes at `addr` as there are before the first hole.
    pub(crate) fn read(&self, view: View, addr: u64, buf: &mut [u8]) -> usize {
        let end = addr.saturating_add(buf.len() as u64);
        if self.is_linear(addr..end) || self.kernel.is_none() {
            return self.memory.read_some(KernelAddr(addr), buf);
        }
        let mut done = 0;
        for piece in self.pages(addr, buf.len()) {
            let Some(part) = buf.get_mut(done..done + piece.len) else {
                break;
            };
            let read = match self.find(view, piece.addr) {
                Some(Place::Here) => self.memory.read_some(KernelAddr(piece.addr), part),
                Some(Place::Physical { at, .. }) => self.memory.read_some(at, part),
                None => 0,
            };
            done += read;
            if read < piece.len {
                break;
            }
        }
        done
    }

    /// Writes bytes through `here`, which writes what is where it seems to be. All or nothing, unless the guest's
    /// memory changes meanwhile.
    pub(crate) fn write(
        &self,
        view: View,
        addr: u64,
        bytes: &[u8],
        mut here: impl FnMut(KernelAddr, &[u8]) -> Result<(), Unwritable>,
    ) -> Result<(), Unwritable> {
        let end = addr
            .checked_add(bytes.len() as u64)
            .ok_or(Unwritable::Unmapped)?;
        if self.is_linear(addr..end) || self.kernel.is_none() {
            return here(KernelAddr(addr), bytes);
        }
        let mut places = Vec::new();
        for piece in self.pages(addr, bytes.len()) {
            match self.find(view, piece.addr).ok_or(Unwritable::Unmapped)? {
                Place::Physical { shared: true, .. } => return Err(Unwritable::ReadOnly),
                place => places.push((piece, place)),
            }
        }
        let mut rest = bytes;
        for (piece, place) in places {
            let (part, after) = rest
                .split_at_checked(piece.len)
                .ok_or(Unwritable::Unmapped)?;
            rest = after;
            match place {
                Place::Here => here(KernelAddr(piece.addr), part)?,
                Place::Physical { at, .. } => here(at, part)?,
            }
        }
        Ok(())
    }

    /// The memory of the host's process.
    pub(crate) fn host(&self) -> &ProcMem {
        &self.memory
    }

    /// Reads memory of the host's process. False when it cannot be read in full.
    pub(crate) fn read_here(&self, addr: KernelAddr, buf: &mut [u8]) -> bool {
        self.memory.read_some(addr, buf) == buf.len()
    }

    /// Where the host's process has physical memory.
    pub(crate) fn physical(&self, phys: u64) -> Option<KernelAddr> {
        let kernel = self.kernel.as_ref()?;
        (phys < kernel.physmem().end.get()).then_some(())?;
        kernel.phys_to_virt(PhysAddr(phys)).ok()
    }

    /// The bytes of physical memory.
    pub(crate) fn physical_size(&self) -> u64 {
        self.kernel
            .as_ref()
            .map_or(0, |kernel| kernel.physmem().end.get())
    }

    /// Finds what is at an address.
    fn find(&self, view: View, addr: u64) -> Option<Place> {
        let kernel = self.kernel.as_ref()?;
        if self.is_linear(addr..addr.saturating_add(1)) {
            return Some(Place::Here);
        }
        let is_mapped = || self.memory.read_u8(KernelAddr(addr)).is_ok();
        if let Ok(Some(phys)) = kernel.translate_kernel(KernelAddr(addr)) {
            if is_mapped() {
                return Some(Place::Here);
            }
            let at = kernel.phys_to_virt(phys).ok()?;
            return Some(Place::Physical { at, shared: false });
        }
        let process = || {
            let user = kernel.translate_user(view.mm?, UserAddr(addr)).ok()??;
            let writable = kernel.is_user_writable(view.mm?, UserAddr(addr)).ok()?;
            Some(Place::Physical {
                at: kernel.phys_to_virt(user).ok()?,
                shared: !writable,
            })
        };
        let host = || is_mapped().then_some(Place::Here);
        if self.is_in_library(view) {
            host().or_else(process)
        } else {
            process().or_else(host)
        }
    }

    /// Whether the thread is in what the kernel's process has of the host: its C library, mostly.
    fn is_in_library(&self, view: View) -> bool {
        let Some((pc, kernel)) = view.pc.zip(self.kernel.as_ref()) else {
            return false;
        };
        !self.is_linear(pc..pc.saturating_add(1))
            && !matches!(kernel.translate_kernel(KernelAddr(pc)), Ok(Some(_)))
    }

    /// Whether all of the addresses are the image's or physical memory's, of which everything is mapped at all times.
    fn is_linear(&self, range: Range<u64>) -> bool {
        let linear = self.linear.get().or_else(|| {
            let kernel = self.kernel.as_ref()?;
            let physmem = kernel.physmem();
            if physmem.is_empty() {
                return None;
            }
            let start = kernel.phys_to_virt(physmem.start).ok()?.get();
            let end = kernel.phys_to_virt(physmem.end).ok()?.get();
            Some(self.linear.get_or_init(|| start..end))
        });
        linear.is_some_and(|linear| linear.start <= range.start && range.end <= linear.end)
    }

    /// Splits addresses at page boundaries.
    fn pages(&self, addr: u64, len: usize) -> impl Iterator<Item = Piece> + use<> {
        let size = self.kernel.as_ref().map_or(4096, Kernel::page_size).max(1);
        let (mut at, mut left) = (addr, len);
        std::iter::from_fn(move || {
            let to_end = usize::try_from(size - at % size).unwrap_or(usize::MAX);
            let piece = Piece {
                addr: at,
                len: to_end.min(left),
            };
            left -= piece.len;
            let next = at.checked_add(piece.len as u64);
            if next.is_none() {
                left = 0;
            }
            at = next.unwrap_or(0);
            (piece.len > 0).then_some(piece)
        })
    }
}

/// A part of a range that is in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    addr: u64,
    len: usize,
}
