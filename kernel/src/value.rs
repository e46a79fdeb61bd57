//! Values of the kernel's types, for people and for programs.
//!
//! A [`Value`] is what memory holds at an address (or what some bytes are), taken apart as its type
//! says: structs with the names of their members, enumerators by name, pointers with the symbol
//! they point to, arrays of characters as strings. It is plain data; `{}` prints it on one line,
//! `{:#}` on as many as it takes, and it serialises as JSON:
//!
//! | value | JSON |
//! |---|---|
//! | numbers, characters | a number |
//! | `_Bool` | `true`, `false` |
//! | an enumeration | the enumerator's name; a number that has none as itself |
//! | a pointer | `{"addr": "0x60001000"}`, with `"symbol"`, `"offset"` (bytes into it) and `"text"` (the string it points to) where there are some; `null` |
//! | an array of characters | a string |
//! | a struct or union | an object; members of anonymous members are its own |
//! | an array | an array |
//! | what is nested deeper than was asked for | `"..."` |
//! | what cannot be read | `{"unreadable": "why"}` |

mod format;
mod json;
mod read;

use crate::addr::{KernelAddr, UserAddr};

/// A value, as far as it was to be read.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// No value: what a function without result returns.
    Void,
    /// A number that cannot be negative.
    Unsigned(u64),
    /// A number that is to be shown in hexadecimal.
    Hex(u64),
    /// A number that can be negative.
    Signed(i64),
    /// A number larger than 8 bytes, as its bytes.
    Wide(Vec<u8>),
    /// A truth value.
    Bool(bool),
    /// A character and its code.
    Char(i64),
    /// A number with a fraction.
    Float(f64),
    /// A value of an enumeration.
    Enum {
        /// The enumerator, if there is one.
        name: Option<String>,
        /// Its number.
        value: i128,
    },
    /// A pointer.
    Pointer(Pointer),
    /// An array of characters up to its first NUL.
    Text {
        /// The characters. Bytes that are not UTF-8 are U+FFFD.
        text: String,
        /// Whether there are more.
        cut: bool,
    },
    /// A struct or union: its members, and their names if they have one.
    Struct(Vec<(Option<String>, Value)>),
    /// An array.
    Array {
        /// Its elements, and how often each comes in a row.
        elements: Vec<(Value, u64)>,
        /// How many there are beyond those.
        more: u64,
    },
    /// A function, at its address.
    Function(Pointer),
    /// An aggregate with a meaning that one sees at a glance. JSON has the value.
    Noted {
        /// The meaning, `empty list`.
        note: &'static str,
        /// What it looks like.
        value: Box<Value>,
    },
    /// An aggregate that is nested deeper than was asked for.
    Elided,
    /// What cannot be read, and why.
    Unreadable(String),
}

/// A pointer's value and what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pointer {
    /// The address: a kernel's, or of a process's memory the process's own.
    pub addr: u64,
    /// The kernel's function or variable there, and how many bytes into it.
    pub symbol: Option<(String, u64)>,
    /// Of a pointer to characters, the string; and whether it was cut.
    pub text: Option<(String, bool)>,
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location<'a> {
    /// In the kernel's memory.
    Kernel(KernelAddr),
    /// In the memory of a process, whose `mm_struct` is at `mm`.
    User {
        /// The `mm_struct`.
        mm: KernelAddr,
        /// The process's address.
        addr: UserAddr,
    },
    /// In hand: a register, a value that was computed.
    Bytes(&'a [u8]),
    /// In hand, and what they point to is in the memory of a process.
    UserBytes {
        /// The process's `mm_struct`.
        mm: KernelAddr,
        /// The value.
        bytes: &'a [u8],
    },
}

/// How much of a value is read, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// How deep structs and arrays of structs are opened: 0 prints `{...}` for a struct, 1 its
    /// members.
    pub depth: usize,
    /// Elements of an array that are read.
    pub elements: usize,
    /// Bytes of a string that are read.
    pub text: usize,
    /// Whether numbers are shown in hexadecimal.
    pub hex: bool,
    /// Whether `atomic_t` and the like are shown as the structs that they are.
    pub raw: bool,
}

impl Default for Style {
    /// Three levels, 200 elements, 200 bytes of text.
    fn default() -> Style {
        Style {
            depth: 3,
            elements: 200,
            text: 200,
            hex: false,
            raw: false,
        }
    }
}

impl Style {
    /// For one line among others, such as the arguments of a function: no struct is opened.
    pub const BRIEF: Style = Style {
        depth: 0,
        elements: 8,
        text: 64,
        hex: false,
        raw: false,
    };
}

impl Value {
    /// Whether something of it was left out: elements beyond the limit, text, nested structs.
    pub fn is_cut(&self) -> bool {
        match self {
            Value::Elided => true,
            Value::Text { cut, .. } => *cut,
            Value::Pointer(pointer) => pointer.text.as_ref().is_some_and(|(_, cut)| *cut),
            Value::Struct(members) => members.iter().any(|(_, value)| value.is_cut()),
            Value::Array { elements, more } => {
                *more > 0 || elements.iter().any(|(value, _)| value.is_cut())
            }
            Value::Noted { value, .. } => value.is_cut(),
            _ => false,
        }
    }

    /// Whether it has members or elements.
    pub fn is_aggregate(&self) -> bool {
        matches!(self, Value::Struct(_) | Value::Array { .. } | Value::Elided)
    }
}
