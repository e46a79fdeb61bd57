//! What a type is, in full: enough to print it as C and to print a value of it.

use serde::{Deserialize, Serialize};

use super::Bits;

/// A type of one kernel: where its entry is in that kernel's DWARF. Of no meaning for another
/// binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TypeId(pub(crate) u64);

/// The description of a type. Types that it is made of are named by their ids; `None` in their
/// place is `void`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeInfo {
    /// Without `struct` and the like. `None` for pointers, arrays, functions, and for structs,
    /// unions and enumerations without a tag.
    pub name: Option<String>,
    /// Bytes, at most 1 GiB. 0 for what has no size: `void`, functions, incomplete types, arrays
    /// without a length.
    pub size: u64,
    /// Bytes of an alignment that the source asks for, `__aligned(64)`.
    pub align: Option<u64>,
    /// What it is.
    pub kind: TypeKind,
}

/// What a type is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TypeKind {
    /// A number, a character or a truth value.
    Base(Encoding),
    /// A pointer to something.
    Pointer(Option<TypeId>),
    /// A struct. Its members are in the order of the source.
    Struct(Vec<Field>),
    /// A union.
    Union(Vec<Field>),
    /// A struct or union of which this entry only says that it exists: see
    /// [`Layout::complete`](crate::Layout::complete).
    Incomplete(Aggregate),
    /// An enumeration.
    Enum {
        /// Whether its values can be negative.
        signed: bool,
        /// In the order of the source.
        enumerators: Vec<Enumerator>,
    },
    /// An array.
    Array {
        /// What it is made of.
        element: Option<TypeId>,
        /// How many in each dimension, the outermost first; `None` for a length that the type
        /// does not have, as with a flexible array member.
        counts: Vec<Option<u64>>,
    },
    /// Another name for a type.
    Typedef(Option<TypeId>),
    /// A type with `const`, `volatile` and the like.
    Qualified(Qualifier, Option<TypeId>),
    /// A function.
    Function {
        /// What it returns.
        returns: Option<TypeId>,
        /// Its parameters and, in a definition, their names.
        parameters: Vec<(Option<String>, Option<TypeId>)>,
        /// Whether more may follow (`...`).
        variadic: bool,
        /// Whether the parameters are known (`f(void)` rather than `f()`).
        prototyped: bool,
    },
    /// Something that C has no word for.
    Other,
}

/// What is between the braces of an aggregate whose members are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Aggregate {
    /// `struct`
    Struct,
    /// `union`
    Union,
    /// `enum`
    Enum,
}

/// How the bytes of a base type are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Encoding {
    /// A number that can be negative.
    Signed,
    /// A number that cannot.
    Unsigned,
    /// A plain `char`. Newer kernels have it unsigned (`-funsigned-char`).
    Char {
        /// Whether it can be negative.
        signed: bool,
    },
    /// `unsigned char`, which is a byte more often than a character.
    Byte,
    /// `_Bool`.
    Bool,
    /// `float` or `double`.
    Float,
    /// Something else.
    Other,
}

impl Encoding {
    /// Whether it is a number that can be negative.
    pub fn is_signed(self) -> bool {
        matches!(self, Encoding::Signed | Encoding::Char { signed: true })
    }
}

/// What a type is qualified with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Qualifier {
    /// `const`
    Const,
    /// `volatile`
    Volatile,
    /// `restrict`
    Restrict,
    /// `_Atomic`
    Atomic,
}

impl Qualifier {
    /// As C writes it.
    pub fn word(self) -> &'static str {
        match self {
            Qualifier::Const => "const",
            Qualifier::Volatile => "volatile",
            Qualifier::Restrict => "restrict",
            Qualifier::Atomic => "_Atomic",
        }
    }
}

/// A member of a struct or union.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// `None` for an anonymous struct or union, whose members count as the owner's.
    pub name: Option<String>,
    /// Its type.
    pub ty: Option<TypeId>,
    /// Bytes from the start of the owner. Of a bit-field, to the unit that holds it.
    pub offset: u64,
    /// Bytes. Of a bit-field, the size of the unit that holds it. 0 for a flexible array.
    pub size: u64,
    /// Set for a bit-field only.
    pub bits: Option<Bits>,
    /// Bytes of an alignment that the source asks for.
    pub align: Option<u64>,
}

/// One value of an enumeration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enumerator {
    /// Its name.
    pub name: String,
    /// Its value; of an unsigned enumeration, to be taken as a `u64`.
    pub value: i64,
}

/// A variable that the DWARF knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its type.
    pub ty: Option<TypeId>,
    /// Where it is, when it is defined in C.
    pub addr: Option<crate::addr::KernelAddr>,
    /// The source file that defines (else: declares) it, relative to the source tree.
    pub file: String,
}

impl TypeInfo {
    /// The members of a struct or union; none of anything else.
    pub fn fields(&self) -> &[Field] {
        match &self.kind {
            TypeKind::Struct(fields) | TypeKind::Union(fields) => fields,
            _ => &[],
        }
    }

    /// `struct`, `union` or `enum`.
    pub fn keyword(&self) -> Option<&'static str> {
        Some(match &self.kind {
            TypeKind::Struct(_) | TypeKind::Incomplete(Aggregate::Struct) => "struct",
            TypeKind::Union(_) | TypeKind::Incomplete(Aggregate::Union) => "union",
            TypeKind::Enum { .. } | TypeKind::Incomplete(Aggregate::Enum) => "enum",
            _ => return None,
        })
    }
}
