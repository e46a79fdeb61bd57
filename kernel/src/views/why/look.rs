//! What every part of the view needs: the tasks, and careful looks at lists.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::clock::Clock;
use super::files::OpenFiles;
use super::links::Links;
use super::modules::Modules;
use super::rings::Rings;
use super::sleeper::Sleeper;
use super::{Role, Waker};
use crate::addr::KernelAddr;
use crate::backtrace::format_frame;
use crate::layout::Layout;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError};
use crate::registers::Registers;
use crate::tasks::Task;
use crate::unwind::{Backtrace, Frame, UnwindEnd, Unwinder};
use crate::views::path::Paths;

/// One look at all the tasks.
///
/// Nothing that is read here makes the view torn: whether a task was looked at in one piece is
/// found out by its count of context switches, for each task by itself.
pub(super) struct Look<'r, 'k, M> {
    pub(super) reader: &'r Reader<'k, M>,
    /// By the address of the `task_struct`; and the order in which they were listed.
    tasks: HashMap<KernelAddr, Task>,
    order: Vec<KernelAddr>,
    /// On a CPU.
    running: HashSet<KernelAddr>,
    /// By the address of the stack.
    stacks: HashMap<u64, KernelAddr>,
    /// Where `next` and `prev` are in a `struct list_head`.
    pub(super) list_head: Option<(u64, u64)>,
    pub(super) rings: Rings,
    pub(super) paths: Paths<'r, M>,
    unwinder: RefCell<Option<Unwinder>>,
    pub(super) clock: Clock,
    sleepers: RefCell<HashMap<KernelAddr, Option<Rc<Sleeper>>>>,
    kept: Cell<usize>,
    /// The tasks that have an address on their stack, by that.
    pub(super) mentions: RefCell<HashMap<KernelAddr, Rc<[KernelAddr]>>>,
    files: OnceCell<OpenFiles>,
    links: OnceCell<Links>,
    modules: OnceCell<Modules<'r, M>>,
    caches: OnceCell<HashMap<KernelAddr, String>>,
}

/// Bytes of stacks that are kept, about. There are tasks with more only in damaged memory.
const MAX_KEPT: usize = 64 << 20;

impl<'r, 'k, M: Memory> Look<'r, 'k, M> {
    pub(super) fn new(reader: &'r Reader<'k, M>) -> Result<Look<'r, 'k, M>, ViewError> {
        let kernel = reader.kernel();
        // Fails for a kernel without DWARF, once and not for every task.
        let layout = kernel.image().layout()?;
        let list_head = |path| layout.member("struct list_head", path);
        let list_head = list_head("next").ok().zip(list_head("prev").ok());
        let mut tasks = HashMap::new();
        let mut order = Vec::new();
        let mut stacks = HashMap::new();
        for task in kernel.tasks() {
            if let Some(task) = reader.or_warn(task) {
                order.push(task.addr);
                stacks.insert(task.stack.get(), task.addr);
                tasks.insert(task.addr, task);
            }
        }
        let running = kernel.cpus().into_iter();
        let running = running.filter_map(|cpu| kernel.current(cpu).ok());
        let unwinder = reader.or_warn(Unwinder::new(kernel.image()));
        Ok(Look {
            reader,
            tasks,
            order,
            running: running.map(|task| task.addr).collect(),
            unwinder: RefCell::new(unwinder),
            clock: Clock::read(reader),
            stacks,
            list_head: list_head.map(|(next, prev)| (next.offset, prev.offset)),
            rings: Rings::default(),
            paths: reader.paths(None),
            sleepers: RefCell::default(),
            kept: Cell::new(0),
            mentions: RefCell::default(),
            files: OnceCell::new(),
            links: OnceCell::new(),
            modules: OnceCell::new(),
            caches: OnceCell::new(),
        })
    }

    /// Every task, in the order of the kernel's list.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.order.iter().filter_map(|addr| self.tasks.get(addr))
    }

    /// The task whose `task_struct` is at `addr`.
    pub(super) fn task(&self, addr: KernelAddr) -> Option<&Task> {
        self.tasks.get(&addr)
    }

    /// Whether what was a task has ended, and was not only made after the tasks were listed.
    pub(super) fn is_gone(&self, addr: KernelAddr) -> bool {
        // PF_EXITING of include/linux/sched.h: it stays in memory that was a task's last.
        const EXITING: u64 = 4;
        let flags = self.reader.task(addr).u64("flags");
        flags.map_or(true, |flags| flags & EXITING != 0)
    }

    /// The task on whose stack an address is.
    pub(super) fn on_stack_of(&self, addr: KernelAddr) -> Option<&Task> {
        let stack = self.reader.kernel().stack_around(addr.get());
        self.task(*self.stacks.get(&stack.start)?)
    }

    /// Whether a task is on a CPU.
    pub(super) fn runs(&self, task: &Task) -> bool {
        self.running.contains(&task.addr)
    }

    pub(super) fn layout(&self) -> Option<&'k Layout> {
        self.reader.kernel().image().layout().ok()
    }

    /// A `task_struct`.
    pub(super) fn object(&self, task: &Task) -> Object<'_, M> {
        self.reader.task(task.addr)
    }

    /// A word.
    pub(super) fn word(&self, addr: KernelAddr) -> Option<KernelAddr> {
        self.reader.kernel().read_addr(addr).ok()
    }

    /// How often a task was switched away from; it has not run while this stays the same.
    pub(super) fn switches(&self, task: &Task) -> Option<u64> {
        let task = self.object(task);
        let voluntary = task.u64("nvcsw").ok()?;
        Some(voluntary.wrapping_add(task.u64("nivcsw").ok()?))
    }

    pub(super) fn unwind(&self, registers: &Registers, task: &Task) -> Backtrace {
        let kernel = self.reader.kernel();
        match &mut *self.unwinder.borrow_mut() {
            Some(unwinder) => unwinder.unwind(registers, kernel, &kernel.stacks_of(task)),
            None => Backtrace {
                frames: Vec::new(),
                end: UnwindEnd::Complete,
            },
        }
    }

    /// A sleeping task's stack. `None` when it cannot be read.
    pub(super) fn sleeper(&self, task: &Task) -> Option<Rc<Sleeper>> {
        if let Some(known) = self.sleepers.borrow().get(&task.addr) {
            return known.clone();
        }
        let sleeper = Sleeper::read(self, task).map(Rc::new);
        let size = sleeper.as_ref().map_or(0, |sleeper| sleeper.size());
        let kept = self.kept.get() + size;
        if kept <= MAX_KEPT {
            self.kept.set(kept);
            let mut sleepers = self.sleepers.borrow_mut();
            sleepers.insert(task.addr, sleeper.clone());
        }
        sleeper
    }

    /// Has a task's stack, and whatever it waits for, read again when it is asked for.
    pub(super) fn forget(&self, task: &Task) {
        self.rings.forget();
        self.sleepers.borrow_mut().remove(&task.addr);
    }

    /// The functions of a frame, innermost first. A module's has its name behind it, as in
    /// /proc/PID/stack.
    pub(super) fn functions_at(&self, frame: Frame) -> Vec<String> {
        let functions = self.reader.kernel().image().locate(frame.lookup());
        if !functions.is_empty() {
            return functions.into_iter().map(|at| at.function).collect();
        }
        let name = self.modules().function(frame.lookup());
        name.into_iter().collect()
    }

    /// A frame of a stack, a line for each function.
    pub(super) fn describe_frame(&self, frame: Frame) -> Vec<String> {
        let image = self.reader.kernel().image();
        match self.modules().place(frame) {
            Some(place) => vec![place],
            None => format_frame(image, frame),
        }
    }

    /// The loaded modules' symbols.
    pub(super) fn modules(&self) -> &Modules<'r, M> {
        self.modules.get_or_init(|| Modules::read(self.reader))
    }

    /// Which process has which file open.
    pub(super) fn files(&self) -> &OpenFiles {
        self.files.get_or_init(|| OpenFiles::read(self))
    }

    /// How the tasks are linked to each other.
    pub(super) fn links(&self) -> &Links {
        self.links.get_or_init(|| Links::read(self))
    }

    /// The slab caches by address.
    pub(super) fn caches(&self) -> &HashMap<KernelAddr, String> {
        self.caches
            .get_or_init(|| super::names::caches(self.reader))
    }

    /// The task behind a lock's owner word as a waker, if it is one.
    pub(super) fn owner(&self, owner: KernelAddr, role: Role, certain: bool) -> Vec<Waker> {
        let task = self.task(owner);
        task.map(|task| Waker::new(task, role, certain))
            .into_iter()
            .collect()
    }
}
