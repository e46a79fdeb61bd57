//! Sums over a profile: by function and by task.

use std::collections::{HashMap, HashSet};

use crate::profile::{Function, Profile, State, TaskLabel};

/// What a function cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionTotal<'a> {
    /// The function.
    pub function: &'a Function,
    /// Samples in the function itself.
    pub self_samples: u64,
    /// Samples in it or in what it called.
    pub total_samples: u64,
    /// The line met most often, of those samples that were in the function itself, else of all.
    pub hottest_line: Option<u32>,
}

/// What a task cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskTotal<'a> {
    /// The task; `None` for samples whose task could not be told.
    pub task: Option<&'a TaskLabel>,
    /// Samples in kernel code.
    pub kernel_samples: u64,
    /// Samples in guest user code.
    pub user_samples: u64,
}

impl TaskTotal<'_> {
    /// Samples on a CPU.
    pub fn samples(&self) -> u64 {
        self.kernel_samples + self.user_samples
    }
}

#[derive(Default)]
struct Sums {
    own: u64,
    total: u64,
    own_lines: HashMap<u32, u64>,
    lines: HashMap<u32, u64>,
}

fn hottest(lines: &HashMap<u32, u64>) -> Option<u32> {
    lines
        .iter()
        .max_by_key(|(line, count)| (**count, std::cmp::Reverse(**line)))
        .map(|(line, _)| *line)
}

impl Profile {
    /// Functions by samples on a CPU, those with the most of their own first. Idle CPUs do not count.
    pub fn functions_by_cost(&self) -> Vec<FunctionTotal<'_>> {
        let mut sums = HashMap::<u32, Sums>::new();
        for group in self.samples.iter().filter(|group| group.state.is_on_cpu()) {
            // A function that calls itself is counted once.
            let mut seen = HashSet::new();
            for (depth, frame) in self.frames_of(group.stack).enumerate() {
                let sums = sums.entry(frame.function).or_default();
                if depth == 0 {
                    sums.own += group.count;
                    if let Some(line) = frame.line {
                        *sums.own_lines.entry(line).or_default() += group.count;
                    }
                }
                if seen.insert(frame.function) {
                    sums.total += group.count;
                    if let Some(line) = frame.line {
                        *sums.lines.entry(line).or_default() += group.count;
                    }
                }
            }
        }
        let mut totals: Vec<FunctionTotal> = sums
            .into_iter()
            .filter_map(|(index, sums)| {
                Some(FunctionTotal {
                    function: self.functions.get(index as usize)?,
                    self_samples: sums.own,
                    total_samples: sums.total,
                    hottest_line: hottest(&sums.own_lines).or_else(|| hottest(&sums.lines)),
                })
            })
            .collect();
        totals.sort_by(|a, b| {
            (b.self_samples, b.total_samples, &a.function.name).cmp(&(
                a.self_samples,
                a.total_samples,
                &b.function.name,
            ))
        });
        totals
    }

    /// Tasks by samples on a CPU, the busiest first. Idle CPUs do not count.
    pub fn tasks_by_cost(&self) -> Vec<TaskTotal<'_>> {
        let mut sums = HashMap::<Option<u32>, (u64, u64)>::new();
        for group in &self.samples {
            let (kernel, user) = match group.state {
                State::Kernel => (group.count, 0),
                State::User => (0, group.count),
                State::Idle | State::Stolen => continue,
            };
            let sum = sums.entry(group.task).or_default();
            sum.0 += kernel;
            sum.1 += user;
        }
        let mut totals: Vec<TaskTotal> = sums
            .into_iter()
            .map(|(task, (kernel_samples, user_samples))| TaskTotal {
                task: task.and_then(|task| self.tasks.get(task as usize)),
                kernel_samples,
                user_samples,
            })
            .collect();
        totals.sort_by_key(|total| {
            (
                std::cmp::Reverse(total.samples()),
                total.task.map(|task| task.pid),
            )
        });
        totals
    }
}
