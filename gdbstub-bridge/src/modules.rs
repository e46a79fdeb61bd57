//! The guest's modules: their files with the addresses that they have, for a client that wants to know, and what
//! becomes of breakpoints in code that comes and goes.
//!
//! The guest is caught where a module's code is in place and its init function has not run (`do_init_module()`), where
//! an init function's memory is about to be freed (`do_free_init()`), and where a module's is (`free_module()`). None of
//! it costs anything before it is hit.
//!
//! A breakpoint in memory that is freed would put its byte back into somebody else's. It is taken out before, and one
//! that the client sets there later, not knowing better, waits: nothing can execute it until a module is loaded there.

mod files;

use std::collections::BTreeSet;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kscope_guest::control::{ControlError, Filter, Step, StopReason, Verdict};
use kscope_guest::mem::ProcMem;
use kscope_kernel::{CpuId, KernelAddr, ModuleFile, Reader, Reg};

use crate::target::{GuestTarget, Stop};
use files::{Files, Placed};

/// Where files are placed, in the guest's directory.
const DIRECTORY: &str = "modules";

/// Modules that are known at once. More than any kernel has.
const MAX_KNOWN: usize = 1024;

/// Modules of which it is remembered what they were.
const MAX_GONE: usize = 256;

/// A module.
#[derive(Clone, Debug)]
struct Known {
    /// Of its `struct module`.
    addr: KernelAddr,
    name: String,
    /// All memory that it has had.
    areas: Vec<Range<u64>>,
    file: Option<Placed>,
    /// The client's user has been told that its file is missing.
    is_told: bool,
}

/// Where a module's life is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Loaded,
    Initialised,
    Gone,
}

/// What is known of the guest's modules.
#[derive(Default)]
pub(crate) struct Modules {
    /// Where there are breakpoints for it.
    sites: Vec<(KernelAddr, Moment)>,
    known: Vec<Known>,
    /// Memory of modules that is no more.
    freed: Vec<Range<u64>>,
    /// Where placed files are written, in the guest's own directory. None: nowhere.
    directory: Option<PathBuf>,
    /// Where modules' files are looked for, besides the kernel's build directory.
    search: Vec<PathBuf>,
    /// What there is, as long as the guest has not run on since it was looked for.
    files: Option<Files>,
    /// How many have been.
    placed: u64,
    /// Bytes of those that were made of the guest's memory.
    made: u64,
    /// Those that the client was told of, but for the next time.
    stale: Vec<Placed>,
    /// The client has asked for the libraries, and wants to hear of new ones.
    pub(crate) asked: bool,
    /// The hits at sites that are the client's as well: it is to stop there.
    shared: Shared,
    /// The client has been told of the module, and now has to be told of its own breakpoint there.
    pub(crate) pending: Option<(CpuId, StopReason)>,
}

/// Hits at sites for which a client's condition holds, by the site and the stack pointer: each CPU is on a stack of its
/// own.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<BTreeSet<(KernelAddr, u64)>>>);

impl Shared {
    /// Notes what is to become of a hit.
    fn set(&self, site: KernelAddr, stack: u64, is_wanted: bool) {
        let mut hits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match is_wanted {
            true => hits.insert((site, stack)),
            false => hits.remove(&(site, stack)),
        };
    }

    /// What is to become of a hit, which is dealt with now.
    fn take(&self, site: KernelAddr, stack: u64) -> bool {
        let mut hits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hits.remove(&(site, stack))
    }
}

/// What a client is told of a module.
#[derive(Debug)]
pub(crate) struct Library {
    /// The path of its file, placed, else its name.
    pub(crate) name: String,
    /// The address of its `struct module`.
    pub(crate) addr: KernelAddr,
}

impl Modules {
    /// Whether a breakpoint there would be in code that is no more.
    pub(crate) fn is_gone(&self, addr: KernelAddr) -> bool {
        ModuleFile::is_nowhere(addr) || self.freed.iter().any(|area| area.contains(&addr.get()))
    }

    /// What the filter of a breakpoint is to be where modules come and go: the guest always stops there, and whether
    /// for the client as well is known then.
    pub(crate) fn watch(
        &self,
        addr: KernelAddr,
        is_clients: bool,
        filter: Option<Filter>,
    ) -> Option<Filter> {
        if !self.sites.iter().any(|(site, _)| *site == addr) {
            return filter;
        }
        let shared = self.shared.clone();
        let mut filter = filter;
        Some(Box::new(move |hit| {
            let wanted = match &mut filter {
                Some(filter) => filter(hit) == Verdict::Stop,
                None => is_clients,
            };
            shared.set(addr, hit.register(Reg::Rsp), wanted);
            Verdict::Stop
        }))
    }

    /// A module is there now, where others may have been.
    fn occupy(&mut self, areas: &[Range<u64>]) {
        let overlaps = |freed: &Range<u64>| {
            areas
                .iter()
                .any(|area| area.start < freed.end && freed.start < area.end)
        };
        self.freed.retain(|freed| !overlaps(freed));
    }

    /// Removes the files that the client has no use for any more: it has been told so, and has run the guest since.
    fn drop_stale(&mut self) {
        for file in self.stale.drain(..) {
            if let Some(directory) = file.path.parent() {
                let _ = fs::remove_dir_all(directory);
            }
        }
    }

    fn free(&mut self, area: Range<u64>) {
        self.freed.push(area);
        if self.freed.len() > MAX_GONE {
            self.freed.remove(0);
        }
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

impl GuestTarget {
    /// Watches modules come and go.
    pub(crate) fn watch_modules(&mut self, directory: Option<PathBuf>) {
        self.modules.directory = directory.map(|directory| directory.join(DIRECTORY));
        let Some(kernel) = self.kernel.clone() else {
            return;
        };
        let moments = [
            ("do_init_module", Moment::Loaded),
            ("do_free_init", Moment::Initialised),
            ("free_module", Moment::Gone),
        ];
        for (name, moment) in moments {
            // A kernel without modules has none of them.
            let Some(addr) = kernel.image().symbol(name) else {
                continue;
            };
            self.modules.sites.push((addr, moment));
            if let Err(error) = self.set_breakpoint(addr, None) {
                log::warn!("modules are not seen in {name}: {error}");
            }
        }
        let loaded = Reader::new(&kernel).modules().unwrap_or_default().0;
        for module in loaded {
            self.meet(module.addr, None);
        }
    }

    /// The client has no breakpoint there (any more): one for modules comes back, if there was one.
    pub(crate) fn restore_modules(&mut self, addr: KernelAddr) {
        if self.modules.sites.iter().any(|(site, _)| *site == addr)
            && let Err(error) = self.set_breakpoint(addr, None)
        {
            log::warn!("modules are not seen at {addr}: {error}");
        }
    }

    /// A module that is there. `source` is the file that it was loaded from, if that is known.
    fn meet(&mut self, addr: KernelAddr, source: Option<&Path>) {
        let Some(kernel) = self.kernel.clone() else {
            return;
        };
        let reader = Reader::new(&kernel);
        let (name, areas) = match (reader.module_name(addr), reader.module_areas(addr)) {
            (Ok(name), Ok(areas)) => (name, areas),
            (Err(error), _) | (_, Err(error)) => {
                log::debug!("module at {addr}: {error}");
                return;
            }
        };
        self.modules.occupy(&areas);
        let again = |known: &Known| known.addr == addr;
        let old = self.modules.known.iter().position(again);
        let too_many = (self.modules.known.len() >= MAX_KNOWN).then_some(0);
        let old = old.or(too_many).map(|at| self.modules.known.remove(at));
        let file = self.place(&reader, addr, &name, &areas, source);
        self.modules.stale.extend(old.and_then(|old| old.file));
        self.modules.known.push(Known {
            addr,
            name,
            areas,
            file,
            is_told: false,
        });
    }

    /// The libraries that the client is to know of, the oldest first.
    pub(crate) fn libraries(&mut self) -> Vec<Library> {
        self.modules.asked = true;
        self.tell_of_missing_files();
        let library = |known: &Known| Library {
            name: match &known.file {
                Some(file) => file.path.display().to_string(),
                None => known.name.clone(),
            },
            addr: known.addr,
        };
        self.modules.known.iter().map(library).collect()
    }

    /// A stop that may be on account of a module: what to tell the client (nothing: the guest runs on), or else the
    /// reason that there is for it besides.
    pub(crate) fn module_event(
        &mut self,
        cpu: CpuId,
        reason: StopReason,
    ) -> Result<ControlFlow<Option<Stop>, StopReason>, ControlError> {
        if self.modules.pending.take().is_some() {
            return Ok(ControlFlow::Continue(reason));
        }
        let StopReason::Breakpoint(addr) = reason else {
            return Ok(ControlFlow::Continue(reason));
        };
        let site = self.modules.sites.iter().find(|(site, _)| *site == addr);
        let Some(&(_, moment)) = site else {
            return Ok(ControlFlow::Continue(reason));
        };
        let stack = self.debugger.registers(cpu)?.get(Reg::Rsp);
        let shared = stack.is_some_and(|stack| self.modules.shared.take(addr, stack));
        let besides = if shared {
            Some(reason)
        } else if self.step_ends_at(cpu, addr)? {
            // Whether its condition holds, the client finds out there.
            let is_clients = self.client_breakpoints.contains(&addr);
            Some(if is_clients { reason } else { StopReason::Step })
        } else {
            self.plan.interrupted.then_some(StopReason::Interrupt)
        };
        if self.happen(cpu, moment)? && self.modules.asked {
            self.modules.pending = besides.map(|reason| (cpu, reason));
            self.give_up_waiting()?;
            let tid = self.running()?.on(cpu).unwrap_or(gdbstub::common::Tid::MIN);
            self.set_stopped(tid, cpu);
            return Ok(ControlFlow::Break(Some(Stop::Library(tid))));
        }
        if let Some(reason) = besides {
            return Ok(ControlFlow::Continue(reason));
        }
        self.run_on()?;
        Ok(ControlFlow::Break(None))
    }

    /// Whether the client waits for a step of this CPU's that is over when it comes there.
    fn step_ends_at(&mut self, cpu: CpuId, addr: KernelAddr) -> Result<bool, ControlError> {
        let Some((tid, step)) = self.plan.step_under_way() else {
            return Ok(false);
        };
        let is_over = match step {
            Step::Instruction => true,
            Step::Range(range) => !range.contains(&addr),
        };
        Ok(is_over && self.running()?.on(cpu) == Some(tid))
    }

    /// Lets the guest do what it was doing: a task that was being stepped is, wherever it is now.
    fn run_on(&mut self) -> Result<(), ControlError> {
        let Some((tid, step)) = self.plan.step_under_way() else {
            self.forget();
            return self.debugger.cont();
        };
        self.step_task(tid, step)
    }

    /// Notes what happens to a module. Whether the client's list of libraries has changed.
    fn happen(&mut self, cpu: CpuId, moment: Moment) -> Result<bool, ControlError> {
        let Some(kernel) = self.kernel.clone() else {
            return Ok(false);
        };
        self.modules.files = None;
        if moment == Moment::Initialised {
            return Ok(self.initialised(&Reader::new(&kernel)));
        }
        let registers = self.debugger.registers(cpu)?;
        let Some(addr) = registers.get(Reg::Rdi).map(KernelAddr) else {
            return Ok(false);
        };
        if moment == Moment::Loaded {
            let task = kernel.task_on(cpu, &registers);
            let source = task.and_then(|task| Reader::new(&kernel).module_source(task.addr));
            self.meet(addr, source.as_deref().map(Path::new));
            return Ok(true);
        }
        let Some(at) = self
            .modules
            .known
            .iter()
            .position(|known| known.addr == addr)
        else {
            return Ok(false);
        };
        let known = self.modules.known.remove(at);
        known.areas.into_iter().for_each(|area| self.vacate(area));
        self.modules.stale.extend(known.file);
        Ok(true)
    }

    /// The init functions of some modules have returned: their memory is freed. Whether the client's list of libraries
    /// has changed: what was in that memory is nowhere now.
    fn initialised(&mut self, reader: &Reader<'_, ProcMem>) -> bool {
        let mut replaced = Vec::new();
        for mut known in std::mem::take(&mut self.modules.known) {
            let Ok(now) = reader.module_areas(known.addr) else {
                self.modules.known.push(known);
                continue;
            };
            let is_gone = |area: &&Range<u64>| !now.contains(area);
            let freed: Vec<_> = known.areas.iter().filter(is_gone).cloned().collect();
            if !freed.is_empty() {
                if let Some(old) = known.file.take() {
                    known.file = match old.is_made {
                        true => self.place(reader, known.addr, &known.name, &now, None),
                        false => self.place(reader, known.addr, &known.name, &now, Some(&old.path)),
                    };
                    replaced.push(old);
                }
                freed.into_iter().for_each(|area| self.vacate(area));
                known.areas = now;
            }
            self.modules.known.push(known);
        }
        let is_news = !replaced.is_empty();
        self.modules.stale.extend(replaced);
        is_news
    }

    /// Takes the breakpoints out of memory that is about to be freed.
    fn vacate(&mut self, area: Range<u64>) {
        let inside = |addr: &&KernelAddr| area.contains(&addr.get());
        let gone: Vec<_> = self
            .client_breakpoints
            .iter()
            .filter(inside)
            .copied()
            .collect();
        for addr in gone {
            self.client_breakpoints.remove(&addr);
            if let Err(error) = self.debugger.remove_breakpoint(addr) {
                log::warn!("{error}");
            }
        }
        self.modules.free(area);
    }
}
