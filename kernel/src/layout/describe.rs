//! Entries of the DWARF as descriptions of types.

use std::sync::Arc;

use gimli::{AttributeValue, DebugInfoOffset, UnitHeader, UnitOffset, constants};

use super::dwarf::{Die, Reader, Unit, constant, is_declaration};
use super::info::{Aggregate, Encoding, Enumerator, Field, Qualifier, TypeId, TypeInfo, TypeKind};
use super::types::{Failure, MAX_SIZE, Types, dimensions, place, size_of};

impl Types {
    /// Describes the type whose entry is there.
    pub(super) fn describe(&mut self, id: TypeId) -> Result<TypeInfo, Failure> {
        let (unit, offset) = self.entry_at(id)?;
        let entry = unit.unit.entry(offset)?;
        let size = size_of(&unit, Some(offset), 0)?;
        if size > MAX_SIZE {
            return Err(Failure::BadPath("the size overflows".to_owned()));
        }
        let kind = kind(&unit, &entry)?;
        Ok(TypeInfo {
            // A function that is defined has a name; its type has none.
            name: match kind {
                TypeKind::Function { .. } => None,
                _ => unit.name_of(&entry)?,
            },
            size: match kind {
                TypeKind::Function { .. } => 0,
                _ => size,
            },
            align: number(&entry, constants::DW_AT_alignment),
            kind,
        })
    }

    /// The unit that an entry is in, and where in it.
    pub(super) fn entry_at(&mut self, id: TypeId) -> Result<(Arc<Unit>, UnitOffset), Failure> {
        let at = self.header_of(id).ok_or(Failure::NoType)?;
        let unit = self.unit(at)?;
        let offset = global(id).to_unit_offset(&unit.unit.header);
        Ok((unit, offset.ok_or(Failure::NoType)?))
    }

    /// Which unit an entry is in.
    pub(super) fn header_of(&self, id: TypeId) -> Option<usize> {
        let at = global(id);
        let starts_before = |header: &UnitHeader<Reader>| {
            header.debug_info_offset().is_some_and(|start| start <= at)
        };
        self.headers.partition_point(starts_before).checked_sub(1)
    }
}

impl Unit {
    /// The id of an entry of this unit.
    pub(super) fn id(&self, offset: UnitOffset) -> Option<TypeId> {
        let global = offset.to_debug_info_offset(&self.unit.header)?;
        Some(TypeId(global.0 as u64))
    }

    /// The entry's type. `None` is `void`.
    pub(super) fn type_id(&self, entry: &Die) -> Option<TypeId> {
        match entry.attr_value(constants::DW_AT_type)? {
            AttributeValue::UnitRef(offset) => self.id(offset),
            AttributeValue::DebugInfoRef(offset) => Some(TypeId(offset.0 as u64)),
            _ => None,
        }
    }
}

fn global(id: TypeId) -> DebugInfoOffset {
    DebugInfoOffset(usize::try_from(id.0).unwrap_or(usize::MAX))
}

fn kind(unit: &Unit, entry: &Die) -> Result<TypeKind, Failure> {
    let target = || unit.type_id(entry);
    Ok(match entry.tag() {
        constants::DW_TAG_base_type => TypeKind::Base(encoding(unit, entry)?),
        constants::DW_TAG_pointer_type => TypeKind::Pointer(target()),
        constants::DW_TAG_structure_type if is_declaration(entry) => {
            TypeKind::Incomplete(Aggregate::Struct)
        }
        constants::DW_TAG_union_type if is_declaration(entry) => {
            TypeKind::Incomplete(Aggregate::Union)
        }
        // A declared enumeration has its size, but not its values.
        constants::DW_TAG_enumeration_type if is_declaration(entry) => {
            TypeKind::Incomplete(Aggregate::Enum)
        }
        constants::DW_TAG_structure_type => TypeKind::Struct(fields(unit, entry)?),
        constants::DW_TAG_union_type => TypeKind::Union(fields(unit, entry)?),
        constants::DW_TAG_enumeration_type => enumeration(unit, entry)?,
        constants::DW_TAG_array_type => TypeKind::Array {
            element: target(),
            counts: dimensions(unit, entry)?,
        },
        constants::DW_TAG_typedef => TypeKind::Typedef(target()),
        constants::DW_TAG_const_type => TypeKind::Qualified(Qualifier::Const, target()),
        constants::DW_TAG_volatile_type => TypeKind::Qualified(Qualifier::Volatile, target()),
        constants::DW_TAG_restrict_type => TypeKind::Qualified(Qualifier::Restrict, target()),
        constants::DW_TAG_atomic_type => TypeKind::Qualified(Qualifier::Atomic, target()),
        constants::DW_TAG_subroutine_type | constants::DW_TAG_subprogram => function(unit, entry)?,
        _ => TypeKind::Other,
    })
}

fn number(entry: &Die, name: constants::DwAt) -> Option<u64> {
    entry.attr(name).and_then(|attr| attr.udata_value())
}

fn encoding(unit: &Unit, entry: &Die) -> Result<Encoding, Failure> {
    let Some(AttributeValue::Encoding(encoding)) = entry.attr_value(constants::DW_AT_encoding)
    else {
        return Ok(Encoding::Other);
    };
    let is_plain = unit.name_of(entry)?.as_deref() == Some("char");
    Ok(match encoding {
        constants::DW_ATE_signed => Encoding::Signed,
        constants::DW_ATE_unsigned => Encoding::Unsigned,
        constants::DW_ATE_signed_char if is_plain => Encoding::Char { signed: true },
        constants::DW_ATE_unsigned_char if is_plain => Encoding::Char { signed: false },
        constants::DW_ATE_signed_char => Encoding::Signed,
        constants::DW_ATE_unsigned_char => Encoding::Byte,
        constants::DW_ATE_boolean => Encoding::Bool,
        constants::DW_ATE_float => Encoding::Float,
        _ => Encoding::Other,
    })
}

fn fields(unit: &Unit, owner: &Die) -> Result<Vec<Field>, Failure> {
    let mut fields = Vec::new();
    let mut tree = unit.unit.entries_tree(Some(owner.offset()))?;
    let mut children = tree.root()?.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        if entry.tag() != constants::DW_TAG_member {
            continue;
        }
        let found = place(unit, entry)?;
        let size = match found.size {
            Some(size) => size,
            None => size_of(unit, unit.type_of(entry), 0)?,
        };
        if found.offset > MAX_SIZE || size > MAX_SIZE {
            return Err(Failure::BadPath("the offset overflows".to_owned()));
        }
        fields.push(Field {
            name: unit.name_of(entry)?,
            ty: unit.type_id(entry),
            offset: found.offset,
            size,
            bits: found.bits,
            align: number(entry, constants::DW_AT_alignment),
        });
    }
    Ok(fields)
}

fn enumeration(unit: &Unit, entry: &Die) -> Result<TypeKind, Failure> {
    let mut enumerators = Vec::new();
    let mut tree = unit.unit.entries_tree(Some(entry.offset()))?;
    let mut children = tree.root()?.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        if entry.tag() != constants::DW_TAG_enumerator {
            continue;
        }
        if let (Some(name), Some(value)) = (unit.name_of(entry)?, constant(entry)) {
            enumerators.push(Enumerator { name, value });
        }
    }
    let underlying = unit.type_of(entry);
    let underlying = underlying
        .map(|offset| unit.unit.entry(offset))
        .transpose()?;
    let underlying = underlying.map(|entry| encoding(unit, &entry)).transpose()?;
    let signed = match underlying {
        Some(Encoding::Unsigned | Encoding::Byte | Encoding::Bool) => false,
        Some(encoding) if encoding.is_signed() => true,
        _ => enumerators.iter().any(|enumerator| enumerator.value < 0),
    };
    Ok(TypeKind::Enum {
        signed,
        enumerators,
    })
}

fn function(unit: &Unit, entry: &Die) -> Result<TypeKind, Failure> {
    let mut parameters = Vec::new();
    let mut variadic = false;
    let mut tree = unit.unit.entries_tree(Some(entry.offset()))?;
    let mut children = tree.root()?.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        match entry.tag() {
            constants::DW_TAG_formal_parameter => {
                parameters.push((unit.name_of(entry)?, unit.type_id(entry)));
            }
            constants::DW_TAG_unspecified_parameters => variadic = true,
            _ => {}
        }
    }
    Ok(TypeKind::Function {
        returns: unit.type_id(entry),
        parameters,
        variadic,
        prototyped: matches!(
            entry.attr_value(constants::DW_AT_prototyped),
            Some(AttributeValue::Flag(true))
        ),
    })
}
