//! What names stand for: variables, functions, enumerators, tasks.

use super::ast::Node;
use super::eval::{Evaluator, Failure, number, place};
use super::suggest::did_you_mean;
use super::{Number, Operand, Place, Space, Span, is_end_of_path};
use crate::addr::{CpuId, GuestPid, KernelAddr};
use crate::layout::{Bare, Type, Variable};
use crate::memory::Memory;
use crate::reader::ViewError;

/// Candidates of an ambiguous name that are listed.
const MAX_LISTED: usize = 12;

impl<M: Memory> Evaluator<'_, M> {
    /// A variable, a function or an enumerator.
    pub(super) fn name(&self, name: &str, span: Span) -> Result<Operand, Failure> {
        let image = self.reader.kernel().image();
        let variables = self.layout.variables(name)?;
        match &variables[..] {
            [] => {}
            [variable] => {
                if let Some(operand) = self.variable(name, variable)? {
                    return Ok(operand);
                }
            }
            several => return Err(self.error(span, ambiguous(name, several))),
        }
        let mut functions = image
            .symbols_named(name)
            .filter(|symbol| symbol.is_function);
        if let Some(first) = functions.next() {
            if functions.next().is_some() {
                return Err(self.error(span, self.ambiguous_function(name)));
            }
            return self.function(name, first.addr);
        }
        if let Some(addr) = image.symbol(name) {
            return Ok(variable(name, Type::Void, addr));
        }
        if let Some((ty, value)) = self.layout.any_enumerator(name)? {
            return Ok(number(Type::Known(ty), value as u64, Space::Kernel));
        }
        Err(self.error(span, self.unknown(name)))
    }

    /// `file.c::name` or `function::name`.
    pub(super) fn scoped(&self, scope: &str, name: &str, span: Span) -> Result<Operand, Failure> {
        if !scope.contains(['.', '/']) {
            return self.local(scope, name, span);
        }
        let variables = self.layout.variables(name)?;
        let mut in_file = variables
            .iter()
            .filter(|found| is_end_of_path(&found.file, scope));
        if let Some(first) = in_file.next() {
            let rest: Vec<_> = in_file.cloned().collect();
            if !rest.is_empty() {
                let all: Vec<_> = std::iter::once(first.clone()).chain(rest).collect();
                return Err(self.error(span, ambiguous(name, &all)));
            }
            if let Some(operand) = self.variable(name, first)? {
                return Ok(operand);
            }
        }
        let image = self.reader.kernel().image();
        let functions = image
            .symbols_named(name)
            .filter(|symbol| symbol.is_function);
        let found = functions
            .filter(|symbol| is_end_of_path(&self.file_of(symbol.addr), scope))
            .map(|symbol| symbol.addr)
            .next();
        if let Some(addr) = found {
            return self.function(name, addr);
        }
        let message = match &variables[..] {
            [] => format!("no variable and no function `{name}` is in `{scope}`"),
            others => format!("`{name}` is not in `{scope}`, but in {}", files(others)),
        };
        Err(self.error(span, message))
    }

    /// A static variable of a function.
    fn local(&self, function: &str, name: &str, span: Span) -> Result<Operand, Failure> {
        let found = self.layout.static_locals(function)?;
        match found.iter().find(|(of, _)| of == name) {
            Some((_, variable)) => {
                let addr = variable.addr.unwrap_or_default();
                Ok(self::variable(name, variable.ty.into(), addr))
            }
            None if found.is_empty() => {
                let what = match self.layout.function(function)? {
                    Some(_) => format!("the function `{function}` has no static variables"),
                    None => format!("the kernel has no function `{function}`"),
                };
                Err(self.error(span, what))
            }
            None => {
                let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
                let message = format!(
                    "the function `{function}` has no static variable `{name}`, but {}",
                    names.join(", ")
                );
                Err(self.error(span, message))
            }
        }
    }

    /// `None` when it is nowhere in memory.
    fn variable(&self, name: &str, found: &Variable) -> Result<Option<Operand>, Failure> {
        let image = self.reader.kernel().image();
        // One that the linker or assembly defines is only declared in C.
        let Some(addr) = found.addr.or_else(|| image.symbol(name)) else {
            return Ok(None);
        };
        let mut ty: Type = found.ty.into();
        if let Bare::Array(element, None) = self.layout.bare(&ty)? {
            let size = self.layout.size(&element)?;
            let whole = image.symbol_size(name).unwrap_or(0);
            if let Some(count) = whole.checked_div(size).filter(|&count| count > 0) {
                ty = Type::Array(Box::new(element), Some(count));
            }
        }
        Ok(Some(variable(name, ty, addr)))
    }

    fn function(&self, name: &str, addr: KernelAddr) -> Result<Operand, Failure> {
        let ty = self.layout.function(name)?;
        Ok(variable(name, ty.into(), addr))
    }

    fn file_of(&self, addr: KernelAddr) -> String {
        let image = self.reader.kernel().image();
        let frames = image.locate(addr);
        let file = frames.last().and_then(|frame| frame.file.as_deref());
        file.map_or(String::new(), |file| image.relative_path(file).to_owned())
    }

    fn ambiguous_function(&self, name: &str) -> String {
        let image = self.reader.kernel().image();
        let functions = image
            .symbols_named(name)
            .filter(|symbol| symbol.is_function);
        let mut places: Vec<_> = functions
            .take(MAX_LISTED)
            .map(|symbol| format!("{}::{name} at {}", self.file_of(symbol.addr), symbol.addr))
            .collect();
        places.sort();
        places.dedup();
        format!(
            "there are several functions `{name}`: {}",
            places.join(", ")
        )
    }

    /// Why a name is none.
    fn unknown(&self, name: &str) -> String {
        if let Ok(ty) = self.layout.type_named(name) {
            let ty = self.spell(&Type::Known(ty));
            return format!("`{name}` is the type `{ty}`; `kscope types` shows it");
        }
        let mut message = format!("the kernel has no variable, function or enumerator `{name}`");
        let image = self.reader.kernel().image();
        let meant = did_you_mean(name, image.symbols().map(|symbol| symbol.name));
        message.push_str(&meant);
        let is_upper = name.chars().any(|c| c.is_ascii_uppercase())
            && !name.chars().any(|c| c.is_ascii_lowercase());
        if meant.is_empty() && is_upper {
            message.push_str("; a macro is not in its DWARF");
        }
        message
    }

    /// With several CPUs, a per-CPU variable's own address holds what the others started with.
    pub(super) fn refuse_per_cpu(
        &self,
        operand: &Operand,
        name: &str,
        span: Span,
    ) -> Result<(), Failure> {
        let image = self.reader.kernel().image();
        let (Some(start), Some(end), Some(_), Operand::Place(place)) = (
            image.symbol("__per_cpu_start"),
            image.symbol("__per_cpu_end"),
            image.symbol("__per_cpu_offset"),
            operand,
        ) else {
            return Ok(());
        };
        if (start.get()..end.get()).contains(&place.addr) && name != "__per_cpu_start" {
            let message = format!("every CPU has its own `{name}`: $per_cpu({name}, CPU)");
            return Err(self.error(span, message));
        }
        Ok(())
    }

    /// A CPU that exists.
    pub(super) fn cpu(&self, node: &Node) -> Result<CpuId, Failure> {
        let wanted = self.number(self.eval(node)?, node.span)?.value;
        let cpus = self.reader.kernel().cpus();
        let found = cpus.iter().find(|cpu| u64::from(cpu.0) == wanted);
        found.copied().ok_or_else(|| {
            let cpus: Vec<_> = cpus.iter().map(ToString::to_string).collect();
            let message = format!("there is no CPU {wanted}, but {}", cpus.join(", "));
            self.error(node.span, message)
        })
    }

    pub(super) fn find_task(&self, pid: GuestPid) -> Result<KernelAddr, Failure> {
        let found = self.reader.kernel().find_task(pid)?;
        found.map(|task| task.addr).ok_or(ViewError::NoTask { pid })
    }

    pub(super) fn task(&self, addr: KernelAddr, pointer: bool) -> Result<Operand, Failure> {
        let ty = Type::Known(self.layout.type_named("struct task_struct")?);
        Ok(match pointer {
            true => number(ty.pointer(), addr.get(), Space::Kernel),
            false => place(ty, Space::Kernel, addr.get()),
        })
    }

    /// The `mm_struct` of a task that is given by its pid or by a pointer to it.
    pub(super) fn mm_of(&self, node: &Node) -> Result<KernelAddr, Failure> {
        let given: Number = self.number(self.eval(node)?, node.span)?;
        let task = match self.pointee(&given.ty)? {
            Some(_) => KernelAddr(given.value),
            None => {
                let pid = i32::try_from(given.value as i64).ok();
                let pid = pid.ok_or_else(|| self.error(node.span, "this is no pid"))?;
                self.find_task(GuestPid(pid))?
            }
        };
        let task = self.reader.task(task);
        let mm = task.pointer("mm")?;
        if mm.is_null() {
            let comm = task.text("comm").unwrap_or_default();
            let message = format!(
                "`{comm}` has no memory of a process: it is one of the kernel's own threads, \
                 or has ended"
            );
            return Err(self.error(node.span, message));
        }
        Ok(mm)
    }
}

fn variable(name: &str, ty: Type, addr: KernelAddr) -> Operand {
    Operand::Place(Place {
        ty,
        space: Space::Kernel,
        addr: addr.get(),
        bits: None,
        member: Some((String::new(), name.to_owned())),
    })
}

fn ambiguous(name: &str, several: &[Variable]) -> String {
    let mut scoped: Vec<_> = several
        .iter()
        .map(|found| format!("{}::{name}", found.file))
        .collect();
    scoped.sort();
    scoped.dedup();
    let more = match scoped.len() {
        len @ MAX_LISTED.. if len > MAX_LISTED => format!(" and {} more", len - MAX_LISTED),
        _ => String::new(),
    };
    scoped.truncate(MAX_LISTED);
    format!(
        "{} files have their own `{name}`: {}{more}",
        several.len(),
        scoped.join(", ")
    )
}

fn files(variables: &[Variable]) -> String {
    let mut files: Vec<_> = variables.iter().map(|one| one.file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    files.truncate(MAX_LISTED);
    files.join(", ")
}
