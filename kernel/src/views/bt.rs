//! Call stacks of tasks: through the kernel, and on through their programs.

mod files;
mod locals;
mod modules;
mod print;
mod user;

use std::cell::OnceCell;

use serde::Serialize;

use crate::addr::{CpuId, GuestPid, KernelAddr, UserAddr};
use crate::backtrace::describe_end;
use crate::image::Image;
use crate::memory::{Memory, MemoryExt};
use crate::overlay::{Overlay, Piece, RunningCpu};
use crate::reader::{Object, Reader, ViewError};
use crate::registers::Registers;
use crate::tasks::{Task, TaskState};
use crate::unwind::{CallStack, StackFrame, Truncation, UnwindEnd, Unwinder};
use crate::value::Value;

use locals::Variables;
use user::Programs;

/// The stacks of the tasks that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Stacks(pub Vec<TaskStack>);

/// A task and its call stack.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskStack {
    /// The pid of its process.
    pub pid: GuestPid,
    /// Its own pid.
    pub tid: GuestPid,
    /// Its name.
    pub comm: String,
    /// What it does.
    pub state: TaskState,
    /// The CPU that ran it when its stack was read.
    pub cpu: Option<CpuId>,
    /// Whether it is one of the kernel's own threads.
    pub kernel_thread: bool,
    /// Where it is in the kernel, the innermost function first.
    pub kernel: Vec<KernelFrame>,
    /// Why outer frames are missing in `kernel`, if they are.
    pub kernel_end: Option<String>,
    /// Where its program entered the kernel. Empty for the kernel's threads.
    pub user: Vec<UserFrame>,
    /// Why outer frames are missing in `user`, or all are.
    pub user_end: Option<String>,
    /// The address of its `task_struct`.
    pub task: KernelAddr,
}

/// A function of the kernel, or of a library in the kernel's process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct KernelFrame {
    /// Where execution is or, of a function that called another, will go on.
    pub pc: KernelAddr,
    /// The function. `None` when nothing is known there.
    pub function: Option<String>,
    /// Bytes from the function's start (that of `symbol`, if there is one) to `pc`. `None` for an
    /// inlined one.
    pub offset: Option<u64>,
    /// The symbol that `offset` counts from when that is a part of the function which the compiler
    /// has put elsewhere: `panic.cold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// Whether the function was inlined into the next one.
    pub inlined: bool,
    /// The source file, relative to the kernel's sources.
    pub file: Option<String>,
    /// The line, counted from 1.
    pub line: Option<u32>,
    /// The library, or the kernel's module, that has the code, when the kernel itself has not.
    pub object: Option<String>,
    /// Whether this is no function but the mark that a signal of the host, which is an interrupt of
    /// the guest, left: the next one was interrupted.
    pub interrupt: bool,
    /// The function's arguments in their order, when they were to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<Variable>>,
    /// The function's variables, when they were to be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locals: Option<Vec<Variable>>,
}

/// A function of a program of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserFrame {
    /// Where execution is or, of a function that called another, will go on.
    pub pc: UserAddr,
    /// The function. `None` when nothing is known there.
    pub function: Option<String>,
    /// Bytes from the function's start to `pc`.
    pub offset: Option<u64>,
    /// The path of the file that has the code, as the process sees it.
    pub object: Option<String>,
    /// Whether this is no function but the mark that a signal left.
    pub signal: bool,
}

/// An argument or a variable of a function.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value; absent when the compiler has kept none at this place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// Which stacks [`Reader::stacks`] reads, and how.
#[derive(Clone, Debug, Default)]
pub struct BtOptions {
    /// Whose.
    pub tasks: BtTasks,
    /// Whether to read arguments.
    pub arguments: bool,
    /// Whether to read local variables.
    pub locals: bool,
}

/// Whose stacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BtTasks {
    /// Of what the CPUs run.
    #[default]
    Running,
    /// Of all tasks, those that run first.
    All,
    /// Of the tasks with these pids.
    Pids(Vec<GuestPid>),
}

/// What runs, and how to unwind: what a view of stacks needs beyond memory.
pub trait Cpus {
    /// The registers of every CPU, in order.
    ///
    /// # Errors
    ///
    /// When they cannot be had.
    fn running(&self) -> Result<Vec<RunningCpu>, ViewError>;

    /// An unwinder that knows the kernel and the libraries of its process.
    ///
    /// # Errors
    ///
    /// When the kernel's binary cannot be used.
    fn unwinder(&self) -> Result<Unwinder, ViewError>;
}

/// More tasks than anybody reads the stacks of.
const MAX_TASKS: usize = 1 << 16;

/// How often a stack is read anew when its task ran meanwhile.
const ATTEMPTS: usize = 3;

impl<M: Memory> Reader<'_, M> {
    /// The stacks of tasks.
    ///
    /// # Errors
    ///
    /// When this kernel's types are not known, there is no task of a pid that was asked for, or it
    /// is only running tasks that were asked for and where they are is not to be found out.
    pub fn stacks(&self, options: &BtOptions, cpus: &dyn Cpus) -> Result<Stacks, ViewError> {
        let kernel = self.kernel();
        let wanted = match &options.tasks {
            BtTasks::Running => Vec::new(),
            BtTasks::All => self.every_task(),
            BtTasks::Pids(pids) => {
                let tasks = pids.iter().map(|&pid| Ok(self.find_task(pid)?.0));
                tasks.collect::<Result<Vec<_>, ViewError>>()?
            }
        };
        let is_current = |cpu| {
            let current = kernel.current(cpu).ok();
            current.is_some_and(|task| wanted.iter().any(|other| other.addr == task.addr))
        };
        // Asking stops the guest for a moment.
        let ask =
            !matches!(options.tasks, BtTasks::Pids(_)) || kernel.cpus().into_iter().any(is_current);
        let running = match (ask, &options.tasks) {
            (false, _) => Vec::new(),
            (true, BtTasks::Running) => cpus.running()?,
            (true, _) => self.or_warn(cpus.running()).unwrap_or_default(),
        };
        let walker = Walker {
            reader: self,
            unwinder: cpus.unwinder()?,
            image: kernel.image(),
            programs: Programs::new(self),
            variables: Variables::new(self),
            modules: OnceCell::new(),
            options,
        };
        let mut stacks = Vec::new();
        for cpu in &running {
            let task = cpu.task.and_then(|task| self.or_warn(kernel.task_at(task)));
            let is_wanted = match &options.tasks {
                BtTasks::Pids(_) => wanted.iter().any(|other| Some(other.addr) == cpu.task),
                _ => true,
            };
            if is_wanted {
                stacks.push(walker.running(cpu, task));
            }
        }
        for task in wanted {
            if !running.iter().any(|cpu| cpu.task == Some(task.addr)) {
                stacks.push(walker.sleeping(task));
            }
        }
        if let BtTasks::Pids(pids) = &options.tasks {
            stacks.sort_by_key(|stack| pids.iter().position(|&pid| pid == stack.tid));
        }
        Ok(Stacks(stacks))
    }

    /// Every task, also the idle ones of CPUs that run something else.
    fn every_task(&self) -> Vec<Task> {
        let kernel = self.kernel();
        let tasks = kernel.tasks().take(MAX_TASKS);
        let mut tasks: Vec<_> = tasks.filter_map(|task| self.or_warn(task)).collect();
        tasks.sort_by_key(|task| (task.tgid, task.pid));
        for cpu in kernel.cpus() {
            let runqueue = self.per_cpu("runqueues", cpu);
            let idle = runqueue.and_then(|runqueue| runqueue.pointer("idle"));
            // Kernels without SMP have but one, which is listed.
            if let Ok(idle) = idle
                && !idle.is_null()
                && !tasks.iter().any(|task| task.addr == idle)
            {
                tasks.extend(self.or_warn(kernel.task_at(idle)));
            }
        }
        tasks
    }
}

/// Reads one stack after the other.
struct Walker<'a, 'r, M> {
    reader: &'a Reader<'r, M>,
    unwinder: Unwinder,
    image: &'a Image,
    programs: Programs<'a, 'r, M>,
    variables: Variables<'a, 'r, M>,
    modules: OnceCell<Vec<modules::Loaded>>,
    options: &'a BtOptions,
}

impl<M: Memory> Walker<'_, '_, M> {
    /// The stack of a task that a CPU runs.
    fn running(&self, cpu: &RunningCpu, task: Option<Task>) -> TaskStack {
        let kernel = self.reader.kernel();
        let stacks = match &task {
            Some(task) => kernel.stacks_of(task),
            None => vec![kernel.stack_around(cpu.registers.sp().unwrap_or(0))],
        };
        let memory = Overlay::new(&cpu.stacks, kernel);
        let stack = self.unwinder.call_stack(&cpu.registers, &memory, &stacks);
        let mut stack = self.describe(task, Some(cpu.cpu), &stack, &memory);
        let innermost = stack.kernel.iter().find(|frame| frame.object.is_none());
        let is_user = innermost.is_some_and(|frame| {
            let function = frame.function.as_deref().unwrap_or_default();
            RUNS_PROGRAM.contains(&function)
        });
        if is_user && !stack.user.is_empty() {
            stack.user.clear();
            stack.user_end = Some("its program runs, and the host has its registers".to_owned());
        }
        stack
    }

    /// The stack of a task that no CPU runs. When it runs and sleeps again meanwhile, the last try
    /// is as good as any.
    fn sleeping(&self, task: Task) -> TaskStack {
        // What `put_task_stack()` leaves of the last user of a stack, long before the zombie goes.
        if task.stack.is_null() {
            let freed = CallStack {
                frames: Vec::new(),
                end: UnwindEnd::Truncated(Truncation::Freed),
            };
            return self.describe(Some(task), None, &freed, self.reader.kernel());
        }
        let mut task = task;
        let mut attempt = 1;
        loop {
            let kernel = self.reader.kernel();
            let switches = |task: &Task| {
                let task = self.reader.task(task.addr);
                Some((task.u64("nvcsw").ok()?, task.u64("nivcsw").ok()?))
            };
            let before = switches(&task);
            let registers = kernel.saved_registers(&task);
            let registers = self.reader.or_warn(registers).unwrap_or_default();
            let copy = self.copy(&task, &registers);
            if before == switches(&task) || attempt == ATTEMPTS {
                let memory = Overlay::new(&copy, kernel);
                let stacks = [kernel.stack_of(&task)];
                let stack = self.unwinder.call_stack(&registers, &memory, &stacks);
                return self.describe(Some(task), None, &stack, &memory);
            }
            attempt += 1;
            task = kernel.task_at(task.addr).unwrap_or(task);
        }
    }

    /// The part of a task's stack that is in use, in one read.
    fn copy(&self, task: &Task, registers: &Registers) -> Vec<Piece> {
        let kernel = self.reader.kernel();
        let stack = kernel.stack_of(task);
        let Some(sp) = registers.sp().filter(|sp| stack.contains(sp)) else {
            return Vec::new();
        };
        let addr = KernelAddr(sp);
        let bytes = kernel.read_vec(addr, (stack.end - sp) as usize);
        let piece = bytes.ok().map(|bytes| Piece { addr, bytes });
        piece.into_iter().collect()
    }

    fn describe(
        &self,
        task: Option<Task>,
        cpu: Option<CpuId>,
        stack: &CallStack,
        memory: &dyn Memory,
    ) -> TaskStack {
        let mut described = TaskStack {
            pid: GuestPid(0),
            tid: GuestPid(0),
            comm: String::new(),
            state: TaskState('?'),
            cpu,
            kernel_thread: true,
            kernel: self.kernel_frames(stack, memory),
            kernel_end: describe_end(&stack.end),
            user: Vec::new(),
            user_end: None,
            task: KernelAddr(0),
        };
        let Some(task) = task else {
            return described;
        };
        if !task.kernel_thread {
            let object = self.reader.task(task.addr);
            match self.programs.stack(&object) {
                Ok((frames, end)) => {
                    described.user = frames;
                    described.user_end = end;
                }
                Err(error) => described.user_end = Some(error.to_string()),
            }
        }
        described.pid = task.tgid;
        described.tid = task.pid;
        described.comm = task.comm;
        described.state = task.state;
        described.kernel_thread = task.kernel_thread;
        described.task = task.addr;
        described
    }

    fn kernel_frames(&self, stack: &CallStack, memory: &dyn Memory) -> Vec<KernelFrame> {
        let mut frames = Vec::new();
        for (at, frame) in stack.frames.iter().enumerate() {
            let functions = self.functions(frame);
            let count = functions.len();
            for (depth, mut function) in functions.into_iter().enumerate() {
                // The outermost is the one that has the code.
                let is_physical = depth + 1 == count;
                function.inlined = !is_physical;
                if self.options.arguments || self.options.locals {
                    let name = function.function.as_deref().unwrap_or_default();
                    let found = self.variables.of(stack, at, depth, name, memory);
                    if let Some((arguments, locals)) = found {
                        function.arguments = self.options.arguments.then_some(arguments);
                        function.locals = self.options.locals.then_some(locals);
                    }
                }
                frames.push(function);
            }
        }
        frames
    }

    /// The functions at a frame, the innermost inlined one first.
    fn functions(&self, frame: &StackFrame) -> Vec<KernelFrame> {
        let pc = frame.frame.pc;
        let lookup = frame.frame.lookup();
        let unknown = KernelFrame {
            pc,
            interrupt: frame.is_signal,
            ..KernelFrame::default()
        };
        // Offsets are those of the return address.
        let offset = |offset: u64| offset + (pc - lookup);
        if let Some((object, function)) = self.unwinder.foreign_function(lookup) {
            return vec![KernelFrame {
                function: function.map(|(name, _)| name.to_owned()),
                offset: function.map(|(_, from)| offset(from)),
                object: Some(object.to_owned()),
                ..unknown
            }];
        }
        if !self.image.is_text(lookup) {
            let modules = self.modules.get_or_init(|| modules::loaded(self.reader));
            let Some(module) = modules.iter().find(|module| module.contains(lookup)) else {
                return vec![unknown];
            };
            let function = module.function_at(self.reader, lookup);
            return vec![KernelFrame {
                offset: function.as_ref().map(|(_, from)| offset(*from)),
                function: function.map(|(name, _)| name),
                object: Some(module.name.clone()),
                ..unknown
            }];
        }
        let located = self.image.locate(lookup);
        let count = located.len();
        let symbol = self.image.symbol_at(lookup);
        let frames = located.into_iter().enumerate().map(|(depth, function)| {
            let file = function.file.as_deref();
            let is_physical = depth + 1 == count;
            KernelFrame {
                file: file.map(|file| self.image.relative_path(file).to_owned()),
                line: function.line,
                offset: symbol.filter(|_| is_physical).map(|(_, from)| offset(from)),
                symbol: symbol
                    .filter(|(name, _)| {
                        is_physical && *name == format!("{}.cold", function.function)
                    })
                    .map(|(name, _)| name.to_owned()),
                function: Some(function.function),
                ..unknown.clone()
            }
        });
        let frames: Vec<_> = frames.collect();
        match frames.is_empty() {
            true => vec![unknown],
            false => frames,
        }
    }
}

/// The kernel's functions in which a CPU is while the program of its task runs: in that of the
/// task's stub, in one process or another.
const RUNS_PROGRAM: [&str; 3] = ["userspace", "wait_stub_done_seccomp", "wait_stub_done"];

/// What a task keeps in memory of its program's registers, and where.
fn user_registers<M: Memory>(task: &Object<'_, M>) -> Result<Registers, ViewError> {
    use crate::registers::Reg;
    // `struct user_regs_struct` of the host's asm/user_64.h, which is ABI.
    const ORDER: [(u32, Reg); 17] = [
        (0, Reg::R15),
        (1, Reg::R14),
        (2, Reg::R13),
        (3, Reg::R12),
        (4, Reg::Rbp),
        (5, Reg::Rbx),
        (6, Reg::R11),
        (7, Reg::R10),
        (8, Reg::R9),
        (9, Reg::R8),
        (10, Reg::Rax),
        (11, Reg::Rcx),
        (12, Reg::Rdx),
        (13, Reg::Rsi),
        (14, Reg::Rdi),
        (16, Reg::Rip),
        (19, Reg::Rsp),
    ];
    let regs = task.member("thread.regs.regs")?;
    let regs = regs.fetched();
    let registers = ORDER.iter().map(|&(at, register)| {
        let value = regs.u64(&format!("gp[{at}]"))?;
        Ok((register, value))
    });
    registers.collect()
}
