//! A type as the compiler laid it out: members, offsets, sizes, holes, cache lines.

mod holes;
mod packing;
mod text;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::layout::{
    Bare, Enumerator, Field, Layout, LayoutError, Type, TypeId, TypeInfo, TypeKind,
};
use holes::Holes;

/// A type, and how one comes to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TypeView {
    /// The type as C spells it.
    #[serde(rename = "type")]
    pub ty: String,
    /// Of a member that was asked for, where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberPath>,
    /// Bytes.
    pub size: u64,
    /// The names on the way to the definition: `typedef struct list_head foo_t`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub typedefs: Vec<String>,
    /// The struct, union or enumeration behind it, if it is one.
    pub definition: Option<Definition>,
    /// Files that have another struct or union of this name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
    /// Bytes of a cache line.
    #[serde(skip)]
    pub cacheline: u64,
}

/// A member of a type that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberPath {
    /// The type that the offset counts from: behind the last pointer on the way.
    pub owner: String,
    /// The way from there.
    pub path: String,
    /// Its declaration in C.
    pub declaration: String,
    /// Bytes from the start of the owner.
    pub offset: u64,
    /// Of a bit-field, which bits of the unit at the offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<BitRange>,
}

/// Bits of a unit, counted from its lowest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BitRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub width: u32,
}

/// What is between the braces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Definition {
    /// A struct.
    Struct(Members),
    /// A union.
    Union(Members),
    /// An enumeration.
    Enum(Vec<EnumeratorView>),
}

/// An enumerator and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnumeratorView {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: i128,
}

/// The members of a struct or union, and what is between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Members {
    /// The tag, if there is one.
    pub name: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of an alignment that the source asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<u64>,
    /// Whether members are where they would not be without `__packed`.
    pub packed: bool,
    /// In the order of the source.
    pub members: Vec<MemberView>,
    /// Bytes that no member has, after the last one.
    pub padding: u64,
    /// Bits of the last bit-field's unit that no member has.
    pub bit_padding: u64,
    /// Bytes and bits before the first member.
    #[serde(skip)]
    before: Gap,
}

/// A member and what follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberView {
    /// `None` for an anonymous struct or union.
    pub name: Option<String>,
    /// Its type as C spells it.
    #[serde(rename = "type")]
    pub ty: String,
    /// Bytes from the start of the outermost struct. Of a bit-field, to the unit that holds it.
    pub offset: u64,
    /// Bytes. Of a bit-field, of that unit.
    pub size: u64,
    /// Of a bit-field, which bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<BitRange>,
    /// Bytes of an alignment that the source asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<u64>,
    /// Bytes after it that no member has.
    #[serde(skip_serializing_if = "is_zero")]
    pub hole: u64,
    /// Bits after it that no member has.
    #[serde(skip_serializing_if = "is_zero")]
    pub bit_hole: u64,
    /// Bytes at the end of its own struct that no member of that has.
    #[serde(skip_serializing_if = "is_zero")]
    pub padding: u64,
    /// What is in it, when its type has no name to look it up by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<Definition>,
    /// What C writes before and after the name.
    #[serde(skip)]
    declarator: (String, String),
}

/// What no member has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gap {
    bytes: u64,
    bits: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How deep types without names nest.
const MAX_NESTING: usize = 32;

/// Members of all nested levels: more than any type of a kernel has.
const MAX_MEMBERS: usize = 1 << 16;

impl Layout {
    /// A type, or what a path of members leads to: `["se.avg", "load_sum"]`. The path goes through
    /// pointers.
    ///
    /// # Errors
    ///
    /// When this kernel has no such type or member.
    pub fn view(
        &self,
        name: &str,
        path: &[String],
        cacheline: u64,
    ) -> Result<TypeView, TypesError> {
        let id = self.type_named(name).map_err(|error| match error {
            LayoutError::NoType { name } => TypesError::NoType(self.no_such_type(&name)),
            error => error.into(),
        })?;
        let mut ty = Type::Known(id);
        let mut member = None;
        let steps = path.iter().flat_map(|path| steps(path));
        for step in steps {
            let (path, found) = self.step(ty, member, step)?;
            ty = found;
            member = Some(path);
        }
        let mut parts = 0;
        let mut view = TypeView {
            ty: self.spell(&ty)?,
            member,
            size: self.size(&ty)?,
            typedefs: Vec::new(),
            definition: None,
            others: Vec::new(),
            cacheline: cacheline.max(1),
        };
        let id = match self.peel(&ty, &mut view.typedefs)? {
            Some(id) => self.complete(id)?,
            None => return Ok(view),
        };
        let info = self.type_info(id)?;
        view.definition = self.definition(&info, 0, 0, &mut parts)?;
        let others = self.others(id)?.into_iter().map(|(_, file)| file);
        view.others = others.collect();
        Ok(view)
    }

    /// The struct, union or enumeration that a type is made of; the typedefs on the way.
    fn peel(&self, ty: &Type, typedefs: &mut Vec<String>) -> Result<Option<TypeId>, LayoutError> {
        let mut ty = ty.clone();
        for _ in 0..MAX_NESTING {
            let id = match ty {
                Type::Known(id) => id,
                Type::Pointer(target) => {
                    ty = *target;
                    continue;
                }
                Type::Array(element, _) => {
                    ty = *element;
                    continue;
                }
                Type::Void | Type::Integer { .. } => return Ok(None),
            };
            let info = self.type_info(id)?;
            ty = match &info.kind {
                TypeKind::Typedef(target) => {
                    let name = info.name.as_deref().unwrap_or_default();
                    let target = (*target).into();
                    let declared = format!("typedef {}", self.declare(&target, name)?);
                    if !declared.contains("{...}") {
                        typedefs.push(declared);
                    }
                    target
                }
                TypeKind::Qualified(_, target) | TypeKind::Pointer(target) => (*target).into(),
                TypeKind::Array { element, .. } => (*element).into(),
                TypeKind::Struct(_)
                | TypeKind::Union(_)
                | TypeKind::Enum { .. }
                | TypeKind::Incomplete(_) => return Ok(Some(id)),
                _ => return Ok(None),
            };
        }
        Ok(None)
    }

    /// One member of a type or of what it points to.
    fn step(
        &self,
        from: Type,
        before: Option<MemberPath>,
        step: &str,
    ) -> Result<(MemberPath, Type), TypesError> {
        let (owner, before) = match self.bare(&from)? {
            Bare::Pointer(target) => (target, None),
            _ => (from, before),
        };
        let wrong = |layout: &Layout| -> Result<TypesError, LayoutError> {
            let owner = layout.spell(&owner)?;
            Ok(TypesError::NoMember(format!(
                "`{owner}` has no member `{step}`"
            )))
        };
        if let Some(index) = step.strip_prefix('[') {
            let Bare::Array(element, _) = self.bare(&owner)? else {
                return Err(wrong(self)?);
            };
            let index: u64 = match index.trim_end_matches(']').parse() {
                Ok(index) => index,
                Err(_) => return Err(wrong(self)?),
            };
            let within = index.saturating_mul(self.size(&element)?);
            let path = before.as_ref().map(|before| before.path.clone());
            let offset = before.as_ref().map_or(0, |before| before.offset);
            let found = MemberPath {
                owner: match before {
                    Some(before) => before.owner,
                    None => self.spell(&owner)?,
                },
                path: format!("{}[{index}]", path.unwrap_or_default()),
                declaration: self.spell(&element)?,
                offset: offset.saturating_add(within),
                bits: None,
            };
            return Ok((found, element));
        }
        let Bare::Aggregate(info) = self.bare(&owner)? else {
            return Err(wrong(self)?);
        };
        let Some((within, field)) = self.field(&info, step)? else {
            return Err(TypesError::NoMember(self.no_member(&owner, &info, step)?));
        };
        let ty = Type::from(field.ty);
        let offset = before.as_ref().map_or(0, |before| before.offset);
        let found = MemberPath {
            path: match &before {
                Some(before) => format!("{}.{step}", before.path),
                None => step.to_owned(),
            },
            owner: match before {
                Some(before) => before.owner,
                None => self.spell(&owner)?,
            },
            declaration: self.declare(&ty, step)?,
            offset: offset.saturating_add(within),
            bits: field.bits.map(|bits| BitRange {
                first: bits.shift,
                width: bits.width,
            }),
        };
        Ok((found, ty))
    }

    /// What a struct, a union or an enumeration consists of, `base` bytes into the outermost one.
    fn definition(
        &self,
        info: &Arc<TypeInfo>,
        base: u64,
        depth: usize,
        parts: &mut usize,
    ) -> Result<Option<Definition>, LayoutError> {
        Ok(match &info.kind {
            TypeKind::Struct(_) => {
                Some(Definition::Struct(self.members(info, base, depth, parts)?))
            }
            TypeKind::Union(_) => Some(Definition::Union(self.members(info, base, depth, parts)?)),
            TypeKind::Enum {
                signed,
                enumerators,
            } => {
                let view = |one: &Enumerator| EnumeratorView {
                    name: one.name.clone(),
                    value: match signed {
                        true => one.value.into(),
                        false => (one.value as u64).into(),
                    },
                };
                Some(Definition::Enum(enumerators.iter().map(view).collect()))
            }
            _ => None,
        })
    }

    fn members(
        &self,
        info: &Arc<TypeInfo>,
        base: u64,
        depth: usize,
        parts: &mut usize,
    ) -> Result<Members, LayoutError> {
        let holes = Holes::of(info);
        let mut members = Vec::new();
        for (at, field) in info.fields().iter().enumerate() {
            *parts += 1;
            if depth > MAX_NESTING || *parts > MAX_MEMBERS {
                break;
            }
            let gap = holes.after.get(at).copied().unwrap_or_default();
            members.push(self.member_view(field, gap, base, depth, parts)?);
        }
        Ok(Members {
            name: info.name.clone(),
            size: info.size,
            align: info.align.filter(|&align| align > 1),
            packed: self.is_packed(info)?,
            members,
            padding: holes.padding.bytes,
            bit_padding: holes.padding.bits,
            before: holes.before,
        })
    }

    fn member_view(
        &self,
        field: &Field,
        gap: Gap,
        base: u64,
        depth: usize,
        parts: &mut usize,
    ) -> Result<MemberView, LayoutError> {
        let ty = Type::from(field.ty);
        let offset = base.saturating_add(field.offset);
        let inner = match self.unnamed(&ty)? {
            Some(inner) => {
                // Behind a pointer, another object begins.
                let is_pointer = matches!(self.bare(&ty)?, Bare::Pointer(_));
                let base = if is_pointer { 0 } else { offset };
                self.definition(&inner, base, depth + 1, parts)?
            }
            None => None,
        };
        let padding = match self.bare(&ty)? {
            Bare::Aggregate(info) => Holes::of(&info).padding.bytes,
            _ => 0,
        };
        Ok(MemberView {
            name: field.name.clone(),
            ty: self.spell(&ty)?,
            offset,
            size: field.size,
            bits: field.bits.map(|bits| BitRange {
                first: bits.shift,
                width: bits.width,
            }),
            align: field.align,
            hole: gap.bytes,
            bit_hole: gap.bits,
            padding,
            definition: inner,
            declarator: self.parts_of(&ty)?,
        })
    }

    /// The struct, union or enumeration without a name that a member is, points to, or is an array
    /// of.
    fn unnamed(&self, ty: &Type) -> Result<Option<Arc<TypeInfo>>, LayoutError> {
        let Type::Known(mut id) = *ty else {
            return Ok(None);
        };
        for _ in 0..MAX_NESTING {
            let info = self.type_info(id)?;
            let target = match &info.kind {
                TypeKind::Qualified(_, target) | TypeKind::Pointer(target) => *target,
                TypeKind::Array { element, .. } => *element,
                TypeKind::Struct(_) | TypeKind::Union(_) | TypeKind::Enum { .. }
                    if info.name.is_none() =>
                {
                    return Ok(Some(info));
                }
                _ => return Ok(None),
            };
            match target {
                Some(target) => id = target,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn parts_of(&self, ty: &Type) -> Result<(String, String), LayoutError> {
        self.declarator(ty, &mut { 512 })
    }
}

/// Names of types.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct TypeNames(pub Vec<String>);

impl TypeNames {
    /// The types of a kernel whose names match a pattern, upper and lower case being the same: one
    /// with `*` (any characters) matches all of a name, with its `struct` or without; another one a
    /// part of it.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn matching(layout: &Layout, pattern: &str) -> Result<TypeNames, LayoutError> {
        let pattern = pattern.to_lowercase();
        let names = layout.type_names()?.iter().filter(|name| {
            let name = name.to_lowercase();
            let bare = name.split_once(' ').map_or("", |(_, bare)| bare);
            match pattern.contains('*') {
                true => matches(&pattern, &name) || matches(&pattern, bare),
                false => name.contains(&pattern),
            }
        });
        Ok(TypeNames(names.cloned().collect()))
    }
}

/// Whether a name is what a pattern with `*` describes.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        // The earliest place leaves most for what follows.
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl fmt::Display for TypeNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| writeln!(f, "{name}"))
    }
}

/// Why a type cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TypesError {
    /// This kernel has no such type.
    #[error("{0}")]
    NoType(String),
    /// The type has no such member.
    #[error("{0}")]
    NoMember(String),
    /// The DWARF cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// `se.avg[2]` as `se`, `avg` and `[2]`; `->` is a dot.
fn steps(path: &str) -> Vec<&str> {
    let mut steps = Vec::new();
    for part in path.split(['.', '>']) {
        let part = part.strip_suffix('-').unwrap_or(part).trim();
        let (name, mut indexes) = part.split_at(part.find('[').unwrap_or(part.len()));
        if !name.is_empty() {
            steps.push(name);
        }
        while let Some(end) = indexes.find(']') {
            let (index, rest) = indexes.split_at(end + 1);
            steps.push(index);
            indexes = rest;
        }
        if !indexes.is_empty() {
            steps.push(indexes);
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::{matches, steps};

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name) in [
            ("list_*", "list_head"),
            ("*head", "list_head"),
            ("*st*he*", "list_head"),
            ("*", ""),
            ("a*a", "aa"),
            ("list_head*", "list_head"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("list_*", "hlist_head"), ("a*a", "a"), ("*x*", "abc")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn paths_have_steps() {
        assert_eq!(steps("se.avg"), ["se", "avg"]);
        assert_eq!(steps("mm->pgd"), ["mm", "pgd"]);
        assert_eq!(steps("a[1][2].b"), ["a", "[1]", "[2]", "b"]);
        assert_eq!(steps(".a"), ["a"]);
        assert_eq!(steps("a["), ["a", "["]);
        assert_eq!(steps(""), [""; 0]);
    }
}
