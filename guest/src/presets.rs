//! The presets: Kconfig fragments that come with kscope and compose.
//!
//! The fragments are the files in `guest/presets/`; each says what it is for.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kconfig::{Fragment, FragmentError};

/// One preset. The order is the one in which fragments are laid over each
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// What every guest needs; part of every selection.
    Base,
    /// The UML defconfig underneath, instead of nothing.
    Full,
    /// What debugging wants; the default.
    Debug,
    /// Arc counters in every object.
    Coverage,
    /// The in-kernel unit tests.
    Kunit,
    /// Guest time that kscope can hold still.
    TimeTravel,
    /// Several CPUs.
    Smp,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 7] = [
        Self::Base,
        Self::Full,
        Self::Debug,
        Self::Coverage,
        Self::Kunit,
        Self::TimeTravel,
        Self::Smp,
    ];

    /// The name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Full => "full",
            Self::Debug => "debug",
            Self::Coverage => "coverage",
            Self::Kunit => "kunit",
            Self::TimeTravel => "timetravel",
            Self::Smp => "smp",
        }
    }

    /// The fragment's text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Base => include_str!("../presets/base.config"),
            Self::Full => include_str!("../presets/full.config"),
            Self::Debug => include_str!("../presets/debug.config"),
            Self::Coverage => include_str!("../presets/coverage.config"),
            Self::Kunit => include_str!("../presets/kunit.config"),
            Self::TimeTravel => include_str!("../presets/timetravel.config"),
            Self::Smp => include_str!("../presets/smp.config"),
        }
    }

    /// The fragment.
    ///
    /// # Errors
    ///
    /// Only when the file that was built in is wrong.
    pub fn fragment(self) -> Result<Fragment, FragmentError> {
        Fragment::parse(&format!("preset {self}"), self.text())
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There is no preset of this name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no preset `{0}`: there are base, full, debug, coverage, kunit, timetravel, smp")]
pub struct UnknownPreset(
    /// The name.
    pub String,
);

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|preset| preset.name() == name)
            .ok_or_else(|| UnknownPreset(name.to_owned()))
    }
}

/// Two presets that no kernel can have both.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("presets {0} and {1} exclude each other: {2}")]
pub struct PresetConflict(
    /// One.
    pub Preset,
    /// The other.
    pub Preset,
    /// Why.
    pub &'static str,
);

/// Presets that are built into one kernel: always `base`, and any others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection(BTreeSet<Preset>);

impl Selection {
    /// The given presets and `base`.
    pub fn new(presets: impl IntoIterator<Item = Preset>) -> Self {
        let mut set: BTreeSet<Preset> = presets.into_iter().collect();
        set.insert(Preset::Base);
        Self(set)
    }

    /// The presets in the order of their fragments.
    pub fn iter(&self) -> impl Iterator<Item = Preset> {
        self.0.iter().copied()
    }

    /// Whether a preset is in it.
    pub fn contains(&self, preset: Preset) -> bool {
        self.0.contains(&preset)
    }

    /// Checks that a kernel can have them all.
    ///
    /// # Errors
    ///
    /// Names two that exclude each other.
    pub fn check(&self) -> Result<(), PresetConflict> {
        // UML_TIME_TRAVEL_SUPPORT depends on !SMP (arch/um/Kconfig).
        if self.contains(Preset::Smp) && self.contains(Preset::TimeTravel) {
            return Err(PresetConflict(
                Preset::Smp,
                Preset::TimeTravel,
                "guest time can stand still on one CPU only",
            ));
        }
        Ok(())
    }

    /// All fragments, one over the other.
    ///
    /// # Errors
    ///
    /// As [`Preset::fragment`].
    pub fn fragment(&self) -> Result<Fragment, FragmentError> {
        let mut all = Fragment::default();
        for preset in self.iter() {
            all.overlay(preset.fragment()?);
        }
        Ok(all)
    }
}

impl fmt::Display for Selection {
    /// The presets without `base`, unless it is alone: `debug,coverage`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self
            .iter()
            .filter(|preset| *preset != Preset::Base || self.0.len() == 1)
            .map(Preset::name)
            .collect();
        f.pad(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_fragment_parses() {
        for preset in Preset::ALL {
            let fragment = preset.fragment().unwrap();
            if preset != Preset::Full {
                assert!(fragment.options().count() > 0, "{preset} is empty");
            }
            assert_eq!(preset.name().parse(), Ok(preset));
        }
    }

    #[test]
    fn base_is_always_there_and_order_does_not_matter() {
        let one = Selection::new([Preset::Coverage, Preset::Debug]);
        let other = Selection::new([Preset::Debug, Preset::Base, Preset::Coverage]);
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "debug,coverage");
        assert_eq!(Selection::new([]).to_string(), "base");
        assert!(Selection::new([]).contains(Preset::Base));
    }

    #[test]
    fn presets_that_exclude_each_other_are_named() {
        let both = Selection::new([Preset::TimeTravel, Preset::Debug, Preset::Smp]);
        let error = both.check().unwrap_err().to_string();
        assert!(
            error.contains("smp") && error.contains("timetravel"),
            "{error}"
        );
        for preset in [Preset::TimeTravel, Preset::Smp] {
            assert_eq!(Selection::new([preset, Preset::Debug]).check(), Ok(()));
        }
    }

    #[test]
    fn an_unknown_preset_is_told_the_known_ones() {
        let error = "fast".parse::<Preset>().unwrap_err().to_string();
        for preset in Preset::ALL {
            assert!(error.contains(preset.name()), "{error}");
        }
    }

    #[test]
    fn serde_names_are_the_command_line_names() {
        for preset in Preset::ALL {
            let json = serde_json::to_string(&preset).unwrap();
            assert_eq!(json, format!("\"{preset}\""));
        }
    }
}
