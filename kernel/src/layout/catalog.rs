//! Full descriptions of types and variables, looked up once per kernel.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gimli::{AttributeValue, constants};
use serde::{Deserialize, Serialize};

use super::dwarf::{Die, Named, Unit, unit_source};
use super::index::fixed_address;
use super::info::{Aggregate, TypeId, TypeInfo, TypeKind, Variable};
use super::types::{Failure, Types, spelled_kinds};
use super::{Layout, LayoutError};
use crate::addr::KernelAddr;
use crate::expr::is_end_of_path;
use crate::expr::suggest::did_you_mean;
use crate::image::Cache;

/// The descriptions that were asked for, in a file of their own: most commands need none of them.
pub(crate) struct Descriptions {
    cache: Option<Cache>,
    content: OnceLock<Mutex<Content>>,
    /// Where the names of all types are, which fewer commands need still.
    names_cache: Option<Cache>,
    names: OnceLock<Vec<String>>,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    types: HashMap<TypeId, Arc<TypeInfo>>,
    named: HashMap<String, Option<TypeId>>,
    /// The definitions of what is only declared where it is used.
    complete: HashMap<TypeId, Option<TypeId>>,
    variables: HashMap<String, Vec<Variable>>,
    functions: HashMap<String, Option<TypeId>>,
    /// The static variables of functions.
    locals: HashMap<String, Vec<(String, Variable)>>,
    enumerators: HashMap<String, Option<(TypeId, i64)>>,
    /// Other structs of the same names.
    others: HashMap<TypeId, Vec<(TypeId, String)>>,
    /// How many entries there are in all of them.
    facts: usize,
}

impl Descriptions {
    pub(crate) fn new(cache: Option<Cache>, names_cache: Option<Cache>) -> Descriptions {
        Descriptions {
            cache,
            content: OnceLock::new(),
            names_cache,
            names: OnceLock::new(),
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        let load = || {
            Mutex::new(
                self.cache
                    .as_ref()
                    .and_then(Cache::load)
                    .unwrap_or_default(),
            )
        };
        let content = self.content.get_or_init(load);
        content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found out before, or else is now.
    fn ask<T: Clone>(
        &self,
        known: impl Fn(&mut Content) -> Option<T>,
        find: impl FnOnce() -> Result<T, LayoutError>,
        keep: impl FnOnce(&mut Content, T),
    ) -> Result<T, LayoutError> {
        if let Some(known) = known(&mut self.content()) {
            return Ok(known);
        }
        let found = find()?;
        let mut content = self.content();
        content.facts += 1;
        keep(&mut content, found.clone());
        Ok(found)
    }
}

impl Layout {
    /// The type of that name, spelled as for [`member`](Layout::member) or in any way that C
    /// allows (`unsigned long`). `net/core/sock.c::struct foo` is the one that this file has; the
    /// end of the path will do.
    ///
    /// # Errors
    ///
    /// When this kernel has no such type.
    pub fn type_named(&self, name: &str) -> Result<TypeId, LayoutError> {
        let name = canonical(name);
        let found = self.descriptions.ask(
            |content| content.named.get(&name).copied(),
            || self.failable(|types| types.type_named(&name)),
            |content, id| {
                content.named.insert(name.clone(), id);
            },
        )?;
        found.ok_or(LayoutError::NoType { name })
    }

    /// Other structs or unions of the same name, which files have for themselves, and for each a
    /// file that has it, relative to the source tree: `type_named("FILE::NAME")` is that one.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn others(&self, id: TypeId) -> Result<Vec<(TypeId, String)>, LayoutError> {
        self.descriptions.ask(
            |content| content.others.get(&id).cloned(),
            || self.failable(|types| types.others(id)),
            |content, found| {
                content.others.insert(id, found);
            },
        )
    }

    /// What a type is.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read there.
    pub fn type_info(&self, id: TypeId) -> Result<Arc<TypeInfo>, LayoutError> {
        self.descriptions.ask(
            |content| content.types.get(&id).cloned(),
            || self.failable(|types| types.describe(id).map(Arc::new)),
            |content, info| {
                content.types.insert(id, info);
            },
        )
    }

    /// The definition of a struct, union or enumeration that is only declared where `id` was
    /// found; `id` itself when it is complete, or this kernel does not define it.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn complete(&self, id: TypeId) -> Result<TypeId, LayoutError> {
        let info = self.type_info(id)?;
        let TypeKind::Incomplete(aggregate) = info.kind else {
            return Ok(id);
        };
        let Some(name) = &info.name else {
            return Ok(id);
        };
        let kind = match aggregate {
            Aggregate::Struct => Named::Struct,
            Aggregate::Union => Named::Union,
            Aggregate::Enum => Named::Enum,
        };
        let definition = self.descriptions.ask(
            |content| content.complete.get(&id).copied(),
            || self.failable(|types| types.definition(kind, name)),
            |content, definition| {
                content.complete.insert(id, definition);
            },
        )?;
        Ok(definition.unwrap_or(id))
    }

    /// Every definition of a variable: static variables of several files may share a name. When it
    /// is not defined in C (but by the linker, or in assembly), its declaration.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn variables(&self, name: &str) -> Result<Vec<Variable>, LayoutError> {
        self.descriptions.ask(
            |content| content.variables.get(name).cloned(),
            || self.failable(|types| types.variables(name)),
            |content, found| {
                content.variables.insert(name.to_owned(), found);
            },
        )
    }

    /// The type of a function: of the first one of that name.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn function(&self, name: &str) -> Result<Option<TypeId>, LayoutError> {
        self.descriptions.ask(
            |content| content.functions.get(name).copied(),
            || {
                self.failable(|types| {
                    let body = types.definition(Named::Body, name)?;
                    match body {
                        Some(body) => Ok(Some(body)),
                        None => types.definition(Named::Function, name),
                    }
                })
            },
            |content, found| {
                content.functions.insert(name.to_owned(), found);
            },
        )
    }

    /// The static variables of a function, with their names.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn static_locals(&self, function: &str) -> Result<Vec<(String, Variable)>, LayoutError> {
        self.descriptions.ask(
            |content| content.locals.get(function).cloned(),
            || self.failable(|types| types.static_locals(function)),
            |content, found| {
                content.locals.insert(function.to_owned(), found);
            },
        )
    }

    /// Every type that has a name, spelled as [`type_named`](Layout::type_named) wants it, in
    /// order. The first time, this takes a pass over the whole DWARF.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn type_names(&self) -> Result<&[String], LayoutError> {
        let descriptions = &self.descriptions;
        if let Some(names) = descriptions.names.get() {
            return Ok(names);
        }
        let cache = descriptions.names_cache.as_ref();
        let names = match cache.and_then(Cache::load) {
            Some(names) => names,
            None => {
                let mut names = self.failable(Types::type_names)?;
                names.sort_unstable();
                names.dedup();
                if let Some(cache) = cache {
                    // Only time is lost when this fails.
                    let _ = cache.save(names.len(), &names);
                }
                names
            }
        };
        Ok(descriptions.names.get_or_init(|| names))
    }

    /// Why there is no such type, with the one that may be meant.
    pub(crate) fn no_such_type(&self, name: &str) -> String {
        let mut message = format!("the kernel has no type `{name}`");
        let names = self.type_names().unwrap_or_default();
        let bare = |name: &'_ str| name.rsplit(' ').next().unwrap_or_default().to_owned();
        let same = names.iter().find(|other| bare(other) == bare(name));
        match same {
            Some(other) => message.push_str(&format!("; did you mean `{other}`?")),
            None => {
                let meant = did_you_mean(&canonical(name), names.iter().map(String::as_str));
                let keyword = name.split(' ').next().unwrap_or_default();
                let meant = match meant.as_str() {
                    // The keyword may be what is missing.
                    "" if keyword == name => {
                        let bare: Vec<_> = names.iter().map(|name| bare(name)).collect();
                        did_you_mean(name, bare.iter().map(String::as_str))
                    }
                    _ => meant,
                };
                message.push_str(&meant);
            }
        }
        message
    }

    /// An enumerator of any enumeration of this kernel: the first of that name, with the
    /// enumeration and its value.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn any_enumerator(&self, name: &str) -> Result<Option<(TypeId, i64)>, LayoutError> {
        self.descriptions.ask(
            |content| content.enumerators.get(name).copied(),
            || self.failable(|types| types.any_enumerator(name)),
            |content, found| {
                content.enumerators.insert(name.to_owned(), found);
            },
        )
    }

    /// Keeps what was described, and where variables are, when there is something new.
    pub(crate) fn save_descriptions(&self) -> io::Result<()> {
        self.scopes.save()?;
        let descriptions = &self.descriptions;
        match (&descriptions.cache, descriptions.content.get()) {
            (Some(cache), Some(_)) => {
                let content = descriptions.content();
                cache.save(content.facts, &*content)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn failable<T>(
        &self,
        ask: impl FnOnce(&mut Types) -> Result<T, Failure>,
    ) -> Result<T, LayoutError> {
        self.with_types(ask)?.map_err(|failure| match failure {
            Failure::Dwarf(error) => self.damaged(&error),
            Failure::BadPath(reason) => LayoutError::Damaged {
                path: self.kernel.clone(),
                reason,
            },
            Failure::NoType | Failure::NoVariable | Failure::NoMember => LayoutError::Damaged {
                path: self.kernel.clone(),
                reason: "a type refers to what is none".to_owned(),
            },
        })
    }
}

impl Types {
    fn type_named(&mut self, name: &str) -> Result<Option<TypeId>, Failure> {
        let Some((file, name)) = name.split_once("::") else {
            let found = self.find_type(name)?;
            return Ok(found.and_then(|(unit, offset)| unit.id(offset)));
        };
        let (kinds, name) = spelled_kinds(name);
        for at in 0..self.headers.len() {
            let path = self.path_of(at)?;
            if !is_end_of_path(&path, file.trim()) {
                continue;
            }
            let unit = self.unit(at)?;
            if let Some(offset) = unit.find_any(kinds, name)? {
                return Ok(unit.id(offset));
            }
        }
        Ok(None)
    }

    fn others(&mut self, id: TypeId) -> Result<Vec<(TypeId, String)>, Failure> {
        let (unit, offset) = self.entry_at(id)?;
        let entry = unit.unit.entry(offset)?;
        let kind = match entry.tag() {
            constants::DW_TAG_structure_type => Named::Struct,
            constants::DW_TAG_union_type => Named::Union,
            _ => return Ok(Vec::new()),
        };
        let Some(name) = unit.name_of(&entry)? else {
            return Ok(Vec::new());
        };
        let number = |name| entry.attr(name).and_then(|attr| attr.udata_value());
        let own = (
            number(constants::DW_AT_byte_size),
            number(constants::DW_AT_decl_line),
        );
        let several = self.index()?.several(kind, &name);
        let others = several.into_iter().filter(|(_, print)| *print != own);
        others.map(|(id, _)| Ok((id, self.file_of(id)?))).collect()
    }

    /// The first entry of that kind and name.
    fn definition(&mut self, kind: Named, name: &str) -> Result<Option<TypeId>, Failure> {
        // The core first: that is where its types are looked up, too. It does not list functions.
        for at in self.core() {
            let unit = self.unit(at)?;
            if let Some(offset) = unit.find(kind, name)? {
                return Ok(unit.id(offset));
            }
        }
        Ok(self.index()?.find(&[kind], name))
    }

    fn variables(&mut self, name: &str) -> Result<Vec<Variable>, Failure> {
        let definitions = self.index()?.variables(name).to_vec();
        let mut found: Vec<Variable> = Vec::new();
        for definition in definitions {
            // One that a stronger definition replaced (`__weak`) is in the same place, and one that
            // the linker has thrown away is nowhere.
            let addr = Some(definition.addr);
            if definition.addr.is_null() || found.iter().any(|other| other.addr == addr) {
                continue;
            }
            let mut ty = None;
            for entry in [Some(definition.entry), definition.declaration] {
                if let (None, Some(entry)) = (ty, entry) {
                    let (unit, offset) = self.entry_at(entry)?;
                    ty = unit.type_id(&unit.unit.entry(offset)?);
                }
            }
            found.push(Variable {
                ty,
                addr: Some(definition.addr),
                file: self.file_of(definition.entry)?,
            });
        }
        if found.is_empty()
            && let Some(entry) = self.index()?.find(&[Named::Variable], name)
        {
            let (unit, offset) = self.entry_at(entry)?;
            found.push(Variable {
                ty: unit.type_id(&unit.unit.entry(offset)?),
                addr: None,
                file: self.file_of(entry)?,
            });
        }
        Ok(found)
    }

    /// The source file of the unit that an entry is in.
    fn file_of(&mut self, entry: TypeId) -> Result<String, Failure> {
        let at = self.header_of(entry).ok_or(Failure::NoType)?;
        self.path_of(at)
    }

    /// The source file of a unit.
    fn path_of(&self, unit: usize) -> Result<String, Failure> {
        let header = self.headers.get(unit).ok_or(Failure::NoType)?;
        let path = unit_source(&self.dwarf, header)?.path();
        let (root, build_dir) = self.directories();
        let relative = [root, build_dir].into_iter().flatten().find_map(|root| {
            let relative = std::path::Path::new(&path).strip_prefix(root).ok()?;
            relative.to_str().map(str::to_owned)
        });
        Ok(relative.unwrap_or(path))
    }

    fn static_locals(&mut self, function: &str) -> Result<Vec<(String, Variable)>, Failure> {
        let Some(id) = self.definition(Named::Body, function)? else {
            return Ok(Vec::new());
        };
        let file = self.file_of(id)?;
        let (unit, offset) = self.entry_at(id)?;
        let mut found = Vec::new();
        // Without an address of their own: a copy of the function has it.
        let mut abstracts = HashMap::new();
        let mut entries = unit.unit.entries_at_offset(offset)?;
        while let Some(entry) = entries.next_dfs()? {
            if entry.offset() != offset && entry.depth() <= 0 {
                break;
            }
            if entry.tag() != constants::DW_TAG_variable {
                continue;
            }
            let Some(name) = unit.name_of(entry)? else {
                continue;
            };
            let variable = Variable {
                ty: unit.type_id(entry),
                addr: address(&unit, entry),
                file: file.clone(),
            };
            match variable.addr {
                Some(_) => found.push((name, variable)),
                None => {
                    abstracts.insert(entry.offset(), (name, variable));
                }
            }
        }
        if abstracts.is_empty() {
            return Ok(found);
        }
        let mut entries = unit.unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            let origin = entry.attr_value(constants::DW_AT_abstract_origin);
            if entry.tag() == constants::DW_TAG_variable
                && let Some(AttributeValue::UnitRef(origin)) = origin
                && let Some(addr) = address(&unit, entry)
                && let Some((name, variable)) = abstracts.remove(&origin)
            {
                let addr = Some(addr);
                found.push((name, Variable { addr, ..variable }));
            }
        }
        Ok(found)
    }

    fn type_names(&mut self) -> Result<Vec<String>, Failure> {
        let kinds = [
            (Named::Struct, "struct "),
            (Named::Union, "union "),
            (Named::Enum, "enum "),
            (Named::Typedef, ""),
            (Named::Base, ""),
        ];
        let index = self.index()?;
        let names = kinds.iter().flat_map(|&(kind, keyword)| {
            index.names(kind).map(move |(name, _)| {
                let name = String::from_utf8_lossy(name);
                format!("{keyword}{name}")
            })
        });
        Ok(names.collect())
    }

    fn any_enumerator(&mut self, name: &str) -> Result<Option<(TypeId, i64)>, Failure> {
        for at in self.core() {
            let unit = self.unit(at)?;
            if let Some((offset, value)) = unit.enumerator_in(name)? {
                return Ok(unit.id(offset).map(|id| (id, value)));
            }
        }
        let index = self.index()?;
        let named = index.names(Named::Enum);
        let mut enums: Vec<TypeId> = named
            .chain(index.names(Named::AnonymousEnum))
            .map(|(_, id)| id)
            .collect();
        enums.sort_unstable();
        for id in enums {
            if let TypeKind::Enum { enumerators, .. } = self.describe(id)?.kind
                && let Some(found) = enumerators.iter().find(|one| one.name == name)
            {
                return Ok(Some((id, found.value)));
            }
        }
        Ok(None)
    }
}

/// The fixed address of a variable.
fn address(unit: &Unit, entry: &Die) -> Option<KernelAddr> {
    match entry.attr_value(constants::DW_AT_location)? {
        AttributeValue::Exprloc(expression) => fixed_address(expression, unit.unit.encoding()),
        _ => None,
    }
}

/// A base type's name as compilers write it into the DWARF, `long unsigned int`; any other name
/// with its spaces in order.
fn canonical(name: &str) -> String {
    let words: Vec<&str> = name.split_whitespace().collect();
    let count = |word| words.iter().filter(|&&other| other == word).count();
    let known = ["signed", "unsigned", "long", "short", "int", "char"];
    let is_base = !words.is_empty() && words.iter().all(|word| known.contains(word));
    if !is_base {
        return words.join(" ");
    }
    let unsigned = match count("unsigned") {
        0 => "",
        _ => "unsigned ",
    };
    let (long, short) = (count("long"), count("short"));
    if count("char") > 0 {
        let signed = if count("signed") > 0 {
            "signed "
        } else {
            unsigned
        };
        format!("{signed}char")
    } else if short > 0 {
        format!("short {unsigned}int")
    } else if long > 0 {
        format!("{}{unsigned}int", "long ".repeat(long.min(2)))
    } else {
        format!("{unsigned}int")
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn base_types_have_many_names() {
        for (name, expected) in [
            ("unsigned", "unsigned int"),
            ("long", "long int"),
            ("unsigned long", "long unsigned int"),
            ("long long unsigned", "long long unsigned int"),
            ("unsigned  short int", "short unsigned int"),
            ("signed char", "signed char"),
            ("unsigned char", "unsigned char"),
            ("char", "char"),
            ("_Bool", "_Bool"),
            (" struct   task_struct ", "struct task_struct"),
            ("u64", "u64"),
        ] {
            assert_eq!(canonical(name), expected);
        }
    }
}
