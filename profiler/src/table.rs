//! Interned stacks: a tree of frames, in which a stack is the path from its outermost frame.

use std::collections::HashMap;
use std::hash::Hash;

/// A place in the tree: a whole stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StackId(pub u32);

/// A tree of frames with a bounded number of nodes.
#[derive(Debug)]
pub(crate) struct StackTable<F> {
    nodes: Vec<(Option<StackId>, F)>,
    ids: HashMap<(Option<StackId>, F), StackId>,
    limit: usize,
}

impl<F: Copy + Eq + Hash> StackTable<F> {
    /// An empty table that takes at most `limit` nodes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            nodes: Vec::new(),
            ids: HashMap::new(),
            limit: limit.min(u32::MAX as usize),
        }
    }

    /// The stack of these frames, outermost first; `None` for no frames, or when the table is full and this stack new.
    pub(crate) fn intern(&mut self, frames: impl IntoIterator<Item = F>) -> Option<StackId> {
        let mut stack = None;
        for frame in frames {
            let id = match self.ids.get(&(stack, frame)) {
                Some(&id) => id,
                None if self.nodes.len() < self.limit => {
                    let id = StackId(self.nodes.len() as u32);
                    self.nodes.push((stack, frame));
                    self.ids.insert((stack, frame), id);
                    id
                }
                None => return None,
            };
            stack = Some(id);
        }
        stack
    }

    /// Every node, parents before children: the stack without its innermost frame, and that frame.
    pub(crate) fn nodes(&self) -> &[(Option<StackId>, F)] {
        &self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_are_one_and_prefixes_are_shared() {
        let mut table = StackTable::new(100);
        let long = table.intern([1, 2, 3]).unwrap();
        assert_eq!(table.intern([1, 2, 3]), Some(long));
        let short = table.intern([1, 2]).unwrap();
        assert_eq!(table.nodes()[long.0 as usize], (Some(short), 3));
        assert_eq!(table.nodes().len(), 3);
        assert_ne!(table.intern([2, 1]), Some(short));
        assert_eq!(table.intern([]), None);
    }

    #[test]
    fn a_full_table_takes_known_stacks_only() {
        let mut table = StackTable::new(3);
        let known = table.intern([1, 2, 3]).unwrap();
        assert_eq!(table.intern([1, 2, 4]), None);
        assert_eq!(table.intern([1, 2, 3]), Some(known));
        assert_eq!(table.nodes().len(), 3);
    }
}
