//! Where bytes of the guest come from.

use std::sync::Arc;

use crate::addr::KernelAddr;

/// The memory of a guest kernel: a live guest, a core file, a copy of a stack, a test fixture.
///
/// Addresses are guest kernel virtual addresses. Every implementation treats the request as
/// untrusted: any address and any length may be asked for.
pub trait Memory {
    /// Fills `buf` with the bytes at `addr`.
    ///
    /// # Errors
    ///
    /// When any of the bytes cannot be read. `buf` is then unspecified.
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError>;
}

/// Guest memory could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {len} bytes of guest memory at {addr}: not mapped")]
pub struct ReadError {
    /// The first address that was asked for.
    pub addr: KernelAddr,
    /// How many bytes were asked for.
    pub len: usize,
}

macro_rules! forward {
    ($pointer:ty) => {
        impl<M: Memory + ?Sized> Memory for $pointer {
            fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
                (**self).read(addr, buf)
            }
        }
    };
}

forward!(&M);
forward!(Arc<M>);
forward!(Box<M>);

/// Reads of typed values, little endian, over any [`Memory`].
pub trait MemoryExt: Memory {
    /// Reads one byte.
    ///
    /// # Errors
    ///
    /// When the byte cannot be read.
    fn read_u8(&self, addr: KernelAddr) -> Result<u8, ReadError> {
        let mut buf = [0; 1];
        self.read(addr, &mut buf)?;
        Ok(buf[0])
    }

    /// Reads a 16-bit number.
    ///
    /// # Errors
    ///
    /// When any of its bytes cannot be read.
    fn read_u16(&self, addr: KernelAddr) -> Result<u16, ReadError> {
        let mut buf = [0; 2];
        self.read(addr, &mut buf)?;
        Ok(u16::from_le_bytes(buf))
    }

    /// Reads a 32-bit number.
    ///
    /// # Errors
    ///
    /// When any of its bytes cannot be read.
    fn read_u32(&self, addr: KernelAddr) -> Result<u32, ReadError> {
        let mut buf = [0; 4];
        self.read(addr, &mut buf)?;
        Ok(u32::from_le_bytes(buf))
    }

    /// Reads a 64-bit number.
    ///
    /// # Errors
    ///
    /// When any of its bytes cannot be read.
    fn read_u64(&self, addr: KernelAddr) -> Result<u64, ReadError> {
        let mut buf = [0; 8];
        self.read(addr, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }

    /// Reads a pointer.
    ///
    /// # Errors
    ///
    /// When any of its bytes cannot be read.
    fn read_addr(&self, addr: KernelAddr) -> Result<KernelAddr, ReadError> {
        self.read_u64(addr).map(KernelAddr)
    }

    /// Reads a NUL-terminated string of at most `max` bytes; a string without its NUL ends there.
    /// Bytes that are not UTF-8 become U+FFFD.
    ///
    /// Nothing beyond the NUL needs to be readable.
    ///
    /// # Errors
    ///
    /// When a byte before the NUL cannot be read.
    fn read_cstr(&self, addr: KernelAddr, max: usize) -> Result<String, ReadError> {
        read_cstr_by(max, addr.get(), |at, buf| self.read(KernelAddr(at), buf))
    }

    /// Reads `len` bytes. The caller bounds `len`: that much is allocated.
    ///
    /// # Errors
    ///
    /// When any of the bytes cannot be read.
    fn read_vec(&self, addr: KernelAddr, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut buf = vec![0; len];
        self.read(addr, &mut buf)?;
        Ok(buf)
    }
}

impl<M: Memory + ?Sized> MemoryExt for M {}

/// Reads a NUL-terminated string with a function that reads bytes; see [`MemoryExt::read_cstr`].
pub(crate) fn read_cstr_by<E>(
    max: usize,
    addr: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<String, E> {
    // Never across a page boundary in one read: the string may end just before a hole.
    const PAGE: u64 = 4096;
    const STEP: u64 = 256;
    let mut bytes = Vec::new();
    while bytes.len() < max {
        let at = addr.wrapping_add(bytes.len() as u64);
        let to_page_end = PAGE - at % PAGE;
        let want = (max - bytes.len()).min(to_page_end.min(STEP) as usize);
        let mut buf = [0; STEP as usize];
        let buf = &mut buf[..want];
        read(at, buf)?;
        if let Some(end) = buf.iter().position(|&byte| byte == 0) {
            bytes.extend_from_slice(&buf[..end]);
            break;
        }
        bytes.extend_from_slice(buf);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
pub(crate) mod fixture {
    //! Guest memory made by hand.

    use std::collections::BTreeMap;

    use super::*;

    /// Sparse memory: what was never written is not mapped.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Sparse(BTreeMap<u64, u8>);

    impl Sparse {
        pub(crate) fn write(&mut self, addr: u64, bytes: &[u8]) {
            for (at, &byte) in (addr..).zip(bytes) {
                self.0.insert(at, byte);
            }
        }

        pub(crate) fn write_u64(&mut self, addr: u64, value: u64) {
            self.write(addr, &value.to_le_bytes());
        }
    }

    impl Memory for Sparse {
        fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
            let error = ReadError {
                addr,
                len: buf.len(),
            };
            for (offset, byte) in buf.iter_mut().enumerate() {
                let at = addr.get().checked_add(offset as u64).ok_or(error)?;
                *byte = *self.0.get(&at).ok_or(error)?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::Sparse;
    use super::*;

    #[test]
    fn strings_end_at_nul_at_max_and_before_holes() {
        let mut memory = Sparse::default();
        memory.write(0x1ffe, b"a\0");
        memory.write(0x3000, b"kworker/0:1\xff");
        assert_eq!(memory.read_cstr(KernelAddr(0x1ffe), 16).as_deref(), Ok("a"));
        assert_eq!(
            memory.read_cstr(KernelAddr(0x3000), 7).as_deref(),
            Ok("kworker")
        );
        assert_eq!(
            memory.read_cstr(KernelAddr(0x3000), 12).as_deref(),
            Ok("kworker/0:1\u{fffd}")
        );
        assert!(memory.read_cstr(KernelAddr(0x3000), 13).is_err());
    }

    #[test]
    fn reads_beyond_the_address_space_fail() {
        let memory = Sparse::default();
        let error = memory.read_u64(KernelAddr(u64::MAX - 3)).unwrap_err();
        assert_eq!(
            error,
            ReadError {
                addr: KernelAddr(u64::MAX - 3),
                len: 8
            }
        );
        assert!(error.to_string().contains("0xfffffffffffffffc"));
    }

    #[test]
    fn pointers_to_memory_are_memory() {
        let mut memory = Sparse::default();
        memory.write_u64(0x10, 0x1122_3344_5566_7788);
        let shared: Arc<dyn Memory> = Arc::new(memory);
        assert_eq!(shared.read_u16(KernelAddr(0x10)), Ok(0x7788));
        assert_eq!(shared.read_u32(KernelAddr(0x10)), Ok(0x5566_7788));
        assert_eq!(
            Box::new(shared).read_addr(KernelAddr(0x10)),
            Ok(KernelAddr(0x1122_3344_5566_7788))
        );
    }
}
