//! Kconfig fragments: reading them, merging them, and finding out afterwards
//! what Kconfig made of them.
//!
//! Kconfig drops an option silently when its dependencies are not met. Here
//! every requested option is compared with the resulting `.config`, and a
//! dropped one is an error that says where it was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use thiserror::Error;

/// The comment that makes the options up to the next blank line conditional:
/// they are requested only from kernels that have them.
///
/// Kconfig itself sees an ordinary comment.
pub const IF_KNOWN: &str = "# kscope: if-known";

/// Kconfig's three-state "no", as stored here.
const NO: &str = "n";

/// One requested option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The value, as in `.config`: `y`, `m`, `n`, a number or a quoted string.
    pub value: String,
    /// Whether a kernel without this option is fine.
    pub if_known: bool,
    /// Who asked: `preset debug` or a path.
    pub origin: String,
    /// The line there, from 1.
    pub line: usize,
}

/// A line of a fragment that is no option, comment or blank.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{origin}:{line}: `{text}` is neither CONFIG_NAME=value nor `# CONFIG_NAME is not set` nor a comment"
)]
pub struct FragmentError {
    /// The fragment.
    pub origin: String,
    /// The line, from 1.
    pub line: usize,
    /// What stands there.
    pub text: String,
}

/// A set of requested options, by name (with `CONFIG_`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fragment {
    options: BTreeMap<String, Request>,
}

impl Fragment {
    /// Parses a fragment; `origin` names it in messages.
    ///
    /// # Errors
    ///
    /// The first line that is neither option, comment nor blank.
    pub fn parse(origin: &str, text: &str) -> Result<Self, FragmentError> {
        let mut options = BTreeMap::new();
        let mut if_known = false;
        for (index, raw) in text.lines().enumerate() {
            let line = raw.trim();
            if line.is_empty() {
                if_known = false;
            } else if line == IF_KNOWN {
                if_known = true;
            } else if let Some((name, value)) = parse_line(line) {
                options.insert(
                    name.to_owned(),
                    Request {
                        value: value.to_owned(),
                        if_known,
                        origin: origin.to_owned(),
                        line: index + 1,
                    },
                );
            } else if !line.starts_with('#') {
                return Err(FragmentError {
                    origin: origin.to_owned(),
                    line: index + 1,
                    text: line.to_owned(),
                });
            }
        }
        Ok(Self { options })
    }

    /// Lays `other` over this fragment: where both name an option, `other` wins.
    pub fn overlay(&mut self, other: Fragment) {
        self.options.extend(other.options);
    }

    /// The requested options, by name.
    pub fn options(&self) -> impl Iterator<Item = (&str, &Request)> {
        self.options.iter().map(|(name, req)| (name.as_str(), req))
    }

    /// The fragment as Kconfig reads it, in a canonical order: two fragments
    /// that ask for the same have the same text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, request) in &self.options {
            if request.value == NO {
                text.push_str(&format!("# {name} is not set\n"));
            } else {
                text.push_str(&format!("{name}={}\n", request.value));
            }
        }
        text
    }

    /// What Kconfig did not honour in `result`.
    ///
    /// `definitions` says where an option is defined in the kernel's Kconfig
    /// files; it is only called when something is missing.
    ///
    /// # Errors
    ///
    /// Names every dropped option, with its origin.
    pub fn check(
        &self,
        result: &DotConfig,
        definitions: impl FnOnce(&BTreeSet<&str>) -> BTreeMap<String, String>,
    ) -> Result<(), DroppedOptions> {
        let missing: Vec<(&String, &Request)> = self
            .options
            .iter()
            .filter(|(name, request)| !same_value(&request.value, result.value(name)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: BTreeSet<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
        let definitions = definitions(&names);
        let dropped: Vec<Dropped> = missing
            .into_iter()
            .filter(|(name, request)| !request.if_known || definitions.contains_key(*name))
            .map(|(name, request)| Dropped {
                name: name.clone(),
                got: result.value(name).to_owned(),
                defined_at: definitions.get(name).cloned(),
                request: request.clone(),
            })
            .collect();
        if dropped.is_empty() {
            Ok(())
        } else {
            Err(DroppedOptions(dropped))
        }
    }
}

/// `CONFIG_X=value` or `# CONFIG_X is not set`; `None` for anything else.
fn parse_line(line: &str) -> Option<(&str, &str)> {
    if let Some(rest) = line.strip_prefix("# ") {
        let name = rest.strip_suffix(" is not set")?;
        return is_option_name(name).then_some((name, NO));
    }
    let (name, value) = line.split_once('=')?;
    is_option_name(name).then_some((name, value))
}

fn is_option_name(name: &str) -> bool {
    name.strip_prefix("CONFIG_").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

/// Whether Kconfig's value is the requested one; numbers are compared as
/// numbers, since Kconfig may write them differently.
fn same_value(want: &str, got: &str) -> bool {
    fn number(text: &str) -> Option<i64> {
        match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }
    want == got || (number(want).is_some() && number(want) == number(got))
}

/// A `.config` that Kconfig wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DotConfig {
    options: BTreeMap<String, String>,
}

impl DotConfig {
    /// Parses a `.config`; lines that are no options are skipped.
    pub fn parse(text: &str) -> Self {
        let options = text
            .lines()
            .filter_map(parse_line)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self { options }
    }

    /// The value of an option; `n` when it is off or absent.
    pub fn value(&self, name: &str) -> &str {
        self.options.get(name).map_or(NO, String::as_str)
    }

    /// How many options have this value.
    pub fn count(&self, value: &str) -> usize {
        self.options.values().filter(|v| *v == value).count()
    }
}

/// One option that Kconfig did not set as requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Its name, with `CONFIG_`.
    pub name: String,
    /// What was asked, and where.
    pub request: Request,
    /// What it is instead (`n`: off).
    pub got: String,
    /// Where the kernel defines it (`lib/Kconfig.debug:123`); `None` when it
    /// does not.
    pub defined_at: Option<String>,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request {
            value,
            origin,
            line,
            ..
        } = &self.request;
        write!(f, "{}={value} ({origin}:{line}): ", self.name)?;
        match &self.defined_at {
            None => write!(f, "this kernel has no such option"),
            Some(place) if self.got == NO => {
                write!(f, "left off, its dependencies are not met: see {place}")
            }
            Some(place) if value == NO => write!(
                f,
                "is {} because another option selects it, see {place}",
                self.got
            ),
            Some(place) => write!(f, "is {} instead, see {place}", self.got),
        }
    }
}

/// Options that were requested and that Kconfig did not set so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedOptions(
    /// At least one, in the order of their names.
    pub Vec<Dropped>,
);

impl fmt::Display for DroppedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = if self.0.len() == 1 {
            "a requested option"
        } else {
            "requested options"
        };
        write!(f, "Kconfig did not honour {many}:")?;
        for dropped in &self.0 {
            write!(f, "\n  {dropped}")?;
        }
        Ok(())
    }
}

impl std::error::Error for DroppedOptions {}

/// Directories that hold Kconfig files of a UML build; other architectures
/// define options of the same names, which would explain nothing.
const NO_KCONFIG: &[&str] = &["Documentation", "LICENSES", "include", "scripts", "tools"];

/// Where a kernel tree defines the given options (names with `CONFIG_`):
/// `path:line`, the path relative to the tree.
///
/// Unreadable directories and files count as defining nothing.
pub fn definitions(tree: &Path, names: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![tree.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Symbolic links are not followed: no cycles.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && is_kconfig_dir(tree, &path) => pending.push(path),
                Ok(kind) if kind.is_file() && name.starts_with("Kconfig") => {
                    scan(tree, &path, names, &mut found);
                }
                _ => {}
            }
        }
    }
    found
}

fn is_kconfig_dir(tree: &Path, dir: &Path) -> bool {
    let Ok(relative) = dir.strip_prefix(tree) else {
        return false;
    };
    let mut parts = relative.iter().map(|part| part.to_string_lossy());
    match (parts.next().as_deref(), parts.next(), parts.next()) {
        (Some("arch"), None, _) => true,
        (Some("arch"), Some(arch), None) => arch == "um" || arch == "x86",
        (Some("arch"), Some(arch), Some(part)) => arch == "um" || part == "um",
        (Some(top), None, _) => !NO_KCONFIG.contains(&top) && !top.starts_with('.'),
        _ => true,
    }
}

fn scan(tree: &Path, path: &Path, names: &BTreeSet<&str>, found: &mut BTreeMap<String, String>) {
    let relative = path.strip_prefix(tree).unwrap_or(path);
    // arch/x86/Kconfig is not part of a UML configuration, Kconfig.cpu is.
    if relative == Path::new("arch/x86/Kconfig") {
        return;
    }
    let Ok(text) = std::fs::read(path) else {
        return;
    };
    for (index, line) in String::from_utf8_lossy(&text).lines().enumerate() {
        let mut words = line.split_whitespace();
        if !matches!(words.next(), Some("config" | "menuconfig")) {
            continue;
        }
        let Some(name) = words.next().map(|word| format!("CONFIG_{word}")) else {
            continue;
        };
        if names.contains(name.as_str()) {
            found
                .entry(name)
                .or_insert_with(|| format!("{}:{}", relative.display(), index + 1));
        }
    }
}

#[cfg(test)]
mod tests;
