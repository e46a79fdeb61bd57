//! Arithmetic as C does it.

use crate::layout::Type;

/// A number's type after C's promotions: at least `int`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Width {
    pub(super) signed: bool,
    /// 4 or 8.
    pub(super) bytes: u64,
}

impl Width {
    pub(super) const INT: Width = Width {
        signed: true,
        bytes: 4,
    };

    /// The type that two operands have in common.
    pub(super) fn common(self, other: Width) -> Width {
        let bytes = self.bytes.max(other.bytes);
        // An unsigned type yields to a larger one only.
        let unsigned = |width: Width| !width.signed && width.bytes == bytes;
        Width {
            signed: !unsigned(self) && !unsigned(other),
            bytes,
        }
    }

    pub(super) fn ty(self) -> Type {
        Type::Integer {
            signed: self.signed,
            bytes: self.bytes,
        }
    }

    /// A value as a number of this type, extended to 64 bits.
    pub(super) fn fit(self, value: u64) -> u64 {
        fit(value, self.bytes, self.signed)
    }
}

/// The lowest bytes of a value, extended to 64 bits.
pub(super) fn fit(value: u64, bytes: u64, signed: bool) -> u64 {
    let unused = 64_u64.saturating_sub(bytes.saturating_mul(8)).min(63);
    match signed {
        true => ((value << unused) as i64 >> unused) as u64,
        false => value << unused >> unused,
    }
}

/// What a binary operator makes of two numbers of one type (of a shift, of any types), and the
/// type of that.
pub(super) fn binary(
    operator: &str,
    left: u64,
    right: u64,
    width: Width,
) -> Result<(u64, Width), &'static str> {
    let (signed_left, signed_right) = (left as i64, right as i64);
    let truth = |truth: bool| Ok((u64::from(truth), Width::INT));
    let value = match operator {
        "+" => left.wrapping_add(right),
        "-" => left.wrapping_sub(right),
        "*" => left.wrapping_mul(right),
        "/" | "%" if right == 0 => return Err("this divides by zero"),
        "/" if width.signed => signed_left.wrapping_div(signed_right) as u64,
        "/" => left.wrapping_div(right),
        "%" if width.signed => signed_left.wrapping_rem(signed_right) as u64,
        "%" => left.wrapping_rem(right),
        "&" => left & right,
        "|" => left | right,
        "^" => left ^ right,
        "<<" | ">>" if right >= width.bytes * 8 => {
            return Err("this shifts by more bits than there are");
        }
        // The number of bits is less than 64.
        "<<" => left << right,
        ">>" if width.signed => (signed_left >> right) as u64,
        ">>" => left >> right,
        "==" => return truth(left == right),
        "!=" => return truth(left != right),
        "<" if width.signed => return truth(signed_left < signed_right),
        "<" => return truth(left < right),
        ">" if width.signed => return truth(signed_left > signed_right),
        ">" => return truth(left > right),
        "<=" if width.signed => return truth(signed_left <= signed_right),
        "<=" => return truth(left <= right),
        ">=" if width.signed => return truth(signed_left >= signed_right),
        ">=" => return truth(left >= right),
        _ => return Err("this operator is not known"),
    };
    Ok((width.fit(value), width))
}
