//! The memory of the guest's processes.

use crate::addr::{KernelAddr, UserAddr};
use crate::kernel::{Corruption, Kernel};
use crate::memory::Memory;

/// Memory of a guest's process could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UserReadError {
    /// No page is there.
    #[error(
        "the process has no page at {addr} in memory now: it never touched it, it is swapped out, \
         or the address is wild"
    )]
    NotPresent {
        /// The first address without one.
        addr: UserAddr,
    },
    /// The process's page tables, or what they point to, cannot be read.
    #[error("cannot read the process's memory at {addr}: {source}")]
    Corrupt {
        /// The first address that cannot be read.
        addr: UserAddr,
        /// What is in the way.
        #[source]
        source: Corruption,
    },
}

impl<M: Memory> Kernel<M> {
    /// Fills `buf` with the bytes at `addr` of a process, whose `mm_struct` is at `mm`.
    ///
    /// # Errors
    ///
    /// When any of the bytes is not in memory now. `buf` is then unspecified.
    pub fn read_user(
        &self,
        mm: KernelAddr,
        addr: UserAddr,
        buf: &mut [u8],
    ) -> Result<(), UserReadError> {
        if addr.checked_add(buf.len() as u64).is_none() {
            return Err(UserReadError::NotPresent { addr });
        }
        for (at, page) in self.pages(addr.get(), buf) {
            let addr = UserAddr(at);
            let corrupt = |source| UserReadError::Corrupt { addr, source };
            let phys = self
                .translate_user(mm, addr)
                .map_err(corrupt)?
                .ok_or(UserReadError::NotPresent { addr })?;
            let at = self.phys_to_virt(phys).map_err(corrupt)?;
            self.memory().read(at, page).map_err(|source| {
                corrupt(Corruption::Unreadable {
                    what: "page of a process",
                    addr: at,
                    source,
                })
            })?;
        }
        Ok(())
    }

    /// Reads a NUL-terminated string of at most `max` bytes from a process; a string without its
    /// NUL ends there. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// Nothing beyond the NUL needs to be readable.
    ///
    /// # Errors
    ///
    /// When a byte before the NUL is not in memory now.
    pub fn read_user_cstr(
        &self,
        mm: KernelAddr,
        addr: UserAddr,
        max: usize,
    ) -> Result<String, UserReadError> {
        crate::memory::read_cstr_by(max, addr.get(), |at, buf| {
            self.read_user(mm, UserAddr(at), buf)
        })
    }
}
