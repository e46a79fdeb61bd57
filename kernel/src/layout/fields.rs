//! Members by name, and what was meant by one that is not there.

use super::ctype::{Bare, Type};
use super::info::{Field, TypeInfo};
use super::{Layout, LayoutError};
use crate::expr::suggest::did_you_mean;

/// How deep anonymous members nest.
const MAX_DEPTH: usize = 16;

/// Members that are looked at: more than any type has.
const MAX_FIELDS: usize = 1 << 16;

/// Members that are listed when none is like the one that was asked for.
const MAX_LISTED: usize = 12;

impl Layout {
    /// A member of a struct or union, also of its anonymous members, and its offset.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub(crate) fn field(
        &self,
        info: &TypeInfo,
        name: &str,
    ) -> Result<Option<(u64, Field)>, LayoutError> {
        let mut found = None;
        self.each_field(info, 0, 0, &mut { MAX_FIELDS }, &mut |offset, field| {
            if found.is_none() && field.name.as_deref() == Some(name) {
                found = Some((offset, field.clone()));
            }
        })?;
        Ok(found)
    }

    /// Why there is no such member.
    ///
    /// # Errors
    ///
    /// When the DWARF cannot be read.
    pub(crate) fn no_member(
        &self,
        ty: &Type,
        info: &TypeInfo,
        name: &str,
    ) -> Result<String, LayoutError> {
        let mut names = Vec::new();
        self.each_field(info, 0, 0, &mut { MAX_FIELDS }, &mut |_, field| {
            names.extend(field.name.clone());
        })?;
        let ty = self.spell(ty)?;
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

    /// Visits the members that have a name, with their offsets.
    fn each_field(
        &self,
        info: &TypeInfo,
        base: u64,
        depth: usize,
        left: &mut usize,
        visit: &mut dyn FnMut(u64, &Field),
    ) -> Result<(), LayoutError> {
        for field in info.fields() {
            *left = left.saturating_sub(1);
            if *left == 0 || depth > MAX_DEPTH {
                return Ok(());
            }
            let offset = base.saturating_add(field.offset);
            if field.name.is_some() {
                visit(offset, field);
            } else if let Bare::Aggregate(inner) = self.bare(&field.ty.into())? {
                self.each_field(&inner, offset, depth + 1, left, visit)?;
            }
        }
        Ok(())
    }
}
