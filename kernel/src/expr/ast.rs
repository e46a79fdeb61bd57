//! Expressions as trees.

use super::Span;

/// An expression, and where it is in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Number {
        value: u64,
        signed: bool,
        bytes: u64,
    },
    /// A variable, a function, an enumerator.
    Name(String),
    /// `file.c::name` or `function::name`.
    Scoped {
        scope: String,
        name: String,
    },
    /// `.name` and `->name`, which mean the same here as in gdb.
    Member {
        of: Box<Node>,
        name: Word,
    },
    Index {
        of: Box<Node>,
        index: Box<Node>,
    },
    Unary(Unary, Box<Node>),
    Binary(&'static str, Box<Node>, Box<Node>),
    Cast(TypeName, Box<Node>),
    SizeOf(Box<Node>),
    SizeOfType(TypeName),
    OffsetOf(TypeName, Path),
    ContainerOf(Box<Node>, TypeName, Path),
    /// `list(HEAD, TYPE, MEMBER)`, or with what is known about the head.
    List {
        head: Box<Node>,
        of: Option<(TypeName, Path)>,
    },
    /// `user(TASK, ADDRESS)`.
    User(Box<Node>, Box<Node>),
    /// The task that runs on a CPU, as a pointer or as the structure itself.
    Current {
        cpu: Option<Box<Node>>,
        pointer: bool,
    },
    /// The task with a pid, as a pointer or as the structure itself.
    Task {
        pid: Box<Node>,
        pointer: bool,
    },
    /// A CPU's own instance of a variable, or of what a per-CPU pointer points to.
    PerCpu {
        of: Box<Node>,
        cpu: Box<Node>,
        pointer: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Deref,
    AddressOf,
    Minus,
    Plus,
    Not,
    Complement,
}

/// A name and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) span: Span,
}

/// A member of a member: `se.run_node`, `pid_links[0]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) text: String,
    pub(super) span: Span,
}

/// A type as it is written in a cast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TypeName {
    /// `struct task_struct`, `unsigned long`, `u64`.
    pub(super) base: String,
    /// How many `*` follow.
    pub(super) stars: u32,
    /// How many `*` are in brackets of their own, `(*)`: a pointer to an array.
    pub(super) inner_stars: u32,
    /// The dimensions that follow, the outermost first.
    pub(super) counts: Vec<u64>,
    pub(super) span: Span,
}
