//! Where the kernel keeps things: offsets and sizes of its types, from its DWARF.

mod catalog;
mod ctype;
mod describe;
pub(crate) mod dwarf;
mod fields;
mod index;
mod info;
mod path;
pub(crate) mod scopes;
mod types;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use dwarf::DebugInfo;
use types::Types;

pub(crate) use catalog::Descriptions;
pub use ctype::{Bare, Type};
pub use info::{
    Aggregate, Encoding, Enumerator, Field, Qualifier, TypeId, TypeInfo, TypeKind, Variable,
};
pub(crate) use scopes::KnownScopes;

/// The layouts of one kernel's types.
///
/// A type is named as in C, `struct task_struct`, `union thread_union`, `enum pid_type`,
/// `atomic_t`; a bare name is a struct, else a union, a typedef, a base type or an enum. A member
/// is a path, `thread.switch_buf[0].__rip`; it looks through typedefs and the kernel's anonymous
/// structs and unions, but does not follow pointers.
pub struct Layout {
    /// Where the types come from when they are not known yet.
    debug: Arc<DebugInfo>,
    /// Parsed when something is asked for that is not known.
    types: Mutex<Option<Types>>,
    known: Mutex<Known>,
    descriptions: Descriptions,
    scopes: KnownScopes,
    /// The kernel's path, for messages.
    kernel: PathBuf,
}

/// What was found out about a kernel's types: it never changes for one binary, and is kept on
/// disk (see [`Image::open_with_cache`](crate::Image::open_with_cache)).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    places: HashMap<String, HashMap<String, Result<Place, Absent>>>,
    enumerators: HashMap<String, Option<i64>>,
    directories: Option<(Option<PathBuf>, Option<PathBuf>)>,
    /// How many entries there are, to tell whether there is something new to keep.
    pub(crate) len: usize,
}

/// Why a place is not there, as far as it is true of the binary for ever.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Absent {
    Type,
    Variable,
    Member,
    BadPath(String),
}

/// What is at the end of a path: where it is, and what kind of value it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where it is.
    pub member: Member,
    /// What it is.
    pub shape: Shape,
}

/// The kind of a value, behind typedefs and qualifiers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Shape {
    /// A number that cannot be negative, a `bool` or a character without sign.
    Unsigned,
    /// A number that can be negative, or an enumeration.
    Signed,
    /// A pointer, and the type it points to as [`Layout::member`] wants it (`struct mm_struct`,
    /// `char`). `None` for `void`, functions, pointers and types without a name.
    Pointer(Option<String>),
    /// A struct or a union, and its name as [`Layout::member`] wants it, if it has one.
    Aggregate(Option<String>),
    /// An array: the number of its elements, 0 when it has no end of its own.
    Array(u64),
    /// Something else: a float, a function, nothing.
    Other,
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Bytes from the start of the type. Of a bit-field, to the unit that holds it.
    pub offset: u64,
    /// Bytes. 0 for a flexible array. Of a bit-field, the size of the unit that holds it.
    pub size: u64,
    /// Set for a bit-field only.
    pub bits: Option<Bits>,
}

/// Which bits of its unit a bit-field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bits {
    /// The lowest bit, counted from the unit's least significant one.
    pub shift: u32,
    /// How many bits, at least 1.
    pub width: u32,
}

impl Member {
    /// The bit-field's value out of its unit, or the unit itself when this is no bit-field.
    pub fn extract(&self, unit: u64) -> u64 {
        match self.bits {
            Some(bits) => bits.extract(unit),
            None => unit,
        }
    }
}

impl Bits {
    /// The bit-field's value out of its unit.
    pub fn extract(&self, unit: u64) -> u64 {
        let mask = if self.width >= 64 {
            u64::MAX
        } else {
            (1 << self.width) - 1
        };
        unit.checked_shr(self.shift).unwrap_or(0) & mask
    }
}

/// Why a layout is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The kernel was built without debug information.
    #[error(
        "the kernel `{path}` has no DWARF; build it with CONFIG_DEBUG_INFO_DWARF5=y, as \
         `kscope build` does",
        path = path.display()
    )]
    NoDwarf {
        /// The kernel's path.
        path: PathBuf,
    },
    /// The kernel was built with debug information that has no types.
    #[error(
        "the DWARF of `{path}` does not describe `{name}`; was the kernel built with \
         CONFIG_DEBUG_INFO_REDUCED=y? kscope needs that off",
        path = path.display()
    )]
    Reduced {
        /// The kernel's path.
        path: PathBuf,
        /// What is missing.
        name: String,
    },
    /// The DWARF cannot be parsed.
    #[error("the DWARF of `{path}` is damaged: {reason}; build the kernel again", path = path.display())]
    Damaged {
        /// The kernel's path.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// This kernel has no such type.
    #[error("the kernel has no type `{name}`")]
    NoType {
        /// The type as it was asked for.
        name: String,
    },
    /// This kernel has no such symbol.
    #[error("the kernel has no symbol `{name}`; is it older than Linux 6.1?")]
    NoSymbol {
        /// The symbol as it was asked for.
        name: String,
    },
    /// This kernel has no such variable.
    #[error("the kernel has no variable `{name}`")]
    NoVariable {
        /// The variable as it was asked for.
        name: String,
    },
    /// This kernel's type has no such member.
    #[error("`{owner}` has no member `{member}` in this kernel")]
    NoMember {
        /// The type.
        owner: String,
        /// The path as it was asked for.
        member: String,
    },
    /// The path makes no sense, in any kernel or for this type.
    #[error("`{member}` is not a member path of `{owner}`: {reason}")]
    BadPath {
        /// The type.
        owner: String,
        /// The path as it was asked for.
        member: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No enumeration that the core of this kernel uses has such an enumerator.
    #[error("the kernel has no enumerator `{name}`")]
    NoEnumerator {
        /// The enumerator as it was asked for.
        name: String,
    },
}

impl Layout {
    /// Reads nothing yet: what is `known` may be all that is wanted.
    pub(crate) fn new(
        debug: Arc<DebugInfo>,
        known: Known,
        descriptions: Descriptions,
        scopes: KnownScopes,
        kernel: &Path,
    ) -> Layout {
        Layout {
            debug,
            types: Mutex::default(),
            known: Mutex::new(known),
            descriptions,
            scopes,
            kernel: kernel.to_owned(),
        }
    }

    /// The offset and size of a member: `member("task_struct", "thread.switch_buf[0].__rip")`.
    ///
    /// # Errors
    ///
    /// When this kernel has no such type or member, or the path is malformed.
    pub fn member(&self, owner: &str, path: &str) -> Result<Member, LayoutError> {
        self.place(owner, path).map(|place| place.member)
    }

    /// As [`member`](Layout::member), with what kind of value is there. An `owner` that starts
    /// with `&` is a variable: `place("&cpu_tasks", "[1].task")`.
    ///
    /// # Errors
    ///
    /// When this kernel has no such type, variable or member, or the path is malformed.
    pub fn place(&self, owner: &str, path: &str) -> Result<Place, LayoutError> {
        let known = self.known();
        let found = known.places.get(owner).and_then(|paths| paths.get(path));
        let found = match found {
            Some(found) => found.clone(),
            None => {
                drop(known);
                let found = self.find(owner, path)?;
                let mut known = self.known();
                known.len += 1;
                let paths = known.places.entry(owner.to_owned()).or_default();
                paths.insert(path.to_owned(), found.clone());
                found
            }
        };
        found.map_err(|absent| absent.error(owner, path))
    }

    /// Whether this kernel's type has the member.
    pub fn has_member(&self, owner: &str, path: &str) -> bool {
        self.member(owner, path).is_ok()
    }

    /// The offset and size of a part of a variable: `variable("cpu_tasks", "[1].task")`. The empty
    /// path is the variable itself.
    ///
    /// # Errors
    ///
    /// When this kernel has no such variable or member, or the path is malformed.
    pub fn variable(&self, name: &str, path: &str) -> Result<Member, LayoutError> {
        self.member(&format!("&{name}"), path)
    }

    /// The size of a type in bytes.
    ///
    /// # Errors
    ///
    /// When this kernel has no such type.
    pub fn size_of(&self, name: &str) -> Result<u64, LayoutError> {
        self.member(name, "").map(|whole| whole.size)
    }

    /// The value of an enumerator that the core of the kernel (`init/init_task.c`) knows, or
    /// another file that was asked about before.
    ///
    /// # Errors
    ///
    /// When it knows none of that name.
    pub fn enumerator(&self, name: &str) -> Result<i64, LayoutError> {
        let known = self.known().enumerators.get(name).copied();
        let value = match known {
            Some(value) => value,
            None => {
                let value = self
                    .with_types(|types| types.enumerator(name))?
                    .map_err(|error| self.damaged(&error))?;
                let mut known = self.known();
                known.len += 1;
                known.enumerators.insert(name.to_owned(), value);
                value
            }
        };
        value.ok_or_else(|| LayoutError::NoEnumerator {
            name: name.to_owned(),
        })
    }

    /// The value of an enumerator of an enumeration that any part of the kernel knows:
    /// `enumerator_of("enum maple_type", "maple_leaf_64")`. One without a name goes by its first
    /// enumerator: `enum {TCP_ESTABLISHED}`.
    ///
    /// # Errors
    ///
    /// When this kernel has no such enumeration, or that has no such enumerator.
    pub fn enumerator_of(&self, owner: &str, name: &str) -> Result<i64, LayoutError> {
        let key = format!("{owner} {name}");
        let known = self.known().enumerators.get(&key).copied();
        let value = match known {
            Some(value) => value,
            None => {
                let value = match self.with_types(|types| types.enumerator_of(owner, name))? {
                    Ok(value) => Some(value),
                    Err(types::Failure::Dwarf(error)) => return Err(self.damaged(&error)),
                    Err(_) => None,
                };
                let mut known = self.known();
                known.len += 1;
                known.enumerators.insert(key, value);
                value
            }
        };
        value.ok_or_else(|| LayoutError::NoEnumerator {
            name: name.to_owned(),
        })
    }

    /// The directory of the kernel's sources and the one it was built in, as the compiler saw
    /// them.
    pub(crate) fn directories(&self) -> (Option<PathBuf>, Option<PathBuf>) {
        if let Some(known) = &self.known().directories {
            return known.clone();
        }
        let found = self.with_types(|types| types.directories());
        let found = found.unwrap_or_default();
        let mut known = self.known();
        known.len += 1;
        known.directories = Some(found.clone());
        found
    }

    /// What was found out so far.
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, owner: &str, path: &str) -> Result<Result<Place, Absent>, LayoutError> {
        let found = self.with_types(|types| match owner.strip_prefix('&') {
            Some(variable) => types.variable(variable, path),
            None => types.member(owner, path),
        })?;
        Ok(match found {
            Ok(place) => Ok(place),
            Err(types::Failure::Dwarf(error)) => return Err(self.damaged(&error)),
            Err(types::Failure::NoType) => Err(Absent::Type),
            Err(types::Failure::NoVariable) => Err(Absent::Variable),
            Err(types::Failure::NoMember) => Err(Absent::Member),
            Err(types::Failure::BadPath(reason)) => Err(Absent::BadPath(reason)),
        })
    }

    fn with_types<T>(&self, ask: impl FnOnce(&mut Types) -> T) -> Result<T, LayoutError> {
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        let types = match &mut *types {
            Some(types) => types,
            empty => {
                let dwarf = self.debug.dwarf().ok_or_else(|| LayoutError::NoDwarf {
                    path: self.kernel.clone(),
                })?;
                let types = Types::new(dwarf).map_err(|error| self.damaged(&error))?;
                if !types.has_core() {
                    return Err(LayoutError::Reduced {
                        path: self.kernel.clone(),
                        name: "struct task_struct".to_owned(),
                    });
                }
                empty.insert(types)
            }
        };
        Ok(ask(types))
    }

    fn damaged(&self, error: &gimli::Error) -> LayoutError {
        LayoutError::Damaged {
            path: self.kernel.clone(),
            reason: error.to_string(),
        }
    }
}

impl Absent {
    fn error(self, owner: &str, path: &str) -> LayoutError {
        let member = path.to_owned();
        let name = owner.trim_start_matches('&').to_owned();
        match self {
            Absent::Type => LayoutError::NoType { name },
            Absent::Variable => LayoutError::NoVariable { name },
            Absent::Member => LayoutError::NoMember {
                owner: name,
                member,
            },
            Absent::BadPath(reason) => LayoutError::BadPath {
                owner: name,
                member,
                reason,
            },
        }
    }
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layout")
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}
