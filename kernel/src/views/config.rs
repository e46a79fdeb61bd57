//! The configuration that the kernel was built with, as in /proc/config.gz.

use std::fmt;
use std::io::Read;

use flate2::read::GzDecoder;
use serde::Serialize;

use crate::memory::{Memory, MemoryExt};
use crate::reader::{Reader, ViewError};

/// What an option is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfigKind {
    /// `y`, `m` or `n` (Kconfig's `bool` and `tristate`).
    Tristate,
    /// A number, decimal or hexadecimal with `0x`.
    Number,
    /// Text, without its quotes.
    String,
}

/// One option and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigOption {
    /// Its name, `CONFIG_HZ`.
    pub name: String,
    /// Its value. `n` when it is not set.
    pub value: String,
    /// What kind of value that is.
    pub kind: ConfigKind,
}

/// The options of a kernel in the order of its `.config`. Those that Kconfig did not ask about
/// are not there, as in that file.
///
/// It displays as a `.config`; all of it, until it is [`filter`](Config::filter)ed, with the
/// comments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Config {
    /// The options.
    pub options: Vec<ConfigOption>,
    #[serde(skip)]
    text: Option<String>,
}

/// Bytes of `kernel_config_data` that are read at most: that of a distribution has 60 kB.
const MAX_COMPRESSED: u64 = 1 << 20;

/// Bytes of a `.config` that are unpacked at most: that of a distribution has 250 kB.
const MAX_TEXT: u64 = 8 << 20;

impl<M: Memory> Reader<'_, M> {
    /// The kernel's configuration (kernel/configs.c).
    ///
    /// # Errors
    ///
    /// When the kernel was built without it, or it cannot be read.
    pub fn config(&self) -> Result<Config, ViewError> {
        let image = self.kernel().image();
        // A module when CONFIG_IKCONFIG=m.
        let place = image
            .symbol("kernel_config_data")
            .zip(image.symbol("kernel_config_data_end"));
        let (start, end) = place.ok_or(ViewError::NotConfigured {
            what: "configuration in it",
            option: "CONFIG_IKCONFIG=y",
        })?;
        let len = (end - start).min(MAX_COMPRESSED);
        let data = self.kernel().read_vec(start, len as usize);
        let data = data.map_err(|source| crate::reader::unreadable("configuration", source))?;
        let mut text = Vec::new();
        let unpacked = GzDecoder::new(&*data).take(MAX_TEXT).read_to_end(&mut text);
        if let Err(problem) = unpacked {
            self.warn(format!(
                "the configuration at {start} is damaged after {} bytes: {problem}",
                text.len()
            ));
        }
        Ok(Config::parse(String::from_utf8_lossy(&text).into_owned()))
    }
}

impl Config {
    /// From the text of a `.config`.
    fn parse(text: String) -> Config {
        Config {
            options: text.lines().filter_map(ConfigOption::parse).collect(),
            text: Some(text),
        }
    }

    /// Leaves the options that any of the patterns matches; returns the patterns that match none.
    ///
    /// A pattern that starts with `CONFIG_` is a whole name; another one is found anywhere in a
    /// name. The letters' case is the same to it, and `*` stands for anything. With `=VALUE` at its
    /// end the option must have that value, `n` for one that is not set.
    pub fn filter<'p>(&mut self, patterns: &'p [String]) -> Vec<&'p str> {
        let parsed: Vec<_> = patterns.iter().map(|p| Pattern::parse(p)).collect();
        let mut met = vec![false; parsed.len()];
        self.options.retain(|option| {
            let mut keep = false;
            for (pattern, met) in parsed.iter().zip(&mut met) {
                if pattern.matches(option) {
                    *met = true;
                    keep = true;
                }
            }
            keep
        });
        self.text = None;
        let unmet = patterns.iter().zip(met).filter(|(_, met)| !met);
        unmet.map(|(pattern, _)| pattern.as_str()).collect()
    }
}

impl ConfigOption {
    /// From a line of a `.config`; `None` when it is of no option.
    fn parse(line: &str) -> Option<ConfigOption> {
        let option = |name: &str, value: &str, kind| ConfigOption {
            name: name.to_owned(),
            value: value.to_owned(),
            kind,
        };
        if let Some(name) = line
            .strip_prefix("# ")
            .and_then(|line| line.strip_suffix(" is not set"))
        {
            let is_name = name.starts_with(PREFIX) && !name.contains(' ');
            return is_name.then(|| option(name, "n", ConfigKind::Tristate));
        }
        let (name, value) = line.split_once('=')?;
        if !name.starts_with(PREFIX) {
            return None;
        }
        let quoted = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'));
        Some(match (quoted, value) {
            (Some(text), _) => option(name, &unescape(text), ConfigKind::String),
            (None, "y" | "m" | "n") => option(name, value, ConfigKind::Tristate),
            (None, _) => option(name, value, ConfigKind::Number),
        })
    }
}

const PREFIX: &str = "CONFIG_";

/// Text without the backslashes that Kconfig puts before quotes and backslashes.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next()),
            c => plain.push(c),
        }
    }
    plain
}

/// What options are asked for.
struct Pattern {
    /// In upper case, between `*`s: what must come in this order.
    parts: Vec<String>,
    value: Option<String>,
}

impl Pattern {
    fn parse(pattern: &str) -> Pattern {
        let (name, value) = match pattern.split_once('=') {
            Some((name, value)) => (name, Some(value.trim_matches('"').to_owned())),
            None => (pattern, None),
        };
        let name = name.to_uppercase();
        let parts = match name.starts_with(PREFIX) {
            true => name.split('*').map(str::to_owned).collect(),
            false => format!("{PREFIX}*{name}*")
                .split('*')
                .map(str::to_owned)
                .collect(),
        };
        Pattern { parts, value }
    }

    fn matches(&self, option: &ConfigOption) -> bool {
        let is_value = self.value.as_ref().is_none_or(|v| *v == option.value);
        is_value && self.is_name(&option.name.to_uppercase())
    }

    fn is_name(&self, name: &str) -> bool {
        let [first, rest @ ..] = &*self.parts else {
            return false;
        };
        let Some(mut name) = name.strip_prefix(first.as_str()) else {
            return false;
        };
        let [middle @ .., last] = rest else {
            return name.is_empty();
        };
        for part in middle {
            let Some(at) = name.find(part.as_str()) else {
                return false;
            };
            name = name.get(at + part.len()..).unwrap_or_default();
        }
        name.ends_with(last.as_str())
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            // From guest memory, but not to be changed: it may be meant for a file.
            for line in text.lines() {
                writeln!(f, "{}", crate::printable(line))?;
            }
            return Ok(());
        }
        for option in &self.options {
            writeln!(f, "{}", crate::printable(&option.to_string()))?;
        }
        Ok(())
    }
}

/// The line of a `.config`.
impl fmt::Display for ConfigOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigOption { name, value, kind } = self;
        match (kind, value.as_str()) {
            (ConfigKind::Tristate, "n") => write!(f, "# {name} is not set"),
            (ConfigKind::String, text) => {
                let text = text.replace('\\', "\\\\").replace('"', "\\\"");
                write!(f, "{name}=\"{text}\"")
            }
            (_, value) => write!(f, "{name}={value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# Linux/um 6.12 Kernel Configuration
CONFIG_HZ=100
CONFIG_NO_HZ_IDLE=y
# CONFIG_NO_HZ is not set
# end of Timers
CONFIG_CON_CHAN=\"a \\\"b\\\\\"
CONFIG_BASE=0x1f
CONFIG_EXT4_FS=m
";

    fn filtered(patterns: &[&str]) -> (String, Vec<String>) {
        let mut config = Config::parse(TEXT.to_owned());
        let patterns: Vec<_> = patterns.iter().map(|p| (*p).to_owned()).collect();
        let unmet = config.filter(&patterns).into_iter().map(str::to_owned);
        let unmet = unmet.collect();
        (config.to_string(), unmet)
    }

    #[test]
    fn lines_become_options_and_lines_again() {
        let config = Config::parse(TEXT.to_owned());
        let values: Vec<_> = config
            .options
            .iter()
            .map(|option| (option.value.as_str(), option.kind))
            .collect();
        assert_eq!(
            values,
            [
                ("100", ConfigKind::Number),
                ("y", ConfigKind::Tristate),
                ("n", ConfigKind::Tristate),
                ("a \"b\\", ConfigKind::String),
                ("0x1f", ConfigKind::Number),
                ("m", ConfigKind::Tristate),
            ]
        );
        assert_eq!(config.to_string(), TEXT);
        let lines = TEXT
            .lines()
            .filter(|line| !line.starts_with("# Linux") && !line.starts_with("# end"));
        assert!(config.options.iter().map(ToString::to_string).eq(lines));
    }

    #[test]
    fn patterns_are_whole_names_or_parts() {
        let hz = "CONFIG_HZ=100\nCONFIG_NO_HZ_IDLE=y\n# CONFIG_NO_HZ is not set\n";
        assert_eq!(filtered(&["hz"]), (hz.to_owned(), vec![]));
        assert_eq!(filtered(&["CONFIG_HZ"]).0, "CONFIG_HZ=100\n");
        assert_eq!(filtered(&["config_no*"]).0.lines().count(), 2);
        assert_eq!(filtered(&["CONFIG_*_IDLE"]).0, "CONFIG_NO_HZ_IDLE=y\n");
        assert_eq!(filtered(&["n*idle"]).0, "CONFIG_NO_HZ_IDLE=y\n");
        assert_eq!(filtered(&["hz=n"]).0, "# CONFIG_NO_HZ is not set\n");
        assert_eq!(filtered(&["=m"]).0, "CONFIG_EXT4_FS=m\n");
        // The prefix is no part of what is searched.
        assert_eq!(filtered(&["fig"]).0, "");
        let (lines, unmet) = filtered(&["ext4", "xfs"]);
        assert_eq!((lines.lines().count(), unmet), (1, vec!["xfs".to_owned()]));
    }
}
