//! Hash tables: where their chains begin.

use crate::addr::KernelAddr;
use crate::kernel::Corruption;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError, unreadable};

/// An array of hash buckets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets {
    /// The head of the first one's chain.
    pub(crate) first: KernelAddr,
    /// How many there are.
    pub(crate) count: u64,
    /// Bytes from one head to the next.
    pub(crate) stride: u64,
}

/// More buckets than a guest has memory for: the kernel sizes its tables by that.
const MAX_BUCKETS: u64 = 1 << 20;

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 16;

/// Tables that an rhashtable moves to while it grows: one, or more when that takes long.
const MAX_TABLES: usize = 8;

impl<M: Memory> Reader<'_, M> {
    /// The heads of chains, and what they are, without the null pointers. Ends where the array
    /// does, with a warning.
    pub(crate) fn heads(&self, buckets: Buckets, what: &'static str) -> Vec<(KernelAddr, u64)> {
        let mut heads = Vec::new();
        if buckets.count > MAX_BUCKETS {
            self.warn(Corruption::TooLong {
                what,
                limit: MAX_BUCKETS as usize,
            });
        }
        let stride = buckets.stride.max(8);
        let mut at = 0;
        let count = buckets.count.min(MAX_BUCKETS);
        while at < count {
            let first = buckets.first + at * stride;
            let many = (CHUNK / stride).clamp(1, count - at);
            let bytes = self
                .kernel()
                .read_vec(first, ((many - 1) * stride + 8) as usize);
            let bytes = bytes.map_err(|source| unreadable(what, source));
            let Some(bytes) = self.or_warn(bytes) else {
                break;
            };
            for (bucket, bytes) in (0..).zip(bytes.chunks(stride as usize)) {
                let head = bytes
                    .first_chunk()
                    .map_or(0, |head| u64::from_le_bytes(*head));
                if head != 0 {
                    heads.push((first + bucket * stride, head));
                }
            }
            at += many;
        }
        heads
    }

    /// Visits the objects of type `owner` that hang with their `struct rhash_head` `link` in a
    /// `struct rhashtable` (lib/rhashtable.c). `visit` says whether to go on in a chain.
    ///
    /// # Errors
    ///
    /// When this kernel's types are others.
    pub(crate) fn rhashtable(
        &self,
        table: &Object<'_, M>,
        owner: &str,
        link: &str,
        what: &'static str,
        mut visit: impl FnMut(Object<'_, M>) -> bool,
    ) -> Result<(), ViewError> {
        let mut next = table.follow("tbl")?;
        for _ in 0..MAX_TABLES {
            let Some(table) = next else {
                return Ok(());
            };
            if table.u64("nest")? != 0 {
                // Only when there was no memory for an array.
                self.warn(format!("{what}s in a nested hash table are left out"));
                return Ok(());
            }
            let buckets = Buckets {
                first: table.addr_of("buckets")?,
                count: table.u64("size")?,
                stride: 8,
            };
            for (_, head) in self.heads(buckets, what) {
                if self.is_hopeless() {
                    return Ok(());
                }
                // Bit 0 is the bucket's lock.
                let node = self.object("struct rhash_head", KernelAddr(head & !1));
                if !node.addr().is_null() && visit(node.container(owner, link)?) {
                    let rest = node.addr_of("next")?;
                    let _ = self.hlist(rest, owner, link, what)?.all(&mut visit);
                }
            }
            next = table.follow("future_tbl")?;
        }
        Err(ViewError::Corruption(Corruption::TooLong {
            what,
            limit: MAX_TABLES,
        }))
    }
}
