//! What an expression is in a guest.

use super::ast::{Kind, Node, TypeName};
use super::numbers::fit;
use super::parser::{parse, parse_type};
use super::{Context, ExprError, Number, Operand, Place, Space, Span};
use crate::addr::{CpuId, GuestPid, KernelAddr, UserAddr};
use crate::layout::{Bare, Encoding, Layout, LayoutError, Type, TypeKind};
use crate::memory::Memory;
use crate::reader::{Reader, ViewError};

/// Evaluates one expression.
pub(crate) struct Evaluator<'r, M> {
    pub(super) reader: &'r Reader<'r, M>,
    pub(super) layout: &'r Layout,
    pub(super) text: &'r str,
    pub(super) context: Context,
}

/// How an expression fails: with a place in it, or where there is none.
pub(super) type Failure = ViewError;

impl<'r, M: Memory> Evaluator<'r, M> {
    /// For one expression.
    ///
    /// # Errors
    ///
    /// When the kernel has no DWARF.
    pub(crate) fn new(
        reader: &'r Reader<'r, M>,
        text: &'r str,
        context: Context,
    ) -> Result<Evaluator<'r, M>, LayoutError> {
        Ok(Evaluator {
            reader,
            layout: reader.kernel().image().layout()?,
            text,
            context,
        })
    }

    /// Evaluates the expression.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or with the guest's memory on the way.
    pub(crate) fn evaluate(&self) -> Result<Operand, ViewError> {
        let is_type = |word: &str| {
            self.layout.type_named(word).is_ok()
                && self
                    .layout
                    .variables(word)
                    .is_ok_and(|found| found.is_empty())
        };
        let node = parse(self.text, &is_type)?;
        self.eval(&node)
    }

    /// Evaluates the expression, and reads a value of the named type where it points to (or, of a
    /// struct or an array, where it is).
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Evaluator::evaluate), and when there is no such type.
    pub(crate) fn evaluate_as(&self, ty: &str) -> Result<Operand, ViewError> {
        let ty = self.with_text(ty).resolve(&parse_type(ty)?)?;
        let whole = Span {
            start: 0,
            end: self.text.len(),
        };
        let (addr, space) = match self.evaluate()? {
            Operand::Place(place) if self.is_block(&place)? => (place.addr, place.space),
            operand => {
                let number = self.number(operand, whole)?;
                (number.value, number.space)
            }
        };
        Ok(place(ty, space, addr))
    }

    /// The same for another text, a type's name.
    fn with_text<'t>(&self, text: &'t str) -> Evaluator<'t, M>
    where
        'r: 't,
    {
        Evaluator {
            reader: self.reader,
            layout: self.layout,
            text,
            context: self.context,
        }
    }

    pub(super) fn error(&self, span: Span, message: impl Into<String>) -> Failure {
        ExprError::new(self.text, span, message).into()
    }

    pub(super) fn spell(&self, ty: &Type) -> String {
        self.layout.spell(ty).unwrap_or_else(|_| "?".to_owned())
    }

    pub(super) fn eval(&self, node: &Node) -> Result<Operand, Failure> {
        let span = node.span;
        match &node.kind {
            Kind::Number {
                value,
                signed,
                bytes,
            } => Ok(number(
                Type::Integer {
                    signed: *signed,
                    bytes: *bytes,
                },
                *value,
                Space::Kernel,
            )),
            Kind::Name(name) => {
                let operand = self.name(name, span)?;
                self.refuse_per_cpu(&operand, name, span)?;
                Ok(operand)
            }
            Kind::Scoped { scope, name } => self.scoped(scope, name, span),
            Kind::Member { of, name } => {
                let operand = self.eval(of)?;
                self.each(operand, &|operand| self.member(operand, of.span, name))
            }
            Kind::Index { of, index } => self.index(of, index),
            Kind::Unary(operator, operand) => self.unary(*operator, operand, span),
            Kind::Binary(operator, left, right) => self.binary(operator, left, right, span),
            Kind::Cast(name, operand) => {
                let ty = self.resolve(name)?;
                let value = self.eval(operand)?;
                self.each(value, &|value| self.cast(value, &ty, span, operand.span))
            }
            Kind::SizeOf(operand) => {
                let ty = match self.lenient(operand)? {
                    Operand::Place(place) => place.ty,
                    Operand::Number(number) => number.ty,
                    Operand::List { .. } => {
                        return Err(self.error(operand.span, "a list has no size"));
                    }
                };
                self.size_of(&ty, span)
            }
            Kind::SizeOfType(name) => {
                let ty = self.resolve(name)?;
                self.size_of(&ty, span)
            }
            Kind::OffsetOf(of, path) => {
                let offset = self.offset_of(of, path)?;
                Ok(number(size_type(), offset, Space::Kernel))
            }
            Kind::ContainerOf(pointer, of, path) => {
                let offset = self.offset_of(of, path)?;
                let ty = self.resolve(of)?;
                let pointer = self.number(self.eval(pointer)?, pointer.span)?;
                let addr = pointer.value.wrapping_sub(offset);
                Ok(number(ty.pointer(), addr, pointer.space))
            }
            Kind::List { head, of } => self.list(head, of.as_ref()),
            Kind::User(task, address) => {
                let mm = self.mm_of(task)?;
                let mut address = self.number(self.eval(address)?, address.span)?;
                address.space = Space::Process(mm);
                if self.pointee(&address.ty)?.is_none() {
                    address.ty = Type::Void.pointer();
                }
                Ok(Operand::Number(address))
            }
            Kind::Current { cpu, pointer } => {
                let addr = match (cpu, self.context.current) {
                    (None, Some(pid)) => self.find_task(pid)?,
                    (cpu, _) => {
                        let cpu = match cpu {
                            Some(cpu) => self.cpu(cpu)?,
                            None => CpuId(0),
                        };
                        let task = self.reader.kernel().current(cpu);
                        task.map_err(|error| self.error(span, error.to_string()))?
                            .addr
                    }
                };
                self.task(addr, *pointer)
            }
            Kind::Task { pid, pointer } => {
                let number = self.number(self.eval(pid)?, pid.span)?.value;
                let pid = i32::try_from(number as i64)
                    .map_err(|_| self.error(pid.span, format!("{number} is no pid")))?;
                self.task(self.find_task(GuestPid(pid))?, *pointer)
            }
            Kind::PerCpu { of, cpu, pointer } => {
                let offset = self.reader.per_cpu_offset(self.cpu(cpu)?);
                let offset = offset.map_err(|error| self.error(span, error.to_string()))?;
                match self.lenient(of)? {
                    Operand::Place(mut place) if !pointer => {
                        place.addr = place.addr.wrapping_add(offset);
                        Ok(Operand::Place(place))
                    }
                    operand if *pointer => {
                        let mut pointer = self.number(operand, of.span)?;
                        pointer.value = pointer.value.wrapping_add(offset);
                        Ok(Operand::Number(pointer))
                    }
                    _ => Err(self.error(
                        of.span,
                        "this is no variable; of a pointer to per-CPU memory use \
                         $per_cpu_ptr(POINTER, CPU)",
                    )),
                }
            }
        }
    }

    /// As `eval`, where a per-CPU variable may stand without its CPU.
    pub(super) fn lenient(&self, node: &Node) -> Result<Operand, Failure> {
        match &node.kind {
            Kind::Name(name) => self.name(name, node.span),
            _ => self.eval(node),
        }
    }

    /// Does something to a value, or to every element of a list.
    pub(super) fn each(
        &self,
        operand: Operand,
        apply: &dyn Fn(Operand) -> Result<Operand, Failure>,
    ) -> Result<Operand, Failure> {
        match operand {
            Operand::List { items, more } => {
                // One broken element costs no other.
                let items = items.into_iter().map(apply).filter_map(|item| match item {
                    Err(ViewError::Corruption(error)) => {
                        self.reader.warn(error);
                        None
                    }
                    item => Some(item),
                });
                Ok(Operand::List {
                    items: items.collect::<Result<_, _>>()?,
                    more,
                })
            }
            operand => apply(operand),
        }
    }

    /// Whether it is a struct, a union, an array or a function: its address is what counts.
    pub(super) fn is_block(&self, place: &Place) -> Result<bool, LayoutError> {
        Ok(match self.layout.bare(&place.ty)? {
            Bare::Aggregate(_) | Bare::Array(..) | Bare::Function(_) | Bare::Void => true,
            Bare::Base(..) | Bare::Enum(_) | Bare::Pointer(_) | Bare::Other => false,
        })
    }

    /// What a pointer points to.
    pub(super) fn pointee(&self, ty: &Type) -> Result<Option<Type>, LayoutError> {
        Ok(match self.layout.bare(ty)? {
            Bare::Pointer(target) => Some(target),
            _ => None,
        })
    }

    /// The value of what is to be computed with. Arrays and functions become pointers.
    pub(super) fn number(&self, operand: Operand, span: Span) -> Result<Number, Failure> {
        let place = match operand {
            Operand::Number(number) => return Ok(number),
            Operand::Place(place) => place,
            Operand::List { .. } => {
                return Err(self.error(span, "this is a list; [0] is its first element"));
            }
        };
        let pointer = |ty: Type| Number {
            ty: ty.pointer(),
            value: place.addr,
            space: place.space,
        };
        match self.layout.bare(&place.ty)? {
            Bare::Array(element, _) => Ok(pointer(element)),
            Bare::Function(_) => Ok(pointer(place.ty.clone())),
            Bare::Base(Encoding::Float, _) => {
                Err(self.error(span, "numbers with a fraction are only printed"))
            }
            Bare::Base(encoding, size) => {
                let signed = encoding.is_signed();
                self.load(&place, size, signed, span)
            }
            Bare::Enum(info) => {
                let signed = matches!(info.kind, TypeKind::Enum { signed: true, .. });
                self.load(&place, info.size, signed, span)
            }
            Bare::Pointer(_) => self.load(&place, 8, false, span),
            Bare::Aggregate(_) => {
                let name = self.spell(&place.ty);
                Err(self.error(
                    span,
                    format!("this is a `{name}`, and no number or pointer"),
                ))
            }
            Bare::Void | Bare::Other => Err(self.error(
                span,
                "the kernel's DWARF does not tell what type this has: cast it, \
                 *(TYPE *)&NAME, or use --type",
            )),
        }
    }

    /// Reads a number.
    fn load(&self, place: &Place, size: u64, signed: bool, span: Span) -> Result<Number, Failure> {
        let size = place.bits.map_or(size, |(_, unit)| unit);
        let mut bytes = [0; 8];
        let Some(unit) = bytes.get_mut(..size as usize) else {
            return Err(self.error(span, "numbers of more than 8 bytes are only printed"));
        };
        let kernel = self.reader.kernel();
        match place.space {
            Space::Kernel => kernel.read(KernelAddr(place.addr), unit).map_err(|_| {
                let why = match place.addr {
                    0..4096 => "a pointer on the way to it is NULL",
                    _ => "no memory is there",
                };
                self.error(
                    span,
                    format!("cannot read this at {:#x}: {why}", place.addr),
                )
            })?,
            Space::Process(mm) => kernel
                .read_user(mm, UserAddr(place.addr), unit)
                .map_err(|error| self.error(span, error.to_string()))?,
        }
        let word = u64::from_le_bytes(bytes);
        let value = match place.bits {
            Some((bits, _)) => {
                let unused = 64_u32.saturating_sub(bits.width).min(63);
                let value = bits.extract(word) << unused;
                match signed {
                    true => (value as i64 >> unused) as u64,
                    false => value >> unused,
                }
            }
            None => fit(word, size, signed),
        };
        if place.space == Space::Kernel && size == 8 && self.pointee(&place.ty)?.is_some() {
            self.reader.remember(KernelAddr(place.addr), value);
        }
        Ok(Number {
            ty: place.ty.clone(),
            value,
            space: place.space,
        })
    }

    /// The type that is meant in a cast.
    pub(super) fn resolve(&self, name: &TypeName) -> Result<Type, Failure> {
        let mut ty = match name.base.as_str() {
            "void" => Type::Void,
            base => match self.layout.type_named(base) {
                Ok(id) => Type::Known(id),
                Err(LayoutError::NoType { .. }) => {
                    return Err(self.error(name.span, self.layout.no_such_type(base)));
                }
                Err(error) => return Err(error.into()),
            },
        };
        for _ in 0..name.stars {
            ty = ty.pointer();
        }
        for &count in name.counts.iter().rev() {
            ty = Type::Array(Box::new(ty), Some(count));
        }
        for _ in 0..name.inner_stars {
            ty = ty.pointer();
        }
        Ok(ty)
    }
}

pub(super) fn size_type() -> Type {
    Type::Integer {
        signed: false,
        bytes: 8,
    }
}

pub(super) fn number(ty: Type, value: u64, space: Space) -> Operand {
    Operand::Number(Number { ty, value, space })
}

pub(super) fn place(ty: Type, space: Space, addr: u64) -> Operand {
    Operand::Place(Place {
        ty,
        space,
        addr,
        bits: None,
        member: None,
    })
}
