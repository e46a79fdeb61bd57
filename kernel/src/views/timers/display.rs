//! The timers for people.

use std::fmt;

use super::{Clock, CpuTimers, TimerOwner, Timers, Wheel};
use crate::table::{Table, printable};

/// Nanoseconds as seconds.
struct Seconds(i128);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let us = self.0.unsigned_abs() / 1000;
        write!(f, "{sign}{}.{:06}", us / 1_000_000, us % 1_000_000)
    }
}

impl fmt::Display for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "jiffies {}", self.jiffies)?;
        if let Some(tick) = self.tick_ns {
            write!(
                f,
                ", one every {}.{:03} ms",
                tick / 1_000_000,
                tick / 1000 % 1000
            )?;
        }
        if let Some(now) = self.monotonic {
            write!(f, "; monotonic clock {} s", Seconds(now.into()))?;
        }
        writeln!(f)?;
        for cpu in &self.cpus {
            writeln!(f)?;
            cpu.write(f, self)?;
        }
        Ok(())
    }
}

impl CpuTimers {
    fn write(&self, f: &mut fmt::Formatter<'_>, timers: &Timers) -> fmt::Result {
        write!(f, "CPU {}: ", self.cpu)?;
        match &self.device {
            None => writeln!(f, "no device")?,
            Some(device) => {
                write!(
                    f,
                    "device {} ({}{}), calls {}",
                    printable(&device.name),
                    device.mode,
                    match device.high_resolution {
                        true => ", high resolution",
                        false => "",
                    },
                    device.handler
                )?;
                match (device.next_event, timers.monotonic) {
                    (Some(next), Some(now)) => {
                        writeln!(f, " in {} s", Seconds(i128::from(next) - i128::from(now)))?;
                    }
                    (Some(next), None) => writeln!(f, " at {} s", Seconds(next.into()))?,
                    (None, _) => writeln!(f, ": not set")?,
                }
            }
        }
        for clock in &self.clocks {
            clock.write(f, timers)?;
        }
        for wheel in &self.wheels {
            wheel.write(f, timers)?;
        }
        Ok(())
    }
}

impl Clock {
    fn write(&self, f: &mut fmt::Formatter<'_>, timers: &Timers) -> fmt::Result {
        if self.timers.is_empty() {
            return Ok(());
        }
        let soft = match self.soft {
            true => ", in a soft interrupt",
            false => "",
        };
        writeln!(f, "clock {}{soft}:", self.name)?;
        let mut table = Table::new(&[">IN S", ">UP TO", "FUNCTION", "FOR"]);
        let now = timers.monotonic.map_or(0, i128::from) + i128::from(self.offset);
        for timer in &self.timers {
            table.row([
                Seconds(i128::from(timer.soft_expires) - now).to_string(),
                Seconds(i128::from(timer.expires) - now).to_string(),
                timer.function.clone(),
                owner(&timer.owner),
            ]);
        }
        indent(f, &table)
    }
}

impl Wheel {
    fn write(&self, f: &mut fmt::Formatter<'_>, timers: &Timers) -> fmt::Result {
        if self.timers.is_empty() {
            return Ok(());
        }
        writeln!(f, "wheel {}:", self.name)?;
        let mut table = Table::new(&[">IN S", ">TICKS", "FUNCTION", "FOR"]);
        for timer in &self.timers {
            let ns = timers
                .tick_ns
                .map(|tick| i128::from(timer.ticks) * i128::from(tick));
            table.row([
                ns.map_or("-".to_owned(), |ns| Seconds(ns).to_string()),
                timer.ticks.to_string(),
                timer.function.clone(),
                owner(&timer.owner),
            ]);
        }
        indent(f, &table)
    }
}

fn owner(owner: &Option<TimerOwner>) -> String {
    match owner {
        Some(TimerOwner::Task { pid, comm }) => format!("{pid} {comm}"),
        Some(TimerOwner::Work(function)) => format!("work {function}"),
        None => "-".to_owned(),
    }
}

/// A table two columns further to the right.
fn indent(f: &mut fmt::Formatter<'_>, table: &Table) -> fmt::Result {
    for line in table.to_string().lines() {
        writeln!(f, "  {line}")?;
    }
    Ok(())
}
