//! Copies of memory, laid over the memory that they were taken from.

use crate::addr::{CpuId, KernelAddr};
use crate::memory::{Memory, ReadError};
use crate::registers::Registers;

/// Where a CPU was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningCpu {
    /// The CPU.
    pub cpu: CpuId,
    /// Its registers.
    pub registers: Registers,
    /// The `task_struct` of the task that ran; `None` when the guest's memory did not tell.
    pub task: Option<KernelAddr>,
    /// Copies of the stacks in use, when the CPU has run on since. [`Overlay`] reads them.
    pub stacks: Vec<Piece>,
}

/// A piece of memory as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Address of the first byte.
    pub addr: KernelAddr,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Piece {
    fn get(&self, addr: KernelAddr, len: usize) -> Option<&[u8]> {
        let offset = addr.get().checked_sub(self.addr.get())?;
        let offset = usize::try_from(offset).ok()?;
        self.bytes.get(offset..offset.checked_add(len)?)
    }
}

/// A memory of which some pieces are read from copies: what a stack held when its registers were
/// taken, say.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a, M> {
    pieces: &'a [Piece],
    under: M,
}

impl<'a, M: Memory> Overlay<'a, M> {
    /// Lays `pieces` over a memory.
    pub fn new(pieces: &'a [Piece], under: M) -> Overlay<'a, M> {
        Overlay { pieces, under }
    }
}

impl<M: Memory> Memory for Overlay<'_, M> {
    /// A read that is not within one piece is of the memory beneath.
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let copy = self
            .pieces
            .iter()
            .find_map(|piece| piece.get(addr, buf.len()));
        match copy {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => self.under.read(addr, buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryExt;
    use crate::memory::fixture::Sparse;

    #[test]
    fn copies_come_before_the_memory_beneath() {
        let mut memory = Sparse::default();
        memory.write(0x1000, &[1; 32]);
        let pieces = [Piece {
            addr: KernelAddr(0x1008),
            bytes: vec![2; 8],
        }];
        let overlay = Overlay::new(&pieces, &memory);
        assert_eq!(overlay.read_u8(KernelAddr(0x1007)), Ok(1));
        assert_eq!(overlay.read_u8(KernelAddr(0x1008)), Ok(2));
        assert_eq!(overlay.read_u8(KernelAddr(0x100f)), Ok(2));
        assert_eq!(overlay.read_u8(KernelAddr(0x1010)), Ok(1));
        assert!(overlay.read_u8(KernelAddr(0xfff)).is_err());
        assert!(overlay.read_u64(KernelAddr(u64::MAX - 3)).is_err());
    }
}
