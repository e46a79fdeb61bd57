//! How the stub's log looks: what `monitor set debug-format` says is for whoever writes it.

use std::sync::atomic::{AtomicBool, Ordering};

/// What the lines of a process's log begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DebugFormat {
    /// Nothing besides.
    #[default]
    Plain,
    /// The time.
    Timestamps,
}

static TIMESTAMPS: AtomicBool = AtomicBool::new(false);

/// How the lines are wanted at this moment.
pub fn debug_format() -> DebugFormat {
    match TIMESTAMPS.load(Ordering::Relaxed) {
        true => DebugFormat::Timestamps,
        false => DebugFormat::Plain,
    }
}

/// Sets how the lines are wanted.
pub fn set_debug_format(format: DebugFormat) {
    TIMESTAMPS.store(format == DebugFormat::Timestamps, Ordering::Relaxed);
}

impl DebugFormat {
    /// gdbserver's `OPTION1[,OPTION2...]`, of which later ones count.
    ///
    /// # Errors
    ///
    /// One of them does not exist.
    pub fn parse(options: &str) -> Result<Self, String> {
        let mut format = Self::default();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            format = match option {
                "all" | "timestamp" => Self::Timestamps,
                "none" => Self::Plain,
                _ => return Err(format!("Unknown debug-format argument: \"{option}\"")),
            };
        }
        Ok(format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_gdbservers() {
        assert_eq!(DebugFormat::parse("timestamp"), Ok(DebugFormat::Timestamps));
        assert_eq!(DebugFormat::parse("all,none"), Ok(DebugFormat::Plain));
        assert_eq!(DebugFormat::parse(""), Ok(DebugFormat::Plain));
        assert!(DebugFormat::parse("none,foo").is_err());
    }
}
