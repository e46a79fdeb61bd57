//! The guest's virtual CPUs and what runs on them.

use crate::addr::{CpuId, KernelAddr};
use crate::image::Image;
use crate::kernel::{Corruption, Kernel, required};
use crate::layout::{Layout, LayoutError};
use crate::memory::{Memory, MemoryExt};
use crate::tasks::Task;

/// Where the kernel keeps which task runs where: `cpu_tasks`, which was `{ int pid; void *task; }`
/// per CPU in 6.1, `{ void *task; }` in 6.12 and is a plain pointer in 7.x.
#[derive(Clone, Debug)]
pub(crate) struct CpuFields {
    pub(crate) cpu_tasks: KernelAddr,
    /// Bytes per CPU.
    pub(crate) stride: u64,
    /// Of the pointer within that.
    pub(crate) task: u64,
    /// How many CPUs the kernel was built for, at least 1.
    pub(crate) count: u32,
    /// The bitmap of CPUs that are online, and its size in bytes.
    pub(crate) online: Option<(KernelAddr, usize)>,
}

/// More than Kconfig lets UML have (64).
const MAX_CPUS: u64 = 4096;

impl CpuFields {
    pub(crate) fn new(image: &Image, layout: &Layout) -> Result<CpuFields, LayoutError> {
        let cpu_tasks = required(image, "cpu_tasks")?;
        let element = layout.variable("cpu_tasks", "[0]")?;
        let task = match layout.variable("cpu_tasks", "[0].task") {
            Ok(task) => task.offset,
            Err(_) => 0,
        };
        // From the symbol, since the declaration that the DWARF has first may have no length.
        let size = image.symbol_size("cpu_tasks").unwrap_or(element.size);
        let count = (size / element.size.max(1)).clamp(1, MAX_CPUS) as u32;
        let online = image.symbol("__cpu_online_mask").map(|mask| {
            let size = image.symbol_size("__cpu_online_mask").unwrap_or(8);
            (mask, size.clamp(8, MAX_CPUS / 8) as usize)
        });
        Ok(CpuFields {
            cpu_tasks,
            stride: element.size,
            task,
            count,
            online,
        })
    }
}

impl<M: Memory> Kernel<M> {
    /// The virtual CPUs that have been brought up, in order: a panic takes all but its own offline
    /// (`smp_send_stop()` of arch/um/kernel/smp.c), where each still stands with its task. CPU 0
    /// always is: before the kernel has set up its bitmap, and when memory cannot be read, it is
    /// the only one.
    pub fn cpus(&self) -> Vec<CpuId> {
        let fields = &self.cpu_fields;
        let mask = fields
            .online
            .and_then(|(addr, size)| self.read_vec(addr, size).ok())
            .unwrap_or_default();
        let is_online = |cpu: u32| {
            let byte = mask.get(cpu as usize / 8).copied().unwrap_or(0);
            cpu == 0 || byte >> (cpu % 8) & 1 == 1
        };
        // What never ran has CPU 0's idle task for a start.
        let boot = self.task_fields.init_task;
        let has_task = |cpu: u32| {
            self.read_addr(self.task_slot(cpu))
                .is_ok_and(|task| !task.is_null() && task != boot)
        };
        (0..fields.count)
            .filter(|&cpu| is_online(cpu) || has_task(cpu))
            .map(CpuId)
            .collect()
    }

    /// Where the pointer to a CPU's task is.
    fn task_slot(&self, cpu: u32) -> KernelAddr {
        let fields = &self.cpu_fields;
        fields.cpu_tasks + u64::from(cpu) * fields.stride + fields.task
    }

    /// The task that runs on a virtual CPU; its idle task when there is nothing to do.
    ///
    /// # Errors
    ///
    /// When the CPU does not exist or has not started, or its task cannot be read.
    pub fn current(&self, cpu: CpuId) -> Result<Task, Corruption> {
        let fields = &self.cpu_fields;
        if cpu.0 >= fields.count {
            return Err(Corruption::NotOnline { cpu });
        }
        let addr = self.task_slot(cpu.0);
        let task = self
            .read_addr(addr)
            .map_err(|source| Corruption::Unreadable {
                what: "cpu_tasks",
                addr,
                source,
            })?;
        match task {
            // Until `start_uml()` fills it in, which makes the boot thread `init_task`.
            KernelAddr(0) if cpu.0 == 0 => self.task_at(self.task_fields.init_task),
            KernelAddr(0) => Err(Corruption::NotOnline { cpu }),
            task if !task.get().is_multiple_of(8) => Err(Corruption::WildPointer {
                what: "current task",
                addr,
                value: task,
            }),
            task => self.task_at(task),
        }
    }
}
