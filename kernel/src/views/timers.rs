//! What waits for a time to come: the timer wheels, the high-resolution timers, and the devices
//! that interrupt for them.

mod display;
mod owners;

use serde::Serialize;

use crate::addr::{CpuId, GuestPid, KernelAddr};
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

/// The timers of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timers {
    /// The tick counter of the wheel's timers.
    pub jiffies: u64,
    /// Nanoseconds per tick. `None` when the kernel does not tell.
    pub tick_ns: Option<u64>,
    /// The monotonic clock, nanoseconds since the boot, when the kernel last brought it up to date:
    /// at a tick, which an idle kernel may have none of for a while.
    pub monotonic: Option<u64>,
    /// The CPUs' timers.
    pub cpus: Vec<CpuTimers>,
}

/// The timers of one CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuTimers {
    /// The CPU.
    pub cpu: CpuId,
    /// The device that interrupts when the next of them is due.
    pub device: Option<ClockEvent>,
    /// The wheels: timers that are counted in ticks, and mostly never expire.
    pub wheels: Vec<Wheel>,
    /// Timers that are counted in nanoseconds.
    pub clocks: Vec<Clock>,
}

/// A device that interrupts at a given time (`struct clock_event_device`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClockEvent {
    /// Its name.
    pub name: String,
    /// `periodic` when it ticks by itself, `oneshot` when it is set for each event.
    pub mode: &'static str,
    /// When it interrupts next, nanoseconds on the monotonic clock. `None` when it is not set.
    pub next_event: Option<i64>,
    /// The function that is called then.
    pub handler: String,
    /// Whether the high-resolution timers are served by it directly; else by the tick.
    pub high_resolution: bool,
}

/// One wheel (`struct timer_base`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wheel {
    /// `standard`, or since 6.9 `local` (bound to the CPU) and `global` (any CPU may handle them
    /// while this one is idle); `deferrable` ones do not wake an idle CPU.
    pub name: &'static str,
    /// The tick up to which it was looked through.
    pub clock: u64,
    /// Its timers, the earliest first.
    pub timers: Vec<WheelTimer>,
}

/// A timer in a wheel (`struct timer_list`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WheelTimer {
    /// The tick at which it is due. The wheel is coarse: it may be called up to an eighth later.
    pub expires: u64,
    /// Ticks from now; negative when it is overdue.
    pub ticks: i64,
    /// The function that is called.
    pub function: String,
    /// Whom it is for.
    pub owner: Option<TimerOwner>,
    /// The address of the `timer_list`.
    pub addr: KernelAddr,
}

/// A clock, and the timers that wait for a time on it (`struct hrtimer_clock_base`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Clock {
    /// `monotonic`, `realtime`, `boottime` or `tai`.
    pub name: &'static str,
    /// Whether the functions are called in a soft interrupt.
    pub soft: bool,
    /// What is to be added to the monotonic clock to have this one, nanoseconds.
    pub offset: i64,
    /// Its timers, the earliest first.
    pub timers: Vec<HrTimer>,
}

/// A high-resolution timer (`struct hrtimer`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HrTimer {
    /// The earliest time at which it may be called, nanoseconds on its clock.
    pub soft_expires: i64,
    /// The latest time, nanoseconds on its clock.
    pub expires: i64,
    /// The function that is called.
    pub function: String,
    /// Whom it is for.
    pub owner: Option<TimerOwner>,
    /// The address of the `hrtimer`.
    pub addr: KernelAddr,
}

/// Whom a timer is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TimerOwner {
    /// A task that sleeps until then, or gets a signal.
    Task {
        /// Its pid.
        pid: GuestPid,
        /// Its name; of a process that gets a signal, that of its first thread.
        comm: String,
    },
    /// The function that a workqueue is to call then.
    Work(String),
}

impl<M: Memory> Reader<'_, M> {
    /// The timers of all CPUs.
    ///
    /// # Errors
    ///
    /// When the kernel's types are not known.
    pub fn timers(&self) -> Result<Timers, ViewError> {
        let jiffies = self.global("jiffies_64")?.u64("")?;
        let mut cpus = Vec::new();
        for cpu in self.kernel().cpus() {
            cpus.push(CpuTimers {
                cpu,
                device: self.or_warn(self.clock_event(cpu)).flatten(),
                wheels: self.or_warn(self.wheels(cpu, jiffies)).unwrap_or_default(),
                clocks: self.or_warn(self.clocks(cpu)).unwrap_or_default(),
            });
        }
        Ok(Timers {
            jiffies,
            tick_ns: self.tick_ns().ok(),
            monotonic: self.or_warn(self.monotonic()),
            cpus,
        })
    }

    /// The length of a tick: the frequency is no variable, but the clock that counts ticks knows
    /// (kernel/time/jiffies.c).
    fn tick_ns(&self) -> Result<u64, ViewError> {
        let clock = self.global("clocksource_jiffies")?;
        let shift = clock.u64("shift")?;
        let mult = clock.u64("mult")?;
        Ok(mult.checked_shr(shift as u32).unwrap_or(0))
    }

    /// The monotonic clock at its last update (`struct timekeeper`).
    fn monotonic(&self) -> Result<u64, ViewError> {
        // An array since 6.17.
        let keeper = match self.global("tk_core") {
            Ok(keeper) => keeper.member("timekeeper")?,
            Err(_) => self.global("timekeeper_data")?.member("[0].timekeeper")?,
        };
        let clock = keeper.member("tkr_mono")?;
        let part = clock.u64("xtime_nsec")?;
        let part = part.checked_shr(clock.u64("shift")? as u32).unwrap_or(0);
        Ok(clock.u64("base")?.wrapping_add(part))
    }

    fn clock_event(&self, cpu: CpuId) -> Result<Option<ClockEvent>, ViewError> {
        let tick = self.per_cpu("tick_cpu_device", cpu)?;
        let Some(device) = tick.follow("evtdev")? else {
            return Ok(None);
        };
        // KTIME_MAX: not set.
        let next = device.i64("next_event")?;
        let bases = self.per_cpu("hrtimer_bases", cpu)?;
        Ok(Some(ClockEvent {
            name: device.text("name")?,
            // TICKDEV_MODE_ONESHOT of kernel/time/tick-sched.h.
            mode: match tick.u64("mode")? {
                0 => "periodic",
                _ => "oneshot",
            },
            next_event: (next != i64::MAX).then_some(next),
            handler: self.function_name(device.addr_value("event_handler")?),
            high_resolution: bases.bool("hres_active")?,
        }))
    }

    fn wheels(&self, cpu: CpuId, jiffies: u64) -> Result<Vec<Wheel>, ViewError> {
        let bases = self.per_cpu("timer_bases", cpu)?;
        // NR_BASES and BASE_* of kernel/time/timer.c.
        let names = match bases.len("")? {
            0 | 1 => &["standard"][..],
            2 => &["standard", "deferrable"],
            _ => &["local", "global", "deferrable"],
        };
        let mut wheels = Vec::new();
        for (at, name) in (0..).zip(names) {
            let base = bases.element("", at)?;
            let mut timers = Vec::new();
            for (byte, bits) in (0..).zip(base.bytes("pending_map")?) {
                for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
                    let bucket = base.element("vectors", byte * 8 + bit)?.addr();
                    for timer in self.hlist(bucket, "struct timer_list", "entry", "timers")? {
                        timers.extend(self.or_warn(self.wheel_timer(&timer, jiffies)));
                    }
                }
            }
            timers.sort_by_key(|timer| timer.ticks);
            wheels.push(Wheel {
                name,
                clock: base.u64("clk")?,
                timers,
            });
        }
        Ok(wheels)
    }

    fn wheel_timer(&self, timer: &Object<'_, M>, now: u64) -> Result<WheelTimer, ViewError> {
        let expires = timer.u64("expires")?;
        let function = self.function_name(timer.addr_value("function")?);
        Ok(WheelTimer {
            expires,
            // As `time_after()` compares them.
            ticks: expires.wrapping_sub(now) as i64,
            owner: self.or_warn(self.wheel_owner(timer, &function)).flatten(),
            function,
            addr: timer.addr(),
        })
    }

    fn clocks(&self, cpu: CpuId) -> Result<Vec<Clock>, ViewError> {
        let bases = self.per_cpu("hrtimer_bases", cpu)?;
        // `enum hrtimer_base_type`: four, then the same for soft interrupts.
        const NAMES: [&str; 4] = ["monotonic", "realtime", "boottime", "tai"];
        let mut clocks = Vec::new();
        for at in 0..bases.len("clock_base")? {
            let base = bases.element("clock_base", at)?;
            let (Some(name), 0..8) = (NAMES.get(at as usize % NAMES.len()), at) else {
                continue;
            };
            let root = base.addr_of("active.rb_root.rb_root")?;
            // The nodes are linked to a list as well since 7.1.
            let timer = self.object("struct hrtimer", KernelAddr(0));
            let node = match timer.has("node.node.node") {
                true => "node.node.node",
                false => "node.node",
            };
            let mut timers = Vec::new();
            for timer in self.tree(root, "struct hrtimer", node, "high-resolution timers")? {
                timers.extend(self.or_warn(self.hrtimer(&timer)));
            }
            clocks.push(Clock {
                name,
                soft: at as usize >= NAMES.len(),
                offset: base.i64("offset")?,
                timers,
            });
        }
        Ok(clocks)
    }

    fn hrtimer(&self, timer: &Object<'_, M>) -> Result<HrTimer, ViewError> {
        let function = self.function_name(timer.addr_value("function")?);
        Ok(HrTimer {
            soft_expires: timer.i64("_softexpires")?,
            expires: timer.i64("node.expires")?,
            owner: self.or_warn(self.hrtimer_owner(timer, &function)).flatten(),
            function,
            addr: timer.addr(),
        })
    }
}
