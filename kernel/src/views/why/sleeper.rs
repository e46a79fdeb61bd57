//! A sleeping task: its stack as functions and as words.

use std::cell::OnceCell;

use super::kinds::{Kind, is_scheduler};
use super::look::Look;
use crate::addr::KernelAddr;
use crate::memory::{Memory, MemoryExt};
use crate::reader::Object;
use crate::tasks::Task;
use crate::unwind::Frame;

/// A task that does not run, as it was when it went to sleep.
pub(super) struct Sleeper {
    pub(super) task: Task,
    /// The functions on the stack, innermost first, those that were inlined too.
    pub(super) functions: Vec<Function>,
    /// How many of them are the scheduler's.
    pub(super) scheduler: usize,
    /// Where the used part of the stack begins.
    pub(super) sp: KernelAddr,
    /// That part, word by word.
    words: Vec<u64>,
    /// Registers that calls preserve: pointers that are nowhere on the stack may be there.
    registers: Vec<u64>,
    pointers: OnceCell<Vec<KernelAddr>>,
}

/// A function on a stack.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) frame: Frame,
}

/// Larger than any kernel stack.
const MAX_STACK: u64 = 1 << 17;

impl Sleeper {
    /// Reads a task's stack. `None` when that cannot be read, as while the task runs.
    pub(super) fn read<M: Memory>(look: &Look<'_, '_, M>, task: &Task) -> Option<Sleeper> {
        let kernel = look.reader.kernel();
        let registers = kernel.saved_registers(task).ok()?;
        let sp = KernelAddr(registers.sp()?);
        let stack = kernel.stack_of(task);
        if !stack.contains(&sp.get()) || !sp.get().is_multiple_of(8) {
            return None;
        }
        let len = (stack.end - sp.get()).min(MAX_STACK) & !7;
        let bytes = kernel.read_vec(sp, len as usize).ok()?;
        let words = bytes
            .chunks_exact(8)
            .map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let backtrace = look.unwind(&registers, task);
        let mut functions = Vec::new();
        for frame in backtrace.frames {
            for name in look.functions_at(frame) {
                functions.push(Function { name, frame });
            }
        }
        let scheduler = functions
            .iter()
            .position(|function| !is_scheduler(&function.name));
        Some(Sleeper {
            task: task.clone(),
            scheduler: scheduler.unwrap_or(functions.len()),
            functions,
            sp,
            words: words.collect(),
            registers: registers.iter().map(|(_, value)| value).collect(),
            pointers: OnceCell::new(),
        })
    }

    /// The functions behind the scheduler's.
    pub(super) fn callers(&self) -> impl Iterator<Item = &str> {
        let rest = self.functions.get(self.scheduler..).unwrap_or_default();
        rest.iter().map(|function| &*function.name)
    }

    /// Whether a function is on the stack.
    pub(super) fn is_in(&self, function: &str) -> bool {
        self.callers().any(|caller| caller == function)
    }

    /// The kind of sleep that the innermost function that is known means.
    pub(super) fn kind(&self) -> Option<Kind> {
        self.callers().find_map(Kind::of)
    }

    /// The function that waits: the first behind those of the primitive.
    pub(super) fn function(&self, kind: Option<Kind>) -> Option<&str> {
        self.callers()
            .find(|caller| !kind.is_some_and(|kind| kind.owns(caller)))
    }

    /// The function of a kernel thread, if the task waits in it itself or in a function or two
    /// that it calls: its loop, which waits for work.
    pub(super) fn thread_loop(&self) -> Option<&str> {
        const NEAR: usize = 3;
        let mut callers: Vec<_> = self.callers().take(NEAR + 1).collect();
        // `kthread()` calls the functions of all threads but its own maker's.
        let end = callers
            .iter()
            .position(|&caller| caller == "kthread" || caller == "new_thread_handler")?;
        callers.truncate(end);
        callers.pop()
    }

    /// Words of the stack and registers that can be pointers, in order and each once.
    pub(super) fn pointers(&self) -> &[KernelAddr] {
        self.pointers.get_or_init(|| {
            let words = self.words.iter().chain(&self.registers).copied();
            let mut pointers: Vec<_> = words
                .filter(|word| word.is_multiple_of(8) && (0x1000..1 << 47).contains(word))
                .map(KernelAddr)
                .collect();
            pointers.sort_unstable();
            pointers.dedup();
            pointers
        })
    }

    /// Bytes that this takes, about.
    pub(super) fn size(&self) -> usize {
        self.words.len() * 16 + self.functions.len() * 64
    }

    /// Where on the stack the task's own address is, the innermost first: members of what it left
    /// there to be woken by.
    fn selves(&self) -> impl Iterator<Item = KernelAddr> {
        let own = self.task.addr.get();
        (0..)
            .zip(&self.words)
            .filter(move |&(_, &word)| word == own)
            .map(|(at, _)| self.sp + 8 * at)
    }

    /// The objects of a type on the stack whose member `task` is this task, innermost first. They
    /// may be something else: it is for the caller to see whether they make sense.
    pub(super) fn left<'r, M: Memory>(
        &self,
        look: &'r Look<'_, '_, M>,
        owner: &str,
        task: &str,
    ) -> Vec<Object<'r, M>> {
        let Ok(layout) = look.reader.kernel().image().layout() else {
            return Vec::new();
        };
        let (Ok(member), Ok(size)) = (layout.member(owner, task), layout.size_of(owner)) else {
            return Vec::new();
        };
        let end = self.sp + 8 * self.words.len() as u64;
        self.selves()
            .filter(|&at| at - self.sp >= member.offset)
            .map(|at| at - member.offset)
            .filter(|&base| base.checked_add(size).is_some_and(|after| after <= end))
            .map(|base| look.reader.object(owner, base))
            .collect()
    }
}
