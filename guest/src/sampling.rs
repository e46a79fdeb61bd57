//! The sampler: at every tick of a timer the guest is stopped for some microseconds and each CPU's registers, current
//! task and stack are copied.
//!
//! Unwinding is not done here, where the guest waits for it, but by whoever receives the copies.

mod source;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::remote::{
    PROGRESS_PERIOD, RawSample, SampleCounts, SampleEnd, SampleMessage, SampleRequest,
};

pub use source::{GuestSource, SourceError};

/// After this many ticks in a row at which the guest could not be stopped, sampling gives up.
const MAX_UNSTOPPED: u32 = 8;

/// Something that can be sampled.
pub trait Source: Send {
    /// Called once before many captures, on the thread that makes them.
    fn begin(&mut self) {}

    /// Samples every CPU once.
    fn capture(&mut self) -> Capture;
}

/// What one tick brought.
#[derive(Debug)]
pub enum Capture {
    /// One sample of each CPU.
    Samples(Vec<RawSample>),
    /// A debugger holds the guest: here is where it stands, but this is not what it spends its time on.
    Held(Vec<RawSample>),
    /// The guest did not stop; why.
    Unstopped(String),
    /// The guest has ended.
    Exited,
}

/// A flag that wakes a poll(2).
#[derive(Debug)]
pub(crate) struct StopSignal(EventFd);

impl StopSignal {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(EventFd::from_flags(flags)?))
    }

    pub(crate) fn set(&self) {
        // Can only fail by a counter near 2^64, at which the flag is set.
        let _ = self.0.write(1);
    }

    pub(crate) fn clear(&self) {
        // Fails when there is nothing to clear.
        let _ = self.0.read();
    }

    pub(crate) fn is_set(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
    }
}

impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Samples `source` until the time is up, `stop` is set or the guest ends.
///
/// `emit` gets every message but the last, and counts a sample either as delivered or as overflowed.
pub(crate) fn run(
    source: &mut dyn Source,
    request: SampleRequest,
    stop: &StopSignal,
    mut emit: impl FnMut(SampleMessage, &mut SampleCounts),
) -> (SampleCounts, SampleEnd) {
    let mut counts = SampleCounts::default();
    source.begin();
    let timer = match start_timer(request.hz) {
        Ok(timer) => timer,
        Err(errno) => return (counts, SampleEnd::Failed(format!("no timer: {errno}"))),
    };
    let begun = Instant::now();
    let deadline = request
        .duration_ms
        .and_then(|ms| begun.checked_add(Duration::from_millis(ms)));
    let period = period(request.hz);
    // When a tick may be taken again.
    let mut rested = begun;
    let mut reported = begun;
    let mut unstopped_in_a_row = 0;
    emit(SampleMessage::Started, &mut counts);
    let end = loop {
        let ticks = match next_tick(&timer, stop, deadline) {
            Ok(Tick::Ticks(ticks)) => ticks,
            // The end of the guest ends everything, and may be heard of this way first.
            Ok(Tick::Stop) => match source.capture() {
                Capture::Exited => break SampleEnd::GuestExited,
                _ => break SampleEnd::Stopped,
            },
            Ok(Tick::Deadline) => break SampleEnd::Duration,
            Err(errno) => break SampleEnd::Failed(format!("the timer failed: {errno}")),
        };
        let began = Instant::now();
        let resting = began < rested;
        let taken = u64::from(!resting);
        counts.missed += ticks.saturating_sub(taken);
        match (!resting).then(|| source.capture()) {
            None => {}
            Some(Capture::Samples(samples)) => {
                unstopped_in_a_row = 0;
                for sample in samples {
                    emit(SampleMessage::Sample(Box::new(sample)), &mut counts);
                }
            }
            Some(Capture::Held(_)) => counts.held += 1,
            Some(Capture::Exited) => break SampleEnd::GuestExited,
            Some(Capture::Unstopped(reason)) => {
                counts.unstopped += 1;
                unstopped_in_a_row += 1;
                if unstopped_in_a_row >= MAX_UNSTOPPED {
                    break SampleEnd::Failed(reason);
                }
            }
        }
        let now = Instant::now();
        if !resting {
            rested = rest_until(now, now.duration_since(began), period);
        }
        if now.duration_since(reported) >= PROGRESS_PERIOD {
            reported = now;
            counts.duration_ns = nanos(begun);
            emit(SampleMessage::Progress(counts), &mut counts);
        }
    };
    counts.duration_ns = nanos(begun);
    (counts, end)
}

/// When to sample again after a sample that `took` so long. On a busy host a stop can take many periods; sampled
/// without a break, the guest would hardly run any more. It runs at least as long as it was stopped.
fn rest_until(now: Instant, took: Duration, period: Duration) -> Instant {
    if took <= period / 2 {
        // The next tick is that far away by itself.
        return now;
    }
    now.checked_add(took).unwrap_or(now)
}

fn period(hz: u32) -> Duration {
    Duration::from_nanos(1_000_000_000 / u64::from(hz.max(1)))
}

fn nanos(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn start_timer(hz: u32) -> nix::Result<TimerFd> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    timer.set(
        Expiration::Interval(TimeSpec::from_duration(period(hz))),
        TimerSetTimeFlags::empty(),
    )?;
    Ok(timer)
}

enum Tick {
    /// The timer has expired this many times since the last look.
    Ticks(u64),
    Stop,
    Deadline,
}

fn next_tick(timer: &TimerFd, stop: &StopSignal, deadline: Option<Instant>) -> nix::Result<Tick> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(Tick::Deadline);
                }
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = [
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(timer.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        if fds[0].any().unwrap_or(true) {
            return Ok(Tick::Stop);
        }
        let mut ticks = [0; 8];
        match nix::unistd::read(timer.as_fd(), &mut ticks) {
            Ok(8) => return Ok(Tick::Ticks(u64::from_ne_bytes(ticks))),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that takes long to stop, and checks that it was left alone for as long before.
    struct Slow {
        before: Option<(Instant, Duration)>,
        left: u32,
    }

    impl Source for Slow {
        fn capture(&mut self) -> Capture {
            let began = Instant::now();
            if let Some((ended, took)) = self.before {
                assert!(began.duration_since(ended) >= took);
            }
            if self.left == 0 {
                return Capture::Exited;
            }
            self.left -= 1;
            std::thread::sleep(Duration::from_millis(10));
            let took = began.elapsed();
            self.before = Some((Instant::now(), took));
            Capture::Samples(Vec::new())
        }
    }

    #[test]
    fn a_guest_that_stops_slowly_runs_as_long_as_it_is_stopped() {
        let mut source = Slow {
            before: None,
            left: 5,
        };
        let request = SampleRequest {
            hz: 1000,
            duration_ms: None,
        };
        let stop = StopSignal::new().unwrap();
        let (counts, end) = run(&mut source, request, &stop, |_, _| {});
        assert_eq!(end, SampleEnd::GuestExited);
        // Five times ten ticks while it was stopped, and as many while it was not.
        assert!(counts.missed >= 50, "{counts:?}");
    }
}
