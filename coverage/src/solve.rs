//! Solves a function's flow graph: from the counters of some arcs to the
//! counts of every block and arc.
//!
//! GCC puts counters only on the arcs outside a spanning tree of the graph.
//! What flows into a block flows out of it, so the rest follows.

use crate::gcno::NotedFunction;

/// The entry block's number.
pub(crate) const ENTRY: usize = 0;
/// The exit block's number.
pub(crate) const EXIT: usize = 1;

/// A solved flow graph.
#[derive(Debug)]
pub(crate) struct Graph {
    /// For each block, its count and arcs.
    pub(crate) blocks: Vec<Block>,
    /// Arcs by source block; those of one block in the order of their targets, as gcov has them.
    pub(crate) arcs: Vec<Arc>,
    /// Indices into `arcs`, by target block.
    pub(crate) incoming: Vec<u32>,
    /// Whether every block's count could be inferred.
    pub(crate) solvable: bool,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Block {
    /// How often the block ran. Negative when the counters contradict each other.
    pub(crate) count: i64,
    /// Into [`Graph::arcs`].
    pub(crate) successors: std::ops::Range<u32>,
    /// Into [`Graph::incoming`].
    pub(crate) predecessors: std::ops::Range<u32>,
    /// Reached only by exceptions (and `longjmp`).
    pub(crate) exceptional: bool,
    known: bool,
    queued: bool,
    /// Outgoing arcs of unknown count; `u32::MAX` where that says nothing.
    unknown_out: u32,
    unknown_in: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Arc {
    pub(crate) source: u32,
    pub(crate) target: u32,
    pub(crate) count: i64,
    /// The way to a landing pad.
    pub(crate) throw: bool,
    pub(crate) fallthrough: bool,
    /// The only way out of its block that is a real one.
    pub(crate) unconditional: bool,
    /// A call that does not come back.
    pub(crate) no_return: bool,
    fake: bool,
    known: bool,
}

impl Graph {
    /// Solves `function` with the counters of its arcs, in the order of the
    /// counters in memory; those that are missing count as 0.
    ///
    /// Arithmetic wraps: counters are read while the guest runs, and gcov's
    /// wraps too.
    pub(crate) fn solve(function: &NotedFunction, counters: &[i64]) -> Self {
        let mut graph = Self::build(function, counters);
        graph.propagate();
        graph.solvable = graph.blocks.iter().all(|b| b.known);
        if graph.arcs.iter().any(|a| a.throw) {
            graph.find_exceptional();
        }
        graph
    }

    fn build(function: &NotedFunction, counters: &[i64]) -> Self {
        let mut blocks = vec![Block::default(); function.blocks.len()];
        let mut arcs: Vec<Arc> = Vec::with_capacity(function.arcs.len());
        let mut counters = counters.iter();
        for (number, range) in function.blocks.iter().enumerate() {
            let noted = &function.arcs[range.start as usize..range.end as usize];
            let first = arcs.len();
            // A fake way out makes the block a call; its other ways out that
            // are not the next instruction then lead to landing pads.
            let call = number != ENTRY && noted.iter().any(|a| a.fake);
            let single = noted.iter().filter(|a| !a.fake).count() == 1;
            for arc in noted {
                let count = if arc.on_tree {
                    None
                } else {
                    Some(counters.next().copied().unwrap_or(0))
                };
                let target = &mut blocks[arc.target as usize];
                target.predecessors.end += 1;
                target.unknown_in += u32::from(arc.on_tree);
                blocks[number].unknown_out += u32::from(arc.on_tree);
                arcs.push(Arc {
                    source: number as u32,
                    target: arc.target,
                    count: count.unwrap_or(0),
                    throw: call && !arc.fake && !arc.fallthrough,
                    fallthrough: arc.fallthrough,
                    unconditional: single && !arc.fake,
                    no_return: arc.fake && number != ENTRY,
                    fake: arc.fake,
                    known: count.is_some(),
                });
            }
            // Counters go by the order of the file, what is shown by the target.
            arcs[first..].sort_by_key(|a| a.target);
            blocks[number].successors = first as u32..arcs.len() as u32;
        }
        let incoming = index_by_target(&mut blocks, &arcs);
        // Nothing enters the entry and nothing leaves the exit: there the sum
        // of no arcs says nothing.
        if let Some(entry) = blocks.get_mut(ENTRY).filter(|b| b.predecessors.is_empty()) {
            entry.unknown_in = u32::MAX;
        }
        if let Some(exit) = blocks.get_mut(EXIT).filter(|b| b.successors.is_empty()) {
            exit.unknown_out = u32::MAX;
        }
        Graph {
            blocks,
            arcs,
            incoming,
            solvable: false,
        }
    }

    fn successors(&self, block: usize) -> std::ops::Range<usize> {
        let range = &self.blocks[block].successors;
        range.start as usize..range.end as usize
    }

    /// The arcs that lead into `block`.
    pub(crate) fn incoming(&self, block: usize) -> impl Iterator<Item = &Arc> {
        let range = &self.blocks[block].predecessors;
        let incoming = &self.incoming[range.start as usize..range.end as usize];
        incoming.iter().map(|arc| &self.arcs[*arc as usize])
    }

    /// The arcs that lead out of `block`.
    pub(crate) fn outgoing(&self, block: usize) -> &[Arc] {
        &self.arcs[self.successors(block)]
    }

    /// A block is known once all arcs on one side are; an arc is known once
    /// its block and all other arcs on that side are. Each step settles a
    /// block or an arc for good, so this ends.
    fn propagate(&mut self) {
        let mut queue: Vec<u32> = (0..self.blocks.len() as u32).collect();
        self.blocks.iter_mut().for_each(|b| b.queued = true);
        while let Some(number) = queue.pop() {
            let number = number as usize;
            self.blocks[number].queued = false;
            if !self.blocks[number].known {
                let total = match &self.blocks[number] {
                    Block { unknown_out: 0, .. } => self.sum(self.outgoing(number).iter()),
                    Block { unknown_in: 0, .. } => self.sum(self.incoming(number)),
                    _ => continue,
                };
                self.blocks[number].count = total;
                self.blocks[number].known = true;
            }
            let count = self.blocks[number].count;
            if self.blocks[number].unknown_out == 1 {
                let total = self.sum(self.outgoing(number).iter());
                let arc = self.successors(number).find(|a| !self.arcs[*a].known);
                self.settle(arc, count.wrapping_sub(total), &mut queue);
            }
            if self.blocks[number].unknown_in == 1 {
                let total = self.sum(self.incoming(number));
                let range = &self.blocks[number].predecessors;
                let incoming = &self.incoming[range.start as usize..range.end as usize];
                let arc = incoming
                    .iter()
                    .map(|a| *a as usize)
                    .find(|a| !self.arcs[*a].known);
                self.settle(arc, count.wrapping_sub(total), &mut queue);
            }
        }
    }

    fn sum<'a>(&self, arcs: impl Iterator<Item = &'a Arc>) -> i64 {
        arcs.fold(0, |sum, arc| sum.wrapping_add(arc.count))
    }

    fn settle(&mut self, arc: Option<usize>, count: i64, queue: &mut Vec<u32>) {
        let Some(arc) = arc.map(|a| &mut self.arcs[a]) else {
            return;
        };
        arc.count = count;
        arc.known = true;
        let (source, target) = (arc.source, arc.target);
        self.blocks[source as usize].unknown_out -= 1;
        self.blocks[target as usize].unknown_in -= 1;
        for number in [source, target] {
            let block = &mut self.blocks[number as usize];
            if !block.queued {
                block.queued = true;
                queue.push(number);
            }
        }
    }

    /// Marks the blocks that only a `throw` leads to.
    fn find_exceptional(&mut self) {
        self.blocks.iter_mut().for_each(|b| b.exceptional = true);
        let mut queue = vec![ENTRY];
        self.blocks[ENTRY].exceptional = false;
        while let Some(number) = queue.pop() {
            for arc in self.successors(number) {
                let Arc {
                    target,
                    fake,
                    throw,
                    ..
                } = self.arcs[arc];
                let target = target as usize;
                if !fake && !throw && self.blocks[target].exceptional {
                    self.blocks[target].exceptional = false;
                    queue.push(target);
                }
            }
        }
    }
}

/// Fills in the blocks' predecessors, whose lengths have been counted.
fn index_by_target(blocks: &mut [Block], arcs: &[Arc]) -> Vec<u32> {
    let mut start = 0;
    for block in blocks.iter_mut() {
        let length = block.predecessors.end;
        block.predecessors = start..start;
        start += length;
    }
    let mut incoming = vec![0; arcs.len()];
    for (number, arc) in arcs.iter().enumerate() {
        let range = &mut blocks[arc.target as usize].predecessors;
        incoming[range.end as usize] = number as u32;
        range.end += 1;
    }
    incoming
}
