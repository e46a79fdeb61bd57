//! What no member of a struct has.

use super::Gap;
use crate::layout::{Field, TypeInfo, TypeKind};

/// The gaps of one struct. A union has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holes {
    pub(super) before: Gap,
    /// After each member. Of the last one there is none: that is padding.
    pub(super) after: Vec<Gap>,
    pub(super) padding: Gap,
}

/// Where something ends, in bits from the start of the struct.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    bit: u64,
    /// Of a bit-field, where the unit ends whose other bits are still to be had.
    unit: Option<u64>,
}

impl Holes {
    pub(super) fn of(info: &TypeInfo) -> Holes {
        let mut holes = Holes::default();
        let TypeKind::Struct(fields) = &info.kind else {
            return holes;
        };
        let mut end = End::default();
        for (at, field) in fields.iter().enumerate() {
            let gap = gap(end, field);
            match at {
                0 => holes.before = gap,
                _ => holes.after.push(gap),
            }
            end = end_of(field, end);
        }
        holes.after.extend(fields.last().map(|_| Gap::default()));
        let size = info.size.saturating_mul(8);
        let bits = end
            .unit
            .map_or(0, |unit| unit.min(size).saturating_sub(end.bit));
        holes.padding = Gap {
            bits,
            bytes: size.saturating_sub(end.bit.saturating_add(bits)) / 8,
        };
        holes
    }
}

fn start_of(field: &Field) -> u64 {
    let shift = field.bits.map_or(0, |bits| u64::from(bits.shift));
    field.offset.saturating_mul(8).saturating_add(shift)
}

fn end_of(field: &Field, before: End) -> End {
    match field.bits {
        Some(bits) => {
            let unit = field.offset.saturating_add(field.size).saturating_mul(8);
            End {
                bit: start_of(field).saturating_add(u64::from(bits.width)),
                // A smaller unit may share the bits of a larger one.
                unit: Some(unit.max(before.unit.unwrap_or(0))),
            }
        }
        None => End {
            bit: field.offset.saturating_add(field.size).saturating_mul(8),
            unit: None,
        },
    }
}

/// What is between the end of a member and the next one: bits of the first one's unit, bytes, and
/// bits of the next one's unit.
fn gap(end: End, next: &Field) -> Gap {
    let start = start_of(next);
    let mut at = end.bit;
    let mut gap = Gap::default();
    if let Some(unit) = end.unit {
        let unit = unit.min(start);
        gap.bits = unit.saturating_sub(at);
        at = at.max(unit);
    }
    let next_unit = match next.bits {
        Some(_) => next.offset.saturating_mul(8),
        None => start,
    };
    if at < next_unit {
        gap.bytes = (next_unit - at) / 8;
        at = next_unit;
    }
    if next.bits.is_some() {
        gap.bits = gap.bits.saturating_add(start.saturating_sub(at));
    }
    gap
}
