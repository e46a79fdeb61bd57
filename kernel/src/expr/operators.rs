//! C's operators.

use super::ast::{Node, Unary};
use super::eval::{Evaluator, Failure, number, place, size_type};
use super::numbers::{self, Width, fit};
use super::{Number, Operand, Place, Space, Span};
use crate::layout::{Bare, Encoding, LayoutError, Type, TypeKind};
use crate::memory::Memory;

impl<M: Memory> Evaluator<'_, M> {
    /// C's promotion of a number; `None` of a pointer.
    pub(super) fn width(&self, ty: &Type) -> Result<Option<Width>, LayoutError> {
        let (signed, bytes) = match self.layout.bare(ty)? {
            Bare::Base(encoding, size) => (encoding.is_signed(), size),
            Bare::Enum(info) => (
                matches!(info.kind, TypeKind::Enum { signed: true, .. }),
                info.size,
            ),
            _ => return Ok(None),
        };
        Ok(Some(match bytes {
            0..4 => Width::INT,
            4 => Width { signed, bytes: 4 },
            _ => Width { signed, bytes: 8 },
        }))
    }

    pub(super) fn index(&self, of: &Node, index: &Node) -> Result<Operand, Failure> {
        let operand = self.eval(of)?;
        let at = self.number(self.eval(index)?, index.span)?;
        if self.width(&at.ty)?.is_none() {
            return Err(self.error(index.span, "an index must be a number"));
        }
        if let Operand::List { mut items, more } = operand {
            let position = usize::try_from(at.value).unwrap_or(usize::MAX);
            return match position < items.len() {
                true => Ok(items.swap_remove(position)),
                false if more => Err(self.error(
                    index.span,
                    format!(
                        "only {} elements were read; --limit reads more",
                        items.len()
                    ),
                )),
                false => {
                    Err(self.error(index.span, format!("the list has {} elements", items.len())))
                }
            };
        }
        if let Operand::Place(place) = &operand
            && let Bare::Array(element, Some(count)) = self.layout.bare(&place.ty)?
            // Arrays of none and of one are those that go on beyond their end.
            && count > 1
            && at.value >= count
        {
            let ty = self.spell(&Type::Array(Box::new(element), Some(count)));
            let number = at.value as i64;
            let message = format!("{number} is beyond the end of this `{ty}`");
            return Err(self.error(index.span, message));
        }
        let member = match &operand {
            Operand::Place(place) => place.member.clone(),
            _ => None,
        };
        let pointer = self.number(operand, of.span)?;
        let sum = self.advance(pointer, at.value, of.span)?;
        match self.deref(sum, of.span)? {
            Operand::Place(place) => Ok(Operand::Place(Place { member, ..place })),
            operand => Ok(operand),
        }
    }

    /// A pointer some elements further on.
    pub(super) fn advance(
        &self,
        pointer: Number,
        count: u64,
        span: Span,
    ) -> Result<Number, Failure> {
        let stride = self.stride(&pointer.ty, span)?;
        Ok(Number {
            value: pointer.value.wrapping_add(count.wrapping_mul(stride)),
            ..pointer
        })
    }

    /// Bytes of what a pointer points to. As gcc counts: 1 of `void` and of functions.
    pub(super) fn stride(&self, ty: &Type, span: Span) -> Result<u64, Failure> {
        let Some(target) = self.pointee(ty)? else {
            let ty = self.spell(ty);
            return Err(self.error(span, format!("this is a `{ty}`, and no pointer")));
        };
        match self.layout.bare(&target)? {
            Bare::Void | Bare::Function(_) => Ok(1),
            Bare::Aggregate(info) if matches!(info.kind, TypeKind::Incomplete(_)) => {
                let ty = self.spell(&target);
                Err(self.error(span, format!("this kernel does not define `{ty}`")))
            }
            _ => Ok(self.layout.size(&target)?),
        }
    }

    pub(super) fn deref(&self, pointer: Number, span: Span) -> Result<Operand, Failure> {
        match self.pointee(&pointer.ty)? {
            Some(target) => Ok(place(target, pointer.space, pointer.value)),
            None => {
                let ty = self.spell(&pointer.ty);
                let message =
                    format!("this is a `{ty}`, and no pointer; cast it: *(TYPE *)ADDRESS");
                Err(self.error(span, message))
            }
        }
    }

    pub(super) fn unary(
        &self,
        operator: Unary,
        node: &Node,
        span: Span,
    ) -> Result<Operand, Failure> {
        match operator {
            Unary::AddressOf => {
                let operand = self.lenient(node)?;
                self.each(operand, &|operand| match operand {
                    Operand::Place(place) if place.bits.is_some() => {
                        Err(self.error(node.span, "a bit-field has no address"))
                    }
                    Operand::Place(place) => {
                        Ok(number(place.ty.pointer(), place.addr, place.space))
                    }
                    _ => Err(self.error(node.span, "this is not in memory: it has no address")),
                })
            }
            Unary::Deref => {
                let operand = self.eval(node)?;
                self.each(operand, &|operand| {
                    self.deref(self.number(operand, node.span)?, node.span)
                })
            }
            Unary::Not => {
                let operand = self.number(self.eval(node)?, node.span)?;
                let truth = u64::from(operand.value == 0);
                Ok(number(Width::INT.ty(), truth, Space::Kernel))
            }
            Unary::Minus | Unary::Plus | Unary::Complement => {
                let operand = self.number(self.eval(node)?, node.span)?;
                let Some(width) = self.width(&operand.ty)? else {
                    let ty = self.spell(&operand.ty);
                    return Err(self.error(span, format!("this is a `{ty}`, and no number")));
                };
                let value = match operator {
                    Unary::Minus => operand.value.wrapping_neg(),
                    Unary::Complement => !operand.value,
                    _ => operand.value,
                };
                Ok(number(width.ty(), width.fit(value), Space::Kernel))
            }
        }
    }

    pub(super) fn binary(
        &self,
        operator: &str,
        left: &Node,
        right: &Node,
        span: Span,
    ) -> Result<Operand, Failure> {
        let (left_span, right_span) = (left.span, right.span);
        let left = self.number(self.eval(left)?, left_span)?;
        if let "&&" | "||" = operator {
            // The right side may only make sense when the left one is true.
            let truth = match (operator, left.value != 0) {
                ("&&", false) => false,
                ("||", true) => true,
                _ => self.number(self.eval(right)?, right_span)?.value != 0,
            };
            return Ok(number(Width::INT.ty(), u64::from(truth), Space::Kernel));
        }
        let right = self.number(self.eval(right)?, right_span)?;
        let is_comparison = matches!(operator, "==" | "!=" | "<" | ">" | "<=" | ">=");
        match (self.width(&left.ty)?, self.width(&right.ty)?) {
            (Some(one), Some(other)) => {
                let width = match operator {
                    "<<" | ">>" => one,
                    _ => one.common(other),
                };
                let right_value = match operator {
                    "<<" | ">>" => right.value,
                    _ => width.fit(right.value),
                };
                let (value, width) =
                    numbers::binary(operator, width.fit(left.value), right_value, width)
                        .map_err(|why| self.error(right_span, why))?;
                Ok(number(width.ty(), value, Space::Kernel))
            }
            _ if is_comparison => {
                let width = Width {
                    signed: false,
                    bytes: 8,
                };
                let (truth, width) = numbers::binary(operator, left.value, right.value, width)
                    .map_err(|why| self.error(span, why))?;
                Ok(number(width.ty(), truth, Space::Kernel))
            }
            (None, Some(_)) if operator == "+" => Ok(Operand::Number(self.advance(
                left,
                right.value,
                left_span,
            )?)),
            (None, Some(_)) if operator == "-" => {
                let back = right.value.wrapping_neg();
                Ok(Operand::Number(self.advance(left, back, left_span)?))
            }
            (Some(_), None) if operator == "+" => Ok(Operand::Number(
                self.advance(right, left.value, right_span)?,
            )),
            (None, None) if operator == "-" => {
                let stride = self.stride(&left.ty, left_span)?;
                if stride != self.stride(&right.ty, right_span)? {
                    let (left, right) = (self.spell(&left.ty), self.spell(&right.ty));
                    let message = format!("`{left}` and `{right}` point to different things");
                    return Err(self.error(span, message));
                }
                let bytes = left.value.wrapping_sub(right.value) as i64;
                let count = bytes.checked_div(i64::try_from(stride).unwrap_or(0));
                let count = count.ok_or_else(|| self.error(span, "their targets have no size"))?;
                let ty = Type::Integer {
                    signed: true,
                    bytes: 8,
                };
                Ok(number(ty, count as u64, Space::Kernel))
            }
            _ => {
                let (left, right) = (self.spell(&left.ty), self.spell(&right.ty));
                let message = format!("there is no `{left}` {operator} `{right}`");
                Err(self.error(span, message))
            }
        }
    }

    pub(super) fn cast(
        &self,
        operand: Operand,
        ty: &Type,
        span: Span,
        operand_span: Span,
    ) -> Result<Operand, Failure> {
        match self.layout.bare(ty)? {
            Bare::Aggregate(_) | Bare::Array(..) => match operand {
                // The same memory, read as something else.
                Operand::Place(from) if from.bits.is_none() => {
                    Ok(place(ty.clone(), from.space, from.addr))
                }
                _ => {
                    let ty = self.spell(ty);
                    let message =
                        format!("a number cannot be cast to `{ty}`; of an address: *({ty} *)");
                    Err(self.error(span, message))
                }
            },
            Bare::Base(Encoding::Float | Encoding::Other, _)
            | Bare::Void
            | Bare::Function(_)
            | Bare::Other => {
                let ty = self.spell(ty);
                Err(self.error(span, format!("nothing can be cast to `{ty}`")))
            }
            Bare::Base(encoding, size) => {
                let from = self.number(operand, operand_span)?;
                let value = match encoding {
                    Encoding::Bool => u64::from(from.value != 0),
                    encoding => fit(from.value, size, encoding.is_signed()),
                };
                Ok(number(ty.clone(), value, from.space))
            }
            Bare::Enum(info) => {
                let from = self.number(operand, operand_span)?;
                let signed = matches!(info.kind, TypeKind::Enum { signed: true, .. });
                let value = fit(from.value, info.size, signed);
                Ok(number(ty.clone(), value, from.space))
            }
            Bare::Pointer(_) => {
                let from = self.number(operand, operand_span)?;
                Ok(number(ty.clone(), from.value, from.space))
            }
        }
    }

    pub(super) fn size_of(&self, ty: &Type, span: Span) -> Result<Operand, Failure> {
        if let Bare::Aggregate(info) = self.layout.bare(ty)?
            && matches!(info.kind, TypeKind::Incomplete(_))
        {
            let ty = self.spell(ty);
            return Err(self.error(span, format!("this kernel does not define `{ty}`")));
        }
        Ok(number(size_type(), self.layout.size(ty)?, Space::Kernel))
    }
}
