//! The stacks of programs, in the memory of their processes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::files::{ProgramFile, ProgramFiles};
use super::{UserFrame, user_registers};
use crate::addr::UserAddr;
use crate::backtrace::describe_end;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};
use crate::unwind::module::Mapped;
use crate::unwind::walk::Walk;

/// Pages of one process that are kept while its stack is read.
const MAX_PAGES: usize = 4096;

/// Reads the stacks of programs. Files that several processes have mapped are read once.
pub(super) struct Programs<'a, 'r, M> {
    reader: &'a Reader<'r, M>,
    files: ProgramFiles<'a, 'r, M>,
}

/// One process while its stack is read.
struct Process<'p, 'a, 'r, M> {
    programs: &'p Programs<'a, 'r, M>,
    task: &'p Object<'p, M>,
    mm: Object<'p, M>,
    pages: RefCell<HashMap<u64, Option<Box<[u8]>>>>,
    mapped: RefCell<Vec<(Arc<Mapped>, ProgramFile)>>,
}

impl<'a, 'r, M: Memory> Programs<'a, 'r, M> {
    pub(super) fn new(reader: &'a Reader<'r, M>) -> Programs<'a, 'r, M> {
        Programs {
            reader,
            files: ProgramFiles::new(reader),
        }
    }

    /// The frames of the program of a task from where it entered the kernel on, and why they end
    /// where they do not begin.
    pub(super) fn stack(
        &self,
        task: &Object<'_, M>,
    ) -> Result<(Vec<UserFrame>, Option<String>), ViewError> {
        let Some(mm) = task.follow("mm")? else {
            return Ok((Vec::new(), None));
        };
        let registers = user_registers(task)?;
        let process = Process {
            programs: self,
            task,
            mm: mm.fetched(),
            pages: RefCell::default(),
            mapped: RefCell::default(),
        };
        let read = |addr: u64, buf: &mut [u8]| process.read(addr, buf).is_some();
        let stack = Walk {
            module: &mut |pc| Some(process.module(pc)?.0),
            read: &read,
            stacks: &[],
        }
        .follow(&registers);
        let frames = stack.frames.iter().map(|frame| {
            let lookup = frame.frame.lookup().get();
            let module = process.module(lookup);
            let function = module
                .as_ref()
                .and_then(|(mapped, _)| mapped.function_at(lookup));
            let pc = frame.frame.pc.get();
            UserFrame {
                pc: UserAddr(pc),
                function: function.map(|(name, _)| name.to_owned()),
                offset: function.map(|(_, offset)| offset + (pc - lookup)),
                object: process.object(lookup),
                signal: frame.is_signal,
            }
        });
        Ok((frames.collect(), describe_end(&stack.end)))
    }
}

impl<M: Memory> Process<'_, '_, '_, M> {
    /// Fills `buf`, a page at a time.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Option<()> {
        let kernel = self.programs.reader.kernel();
        let size = kernel.page_size();
        let mut pages = self.pages.borrow_mut();
        let mut done = 0;
        while done < buf.len() {
            let at = addr.checked_add(done as u64)?;
            let page = at - at % size;
            if pages.len() >= MAX_PAGES {
                pages.clear();
            }
            let content = pages.entry(page).or_insert_with(|| {
                let mut content = vec![0; size as usize].into_boxed_slice();
                let read = kernel.read_user(self.mm.addr(), UserAddr(page), &mut content);
                read.ok().map(|()| content)
            });
            let rest = content.as_ref()?.get((at - page) as usize..)?;
            let wanted = buf.get_mut(done..)?;
            let len = rest.len().min(wanted.len());
            wanted.get_mut(..len)?.copy_from_slice(rest.get(..len)?);
            done += len;
        }
        Some(())
    }

    /// The file that is mapped at an address.
    fn module(&self, pc: u64) -> Option<(Arc<Mapped>, ProgramFile)> {
        let known = self.mapped.borrow();
        let found = known.iter().find(|(mapped, _)| mapped.range.contains(&pc));
        if let Some(found) = found {
            return Some(found.clone());
        }
        drop(known);
        let found = self.map(pc)?;
        self.mapped.borrow_mut().push(found.clone());
        Some(found)
    }

    fn map(&self, pc: u64) -> Option<(Arc<Mapped>, ProgramFile)> {
        let area = self.area(pc)?;
        let range = area.u64("vm_start").ok()?..area.u64("vm_end").ok()?;
        let file = self.programs.files.of(self.task, &area)?;
        let page = self.programs.reader.kernel().page_size();
        let offset = area.u64("vm_pgoff").ok()?.checked_mul(page)?;
        let binary = Arc::clone(file.binary.as_ref()?);
        let mapped = Mapped::new(binary, range, offset)?;
        Some((Arc::new(mapped), file))
    }

    /// The path of the file at an address, also of one whose symbols are not to be had.
    fn object(&self, pc: u64) -> Option<String> {
        let area = self.area(pc)?;
        let file = self.programs.files.of(self.task, &area)?;
        Some(file.path.to_string())
    }

    /// The mapping that has an address.
    fn area(&self, pc: u64) -> Option<Object<'_, M>> {
        let reader = self.programs.reader;
        let tree = self.mm.addr_of("mm_mt").ok()?;
        let entry = reader.kernel().maple_tree(tree).find(pc);
        let entry = reader.or_warn(entry)??;
        let area: Object<'_, M> = reader.object("struct vm_area_struct", entry.value);
        let area = area.fetched();
        // One that was freed and is used anew.
        (area.addr_value("vm_mm").ok()? == self.mm.addr()).then_some(area)
    }
}
