//! Reading the kernel's structures: objects with types, lists, and what went wrong.

mod lists;
mod object;

use std::cell::RefCell;

use crate::addr::{CpuId, GuestPid, KernelAddr};
use crate::expr::ExprError;
use crate::kernel::{Corruption, Kernel};
use crate::layout::LayoutError;
use crate::memory::{Memory, MemoryExt, ReadError};
use crate::tasks::Task;

pub use lists::{List, Tree};
pub use object::Object;

/// Reads structures out of a guest for one view of it.
///
/// A guest may run while it is read. Every pointer that is followed is remembered, so that
/// [`torn`](Reader::torn) can tell afterwards whether one of them has changed since. What is
/// corrupt is left out of the view and told by [`warnings`](Reader::warnings).
pub struct Reader<'k, M> {
    kernel: &'k Kernel<M>,
    journal: RefCell<Journal>,
}

#[derive(Default)]
struct Journal {
    /// Where a pointer was, and what it was.
    followed: Vec<(KernelAddr, u64)>,
    warnings: Vec<String>,
    /// Warnings beyond those that are kept.
    more: usize,
}

/// More warnings than anybody reads.
const MAX_WARNINGS: usize = 100;

/// After so many problems, what follows is no better: it is not a list that is read, but garbage.
const MAX_PROBLEMS: usize = 1000;

/// How many pointers are remembered, 16 bytes each. A view of a kernel with more is not checked
/// to its end.
const MAX_FOLLOWED: usize = 1 << 20;

/// Bytes of the longest string that is read: a path (PATH_MAX).
const MAX_TEXT: usize = 4096;

/// A pointer changed while a view was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest changed what was being read ({what} at {addr}): some of it may be old or missing; \
     --stop reads it while the guest stands still"
)]
pub struct Torn {
    /// The symbol it belongs to, or "a pointer".
    pub what: String,
    /// Where the pointer is.
    pub addr: KernelAddr,
}

/// Why a view cannot be given at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The kernel's types or symbols are not those that the view knows.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Guest memory does not hold what it should.
    #[error(transparent)]
    Corruption(#[from] Corruption),
    /// The kernel was built without it.
    #[error("this kernel has no {what}: it was built without {option}")]
    NotConfigured {
        /// What is missing.
        what: &'static str,
        /// The Kconfig option, `CONFIG_MODULES`.
        option: &'static str,
    },
    /// No task has this pid.
    #[error("no task of the guest has pid {pid}; `kscope ps` lists them")]
    NoTask {
        /// As it was asked for.
        pid: GuestPid,
    },
    /// An expression that cannot be evaluated.
    #[error(transparent)]
    Expr(#[from] ExprError),
    /// What was asked for makes no sense to the view.
    #[error("{0}")]
    Invalid(String),
    /// Where the CPUs are is not known.
    #[error("the registers of the guest's CPUs cannot be had: {0}")]
    NoRegisters(String),
}

impl<'k, M: Memory> Reader<'k, M> {
    /// A reader with nothing read yet.
    pub fn new(kernel: &'k Kernel<M>) -> Reader<'k, M> {
        Reader {
            kernel,
            journal: RefCell::default(),
        }
    }

    /// The kernel that is read.
    pub fn kernel(&self) -> &'k Kernel<M> {
        self.kernel
    }

    /// The variable `name`.
    ///
    /// # Errors
    ///
    /// When this kernel has no such symbol.
    pub fn global(&self, name: &str) -> Result<Object<'_, M>, ViewError> {
        let addr = self.kernel.image().symbol(name);
        let addr = addr.ok_or_else(|| LayoutError::NoVariable {
            name: name.to_owned(),
        })?;
        Ok(self.object(&format!("&{name}"), addr))
    }

    /// The instance of the per-CPU variable `name` that belongs to a CPU.
    ///
    /// # Errors
    ///
    /// When this kernel has no such symbol, or the CPU's offset cannot be read.
    pub fn per_cpu(&self, name: &str, cpu: CpuId) -> Result<Object<'_, M>, ViewError> {
        let variable = self.global(name)?;
        Ok(variable.moved(self.per_cpu_offset(cpu)?))
    }

    /// What is added to the address of a per-CPU variable for a CPU's own, bytes. 0 without SMP.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn per_cpu_offset(&self, cpu: CpuId) -> Result<u64, ViewError> {
        let Ok(offsets) = self.global("__per_cpu_offset") else {
            return Ok(0);
        };
        offsets.u64(&format!("[{}]", cpu.0))
    }

    /// The object of type `owner` (as [`Layout::member`](crate::Layout::member) wants it) at `addr`.
    pub fn object(&self, owner: &str, addr: KernelAddr) -> Object<'_, M> {
        Object::new(self, owner, addr)
    }

    /// The `task_struct` of a task that was listed.
    pub fn task(&self, addr: KernelAddr) -> Object<'_, M> {
        self.object("struct task_struct", addr)
    }

    /// The task with this pid, and its `task_struct`.
    ///
    /// # Errors
    ///
    /// When there is none, or the list of tasks is corrupt before it is found.
    pub fn find_task(&self, pid: GuestPid) -> Result<(Task, Object<'_, M>), ViewError> {
        let task = self.kernel.find_task(pid)?;
        let task = task.ok_or(ViewError::NoTask { pid })?;
        let object = self.task(task.addr);
        Ok((task, object))
    }

    /// Reads a pointer that is going to be followed.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn pointer(&self, addr: KernelAddr, what: &'static str) -> Result<KernelAddr, Corruption> {
        let memory = self.kernel;
        let value = memory
            .read_addr(addr)
            .map_err(|source| unreadable(what, source))?;
        self.remember(addr, value.get());
        Ok(value)
    }

    /// The string at an address, for pointers that have no type of their own; see
    /// [`Object::text`].
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn text_at(&self, addr: KernelAddr) -> Result<String, ViewError> {
        let text = self.kernel.read_cstr(addr, MAX_TEXT);
        Ok(text.map_err(|source| unreadable("string", source))?)
    }

    /// Tells the user about a part of the guest that could not be made sense of.
    pub fn warn(&self, problem: impl ToString) {
        let mut journal = self.journal.borrow_mut();
        if journal.warnings.len() < MAX_WARNINGS {
            let problem = problem.to_string();
            // A broken element is often met on several ways.
            if !journal.warnings.contains(&problem) {
                journal.warnings.push(problem);
            }
        } else {
            journal.more += 1;
        }
    }

    /// `Ok` as it is, an error as a warning.
    pub fn or_warn<T>(&self, result: Result<T, impl ToString>) -> Option<T> {
        result.map_err(|problem| self.warn(problem)).ok()
    }

    /// Whether so much could not be made sense of that it is not worth while to go on.
    pub(crate) fn is_hopeless(&self) -> bool {
        let journal = self.journal.borrow();
        journal.warnings.len() + journal.more >= MAX_PROBLEMS
    }

    /// What was told with [`warn`](Reader::warn), once each.
    pub fn warnings(&self) -> Vec<String> {
        let journal = self.journal.borrow();
        let mut warnings = journal.warnings.clone();
        if journal.more > 0 {
            warnings.push(format!("and {} more of this kind", journal.more));
        }
        warnings
    }

    /// Reads every pointer again that was followed; the first that is another one now.
    pub fn torn(&self) -> Option<Torn> {
        let journal = self.journal.borrow();
        let changed = journal.followed.iter().find(|&&(addr, value)| {
            let now = self.kernel.read_u64(addr);
            now.is_ok_and(|now| now != value) || now.is_err()
        });
        changed.map(|&(addr, _)| {
            let symbol = self.kernel.image().symbol_at(addr);
            Torn {
                what: symbol.map_or("a pointer".to_owned(), |(name, _)| name.to_owned()),
                addr,
            }
        })
    }

    pub(crate) fn remember(&self, addr: KernelAddr, value: u64) {
        let followed = &mut self.journal.borrow_mut().followed;
        if followed.len() < MAX_FOLLOWED {
            followed.push((addr, value));
        }
    }
}

pub(crate) fn unreadable(what: &'static str, source: ReadError) -> Corruption {
    Corruption::Unreadable {
        what,
        addr: source.addr,
        source,
    }
}
