//! The value of an expression, as gdb's print shows it.

use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::addr::{GuestPid, KernelAddr, UserAddr};
use crate::expr::{Context, Evaluator, Number, Operand, Place, Space};
use crate::layout::{Bare, Layout, LayoutError, Type};
use crate::memory::Memory;
use crate::reader::{Reader, ViewError};
use crate::value::{Location, Style, Value};

/// What an expression is, and how it is to be printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrintOptions {
    /// The type to read where the expression points to.
    pub ty: Option<String>,
    /// The task that `current` is, if not the one that runs on CPU 0.
    pub pid: Option<GuestPid>,
    /// How much is printed; `elements` also bounds lists.
    pub style: Style,
}

/// The value of an expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Printed {
    /// Its type, as C spells it; of a list, that of its elements.
    pub ty: String,
    /// Where it is: of the kernel's memory or, for `user()`, the process's.
    pub addr: Option<KernelAddr>,
    /// What it is.
    pub content: Content,
    /// Whether the type is to be told before the value: a pointer alone says little.
    tell_type: bool,
    /// What else can be asked.
    hint: Option<String>,
}

/// One value or several.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A value.
    One(Value),
    /// The elements of a list, and whether there are more than were to be visited.
    List {
        /// In the order of the list.
        elements: Vec<Printed>,
        /// Whether there are more.
        more: bool,
    },
}

impl<M: Memory> Reader<'_, M> {
    /// Evaluates an expression and reads its value. What the language is, `kscope print --help`
    /// tells.
    ///
    /// # Errors
    ///
    /// What is wrong with the expression, or with memory on the way to the value. What of the
    /// value cannot be read is told in its place.
    pub fn print(&self, text: &str, options: &PrintOptions) -> Result<Printed, ViewError> {
        let context = Context {
            current: options.pid,
            limit: options.style.elements,
        };
        let evaluator = Evaluator::new(self, text, context)?;
        let operand = match &options.ty {
            Some(ty) => evaluator.evaluate_as(ty)?,
            None => evaluator.evaluate()?,
        };
        let layout = self.kernel().image().layout()?;
        let printer = Printer {
            reader: self,
            layout,
            evaluator: &evaluator,
            style: &options.style,
        };
        printer.operand(operand)
    }
}

struct Printer<'a, 'r, M> {
    reader: &'a Reader<'r, M>,
    layout: &'a Layout,
    evaluator: &'a Evaluator<'a, M>,
    style: &'a Style,
}

impl<M: Memory> Printer<'_, '_, M> {
    fn operand(&self, operand: Operand) -> Result<Printed, ViewError> {
        match operand {
            Operand::Place(place) => {
                let elements = match self.style.raw {
                    true => None,
                    false => self.evaluator.elements_of(&place)?,
                };
                match elements {
                    Some(list) => self.operand(list),
                    None => self.place(&place),
                }
            }
            Operand::Number(number) => self.number(&number),
            Operand::List { items, more } => self.list(items, more),
        }
    }

    fn place(&self, place: &Place) -> Result<Printed, ViewError> {
        let at = match place.space {
            Space::Kernel => Location::Kernel(KernelAddr(place.addr)),
            Space::Process(mm) => Location::User {
                mm,
                addr: UserAddr(place.addr),
            },
        };
        if self.layout.bare(&place.ty)? == Bare::Void {
            return Err(ViewError::Invalid(format!(
                "the kernel's DWARF does not tell what type is at {:#x}: cast it, *(TYPE *)&NAME, \
                 or use --type",
                place.addr
            )));
        }
        let value = match place.bits {
            Some((bits, _)) => self
                .reader
                .bits_value(&place.ty, at, Some(bits), self.style)?,
            None => self.reader.value(&place.ty, at, self.style)?,
        };
        let is_list = !self.style.raw && self.evaluator.is_list(place);
        let is_empty = matches!(value, Value::Noted { .. });
        Ok(Printed {
            ty: self.layout.spell(&place.ty)?,
            addr: Some(KernelAddr(place.addr)),
            tell_type: self.is_bare_pointer(&place.ty, &value)?,
            hint: (is_list && !is_empty)
                .then(|| "its elements: list(HEAD, struct TYPE, MEMBER)".to_owned()),
            content: Content::One(value),
        })
    }

    fn number(&self, number: &Number) -> Result<Printed, ViewError> {
        let size = self.layout.size(&number.ty)?.clamp(1, 8) as usize;
        let bytes = number.value.to_le_bytes();
        let bytes = bytes.get(..size).unwrap_or_default();
        let at = match number.space {
            Space::Kernel => Location::Bytes(bytes),
            Space::Process(mm) => Location::UserBytes { mm, bytes },
        };
        let value = self.reader.value(&number.ty, at, self.style)?;
        Ok(Printed {
            ty: self.layout.spell(&number.ty)?,
            addr: None,
            tell_type: self.is_bare_pointer(&number.ty, &value)?,
            hint: None,
            content: Content::One(value),
        })
    }

    /// A pointer of which the reader of the text would like to know what it points to.
    fn is_bare_pointer(&self, ty: &Type, value: &Value) -> Result<bool, LayoutError> {
        let is_text = matches!(value, Value::Pointer(pointer) if pointer.text.is_some());
        Ok(!is_text && matches!(self.layout.bare(ty)?, Bare::Pointer(_)))
    }

    fn list(&self, items: Vec<Operand>, more: bool) -> Result<Printed, ViewError> {
        let mut elements = Vec::new();
        for item in items {
            let label = match &item {
                Operand::Number(pointer) => self.label(pointer),
                _ => None,
            };
            // A list in a list is printed as what it looks like.
            let mut printed = match item {
                Operand::Place(place) => self.place(&place)?,
                Operand::Number(number) => self.number(&number)?,
                Operand::List { .. } => continue,
            };
            printed.hint = None;
            if let (Content::One(Value::Pointer(pointer)), Some(label)) =
                (&mut printed.content, label)
            {
                pointer.text = Some((label, false));
            }
            elements.push(printed);
        }
        let ty = elements.first().map(|first| first.ty.clone());
        Ok(Printed {
            ty: ty.unwrap_or_else(|| "void".to_owned()),
            addr: None,
            content: Content::List { elements, more },
            tell_type: false,
            hint: None,
        })
    }

    /// What a structure is called, where it has a name: tasks, modules, devices, caches.
    fn label(&self, pointer: &Number) -> Option<String> {
        if pointer.space != Space::Kernel || pointer.value == 0 {
            return None;
        }
        let Ok(Bare::Pointer(target)) = self.layout.bare(&pointer.ty) else {
            return None;
        };
        let Ok(Bare::Aggregate(info)) = self.layout.bare(&target) else {
            return None;
        };
        let names = info.fields().iter().filter_map(|field| {
            let name = field.name.as_deref()?;
            ["comm", "name", "d_iname", "s_id"]
                .contains(&name)
                .then_some(field)
        });
        for field in names {
            let at = KernelAddr(pointer.value) + field.offset;
            let style = Style::BRIEF;
            let value = self
                .reader
                .value(&field.ty.into(), Location::Kernel(at), &style);
            match value {
                Ok(Value::Text { text, .. }) => return Some(text),
                Ok(Value::Pointer(pointer)) => {
                    if let Some((text, _)) = pointer.text {
                        return Some(text);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

impl Printed {
    /// Whether something was left out to stay within the limits.
    pub fn is_cut(&self) -> bool {
        match &self.content {
            Content::One(value) => value.is_cut(),
            Content::List { elements, more } => *more || elements.iter().any(Printed::is_cut),
        }
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::One(value) => {
                if self.tell_type {
                    write!(f, "({}) ", self.ty)?;
                }
                writeln!(f, "{value:#}")?;
            }
            Content::List { elements, more } => {
                for (index, element) in elements.iter().enumerate() {
                    write!(f, "[{index}] = {element}")?;
                }
                if *more {
                    writeln!(f, "... (more: --limit)")?;
                } else if elements.is_empty() {
                    writeln!(f, "<empty list>")?;
                }
            }
        }
        match &self.hint {
            Some(hint) => writeln!(f, "({hint})"),
            None => Ok(()),
        }
    }
}

impl Serialize for Printed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &self.ty)?;
        map.serialize_entry("addr", &self.addr)?;
        match &self.content {
            Content::One(value) => map.serialize_entry("value", value)?,
            Content::List { elements, .. } => map.serialize_entry("elements", elements)?,
        }
        map.serialize_entry("cut", &self.is_cut())?;
        map.end()
    }
}
