//! Maple trees: how the kernel keeps ranges, such as the mappings of a process (`mm->mm_mt`).

use std::collections::HashSet;
use std::ops::RangeInclusive;

use crate::addr::KernelAddr;
use crate::kernel::{Corruption, Kernel};
use crate::layout::{Layout, LayoutError, Member};
use crate::memory::{Memory, MemoryExt};

/// Where the nodes of a tree keep what is read from them; lib/maple_tree.c.
#[derive(Clone, Debug)]
pub(crate) struct MapleFields {
    /// Within `maple_tree`.
    root: Member,
    /// Bytes of a node, and what it is aligned to: the bits below tell its type.
    node: u64,
    /// Of `enum maple_type`.
    leaf_64: u64,
    range_64: NodeFields,
    arange_64: NodeFields,
}

/// One type of node.
#[derive(Clone, Debug)]
struct NodeFields {
    /// Its value of `enum maple_type`.
    ty: u64,
    pivots: Member,
    slots: Member,
}

impl MapleFields {
    pub(crate) fn new(layout: &Layout) -> Result<MapleFields, LayoutError> {
        let ty = |name| {
            let value = layout.enumerator_of("enum maple_type", name);
            value.map(|value| value as u64)
        };
        let fields = |name: &'static str, owner| {
            Ok(NodeFields {
                ty: ty(name)?,
                pivots: layout.member(owner, "pivot")?,
                slots: layout.member(owner, "slot")?,
            })
        };
        let range_64 = fields("maple_range_64", "struct maple_range_64")?;
        let arange_64 = fields("maple_arange_64", "struct maple_arange_64")?;
        let node = layout.size_of("struct maple_node")?;
        let ends = [&range_64, &arange_64].map(|node| node.slots.offset + node.slots.size);
        if !node.is_power_of_two() || node > 4096 || ends.iter().any(|&end| end > node) {
            return Err(LayoutError::NoType {
                name: "struct maple_node".to_owned(),
            });
        }
        Ok(MapleFields {
            root: layout.member("struct maple_tree", "ma_root")?,
            node,
            leaf_64: ty("maple_leaf_64")?,
            range_64,
            arange_64,
        })
    }
}

/// A pointer in a maple tree and the keys that it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MapleEntry {
    /// The keys: of mappings, the addresses from the first to the last byte.
    pub keys: RangeInclusive<u64>,
    /// The pointer, never null.
    pub value: KernelAddr,
}

impl<M: Memory> Kernel<M> {
    /// The entries of the `struct maple_tree` at `tree`, by their keys.
    pub fn maple_tree(&self, tree: KernelAddr) -> MapleTree<'_, M> {
        let link = tree + self.maple_fields.root.offset;
        let pending = match self.read_addr(link) {
            Ok(root) if root.is_null() => None,
            Ok(root) if is_internal(root) => Some(Pending::Node {
                node: root,
                link,
                keys: 0..=u64::MAX,
            }),
            // The one pointer of a tree without nodes is for key 0.
            Ok(value) => Some(Pending::Entry(MapleEntry { keys: 0..=0, value })),
            Err(source) => Some(Pending::Corrupt(Corruption::Unreadable {
                what: "maple_tree",
                addr: link,
                source,
            })),
        };
        MapleTree {
            kernel: self,
            seen: HashSet::new(),
            pending: pending.into_iter().collect(),
        }
    }
}

/// The iterator of [`Kernel::maple_tree`].
///
/// It visits no node twice and ends on every memory. A corrupt node comes as an error in its place
/// and costs the entries below it.
#[derive(Debug)]
pub struct MapleTree<'k, M> {
    kernel: &'k Kernel<M>,
    seen: HashSet<KernelAddr>,
    /// What is still to be visited, the next last.
    pending: Vec<Pending>,
}

#[derive(Debug)]
enum Pending {
    Node {
        /// The pointer with the type in its low bits.
        node: KernelAddr,
        /// Where it was read.
        link: KernelAddr,
        keys: RangeInclusive<u64>,
    },
    Entry(MapleEntry),
    Corrupt(Corruption),
}

/// The kernel's limit for mappings (`vm.max_map_count`) is 65,530 by default; a node has at least
/// two entries.
const MAX_NODES: usize = 1 << 20;

/// `xa_is_internal()`: at the root, a node; in a leaf, one of the kernel's marks, not a pointer.
fn is_internal(entry: KernelAddr) -> bool {
    entry.get() & 3 == 2
}

/// `mte_node_type()`: four bits of a pointer to a node.
const TYPE_SHIFT: u32 = 3;
const TYPE_MASK: u64 = 0xf;

impl<M: Memory> MapleTree<'_, M> {
    /// Reads a node and adds what it holds.
    fn open(
        &mut self,
        node: KernelAddr,
        link: KernelAddr,
        keys: RangeInclusive<u64>,
    ) -> Result<(), Corruption> {
        let what = "maple_node";
        let fields = &self.kernel.maple_fields;
        let addr = KernelAddr(node.get() & !(fields.node - 1));
        let ty = node.get() >> TYPE_SHIFT & TYPE_MASK;
        let (shape, is_leaf) = if ty == fields.leaf_64 {
            // A leaf is built like `maple_range_64`.
            (&fields.range_64, true)
        } else if ty == fields.range_64.ty {
            (&fields.range_64, false)
        } else if ty == fields.arange_64.ty {
            (&fields.arange_64, false)
        } else {
            return Err(Corruption::WildPointer {
                what,
                addr: link,
                value: node,
            });
        };
        if !self.seen.insert(addr) {
            return Err(Corruption::Cycle { what, addr });
        }
        if self.seen.len() > MAX_NODES {
            // Nothing more is read: this ends the walk.
            self.pending.clear();
            return Err(Corruption::TooLong {
                what,
                limit: MAX_NODES,
            });
        }
        let bytes = self
            .kernel
            .read_vec(addr, fields.node as usize)
            .map_err(|source| Corruption::Unreadable { what, addr, source })?;
        let word = |offset: u64| -> u64 {
            let at = offset as usize;
            let bytes = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        // A node that was taken out of the tree is its own parent; it is freed soon.
        if word(0) & !(fields.node - 1) == addr.get() {
            return Err(Corruption::Torn { what, addr });
        }
        let pivots = shape.pivots.size / 8;
        let slots = shape.slots.size / 8;
        let mut first = *keys.start();
        let mut found = Vec::new();
        for index in 0..slots {
            // The last slot in use has no pivot, or 0: its keys go on to the node's end.
            let pivot = if index < pivots {
                word(shape.pivots.offset + index * 8)
            } else {
                0
            };
            let is_last = pivot == 0 && index > 0 || pivot >= *keys.end() || index >= pivots;
            let last = if is_last { *keys.end() } else { pivot };
            if last < first {
                return Err(Corruption::Torn { what, addr });
            }
            let offset = shape.slots.offset + index * 8;
            let value = KernelAddr(word(offset));
            let keys = first..=last;
            match (value.is_null(), is_leaf) {
                (true, _) => {}
                (false, true) if is_internal(value) => {}
                (false, true) => found.push(Pending::Entry(MapleEntry { keys, value })),
                (false, false) => found.push(Pending::Node {
                    node: value,
                    link: addr + offset,
                    keys,
                }),
            }
            if is_last {
                break;
            }
            first = last.saturating_add(1);
        }
        self.pending.extend(found.into_iter().rev());
        Ok(())
    }
}

impl<M: Memory> MapleTree<'_, M> {
    /// The entry of a key. Only the nodes on the way to it are read.
    ///
    /// # Errors
    ///
    /// When a node on the way is corrupt.
    pub fn find(mut self, key: u64) -> Result<Option<MapleEntry>, Corruption> {
        while let Some(pending) = self.pending.pop() {
            match pending {
                Pending::Entry(entry) if entry.keys.contains(&key) => return Ok(Some(entry)),
                Pending::Node { node, link, keys } if keys.contains(&key) => {
                    self.open(node, link, keys)?;
                }
                Pending::Corrupt(corruption) => return Err(corruption),
                Pending::Entry(_) | Pending::Node { .. } => {}
            }
        }
        Ok(None)
    }
}

impl<M: Memory> Iterator for MapleTree<'_, M> {
    type Item = Result<MapleEntry, Corruption>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.pending.pop()? {
                Pending::Entry(entry) => return Some(Ok(entry)),
                Pending::Corrupt(corruption) => return Some(Err(corruption)),
                Pending::Node { node, link, keys } => {
                    if let Err(corruption) = self.open(node, link, keys) {
                        return Some(Err(corruption));
                    }
                }
            }
        }
    }
}
