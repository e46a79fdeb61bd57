//! The interrupts and who handles them, as in /proc/interrupts and /proc/softirqs.

use std::fmt;

use serde::Serialize;

use crate::addr::{CpuId, KernelAddr};
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};
use crate::table::Table;

/// An interrupt line that somebody handles, or that occurred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interrupt {
    /// Its number.
    pub irq: u64,
    /// How often it occurred on each CPU, in the order of [`Interrupts::cpus`].
    pub counts: Vec<u64>,
    /// The name of the chip that it comes from.
    pub chip: Option<String>,
    /// Its number on that chip, where the chip has numbers of its own.
    pub hwirq: Option<u64>,
    /// Whether it stays on until it is handled (`level`), or only happens (`edge`).
    pub trigger: &'static str,
    /// The function that the interrupt goes through: `handle_edge_irq`.
    pub flow: String,
    /// How often it was disabled; 0 when it can occur.
    pub disabled: u64,
    /// Who handles it, in the order in which they are asked.
    pub actions: Vec<IrqAction>,
    /// The address of its `struct irq_desc`.
    pub addr: KernelAddr,
}

/// Who handles an interrupt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IrqAction {
    /// The name of the device.
    pub name: String,
    /// The function that is called.
    pub handler: String,
    /// The function that runs in a thread of its own afterwards.
    pub thread: Option<String>,
}

/// Something that is counted per CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IrqCount {
    /// Its name.
    pub name: String,
    /// How often it happened on each CPU, in the order of [`Interrupts::cpus`].
    pub counts: Vec<u64>,
}

/// The interrupts of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interrupts {
    /// The CPUs that are online.
    pub cpus: Vec<CpuId>,
    /// Those of devices, by number.
    pub interrupts: Vec<Interrupt>,
    /// Those that CPUs send each other: `RES` to call the scheduler, `CAL` to call a function.
    /// Only with SMP.
    pub ipis: Vec<IrqCount>,
    /// The soft interrupts: what interrupts leave for later.
    pub softirqs: Vec<IrqCount>,
}

/// How many actions one line has at most; those of a line that is shared by all devices of a large
/// machine.
const MAX_ACTIONS: usize = 256;

/// More lines than any kernel has (MAX_SPARSE_IRQS is a little more for large machines).
const MAX_LINES: usize = 1 << 16;

impl<M: Memory> Reader<'_, M> {
    /// The interrupts.
    ///
    /// # Errors
    ///
    /// When the kernel's types are not known.
    pub fn interrupts(&self) -> Result<Interrupts, ViewError> {
        let cpus = self.kernel().cpus();
        let mut interrupts = Vec::new();
        for desc in self.irq_descs()? {
            let seen = self.interrupt(&desc, &cpus);
            interrupts.extend(self.or_warn(seen).flatten());
        }
        Ok(Interrupts {
            interrupts,
            ipis: self.or_warn(self.ipis(&cpus)).unwrap_or_default(),
            softirqs: self.or_warn(self.softirqs(&cpus)).unwrap_or_default(),
            cpus,
        })
    }

    /// The descriptors of all lines, by number.
    fn irq_descs(&self) -> Result<Vec<Object<'_, M>>, ViewError> {
        // Without CONFIG_SPARSE_IRQ, as on User Mode Linux before 7.0, an array.
        if let Ok(array) = self.global("irq_desc") {
            let count = array.len("")?.min(MAX_LINES as u64);
            return (0..count).map(|irq| array.element("", irq)).collect();
        }
        // Else a maple tree since 6.5.
        let tree = self.global("sparse_irqs")?;
        let mut found = Vec::new();
        for entry in self.kernel().maple_tree(tree.addr()).take(MAX_LINES) {
            if let Some(entry) = self.or_warn(entry) {
                found.push(self.object("struct irq_desc", entry.value));
            }
        }
        Ok(found)
    }

    /// `None` for a line that /proc/interrupts does not show either.
    fn interrupt(
        &self,
        desc: &Object<'_, M>,
        cpus: &[CpuId],
    ) -> Result<Option<Interrupt>, ViewError> {
        let layout = self.kernel().image().layout()?;
        let is_set = |name: &str| {
            // In an enumeration without a name.
            let mask = layout.enumerator_of("struct irq_desc", name);
            let status = desc.u64("status_use_accessors")?;
            Ok::<_, ViewError>(mask.is_ok_and(|mask| status & mask as u64 != 0))
        };
        let counts = match desc.follow("kstat_irqs")? {
            Some(counts) => self.irq_counts(&counts, cpus)?,
            None => vec![0; cpus.len()],
        };
        let first = desc.follow("action")?;
        // An interrupt that only leads to others.
        let chained = self.kernel().image().symbol("chained_action");
        let is_chained = first.as_ref().is_some_and(|a| Some(a.addr()) == chained);
        let is_silent = first.is_none() || is_chained;
        if is_set("IRQ_HIDDEN")? || is_silent && counts.iter().all(|&count| count == 0) {
            return Ok(None);
        }
        let mut actions = Vec::new();
        let mut next = first;
        while let Some(action) = next
            && actions.len() < MAX_ACTIONS
        {
            let thread = action.addr_value("thread_fn")?;
            actions.push(IrqAction {
                name: action.text("name")?,
                handler: self.function_name(action.addr_value("handler")?),
                thread: (!thread.is_null()).then(|| self.function_name(thread)),
            });
            next = action.follow("next")?;
        }
        let chip = match desc.follow("irq_data.chip")? {
            Some(chip) => Some(chip.text("name")?),
            None => None,
        };
        let has_domain = desc.has("irq_data.domain") && desc.bool("irq_data.domain")?;
        // IRQD_LEVEL of include/linux/irq.h: bit 13 of the state.
        const LEVEL: u64 = 1 << 13;
        let level = layout.enumerator_of("struct irq_desc", "IRQD_LEVEL");
        let level = level.map_or(LEVEL, |level| level as u64);
        let state = desc.u64("irq_common_data.state_use_accessors")?;
        Ok(Some(Interrupt {
            irq: desc.u64("irq_data.irq")?,
            counts,
            chip: chip.filter(|chip| !chip.is_empty()),
            hwirq: match has_domain {
                true => Some(desc.u64("irq_data.hwirq")?),
                false => None,
            },
            trigger: match state & level != 0 {
                true => "level",
                false => "edge",
            },
            flow: self.function_name(desc.addr_value("handle_irq")?),
            disabled: desc.u64("depth")?,
            actions,
            addr: desc.addr(),
        }))
    }

    /// The counts of each CPU, from the per-CPU allocation that the first one's address stands for.
    fn irq_counts(&self, counts: &Object<'_, M>, cpus: &[CpuId]) -> Result<Vec<u64>, ViewError> {
        // A plain number before 6.10.
        let is_struct = self.object("struct irqstat", counts.addr()).has("cnt");
        let count = |&cpu: &CpuId| {
            let own = counts.addr() + self.per_cpu_offset(cpu)?;
            match is_struct {
                true => self.object("struct irqstat", own).u64("cnt"),
                false => self.object("unsigned int", own).u64(""),
            }
        };
        cpus.iter().map(count).collect()
    }

    /// What UML counts itself: arch/um/include/asm/hardirq.h, since it has SMP.
    fn ipis(&self, cpus: &[CpuId]) -> Result<Vec<IrqCount>, ViewError> {
        let mut found = Vec::new();
        for (name, path) in [("RES", "irq_resched_count"), ("CAL", "irq_call_count")] {
            if !self.global("irq_stat").is_ok_and(|stat| stat.has(path)) {
                continue;
            }
            let count = |&cpu: &CpuId| self.per_cpu("irq_stat", cpu)?.u64(path);
            found.push(IrqCount {
                name: name.to_owned(),
                counts: cpus.iter().map(count).collect::<Result<_, _>>()?,
            });
        }
        Ok(found)
    }

    fn softirqs(&self, cpus: &[CpuId]) -> Result<Vec<IrqCount>, ViewError> {
        let names = self.global("softirq_to_name")?;
        let kinds = self.global("kstat")?.len("softirqs")?;
        let mut found = Vec::new();
        for kind in 0..kinds {
            let path = format!("softirqs[{kind}]");
            let count = |&cpu: &CpuId| self.per_cpu("kstat", cpu)?.u64(&path);
            found.push(IrqCount {
                name: names.text(&format!("[{kind}]"))?,
                counts: cpus.iter().map(count).collect::<Result<_, _>>()?,
            });
        }
        Ok(found)
    }
}

impl fmt::Display for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus: Vec<_> = self.cpus.iter().map(|cpu| format!(">CPU{cpu}")).collect();
        let columns = |others: &[&[&'static str]; 2]| {
            let mut names: Vec<&str> = others[0].to_vec();
            names.extend(cpus.iter().map(String::as_str));
            names.extend(others[1]);
            Table::new(&names)
        };
        let row = |name: &str, counts: &[u64]| {
            let mut row = vec![name.to_owned()];
            row.extend(counts.iter().map(u64::to_string));
            row
        };
        let mut table = columns(&[&[">IRQ"], &["CHIP", "FLOW", "NAME", "HANDLER"]]);
        for interrupt in &self.interrupts {
            let mut cells = row(&interrupt.irq.to_string(), &interrupt.counts);
            let each = |part: &dyn Fn(&IrqAction) -> String| {
                let parts: Vec<_> = interrupt.actions.iter().map(part).collect();
                match parts.is_empty() {
                    true => "-".to_owned(),
                    false => parts.join(","),
                }
            };
            cells.push(interrupt.chip.clone().unwrap_or_else(|| "-".to_owned()));
            cells.push(interrupt.flow.clone());
            cells.push(each(&|action| action.name.clone()));
            cells.push(each(&|action| match &action.thread {
                Some(thread) => format!("{}+{thread}", action.handler),
                None => action.handler.clone(),
            }));
            table.row(cells);
        }
        for ipi in &self.ipis {
            table.row(row(&ipi.name, &ipi.counts));
        }
        table.fmt(f)?;
        writeln!(f)?;
        let mut table = columns(&[&["SOFTIRQ"], &[]]);
        for softirq in &self.softirqs {
            table.row(row(&softirq.name, &softirq.counts));
        }
        table.fmt(f)
    }
}
