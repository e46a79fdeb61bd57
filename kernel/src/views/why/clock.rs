//! The guest's clocks, as they were when it last read them.

use super::look::Look;
use super::sleeper::Sleeper;
use super::{Since, Wait};
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};
use crate::tasks::Task;

/// What time it is in the guest. A running guest may have gone on since; an idle one reads its
/// clocks when something happens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// CLOCK_MONOTONIC, in nanoseconds.
    monotonic: Option<i64>,
    jiffies: Option<u64>,
    /// Nanoseconds of a jiffy.
    tick: Option<u64>,
    /// The scheduler's clock, in nanoseconds from boot.
    scheduler: Option<u64>,
}

impl Clock {
    pub(super) fn read<M: Memory>(reader: &Reader<'_, M>) -> Clock {
        let jiffies = reader.global("jiffies_64");
        Clock {
            monotonic: monotonic(reader).ok(),
            jiffies: jiffies.and_then(|jiffies| jiffies.u64("")).ok(),
            tick: tick(reader).ok().filter(|&tick| tick > 0),
            scheduler: scheduler(reader),
        }
    }
}

/// The timekeeper's time at its last update (`tk_core`, or `timekeeper_data` since 6.15).
fn monotonic<M: Memory>(reader: &Reader<'_, M>) -> Result<i64, ViewError> {
    let keeper = match reader.global("tk_core") {
        Ok(core) => core.member("timekeeper")?,
        Err(_) => reader.global("timekeeper_data")?.member("[0].timekeeper")?,
    };
    let shift = keeper.u64("tkr_mono.shift")?.min(63);
    let part = keeper.u64("tkr_mono.xtime_nsec")? >> shift;
    Ok(keeper.i64("tkr_mono.base")?.wrapping_add(part as i64))
}

/// TICK_NSEC is a macro; the clock that counts ticks has it as a factor.
fn tick<M: Memory>(reader: &Reader<'_, M>) -> Result<u64, ViewError> {
    let clock = reader.global("clocksource_jiffies")?;
    let shift = clock.u64("shift")?.min(63);
    Ok(clock.u64("mult")? >> shift)
}

/// The clock of the runqueue that was used last.
fn scheduler<M: Memory>(reader: &Reader<'_, M>) -> Option<u64> {
    let cpus = reader.kernel().cpus().into_iter();
    cpus.filter_map(|cpu| {
        reader
            .per_cpu("runqueues", cpu)
            .ok()?
            .u64("clock_task")
            .ok()
    })
    .max()
}

impl<M: Memory> Look<'_, '_, M> {
    /// When a task was last taken off its CPU.
    pub(super) fn since(&self, task: &Task) -> Option<Since> {
        let now = self.clock.scheduler?;
        // Of every scheduling class: the end of what was last charged to the task.
        let at = self.object(task).u64("se.exec_start").ok()?;
        (at > 0 && at <= now).then(|| Since {
            at_ns: at,
            for_ns: now - at,
        })
    }

    /// Adds when a sleep ends by itself, if a timer on the task's stack says so.
    pub(super) fn with_timeout(&self, mut wait: Wait, sleeper: &Sleeper) -> Wait {
        wait.timeout_ns = self
            .high_resolution(sleeper)
            .or_else(|| self.wheel(sleeper));
        // Whoever is woken by a timer needs nobody else.
        wait.closed &= wait.timeout_ns.is_none();
        wait
    }

    fn high_resolution(&self, sleeper: &Sleeper) -> Option<i64> {
        let sleepers = sleeper.left(self, "struct hrtimer_sleeper", "task");
        let timer = sleepers
            .into_iter()
            .find(|timer| self.calls(timer, "timer.function", "hrtimer_wakeup"))?;
        // CLOCK_REALTIME and others are so far from the monotonic one.
        let base = timer.addr_value("timer.base").ok()?;
        let base = self.reader.object("struct hrtimer_clock_base", base);
        let now = self.clock.monotonic?.wrapping_add(base.i64("offset").ok()?);
        Some(timer.i64("timer.node.expires").ok()?.wrapping_sub(now))
    }

    /// `schedule_timeout()`.
    fn wheel(&self, sleeper: &Sleeper) -> Option<i64> {
        let timers = sleeper.left(self, "struct process_timer", "task");
        let timer = timers
            .into_iter()
            .find(|timer| self.calls(timer, "timer.function", "process_timeout"))?;
        let left = timer
            .u64("timer.expires")
            .ok()?
            .wrapping_sub(self.clock.jiffies?) as i64;
        Some(left.saturating_mul(self.clock.tick? as i64))
    }

    /// Whether a pointer to a function is to that one.
    pub(super) fn calls(&self, object: &Object<'_, M>, path: &str, function: &str) -> bool {
        let pointer = object.addr_value(path).unwrap_or(KernelAddr(0));
        let image = self.reader.kernel().image();
        let mut symbols = image.symbols_named(function);
        symbols.any(|symbol| symbol.addr == pointer)
    }
}
