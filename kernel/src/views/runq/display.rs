//! The run queues for people.

use std::fmt;

use super::{DeadlineEntity, FairQueue, RunQueue, RunQueues, SchedTask};
use crate::table::{Table, printable};

/// Nanoseconds as milliseconds.
struct Ms(i64);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let us = self.0.unsigned_abs() / 1000;
        write!(f, "{sign}{}.{:03}", us / 1000, us % 1000)
    }
}

/// Nanoseconds that are never negative, as milliseconds.
fn ms(ns: u64) -> Ms {
    Ms(i64::try_from(ns).unwrap_or(i64::MAX))
}

impl fmt::Display for SchedTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, printable(&self.comm))
    }
}

impl fmt::Display for RunQueues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, queue) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            queue.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for RunQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CPU {}: {} runnable, {} switches, clock {} ms",
            self.cpu,
            self.nr_running,
            self.switches,
            ms(self.clock)
        )?;
        if let (Some(load), Some(util)) = (self.load_avg, self.util_avg) {
            write!(f, ", load {load}, busy {util}/1024")?;
        }
        writeln!(f)?;
        match &self.current {
            Some(task) => writeln!(f, "  runs  {task}")?,
            None => writeln!(f, "  runs  ?")?,
        }
        match &self.next {
            Some(next) => writeln!(f, "  next  {}: {}", next.task, next.reason.describe())?,
            None => writeln!(f, "  next  ?")?,
        }
        if let Some(stop) = &self.stop {
            writeln!(f, "stop: {stop}")?;
        }
        let current = self.current.as_ref().map(|task| task.addr);
        let next = self.next.as_ref().map(|next| next.task.addr);
        let mark = |task: &SchedTask| {
            let is = |other: Option<_>| other == Some(task.addr);
            marks(is(current), is(next))
        };
        if !self.deadline.is_empty() {
            writeln!(
                f,
                "deadline: ms until the deadline, left to run, per period"
            )?;
            indent(f, &self.deadlines(mark))?;
        }
        if !self.realtime.is_empty() {
            writeln!(f, "realtime:")?;
            let mut table = Table::new(&["", ">PRIO", ">PID", "NAME", "POLICY"]);
            for entity in &self.realtime {
                table.row([
                    mark(&entity.task).to_owned(),
                    entity.priority.to_string(),
                    entity.task.pid.to_string(),
                    entity.task.comm.clone(),
                    match entity.ticks_left {
                        Some(ticks) => format!("rr, {ticks} ticks left"),
                        None => "fifo".to_owned(),
                    },
                ]);
            }
            indent(f, &table)?;
        }
        self.fair.fmt(f)
    }
}

impl RunQueue {
    fn deadlines(&self, mark: impl Fn(&SchedTask) -> &'static str) -> Table {
        let columns = [
            "",
            ">PID",
            "NAME",
            ">DEADLINE",
            ">LEFT",
            ">RUNTIME",
            ">PERIOD",
        ];
        let mut table = Table::new(&columns);
        for entity in &self.deadline {
            let DeadlineEntity { task, .. } = entity;
            table.row([
                task.as_ref().map_or("", &mark).to_owned(),
                task.as_ref()
                    .map_or("-".to_owned(), |task| task.pid.to_string()),
                task.as_ref()
                    .map_or("(server of another class)".to_owned(), |task| {
                        task.comm.clone()
                    }),
                Ms(entity.deadline.wrapping_sub(self.clock) as i64).to_string(),
                Ms(entity.runtime).to_string(),
                ms(entity.per_period).to_string(),
                ms(entity.period).to_string(),
            ]);
        }
        table
    }
}

impl fmt::Display for FairQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.entities.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "fair ({}): weight {}, virtual time {} ms",
            self.order.name(),
            self.weight,
            Ms(self.vtime)
        )?;
        let mut table = match self.order {
            super::FairOrder::Eevdf => Table::new(&[
                "",
                ">PID",
                "NAME",
                ">NICE",
                ">WEIGHT",
                ">VRUNTIME",
                ">LAG",
                "ELIGIBLE",
                ">DEADLINE",
                ">SLICE",
                ">RAN",
                "STATE",
            ]),
            super::FairOrder::Cfs => Table::new(&[
                "",
                ">PID",
                "NAME",
                ">NICE",
                ">WEIGHT",
                ">VRUNTIME",
                ">AHEAD",
                ">RAN",
                "STATE",
            ]),
        };
        self.rows(&mut table, 0);
        indent(f, &table)
    }
}

impl FairQueue {
    fn rows(&self, table: &mut Table, depth: usize) {
        for entity in &self.entities {
            let (pid, name, nice) = match (&entity.task, &entity.group) {
                (Some(task), _) => (
                    task.pid.to_string(),
                    match &entity.cgroup {
                        Some(path) => format!("{} ({path})", task.comm),
                        None => task.comm.clone(),
                    },
                    match task.policy {
                        super::Policy::Idle => "idle".to_owned(),
                        _ => task.nice.to_string(),
                    },
                ),
                (None, Some(group)) => ("-".to_owned(), group.path.clone(), "-".to_owned()),
                (None, None) => continue,
            };
            let mut row = vec![
                marks(entity.current, entity.next).to_owned(),
                pid,
                format!("{:1$}{name}", "", depth * 2),
                nice,
                entity.share.to_string(),
                Ms(entity.vruntime).to_string(),
            ];
            match &entity.eevdf {
                Some(eevdf) => row.extend([
                    Ms(eevdf.lag).to_string(),
                    match eevdf.eligible {
                        true => "yes".to_owned(),
                        false => "no".to_owned(),
                    },
                    Ms(eevdf.deadline).to_string(),
                    match eevdf.custom_slice {
                        true => format!("{}!", ms(eevdf.slice)),
                        false => ms(eevdf.slice).to_string(),
                    },
                ]),
                None => row.push(Ms(entity.vruntime.wrapping_sub(self.vtime)).to_string()),
            }
            row.push(ms(entity.runtime).to_string());
            row.push(entity.state().to_owned());
            table.row(row);
            if let Some(group) = &entity.group {
                group.queue.rows(table, depth + 1);
            }
        }
    }
}

impl super::FairEntity {
    fn state(&self) -> &'static str {
        let throttled = self.group.as_ref().is_some_and(|g| g.queue.throttled);
        let delayed = self.eevdf.as_ref().is_some_and(|eevdf| eevdf.delayed);
        match (self.on_rq, delayed, throttled) {
            (_, _, true) => "throttled",
            (_, true, _) => "delayed",
            (false, _, _) => "leaving",
            _ if self.current => "runs",
            _ => "waits",
        }
    }
}

/// `>` for what runs, `*` for what is next.
fn marks(current: bool, next: bool) -> &'static str {
    match (current, next) {
        (true, true) => ">*",
        (true, false) => ">",
        (false, true) => " *",
        (false, false) => "",
    }
}

/// A table two columns further to the right.
fn indent(f: &mut fmt::Formatter<'_>, table: &Table) -> fmt::Result {
    for line in table.to_string().lines() {
        writeln!(f, "  {line}")?;
    }
    Ok(())
}
