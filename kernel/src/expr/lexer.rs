//! Expressions as tokens.

use super::{ExprError, Span};

/// Bytes of the longest expression.
const MAX_LEN: usize = 4096;

/// One word of an expression, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// `init_task`, `struct`, `sizeof`.
    Name(String),
    /// `$task`, without the dollar sign.
    Dollar(String),
    /// What stands before `::`: a file or a function. The `::` is part of it.
    Scope(String),
    /// A number and the type that C gives it.
    Number {
        value: u64,
        signed: bool,
        bytes: u64,
    },
    /// An operator or a bracket.
    Punct(&'static str),
    /// The end.
    End,
}

/// The longer ones first.
const PUNCTS: [&str; 32] = [
    "->", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "(", ")", "[", "]", ".", ",", "+", "-",
    "*", "/", "%", "&", "|", "^", "~", "!", "<", ">", "=", "?", ":", "{", "}",
];

pub(super) fn lex(text: &str) -> Result<Vec<Token>, ExprError> {
    if text.len() > MAX_LEN {
        let message = format!("the expression is longer than {MAX_LEN} bytes");
        return Err(ExprError::new(text, Span::at(0), message));
    }
    let mut tokens = Vec::new();
    let mut at = 0;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let Some(c) = rest.chars().next() else {
            break;
        };
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        let (kind, len) = token(rest).map_err(|(len, message)| {
            let span = Span {
                start: at,
                end: at + len,
            };
            ExprError::new(text, span, message)
        })?;
        let span = Span {
            start: at,
            end: at + len,
        };
        tokens.push(Token { kind, span });
        at += len;
    }
    tokens.push(Token {
        kind: TokenKind::End,
        span: Span::at(text.len()),
    });
    Ok(tokens)
}

/// The token at the start of `text`, and its length in bytes; or how much is wrong, and why.
fn token(text: &str) -> Result<(TokenKind, usize), (usize, String)> {
    if let Some(found) = scope(text) {
        return Ok(found);
    }
    let first = text.bytes().next().unwrap_or_default();
    match first {
        b'0'..=b'9' => return number(text),
        b'\'' => return character(text),
        b'"' => return Err((1, "there are no strings here".to_owned())),
        b'$' => {
            let name = word(text.get(1..).unwrap_or_default());
            if name.is_empty() {
                return Err((1, "a `$` without a name".to_owned()));
            }
            return Ok((TokenKind::Dollar(name.to_owned()), name.len() + 1));
        }
        _ => {}
    }
    let name = word(text);
    if !name.is_empty() {
        return Ok((TokenKind::Name(name.to_owned()), name.len()));
    }
    if let Some(punct) = PUNCTS.iter().find(|punct| text.starts_with(**punct)) {
        return Ok((TokenKind::Punct(punct), punct.len()));
    }
    let c = text.chars().next().unwrap_or_default();
    Err((
        c.len_utf8(),
        format!("`{}` means nothing here", c.escape_debug()),
    ))
}

/// The identifier at the start of `text`; empty when there is none.
fn word(text: &str) -> &str {
    let is_part = |c: char| c == '_' || c.is_ascii_alphanumeric();
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    match text.starts_with(|c: char| c.is_ascii_digit()) {
        true => "",
        false => text.get(..end).unwrap_or_default(),
    }
}

/// `kernel/sched/core.c::`, `page-writeback.c::`, `'page-writeback.c'::` or `function::`.
fn scope(text: &str) -> Option<(TokenKind, usize)> {
    let (name, len) = match text.strip_prefix('\'') {
        Some(quoted) => {
            let (name, _) = quoted.split_once('\'')?;
            (name, name.len() + 2)
        }
        None => {
            let is_part = |c: char| c.is_ascii_alphanumeric() || "_./-+".contains(c);
            let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
            let name = text.get(..end)?;
            let starts_well = name.starts_with(|c: char| c == '_' || c.is_ascii_alphanumeric());
            if !starts_well {
                return None;
            }
            (name, name.len())
        }
    };
    let after = text.get(len..)?;
    let is_scope = after.starts_with("::") && !name.is_empty();
    is_scope.then(|| (TokenKind::Scope(name.to_owned()), len + 2))
}

fn number(text: &str) -> Result<(TokenKind, usize), (usize, String)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let len = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let whole = text.get(..len).unwrap_or_default();
    let wrong = |why: &str| (len, format!("`{whole}` {why}"));
    let lower = whole.to_ascii_lowercase();
    let (radix, digits) = if let Some(digits) = lower.strip_prefix("0x") {
        (16, digits)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (2, digits)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, lower.as_str())
    } else {
        (10, lower.as_str())
    };
    let digits_end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    let (digits, suffix) = digits.split_at(digits_end);
    let (unsigned, long) = match suffix {
        "" => (false, false),
        "u" => (true, false),
        "l" | "ll" => (false, true),
        "ul" | "ull" | "lu" | "llu" => (true, true),
        _ => return Err(wrong("is no number")),
    };
    if digits.is_empty() {
        return Err(wrong("is no number"));
    }
    let value = u64::from_str_radix(digits, radix).map_err(|_| wrong("is beyond 64 bits"))?;
    // The first of int, unsigned int, long and unsigned long that has room; a decimal number
    // without `u` is never unsigned, except where nothing else has room.
    let may_be_unsigned = unsigned || radix != 10;
    let (signed, bytes) = if !long && !unsigned && i32::try_from(value).is_ok() {
        (true, 4)
    } else if !long && may_be_unsigned && u32::try_from(value).is_ok() {
        (false, 4)
    } else if !unsigned && i64::try_from(value).is_ok() {
        (true, 8)
    } else {
        (false, 8)
    };
    let kind = TokenKind::Number {
        value,
        signed,
        bytes,
    };
    Ok((kind, len))
}

/// `'A'` or `'\n'`.
fn character(text: &str) -> Result<(TokenKind, usize), (usize, String)> {
    let wrong = || (1, "this `'` begins no character such as 'A'".to_owned());
    let mut chars = text.chars().skip(1);
    let mut len = 2;
    let mut c = chars.next().ok_or_else(wrong)?;
    if c == '\\' {
        c = match chars.next().ok_or_else(wrong)? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '0' => '\0',
            c @ ('\\' | '\'' | '"') => c,
            _ => return Err((3, "this escape is not known".to_owned())),
        };
        len += 1;
    }
    if !c.is_ascii() || chars.next() != Some('\'') {
        return Err(wrong());
    }
    let kind = TokenKind::Number {
        value: u64::from(u32::from(c)),
        signed: true,
        bytes: 4,
    };
    Ok((kind, len + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<TokenKind> {
        let mut tokens = lex(text).expect("tokens");
        assert_eq!(tokens.pop().map(|token| token.kind), Some(TokenKind::End));
        tokens.into_iter().map(|token| token.kind).collect()
    }

    #[test]
    fn numbers_have_the_types_of_c() {
        for (text, value, signed, bytes) in [
            ("0", 0, true, 4),
            ("2147483647", 0x7fff_ffff, true, 4),
            ("2147483648", 0x8000_0000, true, 8),
            ("0x80000000", 0x8000_0000, false, 4),
            ("0xffffffff80000000", 0xffff_ffff_8000_0000, false, 8),
            ("5u", 5, false, 4),
            ("5L", 5, true, 8),
            ("5uLL", 5, false, 8),
            ("017", 15, true, 4),
            ("0b101", 5, true, 4),
            ("'A'", 65, true, 4),
            ("'\\n'", 10, true, 4),
        ] {
            let number = TokenKind::Number {
                value,
                signed,
                bytes,
            };
            assert_eq!(kinds(text), [number], "{text}");
        }
        for text in ["0x", "12abc", "099", "18446744073709551616", "'ab'", "'"] {
            assert!(lex(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_are_told_from_arithmetic() {
        use TokenKind::{Name, Punct, Scope};
        let name = |name: &str| Name(name.to_owned());
        assert_eq!(
            kinds("kernel/sched/core.c::runqueues"),
            [Scope("kernel/sched/core.c".to_owned()), name("runqueues")]
        );
        assert_eq!(
            kinds("'mm/page-writeback.c'::x.y"),
            [
                Scope("mm/page-writeback.c".to_owned()),
                name("x"),
                Punct("."),
                name("y")
            ]
        );
        assert_eq!(
            kinds("a/b.c - d"),
            [
                name("a"),
                Punct("/"),
                name("b"),
                Punct("."),
                name("c"),
                Punct("-"),
                name("d")
            ]
        );
        assert_eq!(kinds("f::v"), [Scope("f".to_owned()), name("v")]);
        assert_eq!(
            kinds("a->b<<1"),
            [
                name("a"),
                Punct("->"),
                name("b"),
                Punct("<<"),
                TokenKind::Number {
                    value: 1,
                    signed: true,
                    bytes: 4
                }
            ]
        );
    }
}
