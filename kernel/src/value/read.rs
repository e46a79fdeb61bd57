//! Memory as values.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Location, Pointer, Style, Value};
use crate::addr::{KernelAddr, UserAddr};
use crate::kernel::Kernel;
use crate::layout::{Bare, Bits, Encoding, Field, Layout, LayoutError, Type, TypeInfo, TypeKind};
use crate::memory::Memory;
use crate::reader::{Reader, ViewError};

/// Bytes that are read at once, a page: where one byte of a page is, all of it is.
const BLOCK: u64 = 4096;

/// How deep aggregates nest at most, whatever is asked for.
const MAX_DEPTH: usize = 32;

/// Bytes of an array that are looked at, also when all its elements are the same.
const MAX_ARRAY: u64 = 1 << 20;

/// Members and elements of one value, over all levels.
const MAX_PARTS: usize = 1 << 20;

impl<M: Memory> Reader<'_, M> {
    /// The value of type `ty` at a place. What of it cannot be read is told in the value itself.
    ///
    /// # Errors
    ///
    /// When the DWARF does not know the type.
    pub fn value(&self, ty: &Type, at: Location<'_>, style: &Style) -> Result<Value, ViewError> {
        self.bits_value(ty, at, None, style)
    }

    /// As [`value`](Reader::value), of a bit-field: `bits` of the unit of type `ty`.
    ///
    /// # Errors
    ///
    /// When the DWARF does not know the type.
    pub fn bits_value(
        &self,
        ty: &Type,
        at: Location<'_>,
        bits: Option<Bits>,
        style: &Style,
    ) -> Result<Value, ViewError> {
        let layout = self.kernel().image().layout()?;
        let decoder = Decoder {
            layout,
            source: Source {
                kernel: self.kernel(),
                at,
                blocks: RefCell::default(),
            },
            style,
            parts: RefCell::new(0),
        };
        let style_depth = style.depth.min(MAX_DEPTH);
        Ok(decoder.decode(ty, 0, bits, style_depth, 0)?)
    }
}

/// Where the bytes of one value come from.
struct Source<'a, M> {
    kernel: &'a Kernel<M>,
    at: Location<'a>,
    /// By address; `None` for those that cannot be read as a whole.
    blocks: RefCell<HashMap<u64, Option<Box<[u8]>>>>,
}

impl<M: Memory> Source<'_, M> {
    /// Fills `buf` with what is `offset` bytes into the value.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), String> {
        let start = match self.at {
            Location::Bytes(bytes) | Location::UserBytes { bytes, .. } => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let found = bytes.get(from..).and_then(|rest| rest.get(..buf.len()));
                buf.copy_from_slice(found.ok_or("not all of it is known")?);
                return Ok(());
            }
            Location::Kernel(addr) => (addr + offset).get(),
            Location::User { addr, .. } => (addr + offset).get(),
        };
        let block = start / BLOCK * BLOCK;
        let within = (start - block) as usize;
        if within + buf.len() > BLOCK as usize {
            return self.read_exactly(start, buf);
        }
        let mut blocks = self.blocks.borrow_mut();
        let whole = blocks.entry(block).or_insert_with(|| {
            let mut bytes = vec![0; BLOCK as usize].into_boxed_slice();
            self.read_exactly(block, &mut bytes).ok().map(|()| bytes)
        });
        match whole
            .as_ref()
            .and_then(|bytes| bytes.get(within..within + buf.len()))
        {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => self.read_exactly(start, buf),
        }
    }

    fn read_exactly(&self, at: u64, buf: &mut [u8]) -> Result<(), String> {
        match self.at {
            Location::User { mm, .. } | Location::UserBytes { mm, .. } => self
                .kernel
                .read_user(mm, UserAddr(at), buf)
                .map_err(|error| error.to_string()),
            _ => self
                .kernel
                .read(KernelAddr(at), buf)
                .map_err(|_| format!("no memory at {at:#x}")),
        }
    }

    /// The bytes of a string that a pointer of this value points to, up to a NUL or `max`.
    fn text_at(&self, addr: u64, max: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < max {
            let at = addr.checked_add(bytes.len() as u64)?;
            let to_end = BLOCK - at % BLOCK;
            let mut buf = [0; 256];
            let len = (max - bytes.len()).min(to_end.min(256) as usize);
            let buf = &mut buf[..len];
            self.read_exactly(at, buf).ok()?;
            let end = buf.iter().position(|&byte| byte == 0);
            bytes.extend_from_slice(buf.get(..end.unwrap_or(len))?);
            if end.is_some() {
                break;
            }
        }
        Some(bytes)
    }
}

struct Decoder<'a, M> {
    layout: &'a Layout,
    source: Source<'a, M>,
    style: &'a Style,
    parts: RefCell<usize>,
}

impl<M: Memory> Decoder<'_, M> {
    /// The value `offset` bytes into the whole. `depth` more levels of aggregates are opened;
    /// `level` counts all of them, also anonymous ones.
    fn decode(
        &self,
        ty: &Type,
        offset: u64,
        bits: Option<Bits>,
        depth: usize,
        level: usize,
    ) -> Result<Value, LayoutError> {
        *self.parts.borrow_mut() += 1;
        if level > MAX_DEPTH * 2 || *self.parts.borrow() > MAX_PARTS {
            return Ok(Value::Elided);
        }
        if !self.style.raw
            && let Some(value) = self.special(ty, offset, depth, level)?
        {
            return Ok(value);
        }
        let bare = self.layout.bare(ty)?;
        Ok(match bare {
            Bare::Void => Value::Void,
            Bare::Base(encoding, size) => self.number(encoding, size, offset, bits),
            Bare::Enum(info) => self.enumerator(&info, offset, bits),
            Bare::Pointer(target) => match self.word(8, offset, None) {
                Ok(addr) => Value::Pointer(self.pointer(addr, &target)?),
                Err(why) => Value::Unreadable(why),
            },
            Bare::Array(element, count) => self.array(&element, count, offset, depth, level)?,
            Bare::Aggregate(info) => match info.kind {
                TypeKind::Incomplete(_) => {
                    Value::Unreadable("this kernel does not define its type".to_owned())
                }
                _ if depth == 0 => Value::Elided,
                _ => self.members(&info, offset, depth - 1, level)?,
            },
            Bare::Function(_) => match self.source.at {
                Location::Kernel(addr) => Value::Function(self.symbolic((addr + offset).get())),
                _ => Value::Unreadable("a function has no value".to_owned()),
            },
            Bare::Other => Value::Unreadable("its type is unknown".to_owned()),
        })
    }

    /// At most 8 bytes as a number.
    fn word(&self, size: u64, offset: u64, bits: Option<Bits>) -> Result<u64, String> {
        let mut bytes = [0; 8];
        let unit = bytes.get_mut(..size as usize).ok_or("it is no number")?;
        self.source.read(offset, unit)?;
        let unit = u64::from_le_bytes(bytes);
        Ok(match bits {
            Some(bits) => bits.extract(unit),
            None => unit,
        })
    }

    fn number(&self, encoding: Encoding, size: u64, offset: u64, bits: Option<Bits>) -> Value {
        if size > 8 {
            let mut bytes = vec![0; size.min(64) as usize];
            return match self.source.read(offset, &mut bytes) {
                Ok(()) => Value::Wide(bytes),
                Err(why) => Value::Unreadable(why),
            };
        }
        let word = match self.word(size, offset, bits) {
            Ok(word) => word,
            Err(why) => return Value::Unreadable(why),
        };
        let width = bits.map_or(size * 8, |bits| u64::from(bits.width));
        let signed = sign_extend(word, width);
        match encoding {
            Encoding::Signed | Encoding::Unsigned | Encoding::Byte if self.style.hex => {
                Value::Hex(word)
            }
            Encoding::Signed => Value::Signed(signed),
            Encoding::Char { signed: true } if bits.is_none() => Value::Char(signed),
            Encoding::Char { signed: false } if bits.is_none() => Value::Char(word as i64),
            Encoding::Char { signed: true } => Value::Signed(signed),
            Encoding::Bool => Value::Bool(word != 0),
            Encoding::Float if size == 4 => Value::Float(f32::from_bits(word as u32).into()),
            Encoding::Float if size == 8 => Value::Float(f64::from_bits(word)),
            _ => Value::Unsigned(word),
        }
    }

    fn enumerator(&self, info: &TypeInfo, offset: u64, bits: Option<Bits>) -> Value {
        let word = match self.word(info.size, offset, bits) {
            Ok(word) => word,
            Err(why) => return Value::Unreadable(why),
        };
        let TypeKind::Enum {
            signed,
            enumerators,
        } = &info.kind
        else {
            return Value::Unsigned(word);
        };
        let width = bits.map_or(info.size * 8, |bits| u64::from(bits.width));
        let number = match signed {
            true => i128::from(sign_extend(word, width)),
            false => i128::from(word),
        };
        let of = |value: i64| match signed {
            true => i128::from(value),
            false => i128::from(value as u64),
        };
        let found = enumerators.iter().find(|one| of(one.value) == number);
        Value::Enum {
            name: found.map(|one| one.name.clone()),
            value: number,
        }
    }

    /// An address and the symbol there.
    fn symbolic(&self, addr: u64) -> Pointer {
        let image = self.source.kernel.image();
        // A process's addresses mean nothing to the kernel.
        let symbol = match self.source.at {
            Location::User { .. } | Location::UserBytes { .. } => None,
            _ => image.symbol_at(KernelAddr(addr)),
        };
        // What is behind a label that has no length need not belong to it.
        let symbol = symbol.filter(|&(name, offset)| {
            let start = KernelAddr(addr) - offset;
            let mut of_that_name = image.symbols_named(name);
            offset == 0 || of_that_name.any(|symbol| symbol.addr == start && symbol.size > offset)
        });
        Pointer {
            addr,
            symbol: symbol.map(|(name, offset)| (name.to_owned(), offset)),
            text: None,
        }
    }

    fn pointer(&self, addr: u64, target: &Type) -> Result<Pointer, LayoutError> {
        let mut pointer = self.symbolic(addr);
        if addr == 0 {
            return Ok(pointer);
        }
        if let Bare::Base(encoding @ (Encoding::Char { .. } | Encoding::Byte), 1) =
            self.layout.bare(target)?
        {
            let max = self.style.text;
            let text = self.source.text_at(addr, max);
            // Bytes are more often no text than text.
            let fits = |bytes: &Vec<u8>| encoding != Encoding::Byte || is_text(bytes);
            pointer.text = text.filter(fits).map(|bytes| {
                let cut = bytes.len() >= max;
                (String::from_utf8_lossy(&bytes).into_owned(), cut)
            });
        }
        Ok(pointer)
    }

    fn members(
        &self,
        info: &TypeInfo,
        offset: u64,
        depth: usize,
        level: usize,
    ) -> Result<Value, LayoutError> {
        let mut members = Vec::new();
        for field in info.fields() {
            members.push((
                field.name.clone(),
                self.member(field, offset, depth, level)?,
            ));
        }
        // What is not there at all is said once.
        let mut reasons = members.iter().filter_map(|(_, value)| match value {
            Value::Unreadable(why) => Some(why),
            _ => None,
        });
        match reasons.next() {
            Some(why) if members.iter().all(|(_, value)| says_nothing(value)) => {
                Ok(Value::Unreadable(why.clone()))
            }
            _ => Ok(Value::Struct(members)),
        }
    }

    fn member(
        &self,
        field: &Field,
        offset: u64,
        depth: usize,
        level: usize,
    ) -> Result<Value, LayoutError> {
        let at = offset.saturating_add(field.offset);
        // An anonymous member is no level of its own.
        let depth = depth + usize::from(field.name.is_none());
        let Some(bits) = field.bits else {
            return self.decode(&field.ty.into(), at, None, depth, level + 1);
        };
        let bare = self.layout.bare(&field.ty.into())?;
        Ok(match bare {
            // The unit may be smaller than the type in a packed struct.
            Bare::Base(encoding, _) => self.number(encoding, field.size, at, Some(bits)),
            Bare::Enum(info) => self.enumerator(&info, at, Some(bits)),
            _ => Value::Unreadable("a bit-field that is no number".to_owned()),
        })
    }

    fn array(
        &self,
        element: &Type,
        count: Option<u64>,
        offset: u64,
        depth: usize,
        level: usize,
    ) -> Result<Value, LayoutError> {
        let count = count.unwrap_or(0);
        let size = self.layout.size(element)?;
        if let Bare::Base(encoding @ (Encoding::Char { .. } | Encoding::Byte), 1) =
            self.layout.bare(element)?
            && count > 0
            && let Some(text) = self.characters(encoding, count, offset)
        {
            return Ok(text);
        }
        // An array of structs is opened with its structs.
        if depth == 0 && matches!(self.layout.bare(element)?, Bare::Aggregate(_)) {
            return Ok(Value::Elided);
        }
        let mut elements: Vec<(Value, u64)> = Vec::new();
        let mut last: Option<Vec<u8>> = None;
        let mut more = count;
        let most = match size {
            0 => self.style.elements as u64,
            size => (MAX_ARRAY / size).max(1),
        };
        for index in 0..count.min(most) {
            let at = offset.saturating_add(index.saturating_mul(size));
            let mut bytes = vec![0; size.min(MAX_ARRAY) as usize];
            let is_whole = size <= MAX_ARRAY && self.source.read(at, &mut bytes).is_ok();
            let bytes = is_whole.then_some(bytes);
            // Nothing is remembered of what cannot be read.
            if let (Some(bytes), Some(before), Some((_, times))) =
                (&bytes, &last, elements.last_mut())
                && bytes == before
            {
                *times += 1;
                more -= 1;
                continue;
            }
            if elements.len() >= self.style.elements {
                break;
            }
            let value = self.decode(element, at, None, depth, level + 1)?;
            match elements.last_mut() {
                Some((before, times))
                    if matches!(value, Value::Unreadable(_)) && is_same(before, &value) =>
                {
                    *times += 1;
                }
                _ => elements.push((value, 1)),
            }
            last = bytes;
            more -= 1;
        }
        Ok(Value::Array { elements, more })
    }

    /// An array of characters as text, if it is text.
    fn characters(&self, encoding: Encoding, count: u64, offset: u64) -> Option<Value> {
        let len = count.min(self.style.text as u64) as usize;
        let mut bytes = vec![0; len];
        self.source.read(offset, &mut bytes).ok()?;
        let end = bytes.iter().position(|&byte| byte == 0);
        let cut = end.is_none() && count > len as u64;
        let text = bytes.get(..end.unwrap_or(len))?;
        if encoding == Encoding::Byte {
            // A name in bytes, with nothing after it; anything else is numbers.
            let rest = bytes.get(text.len()..)?;
            let is_name = !text.is_empty() && is_text(text) && rest.iter().all(|&byte| byte == 0);
            if !is_name || count > len as u64 {
                return None;
            }
        }
        Some(Value::Text {
            text: String::from_utf8_lossy(text).into_owned(),
            cut,
        })
    }

    /// Types that mean something else than they look like.
    fn special(
        &self,
        ty: &Type,
        offset: u64,
        depth: usize,
        level: usize,
    ) -> Result<Option<Value>, LayoutError> {
        let Type::Known(id) = ty else {
            return Ok(None);
        };
        let info = self.layout.type_info(*id)?;
        match (&info.kind, info.name.as_deref()) {
            (TypeKind::Typedef(_), _) | (TypeKind::Struct(_), Some("refcount_struct" | "kref")) => {
                self.wrapped(ty, offset, level)
            }
            (TypeKind::Struct(_), Some("list_head")) => {
                let Location::Kernel(base) = self.source.at else {
                    return Ok(None);
                };
                let next = self.word(8, offset, None);
                let is_empty = next == Ok((base + offset).get());
                self.empty(is_empty, &info, offset, depth, level)
            }
            (TypeKind::Struct(_), Some("hlist_head")) => {
                let is_empty = self.word(8, offset, None) == Ok(0);
                self.empty(is_empty, &info, offset, depth, level)
            }
            _ => Ok(None),
        }
    }

    fn empty(
        &self,
        is_empty: bool,
        info: &Arc<TypeInfo>,
        offset: u64,
        depth: usize,
        level: usize,
    ) -> Result<Option<Value>, LayoutError> {
        if !is_empty {
            return Ok(None);
        }
        Ok(Some(Value::Noted {
            note: "empty list",
            value: Box::new(self.members(info, offset, depth, level)?),
        }))
    }

    /// The number in a `typedef struct { int counter; } atomic_t`: such types only keep numbers
    /// from being mixed up.
    fn wrapped(&self, ty: &Type, offset: u64, level: usize) -> Result<Option<Value>, LayoutError> {
        let mut ty = ty.clone();
        let mut is_wrapped = false;
        for _ in 0..8 {
            match self.layout.bare(&ty)? {
                Bare::Aggregate(info) => match info.fields() {
                    [only] if only.offset == 0 && only.bits.is_none() && only.name.is_some() => {
                        ty = only.ty.into();
                        is_wrapped = true;
                    }
                    _ => return Ok(None),
                },
                Bare::Base(..) if is_wrapped => {
                    return self.decode(&ty, offset, None, 0, level + 1).map(Some);
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

fn sign_extend(word: u64, width: u64) -> i64 {
    let unused = 64_u64.saturating_sub(width).min(63);
    ((word << unused) as i64) >> unused
}

/// Whether bytes are printable characters, and not none.
fn is_text(bytes: &[u8]) -> bool {
    let text = std::str::from_utf8(bytes);
    text.is_ok_and(|text| !text.is_empty() && !text.chars().any(char::is_control))
}

fn is_same(one: &Value, other: &Value) -> bool {
    matches!((one, other), (Value::Unreadable(_), Value::Unreadable(_)))
}

/// Whether there is nothing in a value that was read.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Unreadable(_) | Value::Elided => true,
        Value::Struct(members) => members.is_empty(),
        Value::Array { elements, more } => elements.is_empty() && *more == 0,
        _ => false,
    }
}
