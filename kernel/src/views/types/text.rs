//! Types as C text with what the compiler made of it in comments.

use std::fmt::{self, Write};

use super::{BitRange, Definition, Gap, MemberView, Members, TypeView};

/// Where the comments begin, in columns.
const COMMENTS: usize = 57;

/// Columns of the types of members at the first level.
const TYPES: usize = 26;

impl fmt::Display for TypeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(member) = &self.member {
            let bits = match member.bits {
                Some(BitRange { first, width }) => format!(", {width} bits from {first}"),
                None => String::new(),
            };
            writeln!(
                f,
                "/* {}: {} at {}{bits}, size {} */\n{};",
                member.owner, member.path, member.offset, self.size, member.declaration
            )?;
        }
        for typedef in &self.typedefs {
            writeln!(f, "{typedef};")?;
        }
        let Some(definition) = &self.definition else {
            return match (&self.member, self.typedefs.is_empty()) {
                (Some(_), _) => Ok(()),
                (None, true) => writeln!(f, "{}; /* size: {} */", self.ty, self.size),
                (None, false) => writeln!(f, "/* size: {} */", self.size),
            };
        };
        let mut text = String::new();
        let mut writer = Writer {
            out: &mut text,
            cacheline: self.cacheline,
            current: 0,
        };
        // A name that only a typedef gives stands at the end.
        let name = match definition {
            Definition::Struct(members) | Definition::Union(members) => members.name.clone(),
            Definition::Enum(_) => self.ty.strip_prefix("enum ").map(str::to_owned),
        };
        let is_typedef = self.member.is_none() && name.is_none();
        if is_typedef {
            writer.out.push_str("typedef ");
        }
        writer.definition(definition, name.as_deref(), 0)?;
        if is_typedef {
            write!(writer.out, " {}", self.ty)?;
        }
        writeln!(writer.out, ";")?;
        for file in &self.others {
            let name = self.ty.replace("struct ", "").replace("union ", "");
            writeln!(writer.out, "/* another one of this name: {file}::{name} */")?;
        }
        f.write_str(&text)
    }
}

struct Writer<'a> {
    out: &'a mut String,
    /// Bytes of a cache line.
    cacheline: u64,
    /// The cache line that the last member was in.
    current: u64,
}

impl Writer<'_> {
    /// From the keyword to the closing brace and what belongs to that.
    fn definition(
        &mut self,
        definition: &Definition,
        name: Option<&str>,
        depth: usize,
    ) -> fmt::Result {
        let tag = name.map(|name| format!("{name} ")).unwrap_or_default();
        match definition {
            Definition::Struct(members) => {
                writeln!(self.out, "struct {tag}{{")?;
                self.members(members, depth + 1, false)?;
                if depth == 0 {
                    self.summary(members, false)?;
                }
                write!(self.out, "{}}}", "\t".repeat(depth))?;
                if members.packed {
                    self.out.push_str(" __attribute__((__packed__))");
                }
                self.align(members.align)
            }
            Definition::Union(members) => {
                writeln!(self.out, "union {tag}{{")?;
                self.members(members, depth + 1, true)?;
                if depth == 0 {
                    self.summary(members, true)?;
                }
                write!(self.out, "{}}}", "\t".repeat(depth))?;
                self.align(members.align)
            }
            Definition::Enum(enumerators) => {
                writeln!(self.out, "enum {tag}{{")?;
                let names = enumerators.iter().map(|one| one.name.len());
                let width = names.max().unwrap_or(0);
                for one in enumerators {
                    let margin = "\t".repeat(depth + 1);
                    writeln!(self.out, "{margin}{:width$} = {},", one.name, one.value)?;
                }
                write!(self.out, "{}}}", "\t".repeat(depth))
            }
        }
    }

    fn align(&mut self, align: Option<u64>) -> fmt::Result {
        match align {
            Some(align) => write!(self.out, " __attribute__((__aligned__({align})))"),
            None => Ok(()),
        }
    }

    fn members(&mut self, members: &Members, depth: usize, is_union: bool) -> fmt::Result {
        let margin = "\t".repeat(depth);
        let mut is_apart = self.remarks(&members.before, 0, &margin)?;
        let start = self.current;
        for member in &members.members {
            if is_union {
                // Every member begins in the line that the union begins in.
                self.current = start;
            }
            if is_apart {
                self.out.push('\n');
            }
            self.boundary(member.offset, &margin)?;
            self.member(member, depth)?;
            let gap = Gap {
                bytes: member.hole,
                bits: member.bit_hole,
            };
            is_apart = self.remarks(&gap, member.padding, &margin)?;
        }
        if is_union {
            self.current = start;
        }
        Ok(())
    }

    /// A paragraph about what nobody has, if there is something. Whether there was.
    fn remarks(&mut self, gap: &Gap, padding: u64, margin: &str) -> Result<bool, fmt::Error> {
        let remarks = [
            (gap.bits, "bit", " hole, try to pack"),
            (gap.bytes, "byte", " hole, try to pack"),
            (padding, "byte", " of padding"),
        ];
        let mut is_first = true;
        for (count, what, why) in remarks.into_iter().filter(|remark| remark.0 > 0) {
            if is_first {
                self.out.push('\n');
                is_first = false;
            }
            let what = plural(count, what);
            let of = if why == " of padding" {
                "last struct has "
            } else {
                ""
            };
            writeln!(self.out, "{margin}/* XXX {of}{what}{why} */")?;
        }
        Ok(!is_first)
    }

    /// Tells that a new cache line has begun.
    fn boundary(&mut self, offset: u64, margin: &str) -> fmt::Result {
        let line = offset / self.cacheline;
        if line <= self.current {
            return Ok(());
        }
        self.current = line;
        let start = line * self.cacheline;
        let ago = match offset - start {
            0 => String::new(),
            bytes => format!(" was {} ago", plural(bytes, "byte")),
        };
        writeln!(
            self.out,
            "{margin}/* --- cacheline {line} boundary ({start} bytes){ago} --- */"
        )
    }

    fn member(&mut self, member: &MemberView, depth: usize) -> fmt::Result {
        let margin = "\t".repeat(depth);
        let name = member.name.as_deref().unwrap_or_default();
        let (before, after) = &member.declarator;
        self.out.push_str(&margin);
        // The start of the last line, to align the comment.
        let mut start = self.out.len();
        if let Some(definition) = &member.definition {
            // `const struct {`: what qualifies it stands before the keyword.
            let keyword = before.split_once(" {...}").map_or("", |(words, _)| words);
            if let Some((words, _)) = keyword.rsplit_once(' ') {
                write!(self.out, "{words} ")?;
            }
            self.definition(definition, None, depth)?;
            start = self.out.rfind('\n').map_or(start, |at| at + 1 + depth);
            // Stars, brackets and dimensions are around the name.
            let stars = before
                .split_once("{...}")
                .map_or("", |(_, stars)| stars.trim());
            if !name.is_empty() {
                write!(self.out, " {stars}{name}{after}")?;
            }
        } else {
            let width = TYPES.saturating_sub(8 * (depth - 1)).max(6);
            // What is in brackets with the name belongs to it: `int (*f)(void)`.
            let (ty, open) = match before.find("(*") {
                Some(at) => before.split_at(at),
                None => (before.as_str(), ""),
            };
            // `(* const name)`
            let space = if open.ends_with("const") { " " } else { "" };
            write!(
                self.out,
                "{:width$} {open}{space}{name}{after}",
                ty.trim_end()
            )?;
        }
        if let Some(BitRange { width, .. }) = member.bits {
            write!(self.out, ":{width}")?;
        }
        // The type's own alignment is told with the type.
        let own = match &member.definition {
            Some(Definition::Struct(members) | Definition::Union(members)) => members.align,
            _ => None,
        };
        self.align(member.align.filter(|_| own.is_none()))?;
        self.out.push(';');
        let written = self.out.get(start..).map_or(0, |line| line.chars().count());
        let column = depth * 8 + written;
        let pad = COMMENTS.saturating_sub(column).max(1);
        let place = match member.bits {
            Some(bits) => format!("{:5}:{:2} {:2}", member.offset, bits.first, member.size),
            None => format!("{:5} {:5}", member.offset, member.size),
        };
        writeln!(self.out, "{}/* {place} */", " ".repeat(pad))
    }

    /// The totals.
    fn summary(&mut self, members: &Members, is_union: bool) -> fmt::Result {
        let all = &members.members;
        let lines = members.size.div_ceil(self.cacheline);
        self.out.push('\n');
        let mut line = |text: String| writeln!(self.out, "\t/* {text} */");
        line(format!(
            "size: {}, cachelines: {lines}, members: {}",
            members.size,
            all.len()
        ))?;
        let is_bits = |member: &&MemberView| member.bits.is_some();
        if !is_union {
            let bytes: u64 = sum(all.iter().filter(|one| !is_bits(one)).map(|one| one.size));
            let bits: u64 = sum(all
                .iter()
                .filter_map(|one| one.bits)
                .map(|bits| u64::from(bits.width)));
            let gaps = || {
                let after = all.iter().map(|one| (one.hole, one.bit_hole));
                after.chain([(members.before.bytes, members.before.bits)])
            };
            let holes = gaps().filter(|&(bytes, _)| bytes > 0).count();
            let bit_holes = gaps().filter(|&(_, bits)| bits > 0).count();
            let hole_bytes = sum(gaps().map(|(bytes, _)| bytes));
            let hole_bits = sum(gaps().map(|(_, bits)| bits));
            if holes > 0 || bit_holes > 0 {
                if bytes > 0 {
                    let holes = match holes {
                        0 => String::new(),
                        holes => format!(", holes: {holes}, sum holes: {hole_bytes}"),
                    };
                    line(format!("sum members: {bytes}{holes}"))?;
                }
                if bits > 0 {
                    let holes = match bit_holes {
                        0 => format!(" ({} bytes)", bits / 8),
                        holes => format!(", bit holes: {holes}, sum bit holes: {hole_bits} bits"),
                    };
                    line(format!("sum bitfield members: {bits} bits{holes}"))?;
                }
            }
            if members.padding > 0 {
                line(format!("padding: {}", members.padding))?;
            }
            let padded = all.iter().filter(|one| one.padding > 0);
            if padded.clone().next().is_some() {
                let total = sum(padded.clone().map(|one| one.padding));
                line(format!(
                    "paddings: {}, sum paddings: {total}",
                    padded.count()
                ))?;
            }
            if members.bit_padding > 0 {
                line(format!("bit_padding: {} bits", members.bit_padding))?;
            }
            let aligned = all.iter().filter(|one| one.align.is_some()).count();
            if aligned > 0 {
                let before = [members.before.bytes].into_iter();
                let before = before.chain(all.iter().map(|one| one.hole));
                let forced: Vec<u64> = before
                    .zip(all)
                    .filter(|(hole, one)| *hole > 0 && one.align.is_some())
                    .map(|(hole, _)| hole)
                    .collect();
                let holes = match forced.len() {
                    0 => String::new(),
                    count => {
                        let total = sum(forced.into_iter());
                        format!(", forced holes: {count}, sum forced holes: {total}")
                    }
                };
                line(format!("forced alignments: {aligned}{holes}"))?;
            }
        }
        match members.size % self.cacheline {
            0 => Ok(()),
            rest => line(format!("last cacheline: {rest} bytes")),
        }
    }
}

fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

fn plural(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}
