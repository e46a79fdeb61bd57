//! How important a message is, and whose it is: the names of syslog(3).

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// How important a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

/// By their numbers.
const LEVELS: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug",
];

/// By their numbers; those from 16 on are `local0` to `local7`.
const FACILITIES: [&str; 12] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp",
];

impl Level {
    /// The kernel keeps three bits.
    pub(super) fn from_bits(bits: u64) -> Level {
        Level(bits as u8 & 7)
    }

    /// From 0, a panic, to 7, for debugging.
    pub fn number(self) -> u8 {
        self.0
    }

    /// `warn`
    pub fn name(self) -> &'static str {
        LEVELS.get(usize::from(self.0)).copied().unwrap_or("debug")
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Whose message it is: the kernel's own, or of a program that wrote it to /dev/kmsg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Facility(pub u8);

impl Facility {
    /// The kernel's own messages (LOG_KERN of include/uapi's syslog numbers).
    pub const KERNEL: Facility = Facility(0);
}

impl fmt::Display for Facility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, FACILITIES.get(usize::from(self.0))) {
            (_, Some(name)) => f.pad(name),
            (local @ 16..24, None) => f.pad(&format!("local{}", local - 16)),
            (number, None) => f.pad(&number.to_string()),
        }
    }
}

impl Serialize for Facility {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Levels to be shown: `err,warn`, or `err+` for `err` and all that is more important.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels(u8);

/// It is no list of levels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no level `{0}`: there are emerg, alert, crit, err, warn, notice, info, debug")]
pub struct ParseLevelError(String);

impl Levels {
    /// Whether a level is one of them.
    pub fn contains(&self, level: Level) -> bool {
        self.0 >> level.0 & 1 == 1
    }
}

impl FromStr for Levels {
    type Err = ParseLevelError;

    fn from_str(list: &str) -> Result<Levels, ParseLevelError> {
        let mut set = 0;
        for word in list.split(',') {
            let name = word.trim();
            let (name, and_above) = match name.strip_suffix('+') {
                Some(name) => (name, true),
                None => (name, false),
            };
            let level = LEVELS.iter().position(|level| *level == name);
            let level = level.ok_or_else(|| ParseLevelError(name.to_owned()))?;
            // Bit 0 is the most important.
            set |= match and_above {
                true => (2_u32 << level) - 1,
                false => 1 << level,
            };
        }
        Ok(Levels(set as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<&'static str> {
        let levels: Levels = list.parse().unwrap();
        let all = (0..8).map(Level::from_bits);
        all.filter(|&level| levels.contains(level))
            .map(Level::name)
            .collect()
    }

    #[test]
    fn levels_are_listed_or_counted_up() {
        assert_eq!(names("err,debug"), ["err", "debug"]);
        assert_eq!(names("crit+, info"), ["emerg", "alert", "crit", "info"]);
        assert_eq!(names("debug+").len(), 8);
        for bad in ["", "warning", "err,", "+", "Err"] {
            assert!(bad.parse::<Levels>().is_err(), "{bad}");
        }
    }

    #[test]
    fn facilities_have_the_names_of_syslog() {
        assert_eq!(Facility(0).to_string(), "kern");
        assert_eq!(Facility(17).to_string(), "local1");
        assert_eq!(Facility(13).to_string(), "13");
        assert_eq!(Facility(255).to_string(), "255");
    }
}
