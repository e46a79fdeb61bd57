//! What looks like a call: `sizeof(...)`, `container_of(...)`, `$task(...)`.

use super::super::ast::{Kind, Node};
use super::super::lexer::TokenKind;
use super::super::{ExprError, Span};
use super::{Parser, TYPE_WORDS};

impl Parser<'_> {
    pub(super) fn named(&mut self, name: String, span: Span) -> Result<Node, ExprError> {
        let start = span.start;
        let is_call = matches!(self.peek(), TokenKind::Punct("("));
        let kind = match name.as_str() {
            "sizeof" if is_call => {
                self.at += 1;
                let TokenKind::Name(word) = self.peek() else {
                    let operand = self.expression(0)?;
                    self.expect(")", "after the operand of sizeof")?;
                    return self.node(Kind::SizeOf(Box::new(operand)), start);
                };
                // `sizeof(x)` of a type or of a variable.
                let is_type = TYPE_WORDS.contains(&word.as_str()) || (self.is_type)(word);
                let kind = match is_type {
                    true => Kind::SizeOfType(self.type_name()?),
                    false => Kind::SizeOf(Box::new(self.expression(0)?)),
                };
                self.expect(")", "after the operand of sizeof")?;
                kind
            }
            "sizeof" => Kind::SizeOf(Box::new(self.nested(Self::unary)?)),
            "offsetof" if is_call => {
                self.at += 1;
                let of = self.type_name()?;
                self.expect(",", "after the type")?;
                let path = self.path()?;
                self.expect(")", "after the member")?;
                Kind::OffsetOf(of, path)
            }
            "container_of" if is_call => {
                self.at += 1;
                let pointer = self.expression(0)?;
                self.expect(
                    ",",
                    "after the pointer: container_of(POINTER, TYPE, MEMBER)",
                )?;
                let of = self.type_name()?;
                self.expect(",", "after the type: container_of(POINTER, TYPE, MEMBER)")?;
                let path = self.path()?;
                self.expect(")", "after the member")?;
                Kind::ContainerOf(Box::new(pointer), of, path)
            }
            "list" if is_call => {
                self.at += 1;
                let head = Box::new(self.expression(0)?);
                let of = match self.eat(",") {
                    true => {
                        let of = self.type_name()?;
                        self.expect(",", "after the type: list(HEAD, TYPE, MEMBER)")?;
                        Some((of, self.path()?))
                    }
                    false => None,
                };
                self.expect(")", "after the list")?;
                Kind::List { head, of }
            }
            "user" if is_call => {
                let [task, address] = self.arguments(["PID", "ADDRESS"], "user")?;
                Kind::User(Box::new(task), Box::new(address))
            }
            "current" => Kind::Current {
                cpu: None,
                pointer: true,
            },
            word if TYPE_WORDS.contains(&word) => {
                let message = format!("`{word}` is the name of a type; in brackets it is a cast");
                return Err(ExprError::new(self.text, span, message));
            }
            _ => Kind::Name(name),
        };
        self.node(kind, start)
    }

    /// `$task(12)` and the like; the kernel's gdb scripts have those with `lx_`.
    pub(super) fn convenience(&mut self, name: &str, span: Span) -> Result<Node, ExprError> {
        let start = span.start;
        let kind = match name {
            "lx_current" | "current" => {
                let cpu = match matches!(self.peek(), TokenKind::Punct("("))
                    && !matches!(self.peek_at(1), TokenKind::Punct(")"))
                {
                    true => {
                        let [cpu] = self.arguments(["CPU"], name)?;
                        Some(Box::new(cpu))
                    }
                    false => {
                        if self.eat("(") {
                            self.expect(")", "here")?;
                        }
                        None
                    }
                };
                Kind::Current {
                    cpu,
                    pointer: name == "current",
                }
            }
            "task" | "lx_task_by_pid" => {
                let [pid] = self.arguments(["PID"], name)?;
                Kind::Task {
                    pid: Box::new(pid),
                    pointer: name == "task",
                }
            }
            "per_cpu" | "lx_per_cpu" | "per_cpu_ptr" | "lx_per_cpu_ptr" => {
                let pointer = name.ends_with("ptr");
                let of = if pointer { "POINTER" } else { "VARIABLE" };
                let [of, cpu] = self.arguments([of, "CPU"], name)?;
                Kind::PerCpu {
                    of: Box::new(of),
                    cpu: Box::new(cpu),
                    pointer,
                }
            }
            _ => {
                let message = format!(
                    "there is no `${name}`, but $task(PID), $current(CPU), $lx_current(CPU), \
                     $per_cpu(VARIABLE, CPU) and $per_cpu_ptr(POINTER, CPU)"
                );
                return Err(ExprError::new(self.text, span, message));
            }
        };
        self.node(kind, start)
    }

    /// So many arguments in brackets.
    fn arguments<const N: usize>(
        &mut self,
        names: [&str; N],
        of: &str,
    ) -> Result<[Node; N], ExprError> {
        let form = || format!("{of}({})", names.join(", "));
        self.expect("(", &format!("after `{of}`: {}", form()))?;
        let mut found = Vec::new();
        for at in 0..N {
            if at > 0 {
                self.expect(",", &format!("here: {}", form()))?;
            }
            found.push(self.expression(0)?);
        }
        self.expect(")", &format!("here: {}", form()))?;
        found
            .try_into()
            .map_err(|_| self.error("arguments are missing"))
    }
}
