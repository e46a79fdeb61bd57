//! The DWARF sections of a kernel, and what its compilation units define.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use gimli::{
    AttributeValue, DW_AT_byte_size, DW_AT_comp_dir, DW_AT_declaration, DW_AT_name,
    DebugInfoOffset, EndianSlice, LittleEndian, SectionId, UnitOffset, constants,
};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};

use crate::image::{ElfFile, normalize};

/// How gimli reads the sections.
pub(crate) type Reader = EndianSlice<'static, LittleEndian>;
pub(super) type Die = gimli::DebuggingInformationEntry<Reader>;

/// A kernel's DWARF, which is looked at when something is asked for that is not known yet.
pub(crate) struct DebugInfo {
    file: Arc<ElfFile>,
    dwarf: OnceLock<Option<Arc<Dwarf>>>,
}

impl DebugInfo {
    pub(crate) fn new(file: Arc<ElfFile>) -> DebugInfo {
        DebugInfo {
            file,
            dwarf: OnceLock::new(),
        }
    }

    /// `None` when the file has sections that contradict it.
    pub(crate) fn dwarf(&self) -> Option<Arc<Dwarf>> {
        let load = || Dwarf::load(&self.file).map(Arc::new);
        self.dwarf.get_or_init(load).clone()
    }
}

/// The DWARF sections, and what they borrow.
pub(crate) struct Dwarf {
    sections: Arc<gimli::Dwarf<Reader>>,
    /// The two owners of the bytes in `sections`; after it, so that they are dropped last.
    _decompressed: Vec<Box<[u8]>>,
    _file: Arc<ElfFile>,
}

impl Dwarf {
    /// `None` when the file has sections that contradict it.
    pub(crate) fn load(file: &Arc<ElfFile>) -> Option<Dwarf> {
        let elf = ElfFile64::<object::LittleEndian>::parse(file.bytes()).ok()?;
        let mut decompressed: Vec<Box<[u8]>> = Vec::new();
        let sections = gimli::Dwarf::load(|id: SectionId| -> Result<Reader, object::Error> {
            let Some(section) = elf.section_by_name(id.name()) else {
                return Ok(EndianSlice::new(&[], LittleEndian));
            };
            let data: &[u8] = match section.uncompressed_data()? {
                std::borrow::Cow::Borrowed(bytes) => bytes,
                // CONFIG_DEBUG_INFO_COMPRESSED_*.
                std::borrow::Cow::Owned(bytes) => {
                    decompressed.push(bytes.into_boxed_slice());
                    decompressed.last().map_or(&[][..], |bytes| bytes)
                }
            };
            // SAFETY: the bytes are in the file's mapping or in a box, neither of which moves or
            // goes away before the struct below does, and nobody gets at them without promising
            // to keep that (see `sections`).
            let data = unsafe { std::mem::transmute::<&[u8], &'static [u8]>(data) };
            Ok(EndianSlice::new(data, LittleEndian))
        })
        .ok()?;
        Some(Dwarf {
            sections: Arc::new(sections),
            _decompressed: decompressed,
            _file: Arc::clone(file),
        })
    }

    /// The sections.
    ///
    /// # Safety
    ///
    /// The caller keeps this `Dwarf` for as long as the sections and anything read from them; the
    /// `'static` in their type is not true.
    pub(crate) unsafe fn sections(&self) -> Arc<gimli::Dwarf<Reader>> {
        Arc::clone(&self.sections)
    }
}

/// What kind of thing a name at the top level of a unit stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Named {
    Struct,
    Union,
    Enum,
    AnonymousEnum,
    Typedef,
    Base,
    Variable,
    /// Also one that is only declared.
    Function,
    /// A function that is defined.
    Body,
}

/// One compilation unit, with an index of its names once one is asked for.
pub(super) struct Unit {
    pub(super) unit: gimli::Unit<Reader>,
    dwarf: Arc<gimli::Dwarf<Reader>>,
    names: OnceLock<Names>,
}

/// What the top level of a unit defines.
#[derive(Default)]
struct Names {
    entries: HashMap<(Named, &'static [u8]), UnitOffset>,
    /// With the enumeration they belong to.
    enumerators: HashMap<&'static [u8], (UnitOffset, i64)>,
}

/// The name and the directory of a unit, from its first entry.
pub(super) struct UnitSource {
    pub(super) name: String,
    pub(super) directory: String,
}

impl UnitSource {
    /// The source file as an absolute path where the DWARF allows.
    pub(super) fn path(&self) -> String {
        if self.name.starts_with('/') || self.directory.is_empty() {
            normalize(&self.name)
        } else {
            normalize(&format!("{}/{}", self.directory, self.name))
        }
    }
}

/// Reads the first entry of a unit, and no more.
pub(super) fn unit_source(
    dwarf: &gimli::Dwarf<Reader>,
    header: &gimli::UnitHeader<Reader>,
) -> Result<UnitSource, gimli::Error> {
    let unit = dwarf.unit(*header)?;
    let mut entries = unit.entries();
    let Some(root) = entries.next_dfs()? else {
        return Ok(UnitSource {
            name: String::new(),
            directory: String::new(),
        });
    };
    let string = |name| -> Result<String, gimli::Error> {
        match root.attr_value(name) {
            Some(value) => Ok(dwarf
                .attr_string(&unit, value)?
                .to_string_lossy()
                .into_owned()),
            None => Ok(String::new()),
        }
    };
    Ok(UnitSource {
        name: string(DW_AT_name)?,
        directory: string(DW_AT_comp_dir)?,
    })
}

impl Unit {
    /// Parses the unit's first entry.
    pub(super) fn parse(
        dwarf: &Arc<gimli::Dwarf<Reader>>,
        header: gimli::UnitHeader<Reader>,
    ) -> Result<Unit, gimli::Error> {
        Ok(Unit {
            unit: dwarf.unit(header)?,
            dwarf: Arc::clone(dwarf),
            names: OnceLock::new(),
        })
    }

    fn names(&self) -> Result<&Names, gimli::Error> {
        match self.names.get() {
            Some(names) => Ok(names),
            None => {
                let names = self.index()?;
                Ok(self.names.get_or_init(|| names))
            }
        }
    }

    fn index(&self) -> Result<Names, gimli::Error> {
        let mut names = Names::default();
        let mut tree = self.unit.entries_tree(None)?;
        let mut children = tree.root()?.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            let kind = match entry.tag() {
                constants::DW_TAG_structure_type => Named::Struct,
                constants::DW_TAG_union_type => Named::Union,
                constants::DW_TAG_enumeration_type => Named::Enum,
                constants::DW_TAG_typedef => Named::Typedef,
                constants::DW_TAG_base_type => Named::Base,
                constants::DW_TAG_variable => Named::Variable,
                // Found by the index of all units only.
                _ => continue,
            };
            // A declared struct has no members; a declared variable has its type.
            let usable = kind == Named::Variable
                || !is_declaration(entry)
                || entry.attr(DW_AT_byte_size).is_some();
            if let (true, Some(value)) = (usable, entry.attr_value(DW_AT_name)) {
                let name = self.dwarf.attr_string(&self.unit, value)?;
                let key = (kind, name.slice());
                names.entries.entry(key).or_insert(entry.offset());
            }
            if kind == Named::Enum {
                let owner = entry.offset();
                let mut values = child.children();
                while let Some(value) = values.next()? {
                    let entry = value.entry();
                    if let (Some(number), Some(name)) =
                        (constant(entry), entry.attr_value(DW_AT_name))
                    {
                        let name = self.dwarf.attr_string(&self.unit, name)?;
                        let found = (owner, number);
                        names.enumerators.entry(name.slice()).or_insert(found);
                    }
                }
            }
        }
        Ok(names)
    }

    pub(super) fn find(&self, kind: Named, name: &str) -> Result<Option<UnitOffset>, gimli::Error> {
        let key = (kind, name.as_bytes());
        Ok(self.names()?.entries.get(&key).copied())
    }

    /// The first of the kinds that has the name.
    pub(super) fn find_any(
        &self,
        kinds: &[Named],
        name: &str,
    ) -> Result<Option<UnitOffset>, gimli::Error> {
        for &kind in kinds {
            if let Some(offset) = self.find(kind, name)? {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    pub(super) fn enumerator(&self, name: &str) -> Result<Option<i64>, gimli::Error> {
        Ok(self.enumerator_in(name)?.map(|(_, value)| value))
    }

    /// An enumerator's value, and the enumeration it belongs to.
    pub(super) fn enumerator_in(
        &self,
        name: &str,
    ) -> Result<Option<(UnitOffset, i64)>, gimli::Error> {
        Ok(self.names()?.enumerators.get(name.as_bytes()).copied())
    }

    /// The entry's type as a position in this unit. `None` when it has none (`void`) or one in
    /// another unit, which only link-time optimisation makes.
    pub(super) fn type_of(&self, entry: &Die) -> Option<UnitOffset> {
        match entry.attr_value(constants::DW_AT_type)? {
            AttributeValue::UnitRef(offset) => Some(offset),
            AttributeValue::DebugInfoRef(offset) => self.local(offset),
            _ => None,
        }
    }

    /// The bytes of a string attribute.
    pub(super) fn string(&self, value: AttributeValue<Reader>) -> Result<&[u8], gimli::Error> {
        Ok(self.dwarf.attr_string(&self.unit, value)?.slice())
    }

    /// As [`string`](Unit::string), for an entry's name.
    pub(super) fn name_of(&self, entry: &Die) -> Result<Option<String>, gimli::Error> {
        let Some(value) = entry.attr_value(DW_AT_name) else {
            return Ok(None);
        };
        let name = self.string(value)?;
        Ok(Some(String::from_utf8_lossy(name).into_owned()))
    }

    fn local(&self, offset: DebugInfoOffset) -> Option<UnitOffset> {
        offset.to_unit_offset(&self.unit.header)
    }
}

/// Whether the entry only says that something exists.
pub(super) fn is_declaration(entry: &Die) -> bool {
    let declared = entry.attr_value(DW_AT_declaration);
    matches!(declared, Some(AttributeValue::Flag(true)))
}

/// The value of an enumerator. Only a form with a sign has one: 200 may be one byte, 0xc8.
pub(super) fn constant(entry: &Die) -> Option<i64> {
    let value = entry.attr(constants::DW_AT_const_value)?;
    match value.value() {
        AttributeValue::Sdata(number) => Some(number),
        _ => value.udata_value().map(|number| number as i64),
    }
}
