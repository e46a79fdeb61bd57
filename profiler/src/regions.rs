//! A sample's stack copies as memory to unwind over.

use kscope_guest::remote::StackCopy;
use kscope_kernel::{KernelAddr, Memory, ReadError};

/// The copied pieces, and nothing else: what was not copied has changed since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Regions<'a>(pub &'a [StackCopy]);

impl Memory for Regions<'_> {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        for region in self.0 {
            let bytes = addr
                .0
                .checked_sub(region.addr.0)
                .and_then(|offset| usize::try_from(offset).ok())
                .and_then(|offset| region.bytes.get(offset..)?.get(..buf.len()));
            if let Some(bytes) = bytes {
                buf.copy_from_slice(bytes);
                return Ok(());
            }
        }
        Err(ReadError {
            addr,
            len: buf.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use kscope_kernel::MemoryExt;

    use super::*;

    #[test]
    fn reads_what_was_copied_and_nothing_beyond() {
        let copies = [
            StackCopy {
                addr: KernelAddr(0x1000),
                bytes: vec![1; 16],
            },
            StackCopy {
                addr: KernelAddr(0x2000),
                bytes: vec![2; 8],
            },
        ];
        let memory = Regions(&copies);
        assert_eq!(memory.read_u8(KernelAddr(0x100f)).unwrap(), 1);
        assert_eq!(
            memory.read_u64(KernelAddr(0x2000)).unwrap(),
            0x0202_0202_0202_0202
        );
        for addr in [0, 0xfff, 0x1009, 0x1010, 0x2001, u64::MAX] {
            assert!(memory.read_u64(KernelAddr(addr)).is_err(), "{addr:#x}");
        }
    }
}
