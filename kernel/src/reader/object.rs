//! A structure in guest memory, with its type.

use std::fmt;
use std::rc::Rc;

use super::{MAX_TEXT, Reader, ViewError, unreadable};
use crate::addr::KernelAddr;
use crate::kernel::Corruption;
use crate::layout::{LayoutError, Place, Shape};
use crate::memory::{Memory, MemoryExt, ReadError, read_cstr_by};

/// A value in guest memory: its address and its type. Reads happen when a member is asked for.
///
/// Members are paths as [`Layout::member`](crate::Layout::member) takes them,
/// `mnt.mnt_sb` or `fds[3]`; the empty path is the object itself.
pub struct Object<'r, M> {
    reader: &'r Reader<'r, M>,
    /// The type that paths start from.
    owner: Rc<str>,
    /// How the object is reached from it: not empty for a part that has no type name of its own.
    prefix: Rc<str>,
    /// Of the `owner`.
    base: KernelAddr,
    addr: KernelAddr,
    /// What was read of it at once.
    fetched: Option<Rc<Fetched>>,
}

/// Some memory, as it was at one moment.
struct Fetched {
    addr: KernelAddr,
    bytes: Vec<u8>,
}

/// Bytes that [`Object::bytes`] reads at most.
const MAX_BYTES: u64 = 1 << 20;

impl<'r, M: Memory> Object<'r, M> {
    pub(super) fn new(reader: &'r Reader<'_, M>, owner: &str, addr: KernelAddr) -> Object<'r, M> {
        Object {
            reader,
            owner: owner.into(),
            prefix: "".into(),
            base: addr,
            addr,
            fetched: None,
        }
    }

    /// The same object, read in one go: its members come out of that one read, which is quicker
    /// and all of one moment. One that cannot be read as a whole is read member by member.
    pub fn fetched(mut self) -> Object<'r, M> {
        let size = self.place("").map_or(0, |place| place.member.size);
        if (1..=MAX_BYTES).contains(&size) {
            let bytes = self.reader.kernel.read_vec(self.addr, size as usize);
            let addr = self.addr;
            self.fetched = bytes.ok().map(|bytes| Rc::new(Fetched { addr, bytes }));
        }
        self
    }

    /// Reads memory of the object.
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let fetched = self.fetched.as_ref().and_then(|fetched| {
            let from = usize::try_from(addr - fetched.addr).ok()?;
            fetched.bytes.get(from..from.checked_add(buf.len())?)
        });
        match fetched {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => self.reader.kernel.read(addr, buf),
        }
    }

    /// Reads a pointer that is going to be followed.
    fn read_pointer(&self, addr: KernelAddr) -> Result<KernelAddr, Corruption> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)
            .map_err(|source| unreadable("pointer", source))?;
        let value = u64::from_le_bytes(bytes);
        self.reader.remember(addr, value);
        Ok(KernelAddr(value))
    }

    /// The object's address.
    pub fn addr(&self) -> KernelAddr {
        self.addr
    }

    /// The reader it belongs to.
    pub fn reader(&self) -> &'r Reader<'r, M> {
        self.reader
    }

    /// The same object `bytes` further on, as with per-CPU variables.
    pub(super) fn moved(mut self, bytes: u64) -> Object<'r, M> {
        self.base = self.base + bytes;
        self.addr = self.addr + bytes;
        self.fetched = None;
        self
    }

    /// Whether this kernel's type has the member.
    pub fn has(&self, path: &str) -> bool {
        self.place(path).is_ok()
    }

    /// The place of a member relative to the `owner`.
    fn place(&self, path: &str) -> Result<Place, LayoutError> {
        let layout = self.reader.kernel.image().layout()?;
        match (&*self.prefix, path) {
            ("", path) => layout.place(&self.owner, path),
            (prefix, "") => layout.place(&self.owner, prefix),
            (prefix, path) => {
                let dot = if path.starts_with('[') { "" } else { "." };
                layout.place(&self.owner, &format!("{prefix}{dot}{path}"))
            }
        }
    }

    /// The address and the place of a member.
    fn locate(&self, path: &str) -> Result<(KernelAddr, Place), LayoutError> {
        let place = self.place(path)?;
        Ok((self.base + place.member.offset, place))
    }

    /// The address of a member.
    ///
    /// # Errors
    ///
    /// When this kernel's type has no such member.
    pub fn addr_of(&self, path: &str) -> Result<KernelAddr, ViewError> {
        Ok(self.locate(path)?.0)
    }

    /// The size of a member in bytes.
    ///
    /// # Errors
    ///
    /// When this kernel's type has no such member.
    pub fn size_of(&self, path: &str) -> Result<u64, ViewError> {
        Ok(self.place(path)?.member.size)
    }

    /// A part of the object that has members itself.
    ///
    /// # Errors
    ///
    /// When this kernel's type has no such member.
    pub fn member(&self, path: &str) -> Result<Object<'r, M>, ViewError> {
        let (addr, place) = self.locate(path)?;
        if let Shape::Aggregate(Some(owner)) = &place.shape {
            return Ok(Object {
                fetched: self.fetched.clone(),
                ..Object::new(self.reader, owner, addr)
            });
        }
        let dot = match (&*self.prefix, path.starts_with('[')) {
            ("", _) | (_, true) => "",
            _ => ".",
        };
        Ok(Object {
            reader: self.reader,
            owner: Rc::clone(&self.owner),
            prefix: format!("{}{dot}{path}", self.prefix).into(),
            base: self.base,
            addr,
            fetched: self.fetched.clone(),
        })
    }

    /// A number that cannot be negative; of a bit-field, its bits; of a pointer, its value.
    ///
    /// # Errors
    ///
    /// When there is no such member, it is no number, or it cannot be read.
    pub fn u64(&self, path: &str) -> Result<u64, ViewError> {
        let (addr, place) = self.locate(path)?;
        let member = place.member;
        let size = match member.size {
            1..=8 if !matches!(place.shape, Shape::Aggregate(_) | Shape::Array(_)) => member.size,
            // A struct around one number, `atomic_t` or `kuid_t`.
            1..=8 if member.size.is_power_of_two() => member.size,
            _ => return Err(self.mistyped(path, "it is no number")),
        };
        let mut bytes = [0; 8];
        let unit = bytes.get_mut(..size as usize).unwrap_or_default();
        self.read(addr, unit)
            .map_err(|source| unreadable("structure", source))?;
        Ok(member.extract(u64::from_le_bytes(bytes)))
    }

    /// A number that can be negative.
    ///
    /// # Errors
    ///
    /// When there is no such member, it is no number, or it cannot be read.
    pub fn i64(&self, path: &str) -> Result<i64, ViewError> {
        let value = self.u64(path)?;
        let member = self.place(path)?.member;
        let width = match member.bits {
            Some(bits) => bits.width,
            None => member.size as u32 * 8,
        };
        let unused = 64_u32.saturating_sub(width).min(63);
        Ok(((value << unused) as i64) >> unused)
    }

    /// Whether a number is not 0.
    ///
    /// # Errors
    ///
    /// When there is no such member, it is no number, or it cannot be read.
    pub fn bool(&self, path: &str) -> Result<bool, ViewError> {
        self.u64(path).map(|value| value != 0)
    }

    /// A pointer's value, for showing it. To follow it, see [`pointer`](Object::pointer).
    ///
    /// # Errors
    ///
    /// When there is no such member, it is no number, or it cannot be read.
    pub fn addr_value(&self, path: &str) -> Result<KernelAddr, ViewError> {
        self.u64(path).map(KernelAddr)
    }

    /// A pointer's value. It is remembered: when it changes before the view is finished, the view
    /// is torn.
    ///
    /// # Errors
    ///
    /// When there is no such member, or it cannot be read.
    pub fn pointer(&self, path: &str) -> Result<KernelAddr, ViewError> {
        Ok(self.read_pointer(self.addr_of(path)?)?)
    }

    /// What a pointer points to, with the type that the pointer has; `None` for a null pointer.
    ///
    /// # Errors
    ///
    /// When there is no such member, it is no pointer to a type with a name, or it cannot be read.
    pub fn follow(&self, path: &str) -> Result<Option<Object<'r, M>>, ViewError> {
        let (addr, place) = self.locate(path)?;
        let Shape::Pointer(Some(target)) = &place.shape else {
            return Err(self.mistyped(path, "it is no pointer to a type with a name"));
        };
        let value = self.read_pointer(addr)?;
        Ok((!value.is_null()).then(|| Object::new(self.reader, target, value)))
    }

    /// As [`follow`](Object::follow), where a null pointer is corruption.
    ///
    /// # Errors
    ///
    /// As `follow`, and when the pointer is null.
    pub fn deref(&self, path: &str) -> Result<Object<'r, M>, ViewError> {
        let target = self.follow(path)?;
        target.ok_or_else(|| {
            ViewError::Corruption(Corruption::WildPointer {
                what: "pointer",
                addr: self.addr_of(path).unwrap_or(self.addr),
                value: KernelAddr(0),
            })
        })
    }

    /// A string: an array of characters, or what a pointer to characters points to (empty for a
    /// null pointer). At most 4096 bytes; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// When there is no such member, it is no string, or it cannot be read.
    pub fn text(&self, path: &str) -> Result<String, ViewError> {
        let (addr, place) = self.locate(path)?;
        let text = match place.shape {
            Shape::Array(count) => {
                // One without an end of its own: `char name[]`.
                let max = match count {
                    0 => MAX_TEXT,
                    _ => (place.member.size as usize).min(MAX_TEXT),
                };
                read_cstr_by(max, addr.get(), |at, buf| self.read(KernelAddr(at), buf))
            }
            Shape::Pointer(_) => match self.read_pointer(addr)? {
                at if at.is_null() => return Ok(String::new()),
                at => self.reader.kernel.read_cstr(at, MAX_TEXT),
            },
            _ => return Err(self.mistyped(path, "it is no string")),
        };
        Ok(text.map_err(|source| unreadable("string", source))?)
    }

    /// The bytes of a member, at most 1 MiB.
    ///
    /// # Errors
    ///
    /// When there is no such member, it is larger, or it cannot be read.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, ViewError> {
        let (addr, place) = self.locate(path)?;
        if place.member.size > MAX_BYTES {
            return Err(self.mistyped(path, "it is larger than 1 MiB"));
        }
        let mut bytes = vec![0; place.member.size as usize];
        self.read(addr, &mut bytes)
            .map_err(|source| unreadable("structure", source))?;
        Ok(bytes)
    }

    /// How many elements an array has, as its type says.
    ///
    /// # Errors
    ///
    /// When there is no such member, or it is no array.
    pub fn len(&self, path: &str) -> Result<u64, ViewError> {
        match self.place(path)?.shape {
            Shape::Array(count) => Ok(count),
            _ => Err(self.mistyped(path, "it is no array")),
        }
    }

    /// An element of an array, which the empty path may be. For an index that is only known at run
    /// time: each path that was looked up is remembered, and here it is one for all elements.
    ///
    /// # Errors
    ///
    /// When this kernel's type has no such member, it is no array, or it has fewer elements.
    pub fn element(&self, path: &str, index: u64) -> Result<Object<'r, M>, ViewError> {
        let count = self.len(path)?;
        // 0 is an array without an end of its own.
        if count != 0 && index >= count {
            return Err(self.mistyped(path, &format!("it has no element {index}")));
        }
        let first = self.member(&format!("{path}[0]"))?;
        let size = first.size_of("")?;
        Ok(first.moved(size.wrapping_mul(index)))
    }

    /// The struct of type `owner` in which this object is the member `path`: `container_of()`.
    ///
    /// # Errors
    ///
    /// When this kernel's type has no such member.
    pub fn container(&self, owner: &str, path: &str) -> Result<Object<'r, M>, ViewError> {
        let layout = self.reader.kernel.image().layout()?;
        let offset = layout.member(owner, path)?.offset;
        let base = KernelAddr(self.addr.get().wrapping_sub(offset));
        Ok(Object::new(self.reader, owner, base))
    }

    fn mistyped(&self, path: &str, reason: &str) -> ViewError {
        ViewError::Layout(LayoutError::BadPath {
            owner: self.owner.trim_start_matches('&').to_owned(),
            member: path.to_owned(),
            reason: reason.to_owned(),
        })
    }
}

impl<M> Clone for Object<'_, M> {
    fn clone(&self) -> Self {
        Object {
            reader: self.reader,
            owner: Rc::clone(&self.owner),
            prefix: Rc::clone(&self.prefix),
            base: self.base,
            addr: self.addr,
            fetched: self.fetched.clone(),
        }
    }
}

impl<M> fmt::Debug for Object<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}){}", self.owner, self.addr)
    }
}
