//! Where the kernel keeps things: offsets and sizes of its types, from its DWARF.

pub(crate) mod dwarf;
mod path;
mod types;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dwarf::Dwarf;
use types::Types;

/// The layouts of one kernel's types.
///
/// A type is named as in C, `struct task_struct`, `union thread_union`, `enum pid_type`,
/// `atomic_t`; a bare name is a struct, else a union, a typedef, a base type or an enum. A member
/// is a path, `thread.switch_buf[0].__rip`; it looks through typedefs and the kernel's anonymous
/// structs and unions, but does not follow pointers.
pub struct Layout {
    types: Mutex<Types>,
    known: Mutex<HashMap<(String, String), Result<Member, LayoutError>>>,
    source_root: Option<PathBuf>,
    build_dir: Option<PathBuf>,
    /// The kernel's path, for messages.
    kernel: PathBuf,
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Bytes from the start of the type. Of a bit-field, to the unit that holds it.
    pub offset: u64,
    /// Bytes. 0 for a flexible array. Of a bit-field, the size of the unit that holds it.
    pub size: u64,
    /// Set for a bit-field only.
    pub bits: Option<Bits>,
}

/// Which bits of its unit a bit-field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
            Some(bits) => {
                let mask = if bits.width >= 64 {
                    u64::MAX
                } else {
                    (1 << bits.width) - 1
                };
                unit.checked_shr(bits.shift).unwrap_or(0) & mask
            }
            None => unit,
        }
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
    pub(crate) fn new(dwarf: Arc<Dwarf>, kernel: &Path) -> Result<Layout, LayoutError> {
        let types = Types::new(dwarf).map_err(|error| LayoutError::Damaged {
            path: kernel.to_owned(),
            reason: error.to_string(),
        })?;
        if !types.has_core() {
            return Err(LayoutError::Reduced {
                path: kernel.to_owned(),
                name: "struct task_struct".to_owned(),
            });
        }
        let (source_root, build_dir) = types.directories();
        Ok(Layout {
            types: Mutex::new(types),
            known: Mutex::default(),
            source_root,
            build_dir,
            kernel: kernel.to_owned(),
        })
    }

    /// The offset and size of a member: `member("task_struct", "thread.switch_buf[0].__rip")`.
    ///
    /// # Errors
    ///
    /// When this kernel has no such type or member, or the path is malformed.
    pub fn member(&self, owner: &str, path: &str) -> Result<Member, LayoutError> {
        self.cached(owner, path, |types| types.member(owner, path))
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
        // A type cannot start with `&`: no clash in the cache.
        self.cached(&format!("&{name}"), path, |types| {
            types.variable(name, path)
        })
    }

    /// The size of a type in bytes.
    ///
    /// # Errors
    ///
    /// When this kernel has no such type.
    pub fn size_of(&self, name: &str) -> Result<u64, LayoutError> {
        self.cached(name, "", |types| types.member(name, ""))
            .map(|whole| whole.size)
    }

    /// The value of an enumerator that the core of the kernel (`init/init_task.c`) knows.
    ///
    /// # Errors
    ///
    /// When it knows none of that name.
    pub fn enumerator(&self, name: &str) -> Result<i64, LayoutError> {
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        types
            .enumerator(name)
            .map_err(|error| self.damaged(&error))?
            .ok_or_else(|| LayoutError::NoEnumerator {
                name: name.to_owned(),
            })
    }

    /// The value of an enumerator of an enumeration that any part of the kernel knows:
    /// `enumerator_of("enum maple_type", "maple_leaf_64")`.
    ///
    /// # Errors
    ///
    /// When this kernel has no such enumeration, or that has no such enumerator.
    pub fn enumerator_of(&self, owner: &str, name: &str) -> Result<i64, LayoutError> {
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        types
            .enumerator_of(owner, name)
            .map_err(|failure| self.error(failure, owner, name))
    }

    /// The directory of the kernel's sources, as the compiler saw it.
    pub(crate) fn source_root(&self) -> Option<&Path> {
        self.source_root.as_deref()
    }

    /// The directory the kernel was built in, as the compiler saw it.
    pub(crate) fn build_dir(&self) -> Option<&Path> {
        self.build_dir.as_deref()
    }

    fn cached(
        &self,
        owner: &str,
        path: &str,
        find: impl FnOnce(&mut Types) -> Result<Member, types::Failure>,
    ) -> Result<Member, LayoutError> {
        let key = (owner.to_owned(), path.to_owned());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&key) {
            return known.clone();
        }
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        let found = find(&mut types).map_err(|failure| self.error(failure, owner, path));
        known.insert(key, found.clone());
        found
    }

    fn error(&self, failure: types::Failure, owner: &str, member: &str) -> LayoutError {
        let owner = owner.to_owned();
        let member = member.to_owned();
        match failure {
            types::Failure::Dwarf(error) => self.damaged(&error),
            types::Failure::NoType => LayoutError::NoType { name: owner },
            types::Failure::NoVariable => LayoutError::NoVariable {
                name: owner.trim_start_matches('&').to_owned(),
            },
            types::Failure::NoMember => LayoutError::NoMember { owner, member },
            types::Failure::BadPath(reason) => LayoutError::BadPath {
                owner,
                member,
                reason,
            },
        }
    }

    fn damaged(&self, error: &gimli::Error) -> LayoutError {
        LayoutError::Damaged {
            path: self.kernel.clone(),
            reason: error.to_string(),
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
