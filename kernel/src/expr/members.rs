//! Members of structs and unions.

use super::ast::Word;
use super::eval::{Evaluator, Failure};
use super::{Operand, Place, Span};
use crate::layout::{Bare, TypeKind};
use crate::memory::Memory;

impl<M: Memory> Evaluator<'_, M> {
    pub(super) fn member(
        &self,
        operand: Operand,
        span: Span,
        name: &Word,
    ) -> Result<Operand, Failure> {
        let (ty, addr, space) = match operand {
            Operand::Place(place) if self.is_block(&place)? => (place.ty, place.addr, place.space),
            operand => {
                let pointer = self.number(operand, span)?;
                match self.pointee(&pointer.ty)? {
                    Some(target) => (target, pointer.value, pointer.space),
                    None => (pointer.ty, pointer.value, pointer.space),
                }
            }
        };
        let Bare::Aggregate(info) = self.layout.bare(&ty)? else {
            let ty = self.spell(&ty);
            return Err(self.error(span, format!("this is a `{ty}`, which has no members")));
        };
        if let TypeKind::Incomplete(_) = info.kind {
            let ty = self.spell(&ty);
            return Err(self.error(span, format!("this kernel does not define `{ty}`")));
        }
        let Some((offset, field)) = self.layout.field(&info, &name.text)? else {
            let message = self.layout.no_member(&ty, &info, &name.text)?;
            return Err(self.error(name.span, message));
        };
        Ok(Operand::Place(Place {
            ty: field.ty.into(),
            space,
            addr: addr.wrapping_add(offset),
            bits: field.bits.map(|bits| (bits, field.size)),
            member: Some((info.name.clone().unwrap_or_default(), name.text.clone())),
        }))
    }
}
