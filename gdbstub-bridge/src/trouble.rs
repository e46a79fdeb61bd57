//! Trouble: what stops the guest though nobody has set a breakpoint.
//!
//! A panic stops at its first instruction, when every CPU, every lock and every stack is still as it was. Everything
//! else that a kernel reports ends in one of two functions (`dump_stack_lvl()` for the task that is at fault,
//! `sched_show_task()` or `dump_cpu_task()` for another one) after it has said in its log what is wrong: what it said
//! tells which kind it is.

mod kinds;

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gdbstub::common::{Signal, Tid};
use kscope_guest::control::{ControlError, Filter, Hit, StopReason, Verdict};
use kscope_guest::mem::ProcMem;
use kscope_kernel::views::dmesg::{Facility, Record};
use kscope_kernel::{CpuId, Image, Kernel, KernelAddr, Reader, Reg, printable};

use crate::agent::{Machine, format};
use crate::space::{Space, View};
use crate::target::{GuestTarget, Stop};
use kinds::{Kind, PROFILES, kind_of, profile};

/// What stops the guest until the client says otherwise.
const DEFAULT: [Kind; 2] = [Kind::Panic, Kind::Bug];

/// The most messages of a report that are shown; the log has all.
const MOST_MESSAGES: usize = 40;

/// What stops the guest.
#[derive(Default)]
pub(crate) struct Trouble {
    /// Where there are breakpoints for it.
    sites: Vec<KernelAddr>,
    watch: Arc<Mutex<Watch>>,
}

/// What the engine's thread, which looks, and the bridge, which tells, both know.
#[derive(Default)]
struct Watch {
    kinds: Vec<Kind>,
    /// The number of the first message that is news.
    first: u64,
    /// The numbers of the messages of reports that were told.
    told: HashSet<u64>,
    /// What was found and is yet to be told.
    found: Vec<Found>,
}

/// Trouble that was found.
#[derive(Clone, Debug)]
struct Found {
    /// Where, and on which CPU.
    site: KernelAddr,
    cpu: CpuId,
    kind: Kind,
    text: String,
    /// The message that it begins with, if that is in the log.
    heading: Option<u64>,
    /// The task that it is about, when that is not the one that runs.
    task: Option<KernelAddr>,
    /// The CPU that it is about.
    about: CpuId,
}

/// What looks for trouble where a breakpoint is hit.
struct Lookout {
    image: Image,
    kernel: Kernel<ProcMem>,
    space: Space,
    watch: Arc<Mutex<Watch>>,
    site: KernelAddr,
}

/// The newest report, with all that was said since.
fn report(records: &[Record]) -> Option<(Kind, u64, String)> {
    let (at, seq, kind) = records
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, record)| Some((at, record.seq, kind_of(&record.text)?)))?;
    let mut text = String::new();
    for record in records.get(at..)?.iter().take(MOST_MESSAGES) {
        for line in record.text.lines() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {}", printable(line));
        }
    }
    Some((kind, seq, text))
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The guest's memory, for a `printf` of its own.
struct Words<'t>(&'t Space);

impl Machine for Words<'_> {
    fn register(&mut self, _: u16) -> Option<u64> {
        None
    }

    fn read(&mut self, addr: u64, buf: &mut [u8]) -> bool {
        self.0.read(View::default(), addr, buf) == buf.len()
    }

    fn print(&mut self, _: &[u8]) {}
}

impl Lookout {
    /// Whether this hit is trouble, which is noted then.
    fn sees(&self, hit: &Hit<'_>) -> bool {
        let Some(found) = self.look(hit) else {
            return false;
        };
        let mut watch = lock(&self.watch);
        // One that was seen before, and not told since another CPU stopped the guest first.
        watch.found.retain(|known| known.cpu != found.cpu);
        watch.found.push(found);
        true
    }

    fn look(&self, hit: &Hit<'_>) -> Option<Found> {
        let cpu = self.kernel.vcpu_of_stack(hit.register(Reg::Rsp))?;
        let records = self.messages(cpu);
        if panic_of(&self.image) == Some(self.site) {
            return self.panic(hit, cpu, &records);
        }
        let (kind, heading, text) = report(&records)?;
        let about_other = [Kind::HungTask, Kind::RcuStall].contains(&kind);
        let is_at = |name| self.image.symbol(name) == Some(self.site);
        let watch = lock(&self.watch);
        if !watch.kinds.contains(&kind)
            || watch.told.contains(&heading)
            || about_other == is_at("dump_stack_lvl")
        {
            return None;
        }
        let argument = hit.register(Reg::Rdi);
        Some(Found {
            site: self.site,
            cpu,
            kind,
            text,
            heading: Some(heading),
            task: is_at("sched_show_task").then_some(KernelAddr(argument)),
            about: match u32::try_from(argument) {
                Ok(about) if is_at("dump_cpu_task") => CpuId(about),
                _ => cpu,
            },
        })
    }

    /// What the kernel has said on this CPU since anybody looks, the newest last.
    fn messages(&self, cpu: CpuId) -> Vec<Record> {
        let task = self.kernel.current(cpu).ok();
        let callers = [
            format!("C{cpu}"),
            task.map_or_else(String::new, |task| format!("T{}", task.pid)),
        ];
        let first = lock(&self.watch).first;
        let mut records = messages(&self.kernel);
        records.retain(|record| record.seq >= first && callers.contains(&record.caller));
        records
    }

    /// The panic that begins.
    fn panic(&self, hit: &Hit<'_>, cpu: CpuId, records: &[Record]) -> Option<Found> {
        let message = self.panic_message(hit);
        let special = kind_of(&message);
        let watch = lock(&self.watch);
        let is_asked_for = |kind: &Kind| watch.kinds.contains(kind);
        let kind = special
            .filter(is_asked_for)
            .or(Some(Kind::Panic).filter(is_asked_for))?;
        let mut text = String::new();
        // `panic("BUG!")` comes after the message that says where.
        let last = records.last().filter(|_| special == Some(Kind::Bug));
        if let Some(last) = last {
            let _ = writeln!(text, "  {}", printable(&last.text));
        }
        let _ = writeln!(text, "  Kernel panic: {}", printable(&message));
        Some(Found {
            site: self.site,
            cpu,
            kind,
            text,
            heading: last.map(|last| last.seq),
            task: None,
            about: cpu,
        })
    }

    /// What it is going to say: the arguments of `panic(fmt, ...)` or `vpanic(fmt, va_list)`.
    fn panic_message(&self, hit: &Hit<'_>) -> String {
        /// More than any message has.
        const ARGUMENTS: usize = 12;
        /// Bytes of the longest format.
        const FORMAT: usize = 200;
        /// The registers that variable arguments come in (System V ABI, AMD64, 3.5.7).
        const AREA: u64 = 48;
        let mut machine = Words(&self.space);
        let mut word = |addr: u64| {
            let mut bytes = [0; 8];
            let whole = machine.read(addr, &mut bytes);
            whole.then(|| u64::from_le_bytes(bytes))
        };
        let mut arguments = Vec::new();
        let mut stack = hit.register(Reg::Rsp).wrapping_add(8);
        if self.image.symbol("vpanic").is_some() {
            let list = hit.register(Reg::Rsi);
            // gp_offset, overflow_arg_area, reg_save_area.
            let parts = (
                word(list),
                word(list.wrapping_add(8)),
                word(list.wrapping_add(16)),
            );
            if let (Some(offset), Some(overflow), Some(area)) = parts {
                let first = offset & 0xffff_ffff;
                for at in (first..AREA).step_by(8) {
                    arguments.extend(word(area.wrapping_add(at)));
                }
                stack = overflow;
            }
        } else {
            let registers = [Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9];
            arguments.extend(registers.map(|reg| hit.register(reg)));
        }
        while arguments.len() < ARGUMENTS
            && let Some(argument) = word(stack)
        {
            arguments.push(argument);
            stack = stack.wrapping_add(8);
        }
        let mut text = Vec::new();
        let mut at = hit.register(Reg::Rdi);
        while text.len() < FORMAT
            && let mut byte = [0]
            && machine.read(at, &mut byte)
            && byte != [0]
        {
            text.extend(byte);
            at = at.wrapping_add(1);
        }
        let said = format(&text, &arguments, &mut machine).unwrap_or(text);
        String::from_utf8_lossy(&said).trim_end().to_owned()
    }
}

/// Where a kernel panics: panic() only calls vpanic(), where there is one.
fn panic_of(image: &Image) -> Option<KernelAddr> {
    image.symbol("vpanic").or(image.symbol("panic"))
}

/// The kernel's own messages in its log.
fn messages(kernel: &Kernel<ProcMem>) -> Vec<Record> {
    match Reader::new(kernel).log() {
        Ok(log) => {
            let own = |record: &Record| record.facility == Facility::KERNEL;
            log.0.into_iter().filter(own).collect()
        }
        Err(error) => {
            log::debug!("{error}");
            Vec::new()
        }
    }
}

impl GuestTarget {
    /// Arms what stops the guest by default.
    pub(crate) fn expect_trouble(&mut self) {
        self.watch_for(DEFAULT.to_vec());
    }

    /// What the filter of a breakpoint is to be: at a place where trouble shows, trouble comes before what the client
    /// wants there.
    pub(crate) fn with_trouble(&self, addr: KernelAddr, client: Option<Filter>) -> Option<Filter> {
        let Some(kernel) = &self.kernel else {
            return client;
        };
        if !self.trouble.sites.contains(&addr) {
            return client;
        }
        let lookout = Lookout {
            image: kernel.image().clone(),
            kernel: kernel.clone(),
            space: self.space.clone(),
            watch: Arc::clone(&self.trouble.watch),
            site: addr,
        };
        let is_clients = self.client_breakpoints.contains(&addr);
        let mut client = client;
        Some(Box::new(move |hit| {
            if lookout.sees(hit) {
                return Verdict::Stop;
            }
            match &mut client {
                Some(client) => client(hit),
                None if is_clients => Verdict::Stop,
                None => Verdict::Continue,
            }
        }))
    }

    /// Sets the breakpoint at `addr` as it is to be: for the client with its filter, for trouble, for both.
    pub(crate) fn set_breakpoint(
        &mut self,
        addr: KernelAddr,
        client: Option<Filter>,
    ) -> Result<(), ControlError> {
        let filter = self.with_trouble(addr, client);
        let is_clients = self.client_breakpoints.contains(&addr);
        match self.modules.watch(addr, is_clients, filter) {
            Some(filter) => self.debugger.insert_filtered_breakpoint(addr, filter),
            None => self.debugger.insert_breakpoint(addr),
        }
    }

    /// Stops on these kinds from now on: sets the breakpoints that are needed, and takes out those that no longer are.
    fn watch_for(&mut self, kinds: Vec<Kind>) {
        let Some(kernel) = &self.kernel else {
            return;
        };
        let address = |name| kernel.image().symbol(name);
        let any = |some: &[Kind]| kinds.iter().any(|kind| some.contains(kind));
        let mut wanted = Vec::new();
        if any(&[Kind::Panic, Kind::Bug, Kind::Oops]) {
            wanted.extend(self.image.as_ref().and_then(panic_of));
        }
        if any(&[Kind::HungTask, Kind::RcuStall]) {
            wanted.extend(address("sched_show_task"));
            wanted.extend(address("dump_cpu_task"));
        }
        if any(&[Kind::Bug, Kind::Warn, Kind::Kasan, Kind::Lockdep, Kind::Oom]) {
            wanted.extend(address("dump_stack_lvl"));
        }
        let last = messages(kernel).pop();
        {
            let mut watch = lock(&self.trouble.watch);
            watch.kinds = kinds;
            // What was said before somebody asked is no news.
            watch.first = last.map_or(watch.first, |last| last.seq + 1);
        }
        let old = std::mem::replace(&mut self.trouble.sites, wanted.clone());
        // What the client has there stays as it is, but for a filter that looks for trouble that is no longer asked
        // for and so finds none.
        let is_clients = |addr: &KernelAddr| self.client_breakpoints.contains(addr);
        let gone: Vec<_> = old.iter().filter(|addr| !wanted.contains(addr)).collect();
        for &addr in gone.into_iter().filter(|addr| !is_clients(addr)) {
            if let Err(error) = self.debugger.remove_breakpoint(addr) {
                log::warn!("{error}");
            }
        }
        let new: Vec<_> = wanted
            .into_iter()
            .filter(|addr| !old.contains(addr))
            .collect();
        for addr in new {
            self.restore_trouble(addr);
        }
    }

    /// The client has no breakpoint there (any more): one for trouble comes (back), if it is needed.
    pub(crate) fn restore_trouble(&mut self, addr: KernelAddr) {
        if !self.trouble.sites.contains(&addr) || self.client_breakpoints.contains(&addr) {
            return;
        }
        if let Err(error) = self.set_breakpoint(addr, None) {
            log::warn!("not stopping on trouble at {addr}: {error}");
        }
    }

    /// What to tell the client of a stop, if it is on account of trouble.
    pub(crate) fn trouble_of(
        &mut self,
        cpu: CpuId,
        reason: StopReason,
    ) -> Result<Option<Stop>, ControlError> {
        let StopReason::Breakpoint(addr) = reason else {
            return Ok(None);
        };
        let found = {
            let mut watch = lock(&self.trouble.watch);
            let is_this = |found: &Found| (found.cpu, found.site) == (cpu, addr);
            let Some(at) = watch.found.iter().position(is_this) else {
                return Ok(None);
            };
            let found = watch.found.swap_remove(at);
            watch.told.extend(found.heading);
            found
        };
        self.give_up_waiting()?;
        let name = profile(found.kind).name;
        let mut text = format!("kscope: stopped on {name}:\n{}", found.text);
        if self.image.as_ref().and_then(panic_of) == Some(found.site) {
            text += "  It has yet to say so. `continue` lets it, and stops once more at the SIGABRT by which it ends.\n";
        }
        self.console.print(text.as_bytes());
        let tid = self.thread_about(&found)?;
        self.set_stopped(tid, cpu);
        // GDB takes a trap where it has a breakpoint for that one, and goes on when its condition is false.
        let signal = match self.client_breakpoints.contains(&found.site) {
            true => Signal::SIGINT,
            false => Signal::SIGTRAP,
        };
        Ok(Some(Stop::SignalWithThread { tid, signal }))
    }

    fn thread_about(&mut self, found: &Found) -> Result<Tid, ControlError> {
        if let Some(task) = found.task {
            let threads = self.threads()?;
            let mut ids = threads.ids().iter();
            let its = |tid: &&Tid| {
                let known = threads.get(**tid).and_then(|thread| thread.task.as_ref());
                known.is_some_and(|known| known.addr == task)
            };
            if let Some(&tid) = ids.find(its) {
                return Ok(tid);
            }
        }
        let threads = self.running()?;
        let tid = threads.on(found.about).or_else(|| threads.on(found.cpu));
        Ok(tid.unwrap_or(Tid::MIN))
    }

    /// `monitor stop-on`: shows, adds and removes kinds.
    pub(crate) fn stop_on(&mut self, words: &[&str]) -> Result<String, String> {
        let is_question = words.is_empty();
        let words = words.iter().flat_map(|word| word.split(','));
        let mut kinds = lock(&self.trouble.watch).kinds.clone();
        let mut notes = String::new();
        for word in words.filter(|word| !word.is_empty()) {
            if word == "none" {
                kinds.clear();
                continue;
            }
            let (name, adds) = match word.strip_prefix('-') {
                Some(name) => (name, false),
                None => (word, true),
            };
            let mut all = PROFILES.iter();
            let profile = all.find(|profile| profile.name == name).ok_or_else(|| {
                let names: Vec<_> = PROFILES.iter().map(|profile| profile.name).collect();
                format!(
                    "no such kind of trouble: {name}; there are {} (`-KIND` takes one out, `none` all of them)",
                    names.join(", ")
                )
            })?;
            kinds.retain(|kind| *kind != profile.kind);
            if adds {
                kinds.push(profile.kind);
                if let Some((symbol, option)) = profile.needs
                    && let Some(kernel) = &self.kernel
                    && kernel.image().symbol(symbol).is_none()
                {
                    let _ = writeln!(
                        notes,
                        "this kernel never reports {name}: it has no {option}"
                    );
                }
            }
        }
        let names: Vec<_> = kinds.iter().map(|&kind| profile(kind).name).collect();
        if !is_question {
            self.watch_for(kinds);
        }
        let names = match names.is_empty() {
            true => "nothing".to_owned(),
            false => names.join(", "),
        };
        Ok(format!("{notes}stops on {names}\n"))
    }
}
