//! Whether a struct is packed, which the DWARF does not say.

use crate::layout::{Bare, Layout, LayoutError, Type, TypeInfo, TypeKind};

/// How deep structs nest.
const MAX_NESTING: usize = 16;

/// Types that are looked at for one struct.
const MAX_TYPES: usize = 4096;

impl Layout {
    /// Whether a struct has a member where its type alone would not allow it, or ends where an
    /// array of it could not go on.
    pub(super) fn is_packed(&self, info: &TypeInfo) -> Result<bool, LayoutError> {
        let TypeKind::Struct(fields) = &info.kind else {
            return Ok(false);
        };
        let mut left = MAX_TYPES;
        let mut most = 1;
        for field in fields {
            let natural = self.alignment(&field.ty.into(), 0, &mut left)?;
            most = most.max(natural);
            // Bit-fields share units that begin anywhere.
            if field.bits.is_none() && !field.offset.is_multiple_of(natural) {
                return Ok(true);
            }
        }
        // Some are packed and would look the same without.
        Ok(!info.size.is_multiple_of(most) || info.align == Some(1) && most > 1)
    }

    /// The alignment in bytes that a type has on x86-64.
    fn alignment(&self, ty: &Type, depth: usize, left: &mut usize) -> Result<u64, LayoutError> {
        *left = left.saturating_sub(1);
        if depth > MAX_NESTING || *left == 0 {
            return Ok(1);
        }
        Ok(match self.bare(ty)? {
            Bare::Base(_, size) => size.clamp(1, 16).next_power_of_two(),
            Bare::Enum(info) => info.size.clamp(1, 8).next_power_of_two(),
            Bare::Pointer(_) => 8,
            Bare::Array(element, _) => self.alignment(&element, depth + 1, left)?,
            Bare::Aggregate(info) => {
                if let Some(align) = info.align {
                    return Ok(align.max(1));
                }
                let mut most = 1;
                for field in info.fields() {
                    let own = self.alignment(&field.ty.into(), depth + 1, left)?;
                    // A member of a packed struct asks for nothing.
                    if !field.offset.is_multiple_of(own) && field.bits.is_none() {
                        return Ok(1);
                    }
                    most = most.max(field.align.unwrap_or(own));
                }
                match info.size.is_multiple_of(most) {
                    true => most,
                    false => 1,
                }
            }
            _ => 1,
        })
    }
}
