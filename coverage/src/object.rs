//! One object's coverage: its notes and counters together, as gcov shows them.
//!
//! The rules are those of `gcov --json-format -b` (GCC 12), down to its
//! quirks, because a report that differs from gcov's would be taken for wrong:
//!
//! * A line's count is not the sum of its blocks' counts but what enters them
//!   from other lines plus the loops within the line (see `cycles.rs`).
//!   A block belongs, for this, to the last line of its last location only,
//!   and is counted again for each of its locations.
//! * The branches of a line are those out of the blocks that end on it. A way
//!   out that is the only one, or that stands for a call that does not return,
//!   is no branch.
//! * The block with the highest number is left out of a function's executed
//!   blocks and of the branches, as if it were the exit, which since GCC 4.8
//!   is block 1. The exit has no lines and counts as executed.
//! * Functions that begin on one line (those of one macro, such as
//!   `SYSCALL_DEFINE`) each keep lines of their own.

use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::counters::{FunctionCounters, ObjectCounters};
use crate::cycles::LineGraph;
use crate::gcno::{NotedFunction, Notes};
use crate::solve::{ENTRY, Graph};

/// One object's coverage, by source file.
#[derive(Debug, Clone, Default)]
pub struct ObjectCoverage {
    /// In the order in which the notes mention them; files without code are left out.
    pub files: Vec<ObjectFile>,
    /// Functions whose checksums in memory are not those of the notes. They count as not run.
    pub mismatched: usize,
    /// Functions whose flow graph has more than one solution.
    pub unsolvable: usize,
    /// Functions with counters that contradict each other: read while the guest ran, or left by
    /// a `longjmp`.
    pub torn: usize,
}

/// What an object contributes to one source file.
#[derive(Debug, Clone)]
pub struct ObjectFile {
    /// The name in the notes: relative to the compiler's directory, or absolute.
    pub name: String,
    /// By their place in the file.
    pub functions: Vec<ObjectFunction>,
    /// The lines that functions have for themselves, then those of the file, ascending.
    pub lines: Vec<ObjectLine>,
}

/// A function in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFunction {
    /// The assembler name.
    pub name: String,
    /// From 1.
    pub start_line: u32,
    /// 0 when unknown (before GCC 8).
    pub start_column: u32,
    /// The last line.
    pub end_line: u32,
    /// How often it was entered.
    pub count: i64,
    /// Basic blocks without entry and exit.
    pub blocks: u32,
    /// How many of them ran.
    pub blocks_executed: u32,
}

/// A line in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectLine {
    /// From 1.
    pub number: u32,
    /// For a line that belongs to one of several functions that begin
    /// together: which of [`ObjectFile::functions`].
    pub function: Option<u32>,
    /// How often the line ran; negative only when counters contradict each other.
    pub count: i64,
    /// Whether a block of the line, other than a handler of exceptions, did not run.
    pub unexecuted_block: bool,
    /// In the order of their targets.
    pub branches: Vec<ObjectBranch>,
}

/// One way out of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectBranch {
    /// How often it was taken.
    pub count: i64,
    /// To the next instruction.
    pub fallthrough: bool,
    /// To a landing pad.
    pub throw: bool,
    /// Whether the block that it leaves ran at all.
    pub reached: bool,
}

/// Solves one object.
///
/// Without `counters` every function counts as not run, as with gcov when
/// there is no `.gcda` file.
pub fn solve(notes: &Notes, counters: Option<&ObjectCounters>) -> ObjectCoverage {
    let mut solver = Solver::new(notes, counters);
    solver.add_blocks();
    solver.finish()
}

/// A block of a function: indices into [`Solver::functions`] and its graph.
type BlockId = (u32, u32);

#[derive(Default)]
struct Line {
    /// The sum of the blocks' counts; stands when no block ends here.
    count: i64,
    unexecuted_block: bool,
    /// Blocks that end on this line; one can occur more than once.
    blocks: Vec<BlockId>,
}

/// Where a line is counted: for a file, or for one function of a group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Scope {
    File(u32),
    Function(u32),
}

struct Solver<'a> {
    notes: &'a Notes,
    functions: Vec<Function<'a>>,
    lines: FxHashMap<(Scope, u32), Line>,
    result: ObjectCoverage,
    /// Reused from line to line: the number of each block on the line at hand.
    on_line: Vec<u32>,
    line_graph: LineGraph,
}

struct Function<'a> {
    noted: &'a NotedFunction,
    graph: Graph,
    /// Shares its first line with another one.
    grouped: bool,
    /// The number of its first block among all blocks of the object.
    first_block: usize,
    blocks_executed: u32,
}

const NOT_ON_LINE: u32 = u32::MAX;

impl<'a> Solver<'a> {
    fn new(notes: &'a Notes, counters: Option<&ObjectCounters>) -> Self {
        let mut starts: FxHashMap<(u32, u32), u32> = FxHashMap::default();
        // Of two functions with one ident, gcov gives the counters to the last.
        let mut owners: FxHashMap<u32, usize> = FxHashMap::default();
        for (index, function) in notes.functions.iter().enumerate() {
            if !function.artificial {
                *starts
                    .entry((function.source, function.start_line))
                    .or_default() += 1;
            }
            owners.insert(function.ident, index);
        }
        let mut by_ident: FxHashMap<u32, FunctionCounters<'_>> = FxHashMap::default();
        by_ident.extend(
            counters
                .iter()
                .flat_map(|c| c.functions())
                .map(|f| (f.ident, f)),
        );

        let mut result = ObjectCoverage::default();
        let mut functions = Vec::with_capacity(notes.functions.len());
        let mut first_block = 0;
        for (index, noted) in notes
            .functions
            .iter()
            .enumerate()
            .filter(|(_, f)| !f.artificial)
        {
            let owned = by_ident
                .get(&noted.ident)
                .filter(|_| owners.get(&noted.ident) == Some(&index));
            let values = match owned {
                Some(counters) if counters.fit(noted) => counters.values,
                Some(_) => {
                    result.mismatched += 1;
                    &[]
                }
                None => &[],
            };
            let graph = Graph::solve(noted, values);
            result.unsolvable += usize::from(!graph.solvable);
            result.torn += usize::from(
                graph.blocks.iter().any(|b| b.count < 0) || graph.arcs.iter().any(|a| a.count < 0),
            );
            let grouped = starts
                .get(&(noted.source, noted.start_line))
                .is_some_and(|n| *n > 1);
            functions.push(Function {
                noted,
                graph,
                grouped,
                first_block,
                blocks_executed: 0,
            });
            first_block += noted.blocks.len();
        }
        Solver {
            notes,
            functions,
            lines: FxHashMap::default(),
            result,
            on_line: vec![NOT_ON_LINE; first_block],
            line_graph: LineGraph::default(),
        }
    }

    /// Puts every block on its lines.
    fn add_blocks(&mut self) {
        for (index, function) in self.functions.iter_mut().enumerate() {
            let noted = function.noted;
            let blocks = &function.graph.blocks;
            // Not the exit but the last block, as gcov has it.
            let inner = |block: usize| block != ENTRY && block + 1 != blocks.len();
            let executed = (0..blocks.len())
                .filter(|b| blocks[*b].count != 0 && inner(*b))
                .count();
            function.blocks_executed = executed as u32;

            let mut locations: Vec<_> = noted.locations.iter().collect();
            // Blocks in their order; locations within a block stay as they are.
            locations.sort_by_key(|l| l.block);
            let mut last: Option<(u32, (Scope, u32))> = None;
            for location in locations {
                let block = &blocks[location.block as usize];
                if last.is_some_and(|(number, _)| number != location.block) {
                    last = None;
                }
                let mut highest = 0;
                for line in &noted.lines[range(&location.lines)] {
                    let own = function.grouped
                        && location.source == noted.source
                        && (noted.start_line..=noted.end_line).contains(line);
                    let scope = if own {
                        Scope::Function(index as u32)
                    } else {
                        Scope::File(location.source)
                    };
                    let entry = self.lines.entry((scope, *line)).or_default();
                    entry.unexecuted_block |= !block.exceptional && block.count == 0;
                    entry.count = entry.count.wrapping_add(block.count);
                    if *line >= highest {
                        highest = *line;
                        last = Some((location.block, (scope, *line)));
                    }
                }
                if let Some((number, key)) = last
                    && inner(number as usize)
                    && let Some(line) = self.lines.get_mut(&key)
                {
                    line.blocks.push((index as u32, number));
                }
            }
        }
    }

    /// Counts the lines, and sorts them and the functions by file.
    fn finish(mut self) -> ObjectCoverage {
        let mut files: Vec<ObjectFile> = (self.notes.sources.iter())
            .map(|name| ObjectFile {
                name: name.clone(),
                functions: Vec::new(),
                lines: Vec::new(),
            })
            .collect();
        let mut places = vec![0; self.functions.len()];
        let mut order: Vec<usize> = (0..self.functions.len()).collect();
        order.sort_by_key(|f| {
            let noted = self.functions[*f].noted;
            (noted.source, noted.start_line, noted.start_column)
        });
        for index in order {
            let Function {
                noted,
                graph,
                blocks_executed,
                ..
            } = &self.functions[index];
            let list = &mut files[noted.source as usize].functions;
            places[index] = list.len() as u32;
            list.push(ObjectFunction {
                name: noted.name.clone(),
                start_line: noted.start_line,
                start_column: noted.start_column,
                end_line: noted.end_line,
                count: graph.blocks.get(ENTRY).map_or(0, |b| b.count),
                blocks: graph.blocks.len().saturating_sub(2) as u32,
                blocks_executed: *blocks_executed,
            });
        }

        let mut lines: Vec<_> = std::mem::take(&mut self.lines).into_iter().collect();
        lines.sort_unstable_by_key(|(key, _)| match *key {
            (Scope::Function(function), line) => (0, function, line),
            (Scope::File(source), line) => (1, source, line),
        });
        for ((scope, number), line) in lines {
            let (source, function) = match scope {
                Scope::File(source) => (source, None),
                Scope::Function(index) => (
                    self.functions[index as usize].noted.source,
                    Some(places[index as usize]),
                ),
            };
            let count = if line.blocks.is_empty() {
                line.count
            } else {
                self.count(&line.blocks)
            };
            let branches = self.branches(&line.blocks);
            let unexecuted_block = line.unexecuted_block;
            files[source as usize].lines.push(ObjectLine {
                number,
                function,
                count,
                unexecuted_block,
                branches,
            });
        }
        files.retain(|f| !f.functions.is_empty() || !f.lines.is_empty());
        self.result.files = files;
        self.result
    }

    fn branches(&self, blocks: &[BlockId]) -> Vec<ObjectBranch> {
        let mut branches = Vec::new();
        for (function, block) in blocks {
            let graph = &self.functions[*function as usize].graph;
            let reached = graph.blocks[*block as usize].count != 0;
            let arcs = graph.outgoing(*block as usize).iter();
            branches.extend(
                arcs.filter(|a| !a.unconditional && !a.no_return)
                    .map(|arc| ObjectBranch {
                        count: arc.count,
                        fallthrough: arc.fallthrough,
                        throw: arc.throw,
                        reached,
                    }),
            );
        }
        branches
    }

    /// How often a line ran whose blocks are `blocks`.
    fn count(&mut self, blocks: &[BlockId]) -> i64 {
        let mut starts = Vec::with_capacity(blocks.len());
        let mut distinct: Vec<BlockId> = Vec::with_capacity(blocks.len());
        for id in blocks {
            let number = &mut self.on_line[global(&self.functions, *id)];
            if *number == NOT_ON_LINE {
                *number = distinct.len() as u32;
                distinct.push(*id);
            }
            starts.push(*number);
        }
        let (functions, on_line) = (&self.functions, &self.on_line);
        let place = |function: u32, block: u32| on_line[global(functions, (function, block))];

        let mut count: i64 = 0;
        for (function, block) in blocks {
            let graph = &functions[*function as usize].graph;
            let incoming = graph.incoming(*block as usize);
            count = incoming
                .filter(|arc| place(*function, arc.source) == NOT_ON_LINE)
                .fold(count, |count, arc| count.wrapping_add(arc.count));
        }
        self.line_graph.clear();
        for (function, block) in &distinct {
            let graph = &functions[*function as usize].graph;
            let outgoing = graph.outgoing(*block as usize).iter();
            let arcs = outgoing.map(|arc| (place(*function, arc.target), arc.count));
            // Arcs lead to blocks of the same function only, so the block's
            // own number orders what has to be ordered.
            self.line_graph
                .push(*block, arcs.filter(|(target, _)| *target != NOT_ON_LINE));
        }
        if !self.line_graph.is_loopless() {
            count = count.wrapping_add(self.line_graph.rounds(&starts));
        }
        for id in &distinct {
            self.on_line[global(&self.functions, *id)] = NOT_ON_LINE;
        }
        count
    }
}

fn global(functions: &[Function<'_>], (function, block): BlockId) -> usize {
    functions[function as usize].first_block + block as usize
}

fn range(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}
