//! Processes as people read them: a table, and the tree of parents and children.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::{Process, Processes};
use crate::table::Table;

/// Deeper levels of the tree are drawn at this one.
const MAX_DEPTH: usize = 40;

impl fmt::Display for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut columns = vec![">PID"];
        if self.options.threads {
            columns.push(">TID");
        }
        columns.extend([
            ">PPID", ">UID", "S", ">CPU", ">RUN", ">DELAY", "WCHAN", "COMM",
        ]);
        columns.push("COMMAND");
        let mut table = Table::new(&columns);
        let rows = match self.options.tree {
            true => tree(&self.list),
            false => self.list.iter().map(|task| (String::new(), task)).collect(),
        };
        for (branch, task) in rows {
            let mut row = vec![task.pid.to_string()];
            if self.options.threads {
                row.push(task.tid.to_string());
            }
            row.extend([
                task.ppid.to_string(),
                task.uid.to_string(),
                format!("{}{}", task.state, if task.running { "*" } else { "" }),
                task.cpu.to_string(),
                duration(task.runtime_ns),
                task.run_delay_ns.map_or("-".to_owned(), duration),
                task.wchan.clone().unwrap_or_else(|| "-".to_owned()),
                task.comm.clone(),
                branch + &command(task),
            ]);
            table.row(row);
        }
        table.fmt(f)
    }
}

/// The command line; in brackets the name of a task that has none.
fn command(task: &Process) -> String {
    if task.cmdline.is_empty() {
        let ended = if task.state.0 == 'Z' {
            " <defunct>"
        } else {
            ""
        };
        return format!("[{}]{ended}", task.comm);
    }
    task.cmdline.join(" ")
}

/// A time in three or four digits and its unit.
fn duration(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match seconds {
        0 => format!("{}.{}ms", ns / 1_000_000, ns / 100_000 % 10),
        1..=99 => format!("{seconds}.{:02}s", ns / 10_000_000 % 100),
        100..=5999 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// The tasks in the order of a tree, each with the branch that is drawn in front of it. Threads
/// hang from their process, processes from their parent; those whose parent is not listed, or is
/// itself below them, stand alone.
fn tree(list: &[Process]) -> Vec<(String, &Process)> {
    let is_thread = |task: &Process| task.tid != task.pid;
    let listed: HashSet<_> = list.iter().map(|task| task.tid).collect();
    let above = |task: &Process| match is_thread(task) {
        true => task.pid,
        false => task.ppid,
    };
    let mut children: HashMap<_, Vec<&Process>> = HashMap::new();
    let mut roots = Vec::new();
    for task in list {
        let parent = above(task);
        match listed.contains(&parent) && parent != task.tid {
            true => children.entry(parent).or_default().push(task),
            false => roots.push(task),
        }
    }
    // Whatever hangs in a circle is reached from none of these, so each is tried at last.
    let mut drawn = HashSet::new();
    let mut rows = Vec::with_capacity(list.len());
    for root in roots.into_iter().chain(list) {
        let mut pending = vec![(String::new(), String::new(), root)];
        while let Some((branch, below, task)) = pending.pop() {
            if !drawn.insert(task.task) {
                continue;
            }
            let mut below_it = children.get(&task.tid).cloned().unwrap_or_default();
            below_it.retain(|child| !drawn.contains(&child.task));
            // Threads before processes.
            below_it.sort_by_key(|child| (!is_thread(child), child.tid));
            let last = below_it.len().saturating_sub(1);
            for (at, child) in below_it.into_iter().enumerate().rev() {
                let (corner, line) = match at == last {
                    true => ("└─ ", "   "),
                    false => ("├─ ", "│  "),
                };
                let deeper = below.chars().count() / 3 < MAX_DEPTH;
                let next = match deeper {
                    true => format!("{below}{line}"),
                    false => below.clone(),
                };
                pending.push((format!("{below}{corner}"), next, child));
            }
            rows.push((branch, task));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{GuestPid, KernelAddr};
    use crate::tasks::TaskState;

    fn task(pid: i32, tid: i32, ppid: i32) -> Process {
        Process {
            pid: GuestPid(pid),
            tid: GuestPid(tid),
            ppid: GuestPid(ppid),
            uid: 0,
            ruid: 0,
            state: TaskState('S'),
            running: false,
            cpu: 0,
            threads: 1,
            runtime_ns: 0,
            run_delay_ns: None,
            wchan: None,
            comm: format!("t{tid}"),
            cmdline: Vec::new(),
            kernel_thread: false,
            task: KernelAddr(tid as u64 * 8),
        }
    }

    fn drawn(tasks: &[Process]) -> Vec<String> {
        let rows = tree(tasks).into_iter();
        rows.map(|(branch, task)| branch + &task.comm).collect()
    }

    #[test]
    fn children_hang_from_their_parents() {
        let tasks = [
            task(1, 1, 0),
            task(2, 2, 0),
            task(5, 5, 1),
            task(5, 6, 1),
            task(7, 7, 5),
            task(8, 8, 1),
        ];
        assert_eq!(
            drawn(&tasks),
            ["t1", "├─ t5", "│  ├─ t6", "│  └─ t7", "└─ t8", "t2"]
        );
    }

    #[test]
    fn circles_are_drawn_once() {
        let tasks = [task(3, 3, 4), task(4, 4, 5), task(5, 5, 3), task(9, 9, 9)];
        let mut lines = drawn(&tasks);
        assert_eq!(lines, ["t9", "t3", "└─ t5", "   └─ t4"]);
        lines.sort();
        assert_eq!(lines.len(), tasks.len());
    }

    #[test]
    fn deep_trees_end_to_the_right() {
        let tasks: Vec<_> = (1..5000).map(|pid| task(pid, pid, pid - 1)).collect();
        let lines = drawn(&tasks);
        assert_eq!(lines.len(), tasks.len());
        assert!(lines.iter().all(|line| line.chars().count() < 200));
    }

    #[test]
    fn times_have_three_digits_or_so() {
        assert_eq!(duration(0), "0.0ms");
        assert_eq!(duration(12_345_678), "12.3ms");
        assert_eq!(duration(1_234_567_890), "1.23s");
        assert_eq!(duration(123_000_000_000), "2m03s");
        assert_eq!(duration(u64::MAX), "5124095h34m");
    }
}
