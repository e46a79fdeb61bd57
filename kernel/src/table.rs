//! Facts as text: columns that line up, and guest strings that do a terminal no harm.

use std::fmt::{self, Write};

/// Rows of cells, rendered with a header and aligned columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    right: bool,
}

impl Table {
    /// A table with these columns. A name that starts with `>` is a column of numbers, aligned to
    /// the right.
    pub fn new(columns: &[&str]) -> Table {
        let columns = columns.iter().map(|name| match name.strip_prefix('>') {
            Some(name) => Column {
                name: name.to_owned(),
                right: true,
            },
            None => Column {
                name: (*name).to_owned(),
                right: false,
            },
        });
        Table {
            columns: columns.collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. What is not printable is escaped: see [`printable`].
    pub fn row<T: fmt::Display>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells = cells.into_iter().map(|cell| printable(&cell.to_string()));
        self.rows.push(cells.collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = || self.columns.iter().map(|column| column.name.as_str());
        let width = |at: usize, name: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(at));
            let widest = cells.map(|cell| cell.chars().count()).max();
            widest.unwrap_or(0).max(name.chars().count())
        };
        let widths: Vec<_> = names()
            .enumerate()
            .map(|(at, name)| width(at, name))
            .collect();
        let mut line = String::new();
        let mut write = |cells: &mut dyn Iterator<Item = &str>| {
            line.clear();
            for ((cell, column), &width) in cells.zip(&self.columns).zip(&widths) {
                if !line.is_empty() || column.name != names().next().unwrap_or_default() {
                    line.push_str("  ");
                }
                match column.right {
                    true => write!(line, "{cell:>width$}")?,
                    false => write!(line, "{cell:width$}")?,
                }
            }
            writeln!(f, "{}", line.trim_end())
        };
        write(&mut names())?;
        for row in &self.rows {
            write(&mut row.iter().map(String::as_str))?;
        }
        Ok(())
    }
}

/// A string from the guest, fit for a terminal and for one line: control characters, with which a
/// hostile guest could rewrite what is on the screen, become `\n`, `\t` or `\x1b`.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\t' => safe.push_str("\\t"),
            // C0, DEL, C1, and what reorders the text around it (Unicode's bidi controls).
            '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
                // Writing to a string cannot fail.
                let _ = write!(safe, "\\x{:02x}", u32::from(c));
            }
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[">PID", "COMM", ">TIME"]);
        table.row(["1", "init", "10"]);
        table.row(["1000", "a\x1b[2Jb", "7"]);
        assert_eq!(
            table.to_string(),
            " PID  COMM       TIME\n   1  init         10\n1000  a\\x1b[2Jb     7\n"
        );
    }
}
