//! The variables that are in scope at an address of code, and where they are.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gimli::{AttributeValue, EndianSlice, LittleEndian, UnitOffset, ValueType, constants};
use serde::{Deserialize, Serialize};

use super::dwarf::{Die, Reader, Unit, is_declaration};
use super::info::TypeId;
use super::types::{Failure, Types};
use super::{Layout, LayoutError};
use crate::image::Cache;

/// What the source has at one address of code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scopes {
    /// The functions, the innermost inlined one first and the one that has the code last.
    pub(crate) functions: Vec<Scope>,
    /// The call that returns to the byte behind the address.
    pub(crate) call: Option<Call>,
    /// The version of the unit's DWARF, by which expressions are read.
    version: u16,
    /// Base types that the expressions name: offset in the unit, encoding, bytes.
    base_types: Vec<(u64, u8, u64)>,
}

/// One function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scope {
    /// Its name.
    pub(crate) function: String,
    /// Where its code begins; of an inlined function, `None`.
    pub(crate) entry: Option<u64>,
    /// What `DW_OP_fbreg` counts from.
    pub(crate) frame_base: Option<Vec<u8>>,
    /// Its parameters in their order.
    pub(crate) parameters: Vec<Local>,
    /// Its variables, of the outermost block first.
    pub(crate) variables: Vec<Local>,
}

/// A parameter or a variable of a function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Local {
    /// Its name.
    pub(crate) name: String,
    /// Its type.
    pub(crate) ty: Option<TypeId>,
    /// Where it is at the address.
    pub(crate) place: LocalPlace,
}

/// Where a variable is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum LocalPlace {
    /// Nowhere: the compiler has done without it.
    Nowhere,
    /// Where an expression says.
    Expression(Vec<u8>),
    /// Nowhere, but this is its value.
    Constant(Vec<u8>),
}

/// A call and what is known of its arguments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    /// The function that is called, when the call names one.
    pub(crate) target: Option<String>,
    /// Its address, when that is computed: an expression in the caller's frame.
    pub(crate) address: Option<Vec<u8>>,
    /// What registers hold at the call: DWARF number, and an expression in the caller's frame.
    pub(crate) arguments: Vec<(u16, Vec<u8>)>,
}

impl Scopes {
    /// How the expressions are read.
    pub(crate) fn encoding(&self) -> gimli::Encoding {
        gimli::Encoding {
            address_size: 8,
            format: gimli::Format::Dwarf32,
            version: self.version,
        }
    }

    /// A base type that an expression names.
    pub(crate) fn base_type(&self, at: u64) -> Option<ValueType> {
        let &(_, encoding, size) = self.base_types.iter().find(|(offset, ..)| *offset == at)?;
        ValueType::from_encoding(constants::DwAte(encoding), size)
    }
}

/// An expression, ready to be evaluated.
pub(crate) fn expression(
    bytes: &[u8],
    encoding: gimli::Encoding,
) -> gimli::Evaluation<EndianSlice<'_, LittleEndian>> {
    gimli::Expression(EndianSlice::new(bytes, LittleEndian)).evaluation(encoding)
}

/// The scopes of addresses that were asked for, in a file of their own.
pub(crate) struct KnownScopes {
    cache: Option<Cache>,
    content: OnceLock<Mutex<HashMap<u64, Arc<Scopes>>>>,
}

/// The cache is emptied when it has this many addresses, some tens of megabytes.
const CACHE_LIMIT: usize = 20_000;

impl KnownScopes {
    pub(crate) fn new(cache: Option<Cache>) -> KnownScopes {
        KnownScopes {
            cache,
            content: OnceLock::new(),
        }
    }

    fn content(&self) -> MutexGuard<'_, HashMap<u64, Arc<Scopes>>> {
        let load = || {
            let known = self.cache.as_ref().and_then(Cache::load);
            Mutex::new(known.unwrap_or_default())
        };
        let content = self.content.get_or_init(load);
        content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps them, when there is something new.
    pub(super) fn save(&self) -> io::Result<()> {
        match (&self.cache, self.content.get()) {
            (Some(cache), Some(_)) => {
                let content = self.content();
                cache.save(content.len(), &*content)
            }
            _ => Ok(()),
        }
    }
}

impl Layout {
    /// What the source has at an address of code; to look up a return address, ask for the byte
    /// before it. Empty where there is no DWARF.
    pub(crate) fn scopes(&self, addr: u64) -> Result<Arc<Scopes>, LayoutError> {
        if let Some(known) = self.scopes.content().get(&addr) {
            return Ok(Arc::clone(known));
        }
        let found = Arc::new(self.failable(|types| types.scopes(addr))?);
        let mut content = self.scopes.content();
        if content.len() >= CACHE_LIMIT {
            content.clear();
        }
        content.insert(addr, Arc::clone(&found));
        Ok(found)
    }
}

/// How deep blocks and inlined functions are followed.
const MAX_DEPTH: usize = 128;

/// Parameters and variables of one function that are listed.
const MAX_LOCALS: usize = 512;

impl Types {
    fn scopes(&mut self, addr: u64) -> Result<Scopes, Failure> {
        let Some(at) = self.unit_of_code(addr)? else {
            return Ok(Scopes::default());
        };
        let unit = self.unit(at)?;
        let mut finder = Finder {
            types: self,
            unit: &unit,
            addr,
            scopes: Scopes {
                version: unit.unit.encoding().version,
                ..Scopes::default()
            },
        };
        let mut tree = unit.unit.entries_tree(None)?;
        let mut children = tree.root()?.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            if entry.tag() == constants::DW_TAG_subprogram && finder.covers(entry)? {
                let entry = entry.clone();
                finder.function(&entry)?;
                finder.inside(child, 0)?;
                break;
            }
        }
        let mut scopes = finder.scopes;
        scopes.functions.reverse();
        Ok(scopes)
    }

    /// The unit that has the code at an address.
    fn unit_of_code(&mut self, addr: u64) -> Result<Option<usize>, Failure> {
        if self.code.is_empty() {
            self.code = self.ranges()?;
        }
        let end = self.code.partition_point(|&(start, ..)| start <= addr);
        // Of functions in sections of their own, the ranges nest nowhere.
        let found = end.checked_sub(1).and_then(|at| self.code.get(at));
        Ok(found
            .filter(|&&(_, end, _)| addr < end)
            .map(|&(.., unit)| unit))
    }

    /// The code of every unit: start, end, and the unit.
    fn ranges(&self) -> Result<Vec<(u64, u64, usize)>, Failure> {
        let mut found = Vec::new();
        for (at, header) in self.headers.iter().enumerate() {
            let unit = self.dwarf.unit(*header)?;
            let mut ranges = self.dwarf.unit_ranges(&unit)?;
            while let Some(range) = ranges.next()? {
                // What the linker has thrown away is at 0.
                if range.begin != 0 && range.begin < range.end {
                    found.push((range.begin, range.end, at));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// Looks for one address in a unit.
struct Finder<'a> {
    types: &'a mut Types,
    unit: &'a Arc<Unit>,
    addr: u64,
    /// The outermost function first.
    scopes: Scopes,
}

impl Finder<'_> {
    fn covers(&self, entry: &Die) -> Result<bool, Failure> {
        let dwarf = &self.types.dwarf;
        let mut ranges = dwarf.die_ranges(&self.unit.unit, entry)?;
        while let Some(range) = ranges.next()? {
            if (range.begin..range.end).contains(&self.addr) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Begins the scope of a function.
    fn function(&mut self, entry: &Die) -> Result<(), Failure> {
        let is_inlined = entry.tag() == constants::DW_TAG_inlined_subroutine;
        let (unit, origin) = self.origin(entry)?;
        let frame_base = match entry.attr_value(constants::DW_AT_frame_base) {
            Some(value) => self.located(value)?,
            None => None,
        };
        let entry_pc = match entry.attr_value(constants::DW_AT_low_pc) {
            Some(value) => self.types.dwarf.attr_address(&self.unit.unit, value)?,
            None => self.first_address(entry)?,
        };
        self.scopes.functions.push(Scope {
            function: unit.name_of(&origin)?.unwrap_or_default(),
            entry: entry_pc.filter(|_| !is_inlined),
            frame_base,
            ..Scope::default()
        });
        Ok(())
    }

    /// Where the code of a function in several pieces begins: at the first that is listed.
    fn first_address(&self, entry: &Die) -> Result<Option<u64>, Failure> {
        let mut ranges = self.types.dwarf.die_ranges(&self.unit.unit, entry)?;
        Ok(ranges.next()?.map(|range| range.begin))
    }

    /// Collects what the function or block has, and goes on into the block or the inlined function
    /// that has the address.
    fn inside(
        &mut self,
        node: gimli::EntriesTreeNode<'_, '_, Reader>,
        depth: usize,
    ) -> Result<(), Failure> {
        let owner = node.entry().clone();
        let mut concrete = Vec::new();
        let mut deeper = None;
        let mut children = node.children();
        while let Some(child) = children.next()? {
            let entry = child.entry().clone();
            match entry.tag() {
                constants::DW_TAG_formal_parameter | constants::DW_TAG_variable => {
                    concrete.push(entry);
                }
                constants::DW_TAG_lexical_block | constants::DW_TAG_inlined_subroutine
                    if deeper.is_none() && self.covers(&entry)? =>
                {
                    deeper = Some(entry);
                }
                constants::DW_TAG_call_site | constants::DW_TAG_GNU_call_site => {
                    self.call(child)?;
                }
                _ => {}
            }
        }
        self.locals(&owner, concrete)?;
        let Some(entry) = deeper.filter(|_| depth < MAX_DEPTH) else {
            return Ok(());
        };
        if entry.tag() == constants::DW_TAG_inlined_subroutine {
            self.function(&entry)?;
        }
        let unit = Arc::clone(self.unit);
        let mut tree = unit.unit.entries_tree(Some(entry.offset()))?;
        self.inside(tree.root()?, depth + 1)
    }

    /// Adds the parameters and variables of a function or block to the current scope: those with a
    /// place, and those that the source has besides.
    fn locals(&mut self, owner: &Die, concrete: Vec<Die>) -> Result<(), Failure> {
        // A copy of a function lists what it has kept; the rest is with the original.
        let mut listed = Vec::new();
        let mut abstracts = Vec::new();
        if let Some(origin) = reference(owner, constants::DW_AT_abstract_origin) {
            let mut tree = self.unit.unit.entries_tree(Some(origin))?;
            let mut children = tree.root()?.children();
            while let Some(child) = children.next()? {
                let entry = child.entry();
                if is_local(entry) {
                    abstracts.push(entry.clone());
                }
            }
        }
        let mut concrete: Vec<Option<Die>> = concrete.into_iter().map(Some).collect();
        for origin in abstracts {
            let is_copy = |entry: &&mut Option<Die>| {
                let of = entry
                    .as_ref()
                    .and_then(|entry| reference(entry, constants::DW_AT_abstract_origin));
                of == Some(origin.offset())
            };
            let copy = concrete.iter_mut().find(is_copy).and_then(Option::take);
            listed.push(copy.unwrap_or(origin));
        }
        listed.extend(concrete.into_iter().flatten());
        for entry in listed {
            let local = self.local(&entry)?;
            let Some(scope) = self.scopes.functions.last_mut() else {
                return Ok(());
            };
            let list = match entry.tag() {
                constants::DW_TAG_formal_parameter => &mut scope.parameters,
                _ => &mut scope.variables,
            };
            if list.len() < MAX_LOCALS {
                list.extend(local);
            }
        }
        Ok(())
    }

    /// `None` for what is only declared there, and what has no name.
    fn local(&mut self, entry: &Die) -> Result<Option<Local>, Failure> {
        if is_declaration(entry) {
            return Ok(None);
        }
        let (unit, origin) = self.origin(entry)?;
        let Some(name) = unit.name_of(&origin)? else {
            return Ok(None);
        };
        let ty = self.unit.type_id(entry).or_else(|| unit.type_id(&origin));
        let place = match (
            entry.attr_value(constants::DW_AT_location),
            entry
                .attr(constants::DW_AT_const_value)
                .or_else(|| origin.attr(constants::DW_AT_const_value)),
        ) {
            (Some(value), _) => match self.located(value)? {
                Some(expression) => LocalPlace::Expression(expression),
                None => LocalPlace::Nowhere,
            },
            (None, Some(constant)) => match (constant.value(), constant.sdata_value()) {
                (AttributeValue::Block(bytes), _) => LocalPlace::Constant(bytes.slice().to_vec()),
                (_, Some(number)) => LocalPlace::Constant(number.to_le_bytes().to_vec()),
                (_, None) => match constant.udata_value() {
                    Some(number) => LocalPlace::Constant(number.to_le_bytes().to_vec()),
                    None => LocalPlace::Nowhere,
                },
            },
            (None, None) => LocalPlace::Nowhere,
        };
        Ok(Some(Local { name, ty, place }))
    }

    /// The expression that holds at the address.
    fn located(&mut self, value: AttributeValue<Reader>) -> Result<Option<Vec<u8>>, Failure> {
        let expression = match value {
            AttributeValue::Exprloc(expression) => Some(expression),
            value => {
                let dwarf = &self.types.dwarf;
                let mut found = None;
                if let Some(mut list) = dwarf.attr_locations(&self.unit.unit, value)? {
                    while let Some(entry) = list.next()? {
                        if (entry.range.begin..entry.range.end).contains(&self.addr) {
                            found = Some(entry.data);
                            break;
                        }
                    }
                }
                found
            }
        };
        let Some(expression) = expression.filter(|expression| !expression.0.is_empty()) else {
            return Ok(None);
        };
        self.note_base_types(expression)?;
        Ok(Some(expression.0.slice().to_vec()))
    }

    /// Remembers the base types that an expression names.
    fn note_base_types(&mut self, expression: gimli::Expression<Reader>) -> Result<(), Failure> {
        let mut operations = expression.operations(self.unit.unit.encoding());
        while let Some(operation) = operations.next()? {
            let base = match operation {
                gimli::Operation::Deref { base_type, .. }
                | gimli::Operation::RegisterOffset { base_type, .. }
                | gimli::Operation::TypedLiteral { base_type, .. }
                | gimli::Operation::Convert { base_type }
                | gimli::Operation::Reinterpret { base_type } => base_type,
                _ => continue,
            };
            let known = &self.scopes.base_types;
            if base.0 == 0 || known.iter().any(|&(at, ..)| at == base.0 as u64) {
                continue;
            }
            let entry = self.unit.unit.entry(base)?;
            let size = entry
                .attr(constants::DW_AT_byte_size)
                .and_then(|size| size.udata_value());
            if let (Some(AttributeValue::Encoding(encoding)), Some(size)) =
                (entry.attr_value(constants::DW_AT_encoding), size)
            {
                let base_type = (base.0 as u64, encoding.0, size);
                self.scopes.base_types.push(base_type);
            }
        }
        Ok(())
    }

    /// Takes a call if it is the one that returns behind the address.
    fn call(&mut self, node: gimli::EntriesTreeNode<'_, '_, Reader>) -> Result<(), Failure> {
        let entry = node.entry().clone();
        // The GNU form of DWARF 4 has the return address as the entry's own.
        let returns = entry
            .attr_value(constants::DW_AT_call_return_pc)
            .or_else(|| entry.attr_value(constants::DW_AT_low_pc));
        let returns = match returns {
            Some(value) => self.types.dwarf.attr_address(&self.unit.unit, value)?,
            None => None,
        };
        if returns != self.addr.checked_add(1) {
            return Ok(());
        }
        let origin = reference(&entry, constants::DW_AT_call_origin)
            .or_else(|| reference(&entry, constants::DW_AT_abstract_origin));
        let mut call = Call::default();
        if let Some(origin) = origin {
            let entry = self.unit.unit.entry(origin)?;
            let (unit, origin) = self.origin(&entry)?;
            call.target = unit.name_of(&origin)?;
        }
        let target = entry
            .attr_value(constants::DW_AT_call_target)
            .or_else(|| entry.attr_value(constants::DW_AT_GNU_call_site_target));
        if let Some(AttributeValue::Exprloc(expression)) = target {
            call.address = self.located(AttributeValue::Exprloc(expression))?;
        }
        let mut children = node.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            let value = entry
                .attr_value(constants::DW_AT_call_value)
                .or_else(|| entry.attr_value(constants::DW_AT_GNU_call_site_value));
            let (Some(AttributeValue::Exprloc(location)), Some(value @ AttributeValue::Exprloc(_))) =
                (entry.attr_value(constants::DW_AT_location), value)
            else {
                continue;
            };
            let mut operations = location.operations(self.unit.unit.encoding());
            if let Some(gimli::Operation::Register { register }) = operations.next()?
                && let Some(value) = self.located(value)?
            {
                call.arguments.push((register.0, value));
            }
        }
        self.scopes.call = Some(call);
        Ok(())
    }

    /// The entry that has the name of one that was copied from it or completes it, and its unit.
    fn origin(&mut self, entry: &Die) -> Result<(Arc<Unit>, Die), Failure> {
        let mut unit = Arc::clone(self.unit);
        let mut entry = entry.clone();
        // A copy of a copy is as deep as it gets; more is a circle.
        for _ in 0..8 {
            if entry.attr(constants::DW_AT_name).is_some() {
                break;
            }
            let value = entry
                .attr_value(constants::DW_AT_abstract_origin)
                .or_else(|| entry.attr_value(constants::DW_AT_specification));
            match value {
                Some(AttributeValue::UnitRef(at)) => entry = unit.unit.entry(at)?,
                Some(AttributeValue::DebugInfoRef(at)) => {
                    let (other, at) = self.types.entry_at(TypeId(at.0 as u64))?;
                    entry = other.unit.entry(at)?;
                    unit = other;
                }
                _ => break,
            }
        }
        Ok((unit, entry))
    }
}

fn is_local(entry: &Die) -> bool {
    matches!(
        entry.tag(),
        constants::DW_TAG_formal_parameter | constants::DW_TAG_variable
    )
}

/// An attribute that refers to an entry of the same unit.
fn reference(entry: &Die, name: constants::DwAt) -> Option<UnitOffset> {
    match entry.attr_value(name)? {
        AttributeValue::UnitRef(offset) => Some(offset),
        _ => None,
    }
}
