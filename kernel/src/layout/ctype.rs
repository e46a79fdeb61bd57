//! Types as expressions have them, and types as C text.

use std::sync::Arc;

use super::info::{Encoding, Qualifier, TypeId, TypeInfo, TypeKind};
use super::types::{MAX_NESTING, MAX_SIZE};
use super::{Layout, LayoutError};

/// Parts of a declaration that are printed: names, stars, parameters.
const MAX_PARTS: u32 = 512;

/// A type of the kernel, or one that is made of such types: the type of `&init_task` is nowhere in
/// the DWARF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// No type.
    Void,
    /// One that the DWARF describes.
    Known(TypeId),
    /// A pointer.
    Pointer(Box<Type>),
    /// An array and its length, if it has one.
    Array(Box<Type>, Option<u64>),
    /// A number: what literals and arithmetic have.
    Integer {
        /// Whether it can be negative.
        signed: bool,
        /// 4 or 8.
        bytes: u64,
    },
}

/// A type behind its typedefs and qualifiers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bare {
    /// No type.
    Void,
    /// A number and how it is encoded, and its bytes.
    Base(Encoding, u64),
    /// An enumeration.
    Enum(Arc<TypeInfo>),
    /// A pointer to something.
    Pointer(Type),
    /// An array of something; of several dimensions, the outermost.
    Array(Type, Option<u64>),
    /// A struct or union, complete if this kernel defines it.
    Aggregate(Arc<TypeInfo>),
    /// A function.
    Function(Arc<TypeInfo>),
    /// What C has no word for.
    Other,
}

impl From<Option<TypeId>> for Type {
    fn from(id: Option<TypeId>) -> Type {
        id.map_or(Type::Void, Type::Known)
    }
}

impl Type {
    /// A pointer to this.
    pub fn pointer(self) -> Type {
        Type::Pointer(Box::new(self))
    }
}

impl Layout {
    /// What a type is behind its typedefs and qualifiers.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn bare(&self, ty: &Type) -> Result<Bare, LayoutError> {
        let mut id = match ty {
            Type::Void => return Ok(Bare::Void),
            Type::Known(id) => *id,
            Type::Pointer(target) => return Ok(Bare::Pointer((**target).clone())),
            Type::Array(element, count) => return Ok(Bare::Array((**element).clone(), *count)),
            Type::Integer { signed, bytes } => {
                let encoding = match signed {
                    true => Encoding::Signed,
                    false => Encoding::Unsigned,
                };
                return Ok(Bare::Base(encoding, *bytes));
            }
        };
        for _ in 0..MAX_NESTING {
            let info = self.type_info(id)?;
            return Ok(match &info.kind {
                TypeKind::Typedef(target) | TypeKind::Qualified(_, target) => match target {
                    Some(target) => {
                        id = *target;
                        continue;
                    }
                    None => Bare::Void,
                },
                TypeKind::Base(encoding) => Bare::Base(*encoding, info.size),
                TypeKind::Pointer(target) => Bare::Pointer((*target).into()),
                TypeKind::Struct(_) | TypeKind::Union(_) => Bare::Aggregate(info),
                TypeKind::Incomplete(_) => {
                    let complete = self.complete(id)?;
                    if complete == id {
                        return Ok(Bare::Aggregate(info));
                    }
                    id = complete;
                    continue;
                }
                TypeKind::Enum { .. } => Bare::Enum(info),
                TypeKind::Array { element, counts } => dimension((*element).into(), counts),
                TypeKind::Function { .. } => Bare::Function(info),
                TypeKind::Other => Bare::Other,
            });
        }
        Ok(Bare::Other)
    }

    /// Bytes of a type; 0 for what has no size.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn size(&self, ty: &Type) -> Result<u64, LayoutError> {
        self.size_within(ty, 0)
    }

    fn size_within(&self, ty: &Type, depth: usize) -> Result<u64, LayoutError> {
        if depth > MAX_NESTING {
            return Ok(0);
        }
        Ok(match ty {
            Type::Void => 0,
            Type::Known(id) => match self.type_info(*id)? {
                // What is only declared there may be defined elsewhere.
                info if info.size == 0 => match self.bare(ty)? {
                    Bare::Aggregate(info) | Bare::Enum(info) => info.size,
                    _ => 0,
                },
                info => info.size,
            },
            Type::Pointer(_) => 8,
            Type::Array(element, count) => {
                let element = self.size_within(element, depth + 1)?;
                element.saturating_mul(count.unwrap_or(0)).min(MAX_SIZE)
            }
            Type::Integer { bytes, .. } => *bytes,
        })
    }

    /// A type as C spells it, `struct list_head *` or `int (*)(struct file *)`.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn spell(&self, ty: &Type) -> Result<String, LayoutError> {
        self.declare(ty, "")
    }

    /// The declaration of a variable of a type, `char comm[16]`.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub fn declare(&self, ty: &Type, name: &str) -> Result<String, LayoutError> {
        let (before, after) = self.declarator(ty, &mut { MAX_PARTS })?;
        let is_joined =
            before.ends_with('*') || (name.is_empty() && !after.starts_with(['[', '(']));
        let space = if is_joined { "" } else { " " };
        Ok(format!("{before}{space}{name}{after}"))
    }

    /// What C writes before and after the name of a variable of a type. At most as many parts as
    /// are `left`.
    pub(crate) fn declarator(
        &self,
        ty: &Type,
        left: &mut u32,
    ) -> Result<(String, String), LayoutError> {
        // A function whose parameter is itself is nothing that a compiler writes.
        *left = left.saturating_sub(1);
        if *left == 0 {
            return Ok(("...".to_owned(), String::new()));
        }
        let id = match ty {
            Type::Void => return Ok(("void".to_owned(), String::new())),
            Type::Pointer(target) => return self.pointer_to(target, "", left),
            Type::Array(element, count) => return self.array_of(element, &[*count], left),
            Type::Integer { signed, bytes } => {
                let name = match (signed, bytes) {
                    (true, 8) => "long",
                    (false, 8) => "unsigned long",
                    (false, _) => "unsigned int",
                    _ => "int",
                };
                return Ok((name.to_owned(), String::new()));
            }
            Type::Known(id) => *id,
        };
        let info = self.type_info(id)?;
        match &info.kind {
            TypeKind::Pointer(target) => self.pointer_to(&(*target).into(), "", left),
            TypeKind::Array { element, counts } => self.array_of(&(*element).into(), counts, left),
            TypeKind::Qualified(qualifier, target) => {
                self.qualified(*qualifier, &(*target).into(), left)
            }
            TypeKind::Function {
                returns,
                parameters,
                variadic,
                prototyped,
            } => {
                let (before, after) = self.declarator(&(*returns).into(), left)?;
                let mut list = Vec::new();
                for (_, parameter) in parameters {
                    let (before, after) = self.declarator(&(*parameter).into(), left)?;
                    list.push(format!("{before}{after}"));
                }
                if *variadic {
                    list.push("...".to_owned());
                }
                if list.is_empty() && *prototyped {
                    list.push("void".to_owned());
                }
                Ok((before, format!("({}){after}", list.join(", "))))
            }
            _ => {
                let name = match (info.keyword(), &info.name) {
                    (Some(keyword), Some(name)) => format!("{keyword} {name}"),
                    (Some(keyword), None) => format!("{keyword} {{...}}"),
                    (None, Some(name)) => name.clone(),
                    (None, None) => "?".to_owned(),
                };
                Ok((name, String::new()))
            }
        }
    }

    fn pointer_to(
        &self,
        target: &Type,
        qualifier: &str,
        left: &mut u32,
    ) -> Result<(String, String), LayoutError> {
        let (before, after) = self.declarator(target, left)?;
        let space = match before.ends_with('*') || before.ends_with('(') {
            true => "",
            false => " ",
        };
        // What follows the name binds tighter than the star before it.
        Ok(match after.starts_with('[') || after.starts_with('(') {
            true => (format!("{before}{space}(*{qualifier}"), format!("){after}")),
            false => (format!("{before}{space}*{qualifier}"), after),
        })
    }

    fn array_of(
        &self,
        element: &Type,
        counts: &[Option<u64>],
        left: &mut u32,
    ) -> Result<(String, String), LayoutError> {
        let (before, after) = self.declarator(element, left)?;
        let counts: String = counts
            .iter()
            .map(|count| match count {
                Some(count) => format!("[{count}]"),
                None => "[]".to_owned(),
            })
            .collect();
        Ok((before, format!("{counts}{after}")))
    }

    fn qualified(
        &self,
        qualifier: Qualifier,
        target: &Type,
        left: &mut u32,
    ) -> Result<(String, String), LayoutError> {
        let word = qualifier.word();
        if let Type::Known(id) = target
            && let TypeKind::Pointer(pointee) = self.type_info(*id)?.kind
        {
            let pointee = pointee.into();
            return self.pointer_to(&pointee, &format!(" {word}"), left);
        }
        let (before, after) = self.declarator(target, left)?;
        // An array of constants is constant, and gcc says both.
        let is_told = before.split(' ').next() == Some(word) && after.starts_with('[');
        Ok(match is_told {
            true => (before, after),
            false => (format!("{word} {before}"), after),
        })
    }
}

/// An array of so many dimensions as an array of arrays.
fn dimension(element: Type, counts: &[Option<u64>]) -> Bare {
    let Some((outer, inner)) = counts.split_first() else {
        return Bare::Array(element, None);
    };
    let element = inner.iter().rev().fold(element, |element, &count| {
        Type::Array(Box::new(element), count)
    });
    Bare::Array(element, *outer)
}
