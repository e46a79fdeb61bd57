//! The loaded modules, as lsmod and /proc/modules list them.

mod sections;
mod source;
mod symbols;

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};
use crate::table::Table;

pub use sections::LoadedSection;
pub use symbols::LoadedSymbol;

/// A loaded module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Bytes of memory that it occupies.
    pub size: u64,
    /// How many hold a reference to it.
    pub references: u64,
    /// The modules that use it.
    pub used_by: Vec<String>,
    /// What it is doing.
    pub state: ModuleState,
    /// Where its code starts.
    pub text: KernelAddr,
    /// The address of its `struct module`.
    pub addr: KernelAddr,
}

/// What a module is doing (`enum module_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleState {
    /// In use.
    Live,
    /// Its init function runs.
    Loading,
    /// Its exit function runs.
    Unloading,
    /// Something else: memory is corrupt.
    Unknown,
}

/// The loaded modules, the newest first as in /proc/modules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Modules(pub Vec<Module>);

impl<M: Memory> Reader<'_, M> {
    /// The loaded modules.
    ///
    /// # Errors
    ///
    /// When the kernel was built without modules, or its types are not known.
    pub fn modules(&self) -> Result<Modules, ViewError> {
        let head = self.kernel().image().symbol("modules");
        let head = head.ok_or(ViewError::NotConfigured {
            what: "modules",
            option: "CONFIG_MODULES",
        })?;
        let mut modules = Vec::new();
        for module in self.list(head, "struct module", "list", "modules")? {
            // `MODULE_STATE_UNFORMED`: being set up, and not to be looked at.
            const UNFORMED: u64 = 3;
            match module.u64("state") {
                Ok(UNFORMED) => {}
                Ok(state) => modules.extend(self.or_warn(self.module(&module, state))),
                Err(error) => self.warn(error),
            }
        }
        Ok(Modules(modules))
    }

    fn module(&self, module: &Object<'_, M>, state: u64) -> Result<Module, ViewError> {
        let (text, size) = text_and_size(module)?;
        // The kernel's own reference, MODULE_REF_BASE, is not shown.
        let references = module.i64("refcnt")?.saturating_sub(1).max(0);
        let mut used_by = Vec::new();
        let sources = module.addr_of("source_list")?;
        let uses = "struct module_use";
        for usage in self.list(sources, uses, "source_list", "module uses")? {
            let source = usage.deref("source").and_then(|user| user.text("name"));
            used_by.extend(self.or_warn(source));
        }
        Ok(Module {
            name: module.text("name")?,
            size,
            references: references as u64,
            used_by,
            state: match state {
                0 => ModuleState::Live,
                1 => ModuleState::Loading,
                2 => ModuleState::Unloading,
                _ => ModuleState::Unknown,
            },
            text,
            addr: module.addr(),
        })
    }
}

/// Where a module's code starts, and the bytes of all its areas.
fn text_and_size<M: Memory>(module: &Object<'_, M>) -> Result<(KernelAddr, u64), ViewError> {
    let areas = areas(module)?;
    let text = areas
        .first()
        .map_or(KernelAddr(0), |area| KernelAddr(area.start));
    let size = areas.iter().map(|area| area.end - area.start);
    Ok((text, size.fold(0, u64::saturating_add)))
}

/// The memory of a module, the area with its code first.
pub(crate) fn areas<M: Memory>(module: &Object<'_, M>) -> Result<Vec<Range<u64>>, ViewError> {
    let area = |base: &str, size: &str| -> Result<Range<u64>, ViewError> {
        let start = module.u64(base)?;
        Ok(start..start.saturating_add(module.u64(size)?))
    };
    // Two areas before 6.4, an array of them by `enum mod_mem_type` since.
    if module.has("mem") {
        return (0..module.len("mem")?)
            .map(|at| area(&format!("mem[{at}].base"), &format!("mem[{at}].size")))
            .collect();
    }
    Ok(vec![
        area("core_layout.base", "core_layout.size")?,
        area("init_layout.base", "init_layout.size")?,
    ])
}

impl fmt::Display for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["MODULE", ">SIZE", ">USED", "BY", "STATE", "TEXT"]);
        for module in &self.0 {
            table.row([
                module.name.clone(),
                module.size.to_string(),
                module.references.to_string(),
                match module.used_by.is_empty() {
                    true => "-".to_owned(),
                    false => module.used_by.join(","),
                },
                format!("{:?}", module.state).to_lowercase(),
                module.text.to_string(),
            ]);
        }
        table.fmt(f)
    }
}
