//! A guest's clock that stands still as long as a debugger has the guest stopped.
//!
//! The kernel takes the time from the host's `CLOCK_MONOTONIC`, and keeps, for each of its clocks, at which count of it
//! the clock was last brought up to date (`tk_read_base.cycle_last`). Whoever moves these on by the length of a stop has
//! the kernel believe that the stop never was, and with it everything that the kernel measures: timers, timeouts,
//! jiffies, stalls. A host timer that went off meanwhile only makes it look, and set a new one.
//!
//! Readers of the clock that were stopped in the middle read once more: the count that tells them of a change is moved
//! on, too. Only a stop between the look at the host's clock and the use of what it said, on the way to bring the
//! clocks up to date, cannot be undone: it counts.

use std::time::{Duration, Instant};

use kscope_kernel::{Image, KernelAddr, MemoryExt};

use super::engine::Engine;
use super::sys;
use crate::mem::ProcMem;

/// The kernel keeps its time in a way that is not known here.
#[derive(Debug, thiserror::Error)]
#[error("the clock of {image} cannot be frozen: it has no {missing}")]
pub struct ClockError {
    /// The kernel's path.
    image: String,
    /// What is not there.
    missing: String,
}

/// Where a kernel keeps its clocks.
#[derive(Clone, Debug)]
pub struct Clock {
    /// When each clock was last brought up to date.
    updates: Vec<KernelAddr>,
    /// The counts of changes, and by how much a change moves them.
    changes: Vec<KernelAddr>,
    /// Where it says from what the time is taken, and what that is in User Mode Linux.
    source: KernelAddr,
    timer: KernelAddr,
    /// How long a count is: `mult / (1 << shift)` nanoseconds.
    mult: KernelAddr,
    shift: KernelAddr,
    /// Where a kernel that can travel in time says whether it does.
    travels: Option<KernelAddr>,
    /// Since when the guest is stopped.
    since: Option<Instant>,
}

/// What a kernel calls its timekeepers: a variable, and where in it.
const TIMEKEEPERS: [(&str, &str); 5] = [
    ("tk_core", "timekeeper."),
    ("tk_core", "shadow_timekeeper."),
    ("shadow_timekeeper", ""),
    ("timekeeper_data", "[0].timekeeper."),
    ("timekeeper_data", "[0].shadow_timekeeper."),
];

impl Clock {
    /// Finds the clocks of a kernel.
    ///
    /// # Errors
    ///
    /// The kernel has no debugging information, or keeps its time in another way.
    pub fn of(image: &Image) -> Result<Self, ClockError> {
        let missing = |missing: &str| ClockError {
            image: image.path().display().to_string(),
            missing: missing.to_owned(),
        };
        let layout = image
            .layout()
            .map_err(|_| missing("debugging information: build it with CONFIG_DEBUG_INFO"))?;
        let place = |variable: &str, path: &str| {
            Some(image.symbol(variable)? + layout.variable(variable, path).ok()?.offset)
        };
        let mut updates = Vec::new();
        for (variable, start) in TIMEKEEPERS {
            for clock in ["tkr_mono", "tkr_raw"] {
                updates.extend(place(variable, &format!("{start}{clock}.cycle_last")));
            }
        }
        let mut changes = Vec::new();
        for (variable, path) in [
            ("tk_core", "seq.seqcount.sequence"),
            ("timekeeper_data", "[0].seq.seqcount.sequence"),
        ] {
            changes.extend(place(variable, path));
        }
        for fast in ["tk_fast_mono", "tk_fast_raw"] {
            updates.extend(place(fast, "base[0].cycle_last"));
            updates.extend(place(fast, "base[1].cycle_last"));
            changes.extend(place(fast, "seq.seqcount.sequence"));
        }
        let source = place("tk_core", "timekeeper.tkr_mono.clock")
            .or_else(|| place("timekeeper_data", "[0].timekeeper.tkr_mono.clock"))
            .ok_or_else(|| missing("`tk_core`"))?;
        // Two clocks, each in the timekeeper, its shadow and two bases; three counts.
        if updates.len() != 8 || changes.len() != 3 {
            return Err(missing("timekeeping as it is known"));
        }
        let of_timer = |member| {
            place("timer_clocksource", member).ok_or_else(|| missing("`timer_clocksource`"))
        };
        Ok(Self {
            updates,
            changes,
            source,
            timer: of_timer("")?,
            mult: of_timer("mult")?,
            shift: of_timer("shift")?,
            travels: image.symbol("time_travel_mode"),
            since: None,
        })
    }

    /// Has the kernel believe that this long has not been.
    fn take_back(&self, memory: &ProcMem, stop: Duration) -> Option<()> {
        // Early in the boot the time is another's, and on travels it is the guest's own: these stand still by themselves.
        let travels = self.travels.map(|addr| memory.read_u32(addr));
        if memory.read_addr(self.source).ok()? != self.timer
            || travels.is_some_and(|mode| mode != Ok(0))
        {
            return Some(());
        }
        let (mult, shift) = (
            memory.read_u32(self.mult).ok()?,
            memory.read_u32(self.shift).ok()?,
        );
        let counts = (stop.as_nanos() << shift.min(32)).checked_div(mult.into())?;
        let counts = u64::try_from(counts).ok()?;
        for &addr in &self.changes {
            let count = memory.read_u32(addr).ok()?.wrapping_add(2);
            memory.write(addr, &count.to_le_bytes()).ok()?;
        }
        for &addr in &self.updates {
            let count = memory.read_u64(addr).ok()?.wrapping_add(counts);
            memory.write(addr, &count.to_le_bytes()).ok()?;
        }
        Some(())
    }
}

/// Functions that bring the clocks up to date, or look at the host's for that.
fn keeps_time(function: &str) -> bool {
    ["timer_read", "os_nsecs", "timekeeping_"]
        .iter()
        .any(|prefix| function.starts_with(prefix))
}

impl Engine {
    /// The guest is stopped, all of it.
    pub(super) fn clock_stops(&mut self) {
        if let Some(clock) = &mut self.clock {
            clock.since.get_or_insert_with(Instant::now);
        }
    }

    /// The guest is about to run, or a part of it.
    pub(super) fn clock_goes(&mut self) {
        let Some(stop) = self.clock.as_mut().and_then(|clock| clock.since.take()) else {
            return;
        };
        let stop = stop.elapsed();
        if self.is_keeping_time() {
            log::info!(
                "guest {}: stopped while it looked at the time, which goes on",
                self.pid
            );
            return;
        }
        if let (Some(clock), Ok(memory)) = (&self.clock, self.memory())
            && clock.take_back(memory, stop).is_none()
        {
            log::warn!("guest {}: its clock could not be held", self.pid);
        }
    }

    /// Whether a thread is on its way to bring the clocks up to date.
    fn is_keeping_time(&self) -> bool {
        const MOST_FRAMES: usize = 6;
        let (Ok(memory), Some(image)) = (self.memory(), &self.image) else {
            return false;
        };
        self.threads.values().any(|thread| {
            let Ok(regs) = sys::registers(thread.tid) else {
                return false;
            };
            let (mut pc, mut fp) = (regs.rip, regs.rbp);
            for _ in 0..MOST_FRAMES {
                let function = image.symbol_at(KernelAddr(pc));
                if function.is_some_and(|(name, _)| keeps_time(name)) {
                    return true;
                }
                let next = |at: u64| memory.read_u64(KernelAddr(at)).ok();
                let Some((caller, link)) = fp.checked_add(8).and_then(next).zip(next(fp)) else {
                    return false;
                };
                (pc, fp) = (caller, link);
            }
            false
        })
    }
}
