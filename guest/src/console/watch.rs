//! Deadlines and panics: when a guest is to be looked at.

use super::*;

impl Console {
    /// How long nothing but descriptors can bring news.
    pub(super) fn sleep(&self) -> PollTimeout {
        let probe = (self.probe.is_some() && self.watches_for_panic()).then_some(self.next_probe);
        let times = [
            self.deadline,
            self.last_chance.map(|(at, _)| at),
            self.panicked.map(|at| at + SETTLE),
            probe,
        ];
        match times.into_iter().flatten().min() {
            None => PollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // Rounded up: a timeout of zero would spin until the time comes.
                let millis = left.as_micros().div_ceil(1000);
                PollTimeout::try_from(millis.min(i32::MAX as u128) as i32)
                    .unwrap_or(PollTimeout::MAX)
            }
        }
    }

    pub(super) fn watches_for_panic(&self) -> bool {
        self.panicked.is_none() && self.phase != Phase::Over
    }

    pub(super) fn check_time(&mut self) {
        let now = Instant::now();
        if let Some((at, signal)) = self.last_chance
            && now >= at
        {
            self.last_chance = None;
            self.interrupt(signal);
        }
        if let Some(at) = self.panicked
            && now >= at + SETTLE
        {
            self.panicked = None;
            self.panic();
        }
        if self.watches_for_panic() && now >= self.next_probe {
            self.next_probe = now + PROBE;
            if self.phase != Phase::Booting && self.has_panicked() == Some(true) {
                self.panic();
            }
        }
        if let Some(at) = self.deadline
            && now >= at
        {
            if self.parts.control.is_stopped_by_debugger() {
                self.deadline = Some(now + HELD);
                return;
            }
            self.deadline = None;
            match self.phase {
                Phase::Booting => self.over(Event::BootTimeout),
                Phase::Running => self.over(Event::Timeout),
                _ => {}
            }
        }
    }

    /// Leaves the guest as it is, for its owner to look at.
    pub(super) fn over(&mut self, event: Event) {
        self.phase = Phase::Over;
        self.deadline = None;
        self.last_chance = None;
        self.raw = None;
        self.emit(event);
    }

    pub(super) fn panic(&mut self) {
        if self.phase == Phase::Over {
            return;
        }
        // What the log says can come from any program in the guest.
        if self.has_panicked() == Some(false) {
            self.parts.log.dismiss_panic();
            return;
        }
        let reason = self
            .parts
            .log
            .panic()
            .unwrap_or("unknown reason")
            .to_owned();
        self.over(Event::Panicked(reason));
    }

    /// Asks the guest's memory; `None` when it cannot be read.
    pub(super) fn has_panicked(&mut self) -> Option<bool> {
        let addr = self.probe?;
        if self.memory.is_none() {
            self.memory = ProcMem::open(self.parts.pid).ok();
        }
        let value = self.memory.as_ref()?.read_u32(addr).ok()?;
        // PANIC_CPU_INVALID is -1 in every kernel.
        Some(value != u32::MAX)
    }
}
