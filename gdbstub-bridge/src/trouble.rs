//! Trouble: what stops the guest though nobody has set a breakpoint.
//!
//! A panic stops at its first instruction, when every CPU, every lock and every stack is still as it was. Everything
//! else that a kernel reports ends in one of two functions (`dump_stack_lvl()` for the task that is at fault,
//! `sched_show_task()` or `dump_cpu_task()` for another one) after it has said in its log what is wrong: what it said
//! tells which kind it is.

use std::fmt::Write;
use std::ops::ControlFlow;

use gdbstub::common::{Signal, Tid};
use kscope_guest::control::{ControlError, StopReason};
use kscope_kernel::views::dmesg::Record;
use kscope_kernel::{CpuId, KernelAddr, Reader, Reg, Registers, printable};

use crate::agent::{Machine, format};
use crate::target::{GuestTarget, Stop};

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Panic,
    Bug,
    Warn,
    Oops,
    Kasan,
    Lockdep,
    HungTask,
    RcuStall,
    Oom,
}

/// What is known of a kind.
struct Profile {
    kind: Kind,
    /// As `monitor stop-on` has it.
    name: &'static str,
    /// How the kernel's messages of it begin, or what they contain. The first profile that fits is the one.
    messages: &'static [&'static str],
    /// A symbol that kernels which can report it have, and the option that it comes with.
    needs: Option<(&'static str, &'static str)>,
}

/// All kinds, the special before the general.
const PROFILES: [Profile; 9] = [
    Profile {
        kind: Kind::Kasan,
        name: "kasan",
        messages: &["BUG: KASAN: "],
        needs: Some(("kasan_report", "CONFIG_KASAN")),
    },
    Profile {
        kind: Kind::Lockdep,
        name: "lockdep",
        messages: &[
            "WARNING: possible ",
            "WARNING: inconsistent lock state",
            "WARNING: bad unlock balance",
            "WARNING: held lock freed",
            "WARNING: lock held when returning",
            "WARNING: suspicious RCU usage",
            "WARNING: Nested lock was not taken",
            "WARNING: HARDIRQ-",
            "WARNING: SOFTIRQ-",
            "BUG: MAX_LOCK",
        ],
        needs: Some(("lock_acquire", "CONFIG_PROVE_LOCKING")),
    },
    Profile {
        kind: Kind::HungTask,
        name: "hung-task",
        messages: &[" blocked for more than "],
        needs: Some(("sysctl_hung_task_timeout_secs", "CONFIG_DETECT_HUNG_TASK")),
    },
    Profile {
        kind: Kind::RcuStall,
        name: "rcu-stall",
        messages: &["detected stall", "self-detected stall"],
        needs: Some((
            "rcu_cpu_stall_suppress",
            "CONFIG_TREE_RCU (it comes with SMP)",
        )),
    },
    Profile {
        kind: Kind::Oom,
        name: "oom",
        messages: &[" invoked oom-killer: "],
        needs: None,
    },
    // What is an oops elsewhere is a panic here, with one of these.
    Profile {
        kind: Kind::Oops,
        name: "oops",
        messages: &[
            "Kernel mode fault at ",
            "Kernel tried to access user memory",
            "Segfault with no mm",
            "Kernel mode signal ",
        ],
        needs: None,
    },
    Profile {
        kind: Kind::Bug,
        name: "bug",
        messages: &["BUG: ", "BUG!", "kernel BUG at "],
        needs: None,
    },
    Profile {
        kind: Kind::Warn,
        name: "warn",
        messages: &["WARNING: "],
        needs: None,
    },
    Profile {
        kind: Kind::Panic,
        name: "panic",
        messages: &[],
        needs: None,
    },
];

/// What stops the guest until the client says otherwise.
const DEFAULT: [Kind; 2] = [Kind::Panic, Kind::Bug];

/// The most messages of a report that are shown; the log has all.
const MOST_MESSAGES: usize = 40;

/// What stops the guest.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    kinds: Vec<Kind>,
    /// Where there are breakpoints for it.
    sites: Vec<KernelAddr>,
    /// Where the kernel panics.
    panic: Option<KernelAddr>,
    /// The number of the first message that has not been looked at.
    unseen: u64,
}

/// Trouble that was found.
struct Found {
    kind: Kind,
    text: String,
    /// The task it is about, when that is not the one that runs.
    task: Option<KernelAddr>,
}

fn profile(kind: Kind) -> &'static Profile {
    let mut all = PROFILES.iter();
    all.find(|profile| profile.kind == kind)
        .unwrap_or(&PROFILES[PROFILES.len() - 1])
}

/// The kind that a message tells of.
fn kind_of(message: &str) -> Option<Kind> {
    let fits = |profile: &&Profile| profile.messages.iter().any(|part| message.contains(part));
    PROFILES.iter().find(fits).map(|profile| profile.kind)
}

/// The newest report in the log, with all that was said since.
fn report(records: &[Record]) -> Option<(Kind, String)> {
    let (at, kind) = records
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, record)| Some((at, kind_of(&record.text)?)))?;
    let mut text = String::new();
    for record in records.get(at..)?.iter().take(MOST_MESSAGES) {
        for line in record.text.lines() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {}", printable(line));
        }
    }
    Some((kind, text))
}

/// The guest, for a `printf` of its own.
struct Words<'t>(&'t mut GuestTarget);

impl Machine for Words<'_> {
    fn register(&mut self, _: u16) -> Option<u64> {
        None
    }

    fn read(&mut self, addr: u64, buf: &mut [u8]) -> bool {
        self.0.read_memory(None, addr, buf) == buf.len()
    }

    fn print(&mut self, _: &[u8]) {}
}

impl GuestTarget {
    /// Arms what stops the guest by default.
    pub(crate) fn expect_trouble(&mut self) {
        self.trouble.kinds = DEFAULT.to_vec();
        self.trouble.unseen = self.log_end();
        self.arm();
    }

    /// Whether only trouble has a breakpoint there.
    fn is_trouble_alone(&self, addr: KernelAddr) -> bool {
        self.trouble.sites.contains(&addr) && !self.client_breakpoints.contains(&addr)
    }

    /// Sets the breakpoints that are needed, and takes out those that no longer are.
    pub(crate) fn arm(&mut self) {
        let address = |name| self.image.symbol(name);
        let kinds = &self.trouble.kinds;
        // panic() only calls vpanic(), where there is one.
        let panic = address("vpanic").or(address("panic"));
        let mut wanted = Vec::new();
        let panics = [Kind::Panic, Kind::Bug, Kind::Oops];
        if kinds.iter().any(|kind| panics.contains(kind)) {
            wanted.extend(panic);
        }
        let others = [Kind::HungTask, Kind::RcuStall];
        if kinds.iter().any(|kind| others.contains(kind)) {
            wanted.extend(address("sched_show_task"));
            wanted.extend(address("dump_cpu_task"));
        }
        let own = |kind: &Kind| ![Kind::Panic, Kind::Oops].contains(kind) && !others.contains(kind);
        if kinds.iter().any(own) {
            wanted.extend(address("dump_stack_lvl"));
        }
        for addr in std::mem::take(&mut self.trouble.sites) {
            if !wanted.contains(&addr)
                && !self.client_breakpoints.contains(&addr)
                && let Err(error) = self.debugger.remove_breakpoint(addr)
            {
                log::warn!("{error}");
            }
        }
        for addr in wanted {
            self.trouble.sites.push(addr);
            self.restore_trouble(addr);
        }
        self.trouble.panic = panic;
    }

    /// The client has no breakpoint there (any more): one for trouble comes (back), if it is needed.
    pub(crate) fn restore_trouble(&mut self, addr: KernelAddr) {
        if self.is_trouble_alone(addr)
            && let Err(error) = self.debugger.insert_breakpoint(addr)
        {
            log::warn!("not stopping on trouble at {addr}: {error}");
        }
    }

    /// A stop at a breakpoint for trouble: the client is to be told of trouble, or of another reason, or of nothing
    /// because the guest runs on.
    pub(crate) fn look_for_trouble(
        &mut self,
        cpu: CpuId,
        reason: StopReason,
    ) -> Result<ControlFlow<Option<Stop>, StopReason>, ControlError> {
        let StopReason::Breakpoint(addr) = reason else {
            return Ok(ControlFlow::Continue(reason));
        };
        if !self.is_trouble_alone(addr) || self.is_awaited(reason) {
            return Ok(ControlFlow::Continue(reason));
        }
        let Some(found) = self.trouble_at(addr, cpu) else {
            if self.plan.interrupted {
                return Ok(ControlFlow::Continue(StopReason::Interrupt));
            }
            if self.plan.is_stepping() {
                return Ok(ControlFlow::Continue(StopReason::Step));
            }
            self.forget();
            self.debugger.cont()?;
            return Ok(ControlFlow::Break(None));
        };
        self.give_up_waiting()?;
        let name = profile(found.kind).name;
        let text = format!("kscope: stopped on {name}:\n{}", found.text);
        self.console.print(text.as_bytes());
        let tid = self.thread_of(found.task, cpu)?;
        self.set_stopped(tid, cpu);
        let signal = Signal::SIGTRAP;
        Ok(ControlFlow::Break(Some(Stop::SignalWithThread {
            tid,
            signal,
        })))
    }

    fn thread_of(&mut self, task: Option<KernelAddr>, cpu: CpuId) -> Result<Tid, ControlError> {
        if let Some(task) = task {
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
        Ok(self.running()?.on(cpu).unwrap_or(Tid::MIN))
    }

    fn trouble_at(&mut self, addr: KernelAddr, cpu: CpuId) -> Option<Found> {
        let registers = self.debugger.registers(cpu).ok()?;
        if self.trouble.panic == Some(addr) {
            return self.panic_at(&registers);
        }
        let records = self.unseen_records();
        let (kind, text) = report(&records)?;
        let about_other = [Kind::HungTask, Kind::RcuStall].contains(&kind);
        let shows_task = self.image.symbol("sched_show_task") == Some(addr);
        let shows_stack = self.image.symbol("dump_stack_lvl") == Some(addr);
        if !self.trouble.kinds.contains(&kind) || about_other == shows_stack {
            return None;
        }
        self.trouble.unseen = records.last().map_or(0, |last| last.seq + 1);
        Some(Found {
            kind,
            text,
            task: shows_task
                .then(|| registers.get(Reg::Rdi).map(KernelAddr))
                .flatten(),
        })
    }

    /// The panic that begins.
    fn panic_at(&mut self, registers: &Registers) -> Option<Found> {
        let message = self.panic_message(registers);
        let special = kind_of(&message);
        let mut kinds = self.trouble.kinds.iter();
        let kind = kinds.find(|&&kind| kind == Kind::Panic || Some(kind) == special);
        let kind = *kind?;
        let mut text = String::new();
        // `panic("BUG!")` comes after the message that says where.
        if special == Some(Kind::Bug)
            && let Some(last) = self.unseen_records().last()
        {
            let _ = writeln!(text, "  {}", printable(&last.text));
        }
        let _ = writeln!(text, "  Kernel panic: {}", printable(&message));
        // All that it will say from now on belongs to it.
        self.trouble.unseen = u64::MAX;
        Some(Found {
            kind: match special {
                Some(special) if self.trouble.kinds.contains(&special) => special,
                _ => kind,
            },
            text,
            task: None,
        })
    }

    /// What it is going to say: the arguments of `panic(fmt, ...)` or `vpanic(fmt, va_list)`.
    fn panic_message(&mut self, registers: &Registers) -> String {
        /// More than any message has.
        const ARGUMENTS: usize = 12;
        /// The registers that variable arguments come in (System V ABI, AMD64, 3.5.7).
        const AREA: u64 = 48;
        let get = |reg| registers.get(reg).unwrap_or(0);
        let is_list = self.image.symbol("vpanic").is_some();
        let mut machine = Words(self);
        let mut word = |addr: u64| {
            let mut bytes = [0; 8];
            machine
                .read(addr, &mut bytes)
                .then(|| u64::from_le_bytes(bytes))
        };
        let mut arguments = Vec::new();
        let mut stack = get(Reg::Rsp).wrapping_add(8);
        if is_list {
            let list = get(Reg::Rsi);
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
            arguments.extend([Reg::Rsi, Reg::Rdx, Reg::Rcx, Reg::R8, Reg::R9].map(get));
        }
        while arguments.len() < ARGUMENTS
            && let Some(argument) = word(stack)
        {
            arguments.push(argument);
            stack = stack.wrapping_add(8);
        }
        let mut text = Vec::new();
        let mut at = get(Reg::Rdi);
        while text.len() < 200
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

    /// What the log has that was not looked at.
    fn unseen_records(&self) -> Vec<Record> {
        let Some(kernel) = &self.kernel else {
            return Vec::new();
        };
        match Reader::new(kernel).log() {
            Ok(log) => {
                let unseen = |record: &Record| record.seq >= self.trouble.unseen;
                log.0.into_iter().filter(unseen).collect()
            }
            Err(error) => {
                log::debug!("{error}");
                Vec::new()
            }
        }
    }

    fn log_end(&self) -> u64 {
        let last = self.unseen_records().pop();
        last.map_or(0, |last| last.seq + 1)
    }

    /// `monitor stop-on`: shows, adds and removes kinds.
    pub(crate) fn stop_on(&mut self, words: &[&str]) -> Result<String, String> {
        let words = words.iter().flat_map(|word| word.split(','));
        let mut kinds = self.trouble.kinds.clone();
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
                    "no such kind of trouble: {name} (there are: {}; -KIND takes one out, none all)",
                    names.join(", ")
                )
            })?;
            kinds.retain(|kind| *kind != profile.kind);
            if adds {
                kinds.push(profile.kind);
                if let Some((symbol, option)) = profile.needs
                    && self.image.symbol(symbol).is_none()
                {
                    let _ = writeln!(
                        notes,
                        "this kernel never reports {name}: it has no {option}"
                    );
                }
            }
        }
        // What was said before somebody asked is no news.
        self.trouble.unseen = self.log_end();
        self.trouble.kinds = kinds;
        self.arm();
        let names: Vec<_> = self
            .trouble
            .kinds
            .iter()
            .map(|&kind| profile(kind).name)
            .collect();
        let names = match names.is_empty() {
            true => "nothing".to_owned(),
            false => names.join(", "),
        };
        Ok(format!("{notes}stops on {names}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        for (message, kind) in [
            (
                "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2",
                Some(Kind::Kasan),
            ),
            (
                "BUG: sleeping function called from invalid context",
                Some(Kind::Bug),
            ),
            ("BUG: failure at fs/inode.c:12/iput()!", Some(Kind::Bug)),
            (
                "WARNING: possible circular locking dependency detected",
                Some(Kind::Lockdep),
            ),
            (
                "WARNING: CPU: 0 PID: 1 at kernel/fork.c:3 f+0x1/0x2",
                Some(Kind::Warn),
            ),
            (
                "INFO: task cat:33 blocked for more than 1 seconds.",
                Some(Kind::HungTask),
            ),
            (
                "rcu: INFO: rcu_sched self-detected stall on CPU",
                Some(Kind::RcuStall),
            ),
            ("tail invoked oom-killer: gfp_mask=0x0", Some(Kind::Oom)),
            ("Kernel mode fault at addr 0x0, ip 0x1", Some(Kind::Oops)),
            ("eth0: link up", None),
        ] {
            assert_eq!(kind_of(message), kind, "{message}");
        }
    }
}
