//! Members of structs and unions, and what was meant by one that is not there.

use super::ast::Word;
use super::eval::{Evaluator, Failure};
use super::suggest::did_you_mean;
use super::{Operand, Place, Span};
use crate::layout::{Bare, Field, LayoutError, Type, TypeInfo, TypeKind};
use crate::memory::Memory;

/// Members that are listed when none is like the one that was asked for.
const MAX_LISTED: usize = 12;

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
        let Some((offset, field)) = self.field(&info, &name.text, 0)? else {
            return Err(self.error(name.span, self.no_member(&ty, &info, &name.text)?));
        };
        Ok(Operand::Place(Place {
            ty: field.ty.into(),
            space,
            addr: addr.wrapping_add(offset),
            bits: field.bits.map(|bits| (bits, field.size)),
            member: Some((info.name.clone().unwrap_or_default(), name.text.clone())),
        }))
    }

    /// A member of a struct, also of its anonymous members, and its offset.
    pub(super) fn field(
        &self,
        info: &TypeInfo,
        name: &str,
        depth: usize,
    ) -> Result<Option<(u64, Field)>, LayoutError> {
        if depth > 16 {
            return Ok(None);
        }
        for field in info.fields() {
            match &field.name {
                Some(found) if found == name => return Ok(Some((field.offset, field.clone()))),
                Some(_) => {}
                None => {
                    if let Bare::Aggregate(inner) = self.layout.bare(&field.ty.into())?
                        && let Some((offset, found)) = self.field(&inner, name, depth + 1)?
                    {
                        return Ok(Some((field.offset.saturating_add(offset), found)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Why there is no such member.
    pub(super) fn no_member(
        &self,
        ty: &Type,
        info: &TypeInfo,
        name: &str,
    ) -> Result<String, LayoutError> {
        let mut names = Vec::new();
        self.member_names(info, &mut names, 0)?;
        let ty = self.spell(ty);
        let mut message = format!("`{ty}` has no member `{name}`");
        let meant = did_you_mean(name, names.iter().map(String::as_str));
        if !meant.is_empty() {
            message.push_str(&meant);
        } else if !names.is_empty() && names.len() <= MAX_LISTED {
            message.push_str(&format!("; it has {}", names.join(", ")));
        } else {
            message.push_str(&format!("; `kscope types '{ty}'` lists them"));
        }
        Ok(message)
    }

    pub(super) fn member_names(
        &self,
        info: &TypeInfo,
        names: &mut Vec<String>,
        depth: usize,
    ) -> Result<(), LayoutError> {
        for field in info.fields() {
            match &field.name {
                Some(name) => names.push(name.clone()),
                None if depth < 16 => {
                    if let Bare::Aggregate(inner) = self.layout.bare(&field.ty.into())? {
                        self.member_names(&inner, names, depth + 1)?;
                    }
                }
                None => {}
            }
        }
        Ok(())
    }
}
