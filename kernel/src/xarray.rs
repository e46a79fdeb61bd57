//! XArrays: how the kernel keeps pointers by numbers, such as the pages of a file.

use crate::addr::KernelAddr;
use crate::kernel::Corruption;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

/// Deeper than 64 bits of index need.
const MAX_DEPTH: usize = 16;

/// Below this, what marks an internal entry is no node (`xa_is_node()`, include/linux/xarray.h).
const FIRST_NODE: u64 = 4096;

impl<M: Memory> Reader<'_, M> {
    /// What a `struct xarray` has at an index, if it is a pointer.
    ///
    /// # Errors
    ///
    /// When a node cannot be read.
    pub(crate) fn xarray(
        &self,
        array: &Object<'_, M>,
        index: u64,
    ) -> Result<Option<KernelAddr>, ViewError> {
        let mut entry = array.u64("xa_head")?;
        // An array without nodes has only index 0.
        if !is_node(entry) {
            return Ok((index == 0).then(|| pointer(entry)).flatten());
        }
        for _ in 0..MAX_DEPTH {
            let node = KernelAddr(entry - 2);
            let object = self.object("struct xa_node", node).fetched();
            let shift = object.u64("shift")?;
            let slots = object.len("slots")?.max(1);
            let at = index.checked_shr(shift as u32).unwrap_or(0);
            // Below the root, higher bits have led here.
            let within = at % slots;
            entry = object.u64(&format!("slots[{within}]"))?;
            if is_internal(entry) && !is_node(entry) {
                // The other slots of an entry that fills several (`xa_is_sibling()`).
                entry = object.u64(&format!("slots[{}]", (entry >> 2) % slots))?;
            }
            if !is_node(entry) {
                return Ok(pointer(entry));
            }
        }
        Err(ViewError::Corruption(Corruption::TooLong {
            what: "xarray",
            limit: MAX_DEPTH,
        }))
    }
}

fn is_internal(entry: u64) -> bool {
    entry & 3 == 2
}

fn is_node(entry: u64) -> bool {
    is_internal(entry) && entry > FIRST_NODE
}

/// Neither empty, nor a number, nor one of the array's own marks.
fn pointer(entry: u64) -> Option<KernelAddr> {
    (entry != 0 && entry & 3 == 0).then_some(KernelAddr(entry))
}
