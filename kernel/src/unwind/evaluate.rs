//! Expressions of the DWARF, evaluated in a frame.

use gimli::{Evaluation, EvaluationResult, Location, Piece, Value, ValueType};

use super::registers_by_dwarf;
use crate::registers::Registers;

/// Reads memory: whether all bytes could be read.
pub(crate) type Read<'a> = dyn Fn(u64, &mut [u8]) -> bool + 'a;

/// What an expression can ask for.
pub(crate) struct Surroundings<'a> {
    /// Of the frame; what is not known is not set.
    pub(crate) registers: &'a Registers,
    /// The memory that addresses are of.
    pub(crate) read: &'a Read<'a>,
    /// The canonical frame address.
    pub(crate) cfa: Option<u64>,
    /// `DW_AT_frame_base` of the function.
    pub(crate) frame_base: Option<u64>,
    /// The value that a register, by its DWARF number, had when the function was called.
    pub(crate) at_entry: &'a dyn Fn(u16) -> Option<u64>,
    /// The base types that the expression names, by their offsets in the unit.
    pub(crate) base_type: &'a dyn Fn(u64) -> Option<ValueType>,
}

/// Operations of an expression, and expressions within it, that are evaluated.
const MAX_OPERATIONS: u32 = 10_000;

/// Reads a word.
pub(crate) fn word(read: &Read<'_>, addr: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    read(addr, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// Evaluates to the end. `None` when something is asked for that is not known here.
pub(crate) fn evaluate<R: gimli::Reader<Offset = usize>>(
    mut evaluation: Evaluation<R>,
    around: &Surroundings<'_>,
) -> Option<Vec<Piece<R>>> {
    evaluation.set_max_iterations(MAX_OPERATIONS);
    let mut state = evaluation.evaluate().ok()?;
    // Each question is an operation, so this ends when the operations do.
    loop {
        let typed = |base: gimli::UnitOffset<usize>, number: u64| match base.0 {
            0 => Some(Value::Generic(number)),
            at => {
                let ty = (around.base_type)(at as u64)?;
                let mask = u64::MAX;
                Value::Generic(number).convert(ty, mask).ok()
            }
        };
        let next = match state {
            EvaluationResult::Complete => return Some(evaluation.result()),
            EvaluationResult::RequiresRegister {
                register,
                base_type,
            } => {
                let register = registers_by_dwarf(register)?;
                let value = around.registers.get(register)?;
                evaluation.resume_with_register(typed(base_type, value)?)
            }
            EvaluationResult::RequiresMemory {
                address,
                size,
                space: None,
                base_type,
            } => {
                let mut bytes = [0; 8];
                let wanted = bytes.get_mut(..usize::from(size))?;
                if !(around.read)(address, wanted) {
                    return None;
                }
                let value = typed(base_type, u64::from_le_bytes(bytes))?;
                evaluation.resume_with_memory(value)
            }
            EvaluationResult::RequiresCallFrameCfa => {
                evaluation.resume_with_call_frame_cfa(around.cfa?)
            }
            EvaluationResult::RequiresFrameBase => {
                evaluation.resume_with_frame_base(around.frame_base?)
            }
            EvaluationResult::RequiresEntryValue(expression) => {
                let register = single_register(expression)?;
                let value = (around.at_entry)(register)?;
                evaluation.resume_with_entry_value(Value::Generic(value))
            }
            EvaluationResult::RequiresRelocatedAddress(address) => {
                // Neither a kernel nor what is looked up in it is relocated.
                evaluation.resume_with_relocated_address(address)
            }
            EvaluationResult::RequiresBaseType(base) => {
                let ty = match base.0 {
                    0 => ValueType::Generic,
                    at => (around.base_type)(at as u64)?,
                };
                evaluation.resume_with_base_type(ty)
            }
            _ => return None,
        };
        state = next.ok()?;
    }
}

/// Evaluates an expression whose result is an address or a number.
pub(crate) fn number<R: gimli::Reader<Offset = usize>>(
    evaluation: Evaluation<R>,
    around: &Surroundings<'_>,
) -> Option<u64> {
    match evaluate(evaluation, around)?.as_slice() {
        [piece] => match &piece.location {
            Location::Address { address } => Some(*address),
            Location::Value { value } => value.to_u64(u64::MAX).ok(),
            Location::Register { register } => around.registers.get(registers_by_dwarf(*register)?),
            _ => None,
        },
        _ => None,
    }
}

/// The register that an expression consists of: what gcc asks the entry value of.
fn single_register<R: gimli::Reader<Offset = usize>>(
    expression: gimli::Expression<R>,
) -> Option<u16> {
    let encoding = gimli::Encoding {
        address_size: 8,
        format: gimli::Format::Dwarf32,
        version: 5,
    };
    let mut operations = expression.operations(encoding);
    match (operations.next(), operations.next()) {
        (Ok(Some(gimli::Operation::Register { register })), Ok(None)) => Some(register.0),
        _ => None,
    }
}
