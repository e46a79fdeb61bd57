//! The arguments and variables of the kernel's functions, from registers and stacks.

use std::sync::Arc;

use gimli::Location as At;

use super::Variable;
use crate::addr::KernelAddr;
use crate::layout::scopes::{Local, LocalPlace, Scope, Scopes, expression};
use crate::layout::{Layout, Type};
use crate::memory::Memory;
use crate::reader::Reader;
use crate::registers::{Reg, Registers};
use crate::unwind::evaluate::{Surroundings, evaluate, number};
use crate::unwind::registers_by_dwarf;
use crate::unwind::walk::{CallStack, StackFrame};
use crate::value::{Location, Style, Value};

/// Bytes of the largest variable that is shown.
const MAX_SIZE: u64 = 4096;

/// How many callers are asked for what an argument was at the call.
const MAX_CALLERS: usize = 8;

/// Finds variables.
pub(super) struct Variables<'a, 'r, M> {
    reader: &'a Reader<'r, M>,
    layout: Option<&'a Layout>,
}

/// A stack while variables are looked for in it.
struct Stack<'a, 'm> {
    layout: &'a Layout,
    stack: &'a CallStack,
    memory: &'m dyn Memory,
}

/// A frame, and what the source has there.
struct Frame<'a> {
    frame: &'a StackFrame,
    scopes: Arc<Scopes>,
    frame_base: Option<u64>,
}

impl<'a, 'r, M: Memory> Variables<'a, 'r, M> {
    pub(super) fn new(reader: &'a Reader<'r, M>) -> Variables<'a, 'r, M> {
        Variables {
            reader,
            layout: reader.kernel().image().layout().ok(),
        }
    }

    /// The arguments and variables of a function of frame `at`: the one that `depth` others are
    /// inlined into. `None` when the DWARF knows no such function there.
    pub(super) fn of(
        &self,
        stack: &CallStack,
        at: usize,
        depth: usize,
        function: &str,
        memory: &dyn Memory,
    ) -> Option<(Vec<Variable>, Vec<Variable>)> {
        let stack = Stack {
            layout: self.layout?,
            stack,
            memory,
        };
        let frame = stack.frame(at)?;
        let scope = frame.scopes.functions.get(depth)?;
        if scope.function != function {
            return None;
        }
        let read = |local: &Local| Variable {
            name: local.name.clone(),
            value: self.value(&stack, &frame, at, local),
        };
        let arguments = scope.parameters.iter().map(read).collect();
        let variables = scope.variables.iter().map(read).collect();
        Some((arguments, variables))
    }

    fn value(
        &self,
        stack: &Stack<'_, '_>,
        frame: &Frame<'_>,
        at: usize,
        local: &Local,
    ) -> Option<Value> {
        let ty = Type::from(local.ty);
        let size = stack.layout.size(&ty).ok()?;
        if size == 0 || size > MAX_SIZE {
            return None;
        }
        let bytes = match &local.place {
            LocalPlace::Nowhere => return None,
            LocalPlace::Constant(bytes) => {
                let mut bytes = bytes.clone();
                bytes.resize(size as usize, 0);
                bytes
            }
            LocalPlace::Expression(text) => {
                let text = expression(text, frame.scopes.encoding());
                stack.evaluate(frame, at, text, size as usize)?
            }
        };
        let place = Location::Bytes(&bytes);
        self.reader.value(&ty, place, &Style::BRIEF).ok()
    }
}

type Evaluation<'e> = gimli::Evaluation<gimli::EndianSlice<'e, gimli::LittleEndian>>;

impl<'a> Stack<'a, '_> {
    fn frame(&self, at: usize) -> Option<Frame<'a>> {
        let frame = self.stack.frames.get(at)?;
        let scopes = self.layout.scopes(frame.frame.lookup().get()).ok()?;
        let mut found = Frame {
            frame,
            scopes,
            frame_base: None,
        };
        // Of the function that has the code.
        let scopes = Arc::clone(&found.scopes);
        let base = scopes.functions.last().and_then(|f| f.frame_base.as_ref());
        found.frame_base = base.and_then(|base| {
            let text = expression(base, scopes.encoding());
            self.with(&found, at, 0, |around| number(text, around))
        });
        Some(found)
    }

    /// Does something in the surroundings of a frame. `callers` were asked on the way here.
    fn with<T>(
        &self,
        frame: &Frame<'_>,
        at: usize,
        callers: usize,
        then: impl FnOnce(&Surroundings<'_>) -> T,
    ) -> T {
        let read = |addr, buf: &mut [u8]| self.memory.read(KernelAddr(addr), buf).is_ok();
        let at_entry = |register| {
            let function = frame.scopes.functions.last()?;
            self.at_entry(function, at, register, callers)
        };
        then(&Surroundings {
            registers: &frame.frame.registers,
            read: &read,
            cfa: frame.frame.cfa,
            frame_base: frame.frame_base,
            at_entry: &at_entry,
            base_type: &|at| frame.scopes.base_type(at),
        })
    }

    /// What a register held when the function of frame `at` was called, as its caller knows.
    fn at_entry(&self, callee: &Scope, at: usize, register: u16, callers: usize) -> Option<u64> {
        if callers >= MAX_CALLERS {
            return None;
        }
        let above = at.checked_add(1)?;
        let frame = self.frame(above)?;
        if !frame.frame.frame.is_return_address {
            return None;
        }
        let call = frame.scopes.call.as_ref()?;
        let encoding = frame.scopes.encoding();
        let in_caller = |text: &[u8]| {
            let text = expression(text, encoding);
            self.with(&frame, above, callers + 1, |around| number(text, around))
        };
        // A function that was called may have jumped on to this one in place of returning.
        let is_direct = match (&call.target, &call.address) {
            (Some(target), _) => *target == callee.function,
            (None, Some(address)) => callee.entry.is_some() && in_caller(address) == callee.entry,
            (None, None) => false,
        };
        let argument = call.arguments.iter().find(|(other, _)| *other == register);
        in_caller(&argument.filter(|_| is_direct)?.1)
    }

    /// The bytes of a variable.
    fn evaluate(
        &self,
        frame: &Frame<'_>,
        at: usize,
        text: Evaluation<'_>,
        size: usize,
    ) -> Option<Vec<u8>> {
        let pieces = self.with(frame, at, 0, |around| evaluate(text, around))?;
        let mut bytes = Vec::with_capacity(size);
        let is_one = pieces.len() == 1;
        for piece in pieces {
            let len = match piece.size_in_bits {
                Some(bits) if bits % 8 == 0 => usize::try_from(bits / 8).ok()?,
                None if is_one => size,
                _ => return None,
            };
            // Nothing counts bits from within a register here.
            if len > size || piece.bit_offset.is_some_and(|offset| offset != 0) {
                return None;
            }
            bytes.extend(self.piece(&piece.location, &frame.frame.registers, len)?);
        }
        (bytes.len() >= size).then(|| {
            bytes.truncate(size);
            bytes
        })
    }

    fn piece(
        &self,
        location: &At<gimli::EndianSlice<'_, gimli::LittleEndian>>,
        registers: &Registers,
        len: usize,
    ) -> Option<Vec<u8>> {
        let word = |value: u64| {
            let mut bytes = value.to_le_bytes().to_vec();
            // A number of 16 bytes whose upper half is zero; a struct is never one word long.
            bytes.resize(len.max(8), 0);
            bytes.truncate(len);
            bytes
        };
        match location {
            At::Empty | At::ImplicitPointer { .. } => None,
            At::Register { register } => {
                let register: Reg = registers_by_dwarf(*register)?;
                (len <= 8).then_some(())?;
                Some(word(registers.get(register)?))
            }
            At::Address { address } => {
                let mut bytes = vec![0; len];
                let read = self.memory.read(KernelAddr(*address), &mut bytes);
                read.ok().map(|()| bytes)
            }
            At::Value { value } => Some(word(value.to_u64(u64::MAX).ok()?)),
            At::Bytes { value } => {
                let mut bytes = value.slice().to_vec();
                bytes.resize(len, 0);
                Some(bytes)
            }
        }
    }
}
