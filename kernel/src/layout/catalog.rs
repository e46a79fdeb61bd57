//! Full descriptions of types and variables, looked up once per kernel.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use super::dwarf::{Named, unit_source};
use super::info::{Aggregate, TypeId, TypeInfo, TypeKind, Variable};
use super::types::{Failure, Types};
use super::{Layout, LayoutError};
use crate::image::Cache;

/// The descriptions that were asked for, in a file of their own: most commands need none of them.
pub(crate) struct Descriptions {
    cache: Option<Cache>,
    content: OnceLock<Mutex<Content>>,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    types: HashMap<TypeId, Arc<TypeInfo>>,
    named: HashMap<String, Option<TypeId>>,
    /// The definitions of what is only declared where it is used.
    complete: HashMap<TypeId, Option<TypeId>>,
    variables: HashMap<String, Vec<Variable>>,
    functions: HashMap<String, Option<TypeId>>,
    enumerators: HashMap<String, Option<(TypeId, i64)>>,
    /// How many entries there are in all of them.
    facts: usize,
}

impl Descriptions {
    pub(crate) fn new(cache: Option<Cache>) -> Descriptions {
        Descriptions {
            cache,
            content: OnceLock::new(),
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
    /// allows (`unsigned long`).
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
            || self.failable(|types| types.definition(Named::Function, name)),
            |content, found| {
                content.functions.insert(name.to_owned(), found);
            },
        )
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

    /// Keeps what was described, when there is something new.
    pub(crate) fn save_descriptions(&self) -> io::Result<()> {
        let descriptions = &self.descriptions;
        match (&descriptions.cache, descriptions.content.get()) {
            (Some(cache), Some(_)) => {
                let content = descriptions.content();
                cache.save(content.facts, &*content)
            }
            _ => Ok(()),
        }
    }

    fn failable<T>(
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
        let found = self.find_type(name)?;
        Ok(found.and_then(|(unit, offset)| unit.id(offset)))
    }

    /// The first entry of that kind and name.
    fn definition(&mut self, kind: Named, name: &str) -> Result<Option<TypeId>, Failure> {
        // The core first: that is where its types are looked up, too.
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
        let mut found = Vec::new();
        for definition in definitions {
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
        let header = self.headers.get(at).ok_or(Failure::NoType)?;
        let path = unit_source(&self.dwarf, header)?.path();
        let (root, build_dir) = self.directories();
        let relative = [root, build_dir].into_iter().flatten().find_map(|root| {
            let relative = std::path::Path::new(&path).strip_prefix(root).ok()?;
            relative.to_str().map(str::to_owned)
        });
        Ok(relative.unwrap_or(path))
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
