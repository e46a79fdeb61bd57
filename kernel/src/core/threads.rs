//! The kernel's tasks as the threads of a core.

use std::collections::HashSet;

use super::notes;
use super::plan::CoreInput;
use crate::addr::CpuId;
use crate::kernel::Kernel;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::tasks::{IDLE_THREADS, Task};

/// The most threads in a core. A guest with more has corrupt lists or little interest in being
/// read.
const MAX_THREADS: usize = 65_536;

/// SIGABRT: what a panicked kernel sends itself.
const ABORT: i16 = 6;

/// One task.
pub(super) struct Thread {
    tid: i32,
    name: String,
    state: char,
    registers: Registers,
}

/// Every task: those that run first, in the order of their CPUs, then the others.
pub(super) fn threads<M: Memory>(
    kernel: &Kernel<M>,
    cpus: &[(CpuId, Registers)],
    warnings: &mut Vec<String>,
) -> Vec<Thread> {
    let mut threads = Vec::new();
    let mut seen = HashSet::new();
    let mut running = HashSet::new();
    for &(cpu, registers) in cpus {
        let task = kernel.task_on(cpu, &registers);
        let tid = match &task {
            Some(task) if task.pid.0 > 0 => task.pid.0,
            _ => IDLE_THREADS.saturating_add_unsigned(cpu.0),
        };
        running.extend(task.as_ref().map(|task| task.addr));
        if seen.insert(tid) {
            let (name, state) = match task {
                Some(task) => (task.comm, task.state.0),
                // Early in the boot.
                None => (format!("CPU {cpu}"), 'R'),
            };
            threads.push(Thread {
                tid,
                name,
                state,
                registers,
            });
        }
    }
    for task in kernel.tasks().take(MAX_THREADS) {
        let sleeping = task.and_then(|task| {
            if running.contains(&task.addr) {
                return Ok(None);
            }
            let registers = kernel.saved_registers(&task)?;
            Ok(Some((tid(&task), task, registers)))
        });
        match sleeping {
            Ok(Some((Some(tid), task, registers))) if seen.insert(tid) => threads.push(Thread {
                tid,
                name: task.comm,
                state: task.state.0,
                registers,
            }),
            Ok(_) => {}
            Err(error) => warnings.push(format!("a thread is missing: {error}")),
        }
    }
    threads
}

/// The thread id of a task that does not run. Of an idle task it cannot be told which CPU's it is,
/// and only CPU 0's is in the list of tasks.
fn tid(task: &Task) -> Option<i32> {
    match task.pid.0 {
        0 => Some(IDLE_THREADS),
        pid @ 1.. => Some(pid),
        _ => None,
    }
}

/// Appends the notes that make debuggers see the threads, and the one about the whole process.
pub(super) fn push_notes(content: &mut Vec<u8>, threads: &[Thread], input: &CoreInput<'_>) {
    // As with a process: all of its threads end by the same signal.
    let signal = input.panicked.map_or(0, |_| ABORT);
    for thread in threads {
        let status = notes::prstatus(thread.tid, signal, &thread.registers);
        notes::push(content, notes::CORE, notes::NT_PRSTATUS, &status);
        let info = notes::prpsinfo(thread.tid, thread.state, &thread.name, &thread.name);
        notes::push(content, notes::CORE, notes::NT_PRPSINFO, &info);
    }
    // As the stub for live guests numbers it.
    const PROCESS: i32 = 1;
    let arguments = match input.panicked {
        Some(reason) => format!("linux (guest {}): panic: {reason}", input.guest),
        None => format!("linux (guest {})", input.guest),
    };
    let info = notes::prpsinfo(PROCESS, 'R', "linux", &arguments);
    notes::push(content, notes::CORE, notes::NT_PRPSINFO, &info);
}
