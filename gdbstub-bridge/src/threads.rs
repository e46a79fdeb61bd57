//! The guest's tasks as GDB's threads.

use std::collections::HashMap;

use gdbstub::common::Tid;
use kscope_guest::control::VCpu;
use kscope_guest::mem::ProcMem;
use kscope_kernel::{CpuId, IDLE_THREADS, Kernel, Memory, Paged, Registers, Task};

use crate::process;

/// Thread ids of what has no guest pid of its own, idle tasks: their CPU's number on top of this.
const IDLE_BASE: usize = IDLE_THREADS as usize;

/// The most threads that are listed. A guest with more has corrupt lists or little interest in being read.
pub(crate) const MAX_THREADS: usize = 65_536;

/// What GDB knows as a thread.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    /// None as long as the CPU runs no task, early in the boot.
    pub(crate) task: Option<Task>,
    /// The CPU that it is on.
    pub(crate) cpu: Option<VCpu>,
}

/// The guest's threads at one stop.
pub(crate) struct Threads {
    /// Those that run first, in the order of their CPUs.
    order: Vec<Tid>,
    by_tid: HashMap<Tid, Thread>,
    /// The registers of the CPUs.
    registers: Vec<(VCpu, Registers)>,
    /// The kernel as it is at this stop, with which the sleeping ones were read; None when they are not among them yet.
    kernel: Option<Kernel<Paged<ProcMem>>>,
}

/// A thread id, which cannot be 0.
fn tid(number: usize) -> Tid {
    Tid::new(number).unwrap_or(Tid::MIN)
}

fn idle_tid(cpu: VCpu) -> Tid {
    tid(IDLE_BASE + cpu.cpu.0 as usize)
}

impl Threads {
    /// The threads that are on a CPU.
    pub(crate) fn running(
        registers: Vec<(VCpu, Registers)>,
        kernel: Option<&Kernel<ProcMem>>,
        is_process: bool,
    ) -> Self {
        let mut threads = Threads {
            order: Vec::new(),
            by_tid: HashMap::new(),
            registers: Vec::new(),
            kernel: None,
        };
        for (vcpu, registers) in &registers {
            let vcpu = *vcpu;
            let task = kernel.and_then(|kernel| kernel.task_on(vcpu.cpu, registers));
            let id = match &task {
                _ if is_process => process::tid(vcpu),
                Some(task) if task.pid.0 > 0 => tid(task.pid.0 as usize),
                _ => idle_tid(vcpu),
            };
            threads.add(
                id,
                Thread {
                    task,
                    cpu: Some(vcpu),
                },
            );
        }
        threads.registers = registers;
        threads
    }

    /// Adds those that are not.
    pub(crate) fn complete(&mut self, kernel: &Kernel<ProcMem>) {
        if self.kernel.is_some() {
            return;
        }
        let kernel = kernel.with_memory(Paged::new(kernel.memory().clone()));
        for task in kernel.tasks().take(MAX_THREADS) {
            let task = match task {
                Ok(task) => task,
                Err(error) => {
                    log::warn!("the list of threads is cut off: {error}");
                    break;
                }
            };
            // The idle tasks are threads where they run; otherwise there is nothing of interest in them, and a CPU's
            // number cannot be told from theirs.
            let Ok(pid @ 1..) = usize::try_from(task.pid.0) else {
                let running = self.by_tid.values().any(|thread| {
                    thread
                        .task
                        .as_ref()
                        .is_some_and(|known| known.addr == task.addr)
                });
                if !running && task.pid.0 == 0 {
                    self.add(
                        tid(IDLE_BASE),
                        Thread {
                            task: Some(task),
                            cpu: None,
                        },
                    );
                }
                continue;
            };
            self.add(
                tid(pid),
                Thread {
                    task: Some(task),
                    cpu: None,
                },
            );
        }
        self.kernel = Some(kernel);
    }

    fn add(&mut self, id: Tid, thread: Thread) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.by_tid.entry(id) {
            entry.insert(thread);
            self.order.push(id);
        }
    }

    /// The kernel as it is at this stop, when all threads have been asked for.
    pub(crate) fn kernel(&self) -> Option<&Kernel<Paged<ProcMem>>> {
        self.kernel.as_ref()
    }

    /// All of them, running ones first.
    pub(crate) fn ids(&self) -> &[Tid] {
        &self.order
    }

    pub(crate) fn get(&self, id: Tid) -> Option<&Thread> {
        self.by_tid.get(&id)
    }

    /// The general registers of a CPU.
    pub(crate) fn registers(&self, cpu: CpuId) -> Option<&Registers> {
        let known = self.registers.iter().find(|(vcpu, _)| vcpu.cpu == cpu);
        known.map(|(_, registers)| registers)
    }

    /// The thread that is on a CPU.
    pub(crate) fn on(&self, cpu: CpuId) -> Option<Tid> {
        let is_on = |id: &&Tid| {
            self.by_tid
                .get(id)
                .and_then(|thread| thread.cpu)
                .is_some_and(|vcpu| vcpu.cpu == cpu)
        };
        self.order.iter().find(is_on).copied()
    }
}

/// What a client is shown of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// `kworker/0:1 [I] worker_thread`: its name, what it does, and where it sleeps.
    pub(crate) name: String,
    /// The CPU that it is on.
    pub(crate) cpu: Option<CpuId>,
}

pub(crate) fn describe<M: Memory>(kernel: Option<&Kernel<M>>, thread: &Thread) -> Description {
    let mut name = match &thread.task {
        Some(task) => format!("{} [{}]", task.comm, task.state),
        None => "boot".to_owned(),
    };
    if thread.cpu.is_none()
        && let (Some(kernel), Some(task)) = (kernel, &thread.task)
        && let Some(addr) = kernel.sleeps_at(task)
        && let Some((function, _)) = kernel.image().symbol_at(addr)
    {
        name += &format!(" {function}");
    }
    Description {
        name,
        cpu: thread.cpu.map(|vcpu| vcpu.cpu),
    }
}
