//! A real guest as a source of samples.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kscope_kernel::{CpuId, Kernel, KernelAddr, LayoutError, Registers, Task};
use nix::time::{ClockId, clock_gettime};

use super::{Capture, Source};
use crate::control::{Attachment, Control, ControlError, Stopped};
use crate::mem::ProcMem;
use crate::remote::{RawSample, SampledTask, StackCopy};

/// How long the guest may take to stop. It takes microseconds, unless the host is badly overloaded.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a guest cannot be sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It cannot be attached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Its kernel does not tell where it keeps its tasks.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// A guest, attached for as long as this lives, so that a sample costs a stop and nothing more.
#[derive(Debug)]
pub struct GuestSource {
    control: Control,
    kernel: Arc<Kernel<ProcMem>>,
    _attachment: Attachment,
}

impl GuestSource {
    /// Attaches to the guest.
    ///
    /// # Errors
    ///
    /// The guest is gone, cannot be attached, or its kernel has no debug information.
    pub fn new(control: &Control) -> Result<Self, SourceError> {
        let kernel = Arc::new(Kernel::new(control.image().clone(), control.memory()?)?);
        Ok(Self {
            control: control.clone(),
            kernel,
            _attachment: control.attach()?,
        })
    }
}

impl Source for GuestSource {
    fn capture(&mut self) -> Capture {
        let kernel = Arc::clone(&self.kernel);
        let captured = self.control.with_stopped(STOP_TIMEOUT, move |stopped| {
            let samples = samples(stopped, &kernel);
            (samples, stopped.is_held())
        });
        match captured {
            Ok((Ok(samples), false)) => Capture::Samples(samples),
            Ok((Ok(samples), true)) => Capture::Held(samples),
            Err(ControlError::Ended) => Capture::Exited,
            Ok((Err(error), _)) | Err(error) => match self.control.exit_status() {
                // What fails while the guest dies, fails because of that.
                Some(_) => Capture::Exited,
                None => Capture::Unstopped(error.to_string()),
            },
        }
    }
}

/// One sample of each CPU; runs on the engine's thread while the guest stands still, so it only copies.
fn samples(
    stopped: &mut Stopped<'_>,
    kernel: &Kernel<ProcMem>,
) -> Result<Vec<RawSample>, ControlError> {
    let time_ns = now_ns();
    stopped
        .cpus()
        .into_iter()
        .map(|vcpu| {
            Ok(sample(
                vcpu.cpu,
                stopped.registers(vcpu.cpu)?,
                time_ns,
                kernel,
            ))
        })
        .collect()
}

fn sample(cpu: CpuId, registers: Registers, time_ns: u64, kernel: &Kernel<ProcMem>) -> RawSample {
    // Memory that makes no sense costs the sample its label, not the recording its life.
    let task = kernel.current(cpu).ok();
    let regions = stacks(&registers, task.as_ref(), kernel);
    RawSample {
        time_ns,
        cpu,
        task: task.map(|task| SampledTask {
            addr: task.addr,
            pid: task.pid,
            tgid: task.tgid,
            comm: task.comm,
            kernel_thread: task.kernel_thread,
        }),
        registers,
        regions,
    }
}

/// The stack in use and, when that is a signal stack, the part of the task's own that may be in use.
fn stacks(registers: &Registers, task: Option<&Task>, kernel: &Kernel<ProcMem>) -> Vec<StackCopy> {
    let Some(sp) = registers.sp() else {
        return Vec::new();
    };
    let area = kernel.stack_around(sp);
    let mut regions = vec![copy(kernel.memory(), sp..area.end)];
    let on_signal_stack = kernel
        .signal_stacks()
        .iter()
        .any(|stack| stack.contains(&sp));
    let own = task
        .filter(|_| on_signal_stack)
        .and_then(|task| own_stack(task, kernel));
    if let Some(own) = own {
        // The interrupted stack pointer was saved on the signal stack: it is no lower than the lowest word there that
        // could be one.
        let begin = regions[0]
            .bytes
            .chunks_exact(8)
            .filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)))
            .filter(|word| own.contains(word))
            .min();
        if let Some(begin) = begin {
            regions.push(copy(kernel.memory(), begin..own.end));
        }
    }
    regions
}

/// The stack that a task sleeps on. In an interrupt, kernels up to 6.x let `task_struct.stack` point to the signal stack
/// (`to_irq_stack()` of arch/um/kernel/irq.c), so it is found by where the task last slept, or was made to begin.
fn own_stack(task: &Task, kernel: &Kernel<ProcMem>) -> Option<Range<u64>> {
    let saved = kernel.saved_registers(task).ok()?;
    Some(kernel.stack_around(saved.sp()?))
}

/// As much of the range as is mapped from its beginning on. A range is at most a stack long.
fn copy(memory: &ProcMem, range: Range<u64>) -> StackCopy {
    let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
    let mut bytes = vec![0; len];
    let read = memory.read_some(KernelAddr(range.start), &mut bytes);
    bytes.truncate(read);
    StackCopy {
        addr: KernelAddr(range.start),
        bytes,
    }
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    })
}
