//! Which unit defines what: one pass over the top level of all units.

use std::collections::HashMap;

use gimli::{AttributeValue, DebugInfoOffset, Operation, UnitHeader, UnitOffset, constants};

use super::dwarf::{Named, Reader};
use super::info::TypeId;
use crate::addr::KernelAddr;

type Sections = gimli::Dwarf<Reader>;

/// A kind of thing and its name.
type Key = (Named, &'static [u8]);

/// Every name at the top level of a kernel's units.
#[derive(Default)]
pub(super) struct Index {
    /// The first usable entry of that kind and name. Of variables and functions, the first entry
    /// that has a type.
    first: HashMap<Key, (TypeId, Print)>,
    /// Structs and unions of names that stand for several: files have their own, and User Mode
    /// Linux has those of the C library beside the kernel's.
    several: HashMap<Key, Vec<(TypeId, Print)>>,
    /// The variables that are defined in C, and where they are.
    variables: HashMap<&'static [u8], Vec<Defined>>,
}

/// What definitions of one name that come from one place have in common: size and line.
pub(super) type Print = (Option<u64>, Option<u64>);

/// A definition of a variable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defined {
    /// The entry with the address.
    pub(super) entry: TypeId,
    /// The entry that it completes, which has the type if it has none itself.
    pub(super) declaration: Option<TypeId>,
    pub(super) addr: KernelAddr,
}

/// What is read of an entry.
#[derive(Default)]
struct Entry {
    name: Option<&'static [u8]>,
    declaration: bool,
    print: Print,
    specification: Option<UnitOffset>,
    location: Option<KernelAddr>,
    sibling: Option<UnitOffset>,
}

impl Index {
    /// Reads the top level of all units.
    ///
    /// The names borrow from the sections, whose owner the caller keeps.
    pub(super) fn new(
        dwarf: &Sections,
        headers: &[UnitHeader<Reader>],
    ) -> Result<Index, gimli::Error> {
        let mut index = Index::default();
        for header in headers {
            index.unit(dwarf, header)?;
        }
        Ok(index)
    }

    /// The first of the kinds that is somewhere, and its entry.
    pub(super) fn find(&self, kinds: &[Named], name: &str) -> Option<TypeId> {
        let at = |&kind| self.first.get(&(kind, name.as_bytes()));
        kinds.iter().find_map(at).map(|&(id, _)| id)
    }

    /// One of each definition of a name, if there are several.
    pub(super) fn several(&self, kind: Named, name: &str) -> Vec<(TypeId, Print)> {
        let found = self.several.get(&(kind, name.as_bytes()));
        found.cloned().unwrap_or_default()
    }

    /// The definitions of a variable.
    pub(super) fn variables(&self, name: &str) -> &[Defined] {
        let found = self.variables.get(name.as_bytes());
        found.map_or(&[], Vec::as_slice)
    }

    /// What of that kind has a name, without order. An enumeration that has none is listed under
    /// its first enumerator.
    pub(super) fn names(
        &self,
        wanted: Named,
    ) -> impl Iterator<Item = (&'static [u8], TypeId)> + '_ {
        let entries = self.first.iter();
        entries.filter_map(move |(&(kind, name), &(id, _))| (kind == wanted).then_some((name, id)))
    }

    fn unit(&mut self, dwarf: &Sections, header: &UnitHeader<Reader>) -> Result<(), gimli::Error> {
        let Some(start) = header.debug_info_offset() else {
            return Ok(());
        };
        let abbreviations = header.abbreviations(&dwarf.debug_abbrev)?;
        let mut entries = header.entries_raw(&abbreviations, None)?;
        let Some(root) = entries.read_abbreviation()? else {
            return Ok(());
        };
        entries.skip_attributes(root.attributes())?;
        // The names of this unit's variables, which their definitions refer to.
        let mut declared = HashMap::new();
        while root.has_children() && !entries.is_empty() {
            let offset = entries.next_offset();
            let Some(abbreviation) = entries.read_abbreviation()? else {
                // The end of the top level; padding may follow.
                break;
            };
            let kind = kind(abbreviation.tag());
            let mut entry = Entry::default();
            if kind.is_some() || abbreviation.has_children() {
                for &attribute in abbreviation.attributes() {
                    let attribute = entries.read_attribute(attribute)?;
                    entry.note(dwarf, header, &attribute);
                }
            } else {
                entries.skip_attributes(abbreviation.attributes())?;
            }
            let anonymous = entry.name.is_none();
            if kind == Some(Named::Enum) && anonymous && abbreviation.has_children() {
                // Known by its first enumerator.
                let mut child = entries.clone();
                if let Some(abbreviation) = child.read_abbreviation()? {
                    for &attribute in abbreviation.attributes() {
                        let attribute = child.read_attribute(attribute)?;
                        entry.note(dwarf, header, &attribute);
                    }
                }
            }
            if let Some(kind) = kind {
                let id = TypeId(start.0.saturating_add(offset.0) as u64);
                let kind = match (kind, anonymous) {
                    (Named::Enum, true) => Named::AnonymousEnum,
                    (kind, _) => kind,
                };
                self.enter(kind, id, &entry);
                if kind == Named::Function && !entry.declaration {
                    self.enter(Named::Body, id, &entry);
                }
                if kind == Named::Variable {
                    self.variable(id, start, &entry, &declared);
                    declared.extend(entry.name.map(|name| (offset, name)));
                }
            }
            if !abbreviation.has_children() {
                continue;
            }
            match entry.sibling.filter(|&next| next > entries.next_offset()) {
                Some(next) => entries = header.entries_raw(&abbreviations, Some(next))?,
                None => {
                    let mut depth = 1_usize;
                    while depth > 0 {
                        match entries.read_abbreviation()? {
                            None => depth -= 1,
                            Some(child) => {
                                entries.skip_attributes(child.attributes())?;
                                depth += usize::from(child.has_children());
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn enter(&mut self, kind: Named, id: TypeId, entry: &Entry) {
        let Some(name) = entry.name else {
            return;
        };
        // A declared struct has no members; a declared variable or function has its type.
        let has_type = matches!(kind, Named::Variable | Named::Function);
        if !has_type && entry.declaration {
            return;
        }
        let first = *self.first.entry((kind, name)).or_insert((id, entry.print));
        if matches!(kind, Named::Struct | Named::Union) && first.1 != entry.print {
            let several = self
                .several
                .entry((kind, name))
                .or_insert_with(|| vec![first]);
            if !several.iter().any(|(_, print)| *print == entry.print) {
                several.push((id, entry.print));
            }
        }
    }

    fn variable(
        &mut self,
        id: TypeId,
        start: DebugInfoOffset,
        entry: &Entry,
        declared: &HashMap<UnitOffset, &'static [u8]>,
    ) {
        let Some(addr) = entry.location else {
            return;
        };
        let completed = entry.specification;
        let name = completed.and_then(|at| declared.get(&at).copied());
        if let Some(name) = entry.name.or(name) {
            let declaration = completed.map(|at| TypeId(start.0.saturating_add(at.0) as u64));
            self.variables.entry(name).or_default().push(Defined {
                entry: id,
                declaration,
                addr,
            });
        }
    }
}

impl Entry {
    fn note(
        &mut self,
        dwarf: &Sections,
        header: &UnitHeader<Reader>,
        attribute: &gimli::Attribute<Reader>,
    ) {
        match (attribute.name(), attribute.value()) {
            (constants::DW_AT_name, AttributeValue::DebugStrRef(offset)) => {
                self.name = dwarf
                    .debug_str
                    .get_str(offset)
                    .ok()
                    .map(|name| name.slice());
            }
            (constants::DW_AT_name, AttributeValue::String(name)) => {
                self.name = Some(name.slice());
            }
            (constants::DW_AT_declaration, AttributeValue::Flag(flag)) => self.declaration = flag,
            (constants::DW_AT_byte_size, _) => self.print.0 = attribute.udata_value(),
            (constants::DW_AT_decl_line, _) => self.print.1 = attribute.udata_value(),
            (constants::DW_AT_specification, AttributeValue::UnitRef(offset)) => {
                self.specification = Some(offset);
            }
            (constants::DW_AT_sibling, AttributeValue::UnitRef(offset)) => {
                self.sibling = Some(offset);
            }
            (constants::DW_AT_location, AttributeValue::Exprloc(expression)) => {
                self.location = fixed_address(expression, header.encoding());
            }
            _ => {}
        }
    }
}

/// The address that a location is, when it is one and nothing more.
pub(super) fn fixed_address(
    expression: gimli::Expression<Reader>,
    encoding: gimli::Encoding,
) -> Option<KernelAddr> {
    let mut operations = expression.operations(encoding);
    match operations.next() {
        Ok(Some(Operation::Address { address })) => {
            let ends = matches!(operations.next(), Ok(None));
            ends.then_some(KernelAddr(address))
        }
        _ => None,
    }
}

fn kind(tag: constants::DwTag) -> Option<Named> {
    Some(match tag {
        constants::DW_TAG_structure_type => Named::Struct,
        constants::DW_TAG_union_type => Named::Union,
        constants::DW_TAG_enumeration_type => Named::Enum,
        constants::DW_TAG_typedef => Named::Typedef,
        constants::DW_TAG_base_type => Named::Base,
        constants::DW_TAG_variable => Named::Variable,
        constants::DW_TAG_subprogram => Named::Function,
        _ => return None,
    })
}
