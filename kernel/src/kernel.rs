//! A kernel: its binary and its memory, together.

use std::ops::Range;

use crate::addr::{CpuId, KernelAddr};
use crate::cpus::CpuFields;
use crate::image::Image;
use crate::layout::LayoutError;
use crate::maple::MapleFields;
use crate::memory::{Memory, ReadError};
use crate::paging::PagingFields;
use crate::stacks::StackFields;
use crate::tasks::TaskFields;

/// A kernel binary and the memory of a guest that runs it (or did).
///
/// Its views read memory anew at every call. On a guest that is not stopped they can catch a list
/// half changed; that is reported as [`Corruption`], and asking again is the answer.
#[derive(Clone, Debug)]
pub struct Kernel<M> {
    image: Image,
    memory: M,
    pub(crate) task_fields: TaskFields,
    pub(crate) cpu_fields: CpuFields,
    pub(crate) stack_fields: StackFields,
    pub(crate) paging_fields: PagingFields,
    pub(crate) maple_fields: MapleFields,
}

/// Guest memory does not hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// A structure is not in readable memory.
    #[error(
        "cannot read the guest's {what} at {addr}: the pointer to it is wild, or the guest is gone"
    )]
    Unreadable {
        /// What should be there.
        what: &'static str,
        /// Where.
        addr: KernelAddr,
        /// The read that failed.
        #[source]
        source: ReadError,
    },
    /// A pointer cannot be right.
    #[error("the guest's {what} is {value}, which is no valid pointer; it was read at {addr}")]
    WildPointer {
        /// What the pointer points to.
        what: &'static str,
        /// Where the pointer was read.
        addr: KernelAddr,
        /// Its value.
        value: KernelAddr,
    },
    /// A list comes back to an element in its middle.
    #[error("the guest's {what} list runs in a circle: it comes to {addr} twice")]
    Cycle {
        /// What is listed.
        what: &'static str,
        /// The element that comes twice.
        addr: KernelAddr,
    },
    /// A list has more elements than a kernel can have.
    #[error("the guest's {what} list does not end after {limit} elements")]
    TooLong {
        /// What is listed.
        what: &'static str,
        /// How many were read.
        limit: usize,
    },
    /// A page table points to where no memory is.
    #[error(
        "the guest's page table entry ({level}) at {addr} is {entry:#x}, which is outside its \
         physical memory"
    )]
    WildEntry {
        /// The level: `pgd` to `pte`.
        level: &'static str,
        /// Where the entry was read.
        addr: KernelAddr,
        /// The entry.
        entry: u64,
    },
    /// A structure changed while it was read.
    #[error("the guest's {what} at {addr} changed while it was read; ask again")]
    Torn {
        /// What changed.
        what: &'static str,
        /// Where it is.
        addr: KernelAddr,
    },
    /// A vCPU has no current task: it does not exist or has not started.
    #[error("CPU {cpu} of the guest runs no task: it is not online")]
    NotOnline {
        /// The vCPU.
        cpu: CpuId,
    },
}

impl<M: Memory> Kernel<M> {
    /// Joins a kernel binary and the memory of a guest that runs it. Reads the binary's types, but
    /// no memory.
    ///
    /// # Errors
    ///
    /// When the binary does not describe the types of the kernel's core.
    pub fn new(image: Image, memory: M) -> Result<Kernel<M>, LayoutError> {
        let layout = image.layout()?;
        let stack_fields = StackFields::new(&image, layout)?;
        let task_fields = TaskFields::new(&image, layout)?;
        let cpu_fields = CpuFields::new(&image, layout)?;
        let paging_fields = PagingFields::new(&image, layout)?;
        let maple_fields = MapleFields::new(layout)?;
        Ok(Kernel {
            image,
            memory,
            task_fields,
            cpu_fields,
            stack_fields,
            paging_fields,
            maple_fields,
        })
    }

    /// The size of a kernel stack (THREAD_SIZE) in bytes, a power of two.
    pub fn thread_size(&self) -> u64 {
        self.stack_fields.thread_size
    }
}

impl<M> Kernel<M> {
    /// The binary.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The memory as the host maps it. The kernel itself is a [`Memory`], too, which also has what
    /// the host does not map yet.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The same kernel, over memory that holds the same.
    pub fn with_memory<N: Memory>(&self, memory: N) -> Kernel<N> {
        Kernel {
            image: self.image.clone(),
            memory,
            task_fields: self.task_fields.clone(),
            cpu_fields: self.cpu_fields.clone(),
            stack_fields: self.stack_fields.clone(),
            paging_fields: self.paging_fields.clone(),
            maple_fields: self.maple_fields.clone(),
        }
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> M {
        self.memory
    }
}

/// The range as (start, length) is easier to get wrong than this.
pub(crate) fn area(start: u64, len: u64) -> Range<u64> {
    start..start.saturating_add(len)
}

/// The address of a symbol without which nothing can be read.
pub(crate) fn required(image: &Image, name: &'static str) -> Result<KernelAddr, LayoutError> {
    image.symbol(name).ok_or_else(|| LayoutError::NoSymbol {
        name: name.to_owned(),
    })
}
