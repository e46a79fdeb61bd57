//! Kernel stacks, and the registers that a sleeping task left on its own.

use std::ops::Range;

use crate::addr::{CpuId, KernelAddr};
use crate::image::Image;
use crate::kernel::{Corruption, Kernel, area};
use crate::layout::{Layout, LayoutError};
use crate::memory::Memory;
use crate::registers::{Reg, Registers};
use crate::tasks::Task;
use crate::unwind::{Backtrace, Unwinder};
use crate::wchan::SchedulerText;

/// Where stacks are and where saved registers lie.
#[derive(Clone, Debug)]
pub(crate) struct StackFields {
    pub(crate) thread_size: u64,
    /// Within `task_struct`, by register.
    pub(crate) saved: Vec<(Reg, u64)>,
    pub(crate) scheduler: SchedulerText,
    /// The first of the stacks that signals are taken on, one per CPU, and how many.
    pub(crate) signal_stacks: Option<(KernelAddr, u64)>,
}

impl StackFields {
    pub(crate) fn new(image: &Image, layout: &Layout) -> Result<StackFields, LayoutError> {
        let thread_size = thread_size(layout)?;
        // UML's own `setjmp()` saves what a call preserves, unmangled.
        let saved = [
            (Reg::Rbx, "__rbx"),
            (Reg::Rbp, "__rbp"),
            (Reg::Rsp, "__rsp"),
            (Reg::R12, "__r12"),
            (Reg::R13, "__r13"),
            (Reg::R14, "__r14"),
            (Reg::R15, "__r15"),
            (Reg::Rip, "__rip"),
        ];
        let saved = saved
            .into_iter()
            .map(|(reg, name)| {
                let path = format!("thread.switch_buf[0].{name}");
                Ok((reg, layout.member("struct task_struct", &path)?.offset))
            })
            .collect::<Result<Vec<_>, LayoutError>>()?;
        // One `cpu0_irqstack` up to 6.x, an array `cpu_irqstacks` since.
        let signal_stacks = ["cpu_irqstacks", "cpu0_irqstack"].iter().find_map(|name| {
            let size = image.symbol_size(name)?;
            Some((
                image.symbol(name)?,
                (size / thread_size.max(1)).clamp(1, 4096),
            ))
        });
        Ok(StackFields {
            thread_size,
            saved,
            scheduler: SchedulerText::of(image),
            signal_stacks,
        })
    }
}

/// The size of a kernel stack, which is a macro (THREAD_SIZE) and not itself in the DWARF.
fn thread_size(layout: &Layout) -> Result<u64, LayoutError> {
    // The compiler describes only what a unit uses: the array since 7.x, the union before.
    let union = layout.size_of("union thread_union");
    let size = union.or_else(|error| {
        let array = layout.variable("init_stack", "").map(|array| array.size);
        array.map_err(|_| error)
    })?;
    if !size.is_power_of_two() {
        return Err(LayoutError::NoType {
            name: "union thread_union".to_owned(),
        });
    }
    Ok(size)
}

impl<M: Memory> Kernel<M> {
    /// The registers a task saved when it went to sleep: those that a function call preserves, the
    /// stack pointer and the program counter.
    ///
    /// For a task that runs they are those of its last sleep; ask the CPU instead (see
    /// [`current`](Kernel::current)).
    ///
    /// # Errors
    ///
    /// When the `task_struct` cannot be read.
    pub fn saved_registers(&self, task: &Task) -> Result<Registers, Corruption> {
        let saved = &self.stack_fields.saved;
        let offsets = || saved.iter().map(|&(_, offset)| offset);
        let (Some(first), Some(last)) = (offsets().min(), offsets().max()) else {
            return Ok(Registers::default());
        };
        // One read for all of them: they are members of one structure.
        let mut buf = vec![0; (last - first) as usize + 8];
        let addr = task.addr + first;
        self.read(addr, &mut buf)
            .map_err(|source| Corruption::Unreadable {
                what: "switch_buf",
                addr,
                source,
            })?;
        let value = |offset: u64| {
            let at = (offset - first) as usize;
            let bytes = buf.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        Ok(saved
            .iter()
            .filter_map(|&(reg, offset)| Some((reg, value(offset)?)))
            .collect())
    }

    /// The addresses of a task's kernel stack.
    pub fn stack_of(&self, task: &Task) -> Range<u64> {
        area(task.stack.get(), self.thread_size())
    }

    /// Every stack that the kernel can be on while it runs `task`: the task's own and the CPUs'
    /// signal stacks. What [`Unwinder::unwind`] wants.
    pub fn stacks_of(&self, task: &Task) -> Vec<Range<u64>> {
        std::iter::once(self.stack_of(task))
            .chain(self.signal_stacks())
            .collect()
    }

    /// The stacks on which the CPUs take host signals, CPU 0's first.
    pub fn signal_stacks(&self) -> Vec<Range<u64>> {
        let Some((first, count)) = self.stack_fields.signal_stacks else {
            return Vec::new();
        };
        let size = self.thread_size();
        (0..count)
            .map(|cpu| area((first + cpu * size).get(), size))
            .collect()
    }

    /// The stack-sized, stack-aligned area around a stack pointer. Kernel stacks and signal stacks
    /// all are such areas.
    pub fn stack_around(&self, sp: u64) -> Range<u64> {
        let size = self.thread_size().max(1);
        area(sp - sp % size, size)
    }

    /// The virtual CPU whose stack pointer this is: on the stack of its current task or on its
    /// signal stack. `None` for any other stack, as before the kernel has switched to its own.
    pub fn vcpu_of_stack(&self, sp: u64) -> Option<CpuId> {
        let signal_stack = self
            .signal_stacks()
            .iter()
            .position(|stack| stack.contains(&sp));
        if let Some(cpu) = signal_stack {
            return u32::try_from(cpu).ok().map(CpuId);
        }
        self.cpus().into_iter().find(|&cpu| {
            self.current(cpu)
                .is_ok_and(|task| self.stack_of(&task).contains(&sp))
        })
    }

    /// The task that a virtual CPU with these registers runs. `None` when it has none yet.
    ///
    /// By the stack that the CPU is on: while the kernel switches, [`current`](Kernel::current) is
    /// the next task a moment before the stack is, and who calls whom is on the stack. On a signal
    /// stack, by `current`.
    pub fn task_on(&self, cpu: CpuId, registers: &Registers) -> Option<Task> {
        /// More than that have corrupt lists.
        const MAX_TASKS: usize = 65_536;
        let current = self.current(cpu).ok()?;
        let Some(sp) = registers.sp() else {
            return Some(current);
        };
        let own = self.stack_of(&current).contains(&sp);
        if own || self.signal_stacks().iter().any(|stack| stack.contains(&sp)) {
            return Some(current);
        }
        let owner = self
            .tasks()
            .take(MAX_TASKS)
            .map_while(Result::ok)
            .find(|task| self.stack_of(task).contains(&sp));
        Some(owner.unwrap_or(current))
    }

    /// Unwinds a task that sleeps, from the registers it saved. For one that runs, unwind the
    /// registers of its CPU instead.
    ///
    /// # Errors
    ///
    /// When the saved registers cannot be read.
    pub fn backtrace(&self, unwinder: &mut Unwinder, task: &Task) -> Result<Backtrace, Corruption> {
        let registers = self.saved_registers(task)?;
        Ok(unwinder.unwind(&registers, self, &self.stacks_of(task)))
    }
}
