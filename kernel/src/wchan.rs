//! Where in the kernel a task sleeps: the function that called the scheduler.

use std::ops::Range;

use crate::addr::KernelAddr;
use crate::image::Image;
use crate::kernel::Kernel;
use crate::memory::{Memory, MemoryExt};
use crate::tasks::Task;

/// Code of the scheduler and of locks, which says how a task sleeps, not why
/// (`in_sched_functions()` of kernel/sched/core.c).
#[derive(Clone, Debug)]
pub(crate) struct SchedulerText(Vec<Range<u64>>);

/// Frames between `switch_threads()` and whoever called the scheduler: some ten.
const MAX_FRAMES: usize = 64;

/// Bytes of stack that mostly hold all of them.
const WINDOW: u64 = 512;

impl SchedulerText {
    pub(crate) fn of(image: &Image) -> SchedulerText {
        let section = |(start, end)| Some(image.symbol(start)?.get()..image.symbol(end)?.get());
        let sections = [
            ("__sched_text_start", "__sched_text_end"),
            ("__lock_text_start", "__lock_text_end"),
        ];
        SchedulerText(sections.into_iter().filter_map(section).collect())
    }

    fn contains(&self, pc: u64) -> bool {
        self.0.iter().any(|section| section.contains(&pc))
    }
}

impl<M: Memory> Kernel<M> {
    /// Where a task sleeps: the address to which the scheduler returns when it wakes up. `None` for a task that never
    /// slept, and when its stack is corrupt.
    pub fn sleeps_at(&self, task: &Task) -> Option<KernelAddr> {
        let registers = self.saved_registers(task).ok()?;
        self.caller_of_scheduler(self.stack_of(task), registers.sp()?, registers.fp()?)
    }

    /// The address to which the scheduler returns when a task wakes up, by the chain of frame
    /// pointers on its stack, from the stack pointer and the frame pointer that it has saved.
    ///
    /// The kernel's own `/proc/PID/wchan` guesses (`__get_wchan()` of arch/um/kernel/process.c): it
    /// takes the first word above the scheduler's frame that could be a return address. That is
    /// often one left over from before, or the function of a timer.
    pub(crate) fn caller_of_scheduler(
        &self,
        stack: Range<u64>,
        mut sp: u64,
        mut frame: u64,
    ) -> Option<KernelAddr> {
        if stack.start == 0 || !stack.contains(&sp) {
            return None;
        }
        let window = KernelAddr(sp);
        let len = WINDOW.min(stack.end - sp) as usize;
        let window = (window, self.read_vec(window, len).unwrap_or_default());
        let word = |at: u64| {
            let from = usize::try_from(at.wrapping_sub(window.0.get())).ok()?;
            let known = window.1.get(from..from.checked_add(8)?);
            let known = known.and_then(|word| word.try_into().ok());
            known
                .map(u64::from_le_bytes)
                .or_else(|| self.read_u64(KernelAddr(at)).ok())
        };
        let mut slept = false;
        for _ in 0..MAX_FRAMES {
            // A frame is its caller's frame pointer and, above it, the address to return to.
            let in_stack = frame >= sp && frame.is_multiple_of(8) && stack.contains(&frame);
            if !in_stack || !stack.contains(&frame.saturating_add(8)) {
                return None;
            }
            let pc = word(frame.saturating_add(8))?;
            match self.stack_fields.scheduler.contains(pc) {
                true => slept = true,
                false if slept => return Some(KernelAddr(pc)),
                false => {}
            }
            sp = frame.saturating_add(16);
            frame = word(frame)?;
        }
        None
    }
}
