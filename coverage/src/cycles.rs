//! How often a line ran, when its blocks form loops.
//!
//! A line's count is what enters its blocks from other lines, plus the rounds
//! of the loops that never leave it (`while (x--);`). gcov finds those loops
//! with the algorithm of K. A. Hawick and H. A. James, "Enumerating Circuits
//! and Loops in Graphs with Self-Arcs and Multiple-Arcs" (2008), and takes
//! each loop's rounds off its arcs; which loop is found first decides the
//! result, so the order of visits here is gcov's.

/// Where a line's search is given up: far beyond real code, reached only by
/// damaged notes. The count then lacks the rounds not found so far.
const MAX_STEPS: u32 = 1 << 20;

/// The blocks of one line, numbered from 0 in the order of their first mention.
#[derive(Debug, Default)]
pub(crate) struct LineGraph {
    arcs: Vec<LineArc>,
    /// Into `arcs`, for each block.
    outgoing: Vec<std::ops::Range<usize>>,
    /// For each block, what gcov orders blocks by: their place in the function.
    order: Vec<u32>,
}

#[derive(Debug)]
struct LineArc {
    target: u32,
    count: i64,
}

impl LineGraph {
    pub(crate) fn clear(&mut self) {
        self.arcs.clear();
        self.outgoing.clear();
        self.order.clear();
    }

    /// Adds the next block, with its arcs to blocks of this line.
    pub(crate) fn push(&mut self, order: u32, arcs: impl Iterator<Item = (u32, i64)>) {
        let first = self.arcs.len();
        self.arcs
            .extend(arcs.map(|(target, count)| LineArc { target, count }));
        self.outgoing.push(first..self.arcs.len());
        self.order.push(order);
    }

    /// Whether no arc stays on the line: then there is no loop either.
    pub(crate) fn is_loopless(&self) -> bool {
        self.arcs.is_empty()
    }

    /// The rounds of the loops among the blocks, which are searched from each
    /// of `starts` in turn.
    pub(crate) fn rounds(&mut self, starts: &[u32]) -> i64 {
        let mut search = Search {
            blocked: vec![false; self.order.len()],
            waiting: vec![Vec::new(); self.order.len()],
            path: Vec::new(),
            count: 0,
            steps: 0,
        };
        for start in starts {
            search.blocked.fill(false);
            search.waiting.iter_mut().for_each(Vec::clear);
            search.path.clear();
            self.circuits_from(*start, &mut search);
        }
        search.count
    }

    fn circuits_from(&mut self, start: u32, search: &mut Search) {
        struct Visit {
            block: u32,
            next: usize,
            found: bool,
        }
        let mut visits = vec![Visit {
            block: start,
            next: self.outgoing[start as usize].start,
            found: false,
        }];
        search.blocked[start as usize] = true;
        while let Some(visit) = visits.last_mut() {
            let outgoing = self.outgoing[visit.block as usize].clone();
            if visit.next < outgoing.end && search.steps < MAX_STEPS {
                let arc = visit.next;
                visit.next += 1;
                search.steps += 1;
                if !self.is_usable(arc, start) {
                    continue;
                }
                let target = self.arcs[arc].target;
                search.path.push(arc);
                if target == start {
                    self.take_rounds(search);
                    visit.found = true;
                } else if !search.blocked[target as usize]
                    && search.path.iter().all(|a| self.arcs[*a].count > 0)
                {
                    search.blocked[target as usize] = true;
                    let next = self.outgoing[target as usize].start;
                    visits.push(Visit {
                        block: target,
                        next,
                        found: false,
                    });
                    // The arc stays on the path until that visit ends.
                    continue;
                }
                search.path.pop();
                continue;
            }
            let Visit { block, found, .. } = *visit;
            visits.pop();
            if found {
                search.unblock(block);
            } else {
                for arc in outgoing.filter(|a| self.is_usable(*a, start)) {
                    let target = self.arcs[arc].target as usize;
                    if !search.waiting[target].contains(&block) {
                        search.waiting[target].push(block);
                    }
                }
            }
            if let Some(parent) = visits.last_mut() {
                parent.found |= found;
                search.path.pop();
            }
        }
    }

    fn is_usable(&self, arc: usize, start: u32) -> bool {
        let LineArc { target, count } = self.arcs[arc];
        count > 0 && self.order[target as usize] >= self.order[start as usize]
    }

    /// The path is a loop: it went round as often as its rarest arc.
    fn take_rounds(&mut self, search: &mut Search) {
        let rounds = search
            .path
            .iter()
            .map(|a| self.arcs[*a].count)
            .min()
            .unwrap_or(0);
        // A loop found further along the path can have used up an arc of it.
        // gcov stops with a failed assertion then.
        if rounds > 0 {
            search.count = search.count.wrapping_add(rounds);
            for arc in &search.path {
                self.arcs[*arc].count -= rounds;
            }
        }
    }
}

struct Search {
    /// Blocks that cannot complete a new loop for now.
    blocked: Vec<bool>,
    /// For each block, those that may complete one once it can.
    waiting: Vec<Vec<u32>>,
    /// Arcs from the start to the block at hand.
    path: Vec<usize>,
    count: i64,
    steps: u32,
}

impl Search {
    fn unblock(&mut self, block: u32) {
        let mut queue = vec![block];
        while let Some(block) = queue.pop() {
            if std::mem::take(&mut self.blocked[block as usize]) {
                queue.append(&mut self.waiting[block as usize]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_a_block_that_repeats_itself() {
        let mut line = LineGraph::default();
        line.push(2, [(0, 41)].into_iter());
        assert_eq!(line.rounds(&[0]), 41);
    }

    #[test]
    fn counts_two_loops_that_share_a_block() {
        let mut line = LineGraph::default();
        line.push(2, [(1, 5), (2, 3)].into_iter());
        line.push(3, [(0, 5)].into_iter());
        line.push(4, [(0, 3)].into_iter());
        assert_eq!(line.rounds(&[0, 1, 2]), 8);
    }

    #[test]
    fn survives_a_loop_whose_first_arc_is_used_up() {
        let mut line = LineGraph::default();
        line.push(2, [(1, 1)].into_iter());
        line.push(3, [(0, 7), (2, 1)].into_iter());
        line.push(4, [(0, 1)].into_iter());
        assert_eq!(line.rounds(&[0, 1, 2]), 1);
    }

    #[test]
    fn gives_up_on_a_graph_that_no_code_has() {
        // Complete graph: the number of loops grows with the factorial.
        let mut line = LineGraph::default();
        for block in 0..60 {
            line.push(block, (0..60).map(|target| (target, i64::MAX / 2)));
        }
        line.rounds(&(0..60).collect::<Vec<_>>());
    }
}
