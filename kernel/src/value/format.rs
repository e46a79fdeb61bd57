//! Values as text.

use std::fmt::{self, Write};

use super::{Pointer, Value};
use crate::table::printable;

/// Columns of a line.
const WIDTH: usize = 100;

/// How often an element comes in a row before that is told in words.
const REPEATS: u64 = 8;

impl fmt::Display for Value {
    /// One line; with `#`, as many as it takes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match f.alternate() {
            true => f.write_str(&pretty(self, 0, 0)),
            false => f.write_str(&flat(self)),
        }
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.addr == 0 {
            return f.write_str("NULL");
        }
        write!(f, "{:#x}", self.addr)?;
        match &self.symbol {
            Some((name, 0)) => write!(f, " <{name}>")?,
            Some((name, offset)) => write!(f, " <{name}+{offset}>")?,
            None => {}
        }
        match &self.text {
            Some((text, cut)) => write!(f, " {}", quoted(text, *cut)),
            None => Ok(()),
        }
    }
}

/// A string as C writes it, and `...` after one that goes on.
fn quoted(text: &str, cut: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    let dots = if cut { "..." } else { "" };
    format!("\"{}\"{dots}", printable(&text))
}

fn flat(value: &Value) -> String {
    match value {
        Value::Void => "void".to_owned(),
        Value::Unsigned(number) => number.to_string(),
        Value::Hex(number) => format!("{number:#x}"),
        Value::Signed(number) => number.to_string(),
        Value::Wide(bytes) => bytes.iter().rev().fold("0x".to_owned(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        }),
        Value::Bool(truth) => truth.to_string(),
        Value::Char(code) => match u8::try_from(*code).map(char::from) {
            Ok(c) if c == '\'' || c == '\\' => format!("{code} '\\{c}'"),
            Ok(c) if c.is_ascii_graphic() || c == ' ' => format!("{code} '{c}'"),
            _ => code.to_string(),
        },
        Value::Float(number) => number.to_string(),
        Value::Enum {
            name: Some(name), ..
        } => name.clone(),
        Value::Enum { value, .. } => value.to_string(),
        Value::Pointer(pointer) => pointer.to_string(),
        Value::Text { text, cut } => quoted(text, *cut),
        Value::Struct(members) => {
            let members = members.iter().map(|(name, value)| match name {
                Some(name) => format!("{name} = {}", flat(value)),
                None => flat(value),
            });
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        Value::Array { elements, more } => {
            let elements = listed(elements, *more).into_iter().map(|(_, text)| text);
            format!("{{{}}}", elements.collect::<Vec<_>>().join(", "))
        }
        Value::Function(pointer) => format!("{{function}} {pointer}"),
        Value::Noted { note, .. } => format!("<{note}>"),
        Value::Elided => "{...}".to_owned(),
        Value::Unreadable(why) => format!("<unreadable: {}>", printable(why)),
    }
}

/// The elements of an array, each with its index: repeated ones once, and what is left out.
fn listed(elements: &[(Value, u64)], more: u64) -> Vec<(u64, String)> {
    expanded(elements, more, flat)
}

fn expanded(
    elements: &[(Value, u64)],
    more: u64,
    text: impl Fn(&Value) -> String,
) -> Vec<(u64, String)> {
    let mut lines = Vec::new();
    let mut index = 0_u64;
    for (value, times) in elements {
        let text = text(value);
        if *times >= REPEATS {
            lines.push((index, format!("{text} <repeats {times} times>")));
        } else {
            lines.extend((0..*times).map(|nth| (index.saturating_add(nth), text.clone())));
        }
        index = index.saturating_add(*times);
    }
    if more > 0 {
        lines.push((index, format!("... <{more} more>")));
    }
    lines
}

/// A value whose first line is behind `before` columns, in a block that is indented by `indent`.
fn pretty(value: &Value, indent: usize, before: usize) -> String {
    let line = flat(value);
    if indent + before + line.chars().count() <= WIDTH {
        return line;
    }
    let inner = indent + 2;
    let margin = " ".repeat(inner);
    let close = format!("\n{}}}", " ".repeat(indent));
    match value {
        Value::Struct(members) => {
            let members = members.iter().map(|(name, value)| match name {
                Some(name) => {
                    let name = format!("{name} = ");
                    let value = pretty(value, inner, name.chars().count());
                    format!("{margin}{name}{value}")
                }
                None => format!("{margin}{}", pretty(value, inner, 0)),
            });
            format!("{{\n{}{close}", members.collect::<Vec<_>>().join(",\n"))
        }
        Value::Array { elements, more } if elements.iter().any(|(one, _)| one.is_aggregate()) => {
            // Wide enough for the index of any element that is shown.
            let lines = expanded(elements, *more, |value| pretty(value, inner, 8));
            let lines = lines
                .into_iter()
                .map(|(index, text)| match text.starts_with("...") {
                    true => format!("{margin}{text}"),
                    false => format!("{margin}[{index}] = {text}"),
                });
            format!("{{\n{}{close}", lines.collect::<Vec<_>>().join(",\n"))
        }
        Value::Array { elements, more } => {
            let mut text = String::from("{\n");
            let mut column = 0;
            for (_, element) in listed(elements, *more) {
                let len = element.chars().count() + 2;
                if column == 0 || column + len > WIDTH {
                    text.push_str(if column == 0 { "" } else { ",\n" });
                    text.push_str(&margin);
                    column = inner;
                } else {
                    text.push_str(", ");
                }
                text.push_str(&element);
                column += len;
            }
            text + &close
        }
        _ => line,
    }
}
