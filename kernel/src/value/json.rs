//! Values as JSON.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::{Pointer, Value};
use crate::addr::KernelAddr;

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Void => serializer.serialize_none(),
            Value::Unsigned(number) | Value::Hex(number) => serializer.serialize_u64(*number),
            Value::Signed(number) | Value::Char(number) => serializer.serialize_i64(*number),
            Value::Wide(_) => serializer.collect_str(self),
            Value::Bool(truth) => serializer.serialize_bool(*truth),
            Value::Float(number) => serializer.serialize_f64(*number),
            Value::Enum { name, value } => match name {
                Some(name) => serializer.serialize_str(name),
                None => match i64::try_from(*value) {
                    Ok(value) => serializer.serialize_i64(value),
                    Err(_) => serializer.serialize_u64(*value as u64),
                },
            },
            Value::Pointer(pointer) | Value::Function(pointer) => pointer.serialize(serializer),
            Value::Text { text, .. } => serializer.serialize_str(text),
            Value::Struct(members) => {
                let mut map = serializer.serialize_map(None)?;
                members_of(&mut map, members)?;
                map.end()
            }
            Value::Array { elements, .. } => {
                let mut seq = serializer.serialize_seq(None)?;
                for (value, times) in elements {
                    for _ in 0..*times {
                        seq.serialize_element(value)?;
                    }
                }
                seq.end()
            }
            Value::Noted { value, .. } => value.serialize(serializer),
            Value::Elided => serializer.serialize_str("..."),
            Value::Unreadable(why) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("unreadable", why)?;
                map.end()
            }
        }
    }
}

/// The members of a struct, those of anonymous members among them.
fn members_of<S: SerializeMap>(
    map: &mut S,
    members: &[(Option<String>, Value)],
) -> Result<(), S::Error> {
    for (name, value) in members {
        match (name, value) {
            (Some(name), value) => map.serialize_entry(name, value)?,
            (None, Value::Struct(members)) => members_of(map, members)?,
            (None, _) => {}
        }
    }
    Ok(())
}

impl Serialize for Pointer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.addr == 0 {
            return serializer.serialize_none();
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("addr", &KernelAddr(self.addr))?;
        if let Some((name, offset)) = &self.symbol {
            map.serialize_entry("symbol", name)?;
            map.serialize_entry("offset", offset)?;
        }
        if let Some((text, _)) = &self.text {
            map.serialize_entry("text", text)?;
        }
        map.end()
    }
}
