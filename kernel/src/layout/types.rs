//! Finds types in the units of the DWARF and takes them apart.

use std::path::PathBuf;
use std::sync::Arc;

use gimli::{AttributeValue, UnitHeader, UnitOffset, constants};

use super::dwarf::{Die, Dwarf, Named, Reader, Unit, unit_source};
use super::index::Index;
use super::path::{self, Step};
use super::{Bits, Member, Place, Shape};

/// Why a look-up failed.
pub(super) enum Failure {
    Dwarf(gimli::Error),
    NoType,
    NoVariable,
    NoMember,
    BadPath(String),
}

impl From<gimli::Error> for Failure {
    fn from(error: gimli::Error) -> Failure {
        Failure::Dwarf(error)
    }
}

/// Where the types of the kernel's core are: this file includes nearly every header that matters.
const CORE: &str = "init/init_task.c";

/// How deep types may nest (typedefs, anonymous members, arrays) before they count as a cycle.
pub(super) const MAX_NESTING: usize = 64;

/// Bytes of the largest type that is believed. Whoever computes with a [`Member`] may rely on
/// small numbers, also when the DWARF is damaged.
pub(super) const MAX_SIZE: u64 = 1 << 30;

/// The units of the DWARF, parsed when a look-up needs them.
pub(super) struct Types {
    pub(super) headers: Vec<UnitHeader<Reader>>,
    parsed: Vec<Option<Arc<Unit>>>,
    /// Where to look, in this order: the core unit first, then those that helped before.
    preferred: Vec<usize>,
    core: Option<usize>,
    /// Of all units, once something was asked for that the core does not have.
    index: Option<Index>,
    /// The code of all units by address, once an address was asked for: start, end, unit.
    pub(super) code: Vec<(u64, u64, usize)>,
    directories: (Option<PathBuf>, Option<PathBuf>),
    pub(super) dwarf: Arc<gimli::Dwarf<Reader>>,
    /// Owns what the fields above borrow; after them, so that it is dropped last.
    _owner: Arc<Dwarf>,
}

/// A type in a unit. `None` is `void`.
type TypeAt = Option<UnitOffset>;

impl Types {
    pub(super) fn new(owner: Arc<Dwarf>) -> Result<Types, gimli::Error> {
        // SAFETY: `_owner` keeps the sections alive for as long as the other fields exist, and
        // nothing that borrows from them leaves this type.
        let dwarf = unsafe { owner.sections() };
        let mut headers = Vec::new();
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            headers.push(header);
        }
        let mut types = Types {
            parsed: vec![None; headers.len()],
            headers,
            preferred: Vec::new(),
            core: None,
            index: None,
            code: Vec::new(),
            directories: (None, None),
            dwarf,
            _owner: owner,
        };
        for (at, header) in types.headers.iter().enumerate() {
            let source = unit_source(&types.dwarf, header)?;
            let path = source.path();
            if let Some(root) = path.strip_suffix(CORE).filter(|root| root.ends_with('/')) {
                let build_dir = (!source.directory.is_empty()).then(|| source.directory.into());
                types.directories = (Some(root.into()), build_dir);
                types.core = Some(at);
                break;
            }
        }
        types.preferred.extend(types.core);
        Ok(types)
    }

    /// The unit of the kernel's core.
    pub(super) fn core(&self) -> impl Iterator<Item = usize> + use<> {
        self.core.into_iter()
    }

    /// Whether there are types at all.
    pub(super) fn has_core(&self) -> bool {
        self.core.is_some() || !self.headers.is_empty()
    }

    /// The source tree and the build directory.
    pub(super) fn directories(&self) -> (Option<PathBuf>, Option<PathBuf>) {
        self.directories.clone()
    }

    pub(super) fn member(&mut self, owner: &str, path: &str) -> Result<Place, Failure> {
        let (unit, offset) = self.find_type(owner)?.ok_or(Failure::NoType)?;
        walk(&unit, Some(offset), path)
    }

    pub(super) fn variable(&mut self, name: &str, path: &str) -> Result<Place, Failure> {
        let (unit, offset) = self
            .find(&[Named::Variable], name)?
            .ok_or(Failure::NoVariable)?;
        let entry = unit.unit.entry(offset)?;
        walk(&unit, unit.type_of(&entry), path)
    }

    pub(super) fn enumerator(&mut self, name: &str) -> Result<Option<i64>, gimli::Error> {
        for at in self.preferred.clone() {
            if let Some(value) = self.unit(at)?.enumerator(name)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// An enumerator of an enumeration, wherever that is.
    pub(super) fn enumerator_of(&mut self, owner: &str, name: &str) -> Result<i64, Failure> {
        let (unit, _) = self.find_type(owner)?.ok_or(Failure::NoType)?;
        unit.enumerator(name)?.ok_or(Failure::NoMember)
    }

    pub(super) fn find_type(
        &mut self,
        name: &str,
    ) -> Result<Option<(Arc<Unit>, UnitOffset)>, Failure> {
        let (kinds, name) = spelled_kinds(name);
        self.find(kinds, name)
    }

    fn find(
        &mut self,
        kinds: &[Named],
        name: &str,
    ) -> Result<Option<(Arc<Unit>, UnitOffset)>, Failure> {
        for at in self.preferred.clone() {
            let unit = self.unit(at)?;
            if let Some(offset) = unit.find_any(kinds, name)? {
                return Ok(Some((unit, offset)));
            }
        }
        let Some(id) = self.index()?.find(kinds, name) else {
            return Ok(None);
        };
        let at = self.header_of(id).ok_or(Failure::NoType)?;
        // What belongs together is asked for together.
        if !self.preferred.contains(&at) {
            self.preferred.push(at);
        }
        self.entry_at(id).map(Some)
    }

    /// Which unit defines what.
    pub(super) fn index(&mut self) -> Result<&Index, gimli::Error> {
        if self.index.is_none() {
            self.index = Some(Index::new(&self.dwarf, &self.headers)?);
        }
        Ok(self.index.get_or_insert_default())
    }

    pub(super) fn unit(&mut self, at: usize) -> Result<Arc<Unit>, gimli::Error> {
        if let Some(unit) = &self.parsed[at] {
            return Ok(Arc::clone(unit));
        }
        let unit = Arc::new(Unit::parse(&self.dwarf, self.headers[at])?);
        self.parsed[at] = Some(Arc::clone(&unit));
        Ok(unit)
    }
}

/// What a type of that spelling may be, and its bare name.
pub(super) fn spelled_kinds(name: &str) -> (&'static [Named], &str) {
    let (kinds, name): (&[Named], _) = match name.trim().split_once(' ') {
        Some(("struct", name)) => (&[Named::Struct], name),
        Some(("union", name)) => (&[Named::Union], name),
        Some(("enum", name)) => match name.strip_prefix('{') {
            Some(first) => (&[Named::AnonymousEnum], first.trim_end_matches('}')),
            None => (&[Named::Enum], name),
        },
        // `unsigned int` and the like.
        _ => (
            &[
                Named::Struct,
                Named::Union,
                Named::Typedef,
                Named::Base,
                Named::Enum,
            ],
            name,
        ),
    };
    (kinds, name.trim())
}

/// Follows a path from a type.
fn walk(unit: &Unit, start: TypeAt, path: &str) -> Result<Place, Failure> {
    let mut ty = start;
    let mut offset = 0u64;
    let mut bits = None;
    let mut size = None;
    // How many dimensions of the current array type are indexed already.
    let mut dimension = 0;
    let overflow = || Failure::BadPath("the offset overflows".to_owned());
    for step in path::parse(path).map_err(Failure::BadPath)? {
        if bits.is_some() {
            return Err(Failure::BadPath("a bit-field has no members".to_owned()));
        }
        match step {
            Step::Member(name) => {
                if dimension != 0 {
                    return Err(Failure::BadPath(format!(
                        "`{name}` of an array; index it first"
                    )));
                }
                let found = find_member(unit, ty, name, 0)?.ok_or(Failure::NoMember)?;
                offset = offset.checked_add(found.offset).ok_or_else(overflow)?;
                bits = found.bits;
                size = found.size;
                ty = found.ty;
            }
            Step::Index(index) => {
                let Some(array) = strip(unit, ty)? else {
                    return Err(Failure::NoMember);
                };
                if array.tag() != constants::DW_TAG_array_type {
                    return Err(Failure::BadPath(format!("[{index}] of what is no array")));
                }
                let counts = dimensions(unit, &array)?;
                if counts
                    .get(dimension)
                    .copied()
                    .flatten()
                    .is_some_and(|count| index >= count)
                {
                    return Err(Failure::NoMember);
                }
                let element = unit.type_of(&array);
                let stride = counts
                    .get(dimension + 1..)
                    .unwrap_or_default()
                    .iter()
                    .try_fold(size_of(unit, element, 0)?, |size, count| {
                        size.checked_mul(count.unwrap_or(0))
                    });
                let stride = stride.ok_or_else(overflow)?;
                offset = stride
                    .checked_mul(index)
                    .and_then(|bytes| offset.checked_add(bytes))
                    .ok_or_else(overflow)?;
                size = Some(stride);
                dimension += 1;
                if dimension >= counts.len() {
                    ty = element;
                    dimension = 0;
                }
            }
        }
    }
    let size = match size {
        Some(size) => size,
        None => size_of(unit, ty, 0)?,
    };
    if offset > MAX_SIZE || size > MAX_SIZE {
        return Err(overflow());
    }
    let shape = if dimension == 0 {
        shape(unit, ty)?
    } else {
        // A row of an array with several dimensions.
        Shape::Other
    };
    Ok(Place {
        member: Member { offset, size, bits },
        shape,
    })
}

/// What kind of value a type is.
fn shape(unit: &Unit, ty: TypeAt) -> Result<Shape, Failure> {
    let Some(entry) = strip(unit, ty)? else {
        return Ok(Shape::Other);
    };
    Ok(match entry.tag() {
        constants::DW_TAG_base_type => match entry.attr_value(constants::DW_AT_encoding) {
            Some(AttributeValue::Encoding(
                constants::DW_ATE_signed | constants::DW_ATE_signed_char,
            )) => Shape::Signed,
            Some(AttributeValue::Encoding(
                constants::DW_ATE_unsigned
                | constants::DW_ATE_unsigned_char
                | constants::DW_ATE_boolean,
            )) => Shape::Unsigned,
            _ => Shape::Other,
        },
        constants::DW_TAG_enumeration_type => Shape::Signed,
        constants::DW_TAG_pointer_type => {
            let to = strip(unit, unit.type_of(&entry))?;
            Shape::Pointer(to.map(|to| spelled(unit, &to)).transpose()?.flatten())
        }
        constants::DW_TAG_structure_type | constants::DW_TAG_union_type => {
            Shape::Aggregate(spelled(unit, &entry)?)
        }
        constants::DW_TAG_array_type => {
            let counts = dimensions(unit, &entry)?;
            let count = counts.first().copied().flatten();
            Shape::Array(count.unwrap_or(0))
        }
        _ => Shape::Other,
    })
}

/// A type's name as `Types::find_type` understands it.
fn spelled(unit: &Unit, entry: &Die) -> Result<Option<String>, Failure> {
    let keyword = match entry.tag() {
        constants::DW_TAG_structure_type => "struct ",
        constants::DW_TAG_union_type => "union ",
        constants::DW_TAG_enumeration_type => "enum ",
        constants::DW_TAG_base_type => "",
        _ => return Ok(None),
    };
    let Some(name) = entry.attr_value(constants::DW_AT_name) else {
        return Ok(None);
    };
    let name = String::from_utf8_lossy(unit.string(name)?);
    Ok(Some(format!("{keyword}{name}")))
}

pub(super) struct Found {
    pub(super) offset: u64,
    /// Set when it is not simply the type's.
    pub(super) size: Option<u64>,
    pub(super) bits: Option<Bits>,
    ty: TypeAt,
}

/// Finds a member of a struct or union, also within its anonymous members.
fn find_member(
    unit: &Unit,
    owner: TypeAt,
    name: &str,
    depth: usize,
) -> Result<Option<Found>, Failure> {
    if depth > MAX_NESTING {
        return Ok(None);
    }
    let Some(owner) = strip(unit, owner)? else {
        return Ok(None);
    };
    if !matches!(
        owner.tag(),
        constants::DW_TAG_structure_type | constants::DW_TAG_union_type
    ) {
        return Ok(None);
    }
    let mut tree = unit.unit.entries_tree(Some(owner.offset()))?;
    let mut members = tree.root()?.children();
    let mut anonymous = Vec::new();
    while let Some(member) = members.next()? {
        let entry = member.entry();
        if entry.tag() != constants::DW_TAG_member {
            continue;
        }
        match entry.attr_value(constants::DW_AT_name) {
            Some(value) => {
                if unit.string(value)? == name.as_bytes() {
                    return place(unit, entry).map(Some);
                }
            }
            None => anonymous.push(entry.clone()),
        }
    }
    for entry in anonymous {
        if let Some(mut found) = find_member(unit, unit.type_of(&entry), name, depth + 1)? {
            found.offset = found
                .offset
                .checked_add(place(unit, &entry)?.offset)
                .ok_or_else(|| Failure::BadPath("the offset overflows".to_owned()))?;
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The place of one member in its struct.
pub(super) fn place(unit: &Unit, entry: &Die) -> Result<Found, Failure> {
    let number = |name| entry.attr(name).and_then(|attr| attr.udata_value());
    let ty = unit.type_of(entry);
    let offset = number(constants::DW_AT_data_member_location).unwrap_or(0);
    let Some(width) = number(constants::DW_AT_bit_size) else {
        return Ok(Found {
            offset,
            size: None,
            bits: None,
            ty,
        });
    };
    let size = match number(constants::DW_AT_byte_size) {
        Some(size) => size,
        None => size_of(unit, ty, 0)?,
    }
    .clamp(1, 8);
    let width = width.min(64);
    // DWARF 4 and 5 count from the start of the struct; DWARF 3 from the unit's top bit.
    let first = match number(constants::DW_AT_data_bit_offset) {
        Some(first) => first,
        None => {
            let from_top = number(constants::DW_AT_bit_offset).unwrap_or(0);
            let shift = (size * 8).saturating_sub(from_top.saturating_add(width));
            offset.saturating_mul(8).saturating_add(shift)
        }
    };
    let mut offset = first / (size * 8) * size;
    if first - offset * 8 + width > size * 8 {
        // A packed field across two units: start at its own byte.
        offset = first / 8;
    }
    // All three are at most 64.
    let bits = Bits {
        shift: (first - offset * 8) as u32,
        width: width as u32,
    };
    Ok(Found {
        offset,
        size: Some(size),
        bits: Some(bits),
        ty,
    })
}

/// The type behind typedefs and qualifiers. `None` is `void`.
pub(super) fn strip(unit: &Unit, mut ty: TypeAt) -> Result<Option<Die>, Failure> {
    for _ in 0..MAX_NESTING {
        let Some(offset) = ty else { return Ok(None) };
        let entry = unit.unit.entry(offset)?;
        match entry.tag() {
            constants::DW_TAG_typedef
            | constants::DW_TAG_const_type
            | constants::DW_TAG_volatile_type
            | constants::DW_TAG_restrict_type
            | constants::DW_TAG_atomic_type => ty = unit.type_of(&entry),
            _ => return Ok(Some(entry)),
        }
    }
    Ok(None)
}

/// The dimensions of an array; `None` for one without a count.
pub(super) fn dimensions(unit: &Unit, array: &Die) -> Result<Vec<Option<u64>>, Failure> {
    let mut counts = Vec::new();
    let mut tree = unit.unit.entries_tree(Some(array.offset()))?;
    let mut children = tree.root()?.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        if entry.tag() != constants::DW_TAG_subrange_type {
            continue;
        }
        let count = entry
            .attr(constants::DW_AT_count)
            .and_then(|attr| attr.udata_value());
        let bound = entry
            .attr(constants::DW_AT_upper_bound)
            .and_then(|attr| attr.udata_value());
        counts.push(count.or(bound.and_then(|bound| bound.checked_add(1))));
    }
    Ok(counts)
}

/// The size of a type in bytes; 0 for `void` and for what has no size.
pub(super) fn size_of(unit: &Unit, ty: TypeAt, depth: usize) -> Result<u64, Failure> {
    if depth > MAX_NESTING {
        return Ok(0);
    }
    let Some(entry) = strip(unit, ty)? else {
        return Ok(0);
    };
    if let Some(size) = entry
        .attr(constants::DW_AT_byte_size)
        .and_then(|attr| attr.udata_value())
    {
        return Ok(size);
    }
    match entry.tag() {
        constants::DW_TAG_pointer_type => Ok(u64::from(unit.unit.encoding().address_size)),
        constants::DW_TAG_array_type => {
            let element = size_of(unit, unit.type_of(&entry), depth + 1)?;
            let counts = dimensions(unit, &entry)?;
            let size = counts
                .iter()
                .try_fold(element, |size, count| size.checked_mul(count.unwrap_or(0)));
            size.ok_or_else(|| Failure::BadPath("the size overflows".to_owned()))
        }
        _ => Ok(0),
    }
}
