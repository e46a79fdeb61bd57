//! The kernel's lists and trees, walked with distrust.

use std::collections::HashSet;

use super::{Object, Reader, ViewError};
use crate::addr::KernelAddr;
use crate::kernel::Corruption;
use crate::memory::Memory;

/// More elements than any list of a kernel that is worth a look: a guest has at most 4 million
/// pids.
const MAX_ELEMENTS: usize = 1 << 22;

/// Deeper than a balanced tree of 2^32 nodes can be.
const MAX_DEPTH: usize = 64;

/// The elements of a `list_head`, `hlist_head` or `hlist_nulls_head`. Ends where the list is
/// corrupt, with a warning.
pub struct List<'r, M> {
    reader: &'r Reader<'r, M>,
    owner: String,
    /// Of the link within the owner.
    offset: u64,
    what: &'static str,
    /// Where the list ends, if not with a null pointer.
    end: Option<KernelAddr>,
    /// The link to be read next.
    link: Option<KernelAddr>,
    seen: HashSet<KernelAddr>,
}

impl<'k, M: Memory> Reader<'k, M> {
    /// The objects of type `owner` that are linked through their member `link` into the
    /// `struct list_head` at `head`. `what` is the list's name in warnings.
    ///
    /// # Errors
    ///
    /// When this kernel's type has no such member.
    pub fn list(
        &self,
        head: KernelAddr,
        owner: &str,
        link: &str,
        what: &'static str,
    ) -> Result<List<'_, M>, ViewError> {
        let next = self.offset("struct list_head", "next")?;
        self.links(Some(head), head + next, owner, link, what)
    }

    /// As [`list`](Reader::list), for the `struct hlist_head` (or `hlist_nulls_head`) at `head`.
    ///
    /// # Errors
    ///
    /// When this kernel's type has no such member.
    pub fn hlist(
        &self,
        head: KernelAddr,
        owner: &str,
        link: &str,
        what: &'static str,
    ) -> Result<List<'_, M>, ViewError> {
        // `first` of the head and `next` of the nodes: both are the first member.
        let first = self.offset("struct hlist_head", "first")?;
        self.links(None, head + first, owner, link, what)
    }

    fn links(
        &self,
        end: Option<KernelAddr>,
        first: KernelAddr,
        owner: &str,
        link: &str,
        what: &'static str,
    ) -> Result<List<'_, M>, ViewError> {
        Ok(List {
            reader: self,
            offset: self.offset(owner, link)?,
            owner: owner.to_owned(),
            what,
            end,
            link: Some(first),
            seen: HashSet::new(),
        })
    }

    /// The objects of type `owner` that hang with their member `link` in the red-black tree whose
    /// `struct rb_root` is at `root`, in order.
    ///
    /// # Errors
    ///
    /// When this kernel's type has no such member.
    pub fn tree(
        &self,
        root: KernelAddr,
        owner: &str,
        link: &str,
        what: &'static str,
    ) -> Result<Tree<'_, M>, ViewError> {
        let mut tree = Tree {
            reader: self,
            offset: self.offset(owner, link)?,
            owner: owner.to_owned(),
            what,
            left: self.offset("struct rb_node", "rb_left")?,
            right: self.offset("struct rb_node", "rb_right")?,
            above: Vec::new(),
            seen: HashSet::new(),
        };
        tree.descend(root + self.offset("struct rb_root", "rb_node")?);
        Ok(tree)
    }

    fn offset(&self, owner: &str, path: &str) -> Result<u64, ViewError> {
        let layout = self.kernel.image().layout()?;
        Ok(layout.member(owner, path)?.offset)
    }
}

/// A node as it is met: refused when it cannot be one, or was met before.
fn visit(
    seen: &mut HashSet<KernelAddr>,
    what: &'static str,
    link: KernelAddr,
    node: KernelAddr,
) -> Result<(), Corruption> {
    if !node.get().is_multiple_of(4) {
        return Err(Corruption::WildPointer {
            what,
            addr: link,
            value: node,
        });
    }
    if seen.len() >= MAX_ELEMENTS {
        return Err(Corruption::TooLong {
            what,
            limit: MAX_ELEMENTS,
        });
    }
    if !seen.insert(node) {
        return Err(Corruption::Cycle { what, addr: node });
    }
    Ok(())
}

impl<M: Memory> List<'_, M> {
    fn step(&mut self, link: KernelAddr) -> Result<Option<KernelAddr>, Corruption> {
        let node = self.reader.pointer(link, self.what)?;
        // Bit 0 marks the end of an `hlist_nulls` list (include/linux/list_nulls.h).
        let is_end = match self.end {
            Some(end) => node == end,
            None => node.is_null() || node.get() & 1 == 1,
        };
        if is_end {
            return Ok(None);
        }
        visit(&mut self.seen, self.what, link, node)?;
        Ok(Some(node))
    }
}

impl<'r, M: Memory> Iterator for List<'r, M> {
    type Item = Object<'r, M>;

    fn next(&mut self) -> Option<Object<'r, M>> {
        let link = self.link.take()?;
        let node = self.reader.or_warn(self.step(link))??;
        self.link = Some(node);
        let addr = KernelAddr(node.get().wrapping_sub(self.offset));
        Some(self.reader.object(&self.owner, addr))
    }
}

/// The elements of a red-black tree, in order. What is corrupt is left out, with a warning.
pub struct Tree<'r, M> {
    reader: &'r Reader<'r, M>,
    owner: String,
    offset: u64,
    what: &'static str,
    left: u64,
    right: u64,
    /// Nodes whose left side is done or being done.
    above: Vec<KernelAddr>,
    seen: HashSet<KernelAddr>,
}

impl<M: Memory> Tree<'_, M> {
    /// Goes down the left side of the subtree that the pointer at `link` points to.
    fn descend(&mut self, mut link: KernelAddr) {
        loop {
            let node = self.reader.pointer(link, self.what);
            let Some(node) = self.reader.or_warn(node).filter(|node| !node.is_null()) else {
                return;
            };
            let deep = match self.above.len() {
                0..MAX_DEPTH => Ok(()),
                _ => Err(Corruption::TooLong {
                    what: self.what,
                    limit: MAX_DEPTH,
                }),
            };
            let visited = deep.and_then(|()| visit(&mut self.seen, self.what, link, node));
            if self.reader.or_warn(visited).is_none() {
                return;
            }
            self.above.push(node);
            link = node + self.left;
        }
    }
}

impl<'r, M: Memory> Iterator for Tree<'r, M> {
    type Item = Object<'r, M>;

    fn next(&mut self) -> Option<Object<'r, M>> {
        let node = self.above.pop()?;
        self.descend(node + self.right);
        let addr = KernelAddr(node.get().wrapping_sub(self.offset));
        Some(self.reader.object(&self.owner, addr))
    }
}
