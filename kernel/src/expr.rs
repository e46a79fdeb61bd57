//! Expressions over a guest's kernel: a small language that is C where it can be.
//!
//! ```text
//! init_task.comm                      a variable and its members; . and -> mean the same
//! kernel/sched/core.c::name           a static one of several; the end of the path will do
//! function::name                      a static variable of a function
//! *p  &x  a[2]  p + 1  p - q          pointers and arrays; + - * / % << >> & | ^ ~ ! == < && || ...
//! (struct task_struct *)0x60a0        casts, also to typedefs; of a variable to a struct or an
//!                                     array: the same memory read as that
//! sizeof(struct page)  offsetof(struct page, lru)  container_of(p, struct task_struct, tasks)
//! PIDTYPE_TGID  100  0x1f  'A'        enumerators, numbers, characters
//! current  $current(1)                the task that runs on CPU 0, or on another
//! $task(12)                           the task with a pid: a struct task_struct *
//! $lx_current()  $lx_task_by_pid(12)  the same as structs, as in the kernel's gdb scripts
//! $per_cpu(runqueues, 0)              a CPU's own variable; $per_cpu_ptr(p, 0) of a pointer
//! list(&head, struct T, member)       a list's elements as pointers: struct list_head, hlist_head,
//!                                     rb_root and their relatives
//! list(init_task.tasks)->comm         the type is known for many heads; ->, ., * and [n] work on
//!                                     every element
//! user(12, p)                         what p points to is in the memory of process 12
//! ```
//!
//! Nothing is changed, nothing runs in the guest. What is wrong with an expression is told with its
//! column and what is there instead.

mod ast;
mod eval;
mod lexer;
mod lists;
mod members;
mod names;
mod numbers;
mod operators;
mod parser;
pub(crate) mod suggest;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;

use crate::addr::{GuestPid, KernelAddr};
use crate::layout::{Bits, Type};
use crate::table::printable;

pub(crate) use eval::Evaluator;

/// Which part of an expression is meant, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    fn at(at: usize) -> Span {
        Span { start: at, end: at }
    }
}

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExprError {
    /// What is wrong.
    message: String,
    /// The expression.
    text: String,
    span: Span,
}

impl ExprError {
    fn new(text: &str, span: Span, message: impl Into<String>) -> ExprError {
        ExprError {
            message: message.into(),
            text: text.to_owned(),
            span,
        }
    }

    /// The column of what is wrong, in characters from 1.
    pub fn column(&self) -> usize {
        let before = self.text.get(..self.span.start);
        before.map_or(1, |before| before.chars().count() + 1)
    }
}

impl fmt::Display for ExprError {
    /// The message, and under it the expression with a mark.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One character stays one column.
        let line: String = self
            .text
            .chars()
            .map(|c| match c {
                c if c.is_whitespace() => ' ',
                c if printable(c.encode_utf8(&mut [0; 4])).len() > c.len_utf8() => '?',
                c => c,
            })
            .collect();
        let marked = self.text.get(self.span.start..self.span.end);
        let marks = marked.map_or(1, |marked| marked.chars().count().max(1));
        write!(
            f,
            "{}\n  {}\n  {}{}",
            printable(&self.message),
            line,
            " ".repeat(self.column() - 1),
            "^".repeat(marks)
        )
    }
}

impl std::error::Error for ExprError {}

/// What an expression means besides its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// The task that `current` is, if not the one that runs on CPU 0.
    pub(crate) current: Option<GuestPid>,
    /// Elements of a list that are visited.
    pub(crate) limit: usize,
}

/// What an expression is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    /// Something in memory.
    Place(Place),
    /// A number or a pointer.
    Number(Number),
    /// The elements of a list, and whether there are more.
    List { items: Vec<Operand>, more: bool },
}

/// Something in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) ty: Type,
    pub(crate) space: Space,
    pub(crate) addr: u64,
    /// Of a bit-field, and the bytes of its unit.
    pub(crate) bits: Option<(Bits, u64)>,
    /// The struct that it is a member of (empty for a variable), and its name.
    pub(crate) member: Option<(String, String)>,
}

/// A number or a pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) ty: Type,
    /// Extended by its sign to 64 bits.
    pub(crate) value: u64,
    /// Of a pointer, where it points.
    pub(crate) space: Space,
}

/// Whose memory an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// The kernel's.
    Kernel,
    /// That of a process, whose `mm_struct` is there.
    Process(KernelAddr),
}

/// Whether a path ends in these components.
pub(crate) fn is_end_of_path(file: &str, end: &str) -> bool {
    let end = end.trim_start_matches("./").trim_start_matches('/');
    file.strip_suffix(end)
        .is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

#[cfg(test)]
mod path_tests {
    use super::is_end_of_path;

    #[test]
    fn files_are_named_by_the_end_of_their_path() {
        assert!(is_end_of_path("kernel/sched/core.c", "core.c"));
        assert!(is_end_of_path("kernel/sched/core.c", "sched/core.c"));
        assert!(is_end_of_path("kernel/sched/core.c", "kernel/sched/core.c"));
        assert!(is_end_of_path(
            "kernel/sched/core.c",
            "./kernel/sched/core.c"
        ));
        assert!(!is_end_of_path("kernel/sched/core.c", "ore.c"));
        assert!(!is_end_of_path("kernel/sched/core.c", "core.h"));
    }
}
