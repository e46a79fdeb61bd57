//! A real guest as a source of samples.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kscope_kernel::{CpuId, Kernel, KernelAddr, LayoutError, Registers, Task};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::{Capture, Source};
use crate::control::{Attachment, Control, ControlError, HostTid, Stopped};
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
    clocks: Arc<Mutex<Clocks>>,
    /// Where this thread and the engine's might run before they moved away from the guest's CPU.
    moved: Option<(CpuSet, CpuSet)>,
    _attachment: Attachment,
}

impl GuestSource {
    /// Attaches to the guest.
    ///
    /// # Errors
    ///
    /// The guest is gone, cannot be attached, or its kernel has no debug information.
    pub fn new(control: &Control) -> Result<Self, SourceError> {
        let kernel = Arc::new(Kernel::new(control.image()?.clone(), control.memory()?)?);
        Ok(Self {
            control: control.clone(),
            kernel,
            clocks: Arc::default(),
            moved: None,
            _attachment: control.attach()?,
        })
    }
}

impl Drop for GuestSource {
    fn drop(&mut self) {
        if let Some((own, engine)) = self.moved.take() {
            move_to(&own);
            // Fails when the guest, and with it the engine, is gone.
            let _ = self
                .control
                .with_stopped(STOP_TIMEOUT, move |_| move_to(&engine));
        }
    }
}

/// Moves the calling thread to other host CPUs; gives those it was on before.
fn move_to(cpus: &CpuSet) -> Option<CpuSet> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).ok()?;
    sched_setaffinity(this, cpus).ok()?;
    Some(before)
}

impl Source for GuestSource {
    /// Keeps off the host CPU of a guest that has only one. There, a sampler that wakes up often has to wait until the
    /// guest blocks, so that it would find it blocked, and never at work (measured: 98 % of the samples of a busy
    /// kernel in `wait4`). From another CPU a stop costs more, and tells the truth.
    fn begin(&mut self) {
        let this = Pid::from_raw(0);
        let guest = sched_getaffinity(Pid::from_raw(self.control.pid().0));
        let (Ok(guest), Ok(mut cpus)) = (guest, sched_getaffinity(this)) else {
            return;
        };
        let all = 0..CpuSet::count();
        let is_set = |set: &CpuSet, cpu| set.is_set(cpu).unwrap_or(false);
        if self.moved.is_some() || all.clone().filter(|&cpu| is_set(&guest, cpu)).count() != 1 {
            return;
        }
        for cpu in all.clone().filter(|&cpu| is_set(&guest, cpu)) {
            // Fails for a CPU out of range only.
            let _ = cpus.unset(cpu);
        }
        if !all.clone().any(|cpu| is_set(&cpus, cpu)) {
            return;
        }
        let engine = self
            .control
            .with_stopped(STOP_TIMEOUT, move |_| move_to(&cpus));
        if let (Ok(Some(engine)), Some(own)) = (engine, move_to(&cpus)) {
            self.moved = Some((own, engine));
        }
    }

    fn capture(&mut self) -> Capture {
        let kernel = Arc::clone(&self.kernel);
        let clocks = Arc::clone(&self.clocks);
        let captured = self.control.with_stopped(STOP_TIMEOUT, move |stopped| {
            let mut clocks = clocks.lock().unwrap_or_else(PoisonError::into_inner);
            let samples = samples(stopped, &kernel, &mut clocks);
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
    clocks: &mut Clocks,
) -> Result<Vec<RawSample>, ControlError> {
    let time_ns = now_ns();
    stopped
        .cpus()
        .into_iter()
        .map(|vcpu| {
            let registers = stopped.registers(vcpu.cpu)?;
            let cpu_ns = clocks.read(vcpu.tid);
            Ok(RawSample {
                time_ns,
                cpu_ns,
                ..sample(vcpu.cpu, registers, kernel)
            })
        })
        .collect()
}

/// The host's accounts of the guest's threads, kept open: a read costs a microsecond.
#[derive(Debug, Default)]
struct Clocks(HashMap<HostTid, Option<File>>);

impl Clocks {
    /// CPU time of a thread that stands still, in nanoseconds: the first number in its `schedstat`.
    fn read(&mut self, tid: HostTid) -> Option<u64> {
        let file = self
            .0
            .entry(tid)
            .or_insert_with(|| File::open(format!("/proc/{tid}/schedstat")).ok())
            .as_ref()?;
        let mut text = [0; 64];
        let len = file.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..len)?).ok()?;
        text.split_ascii_whitespace().next()?.parse().ok()
    }
}

fn sample(cpu: CpuId, registers: Registers, kernel: &Kernel<ProcMem>) -> RawSample {
    // Memory that makes no sense costs the sample its label, not the recording its life.
    let task = kernel.current(cpu).ok();
    let regions = stacks(&registers, task.as_ref(), kernel);
    RawSample {
        time_ns: 0,
        cpu,
        cpu_ns: None,
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
