//! What a long job tells its user while it runs.
//!
//! Libraries never print: they report [`Event`]s to a [`Progress`], which the
//! command turns into a bar on a terminal or into plain lines.

/// What an [`Amount`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes read or downloaded.
    Bytes,
    /// Build steps: one line of kbuild's output each (`CC init/main.o`).
    Steps,
    /// Hundredths of the phase.
    Percent,
}

/// How much there is to do in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// What is counted.
    pub unit: Unit,
    /// How many of them, if that can be said at all.
    pub total: Option<u64>,
    /// Whether `total` is known rather than guessed.
    pub exact: bool,
}

/// One report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A phase began; the previous one is over.
    Phase {
        /// The activity, in one capitalised word: `Unpacking`.
        verb: &'a str,
        /// Its object: `linux-source-6.12`.
        what: &'a str,
        /// How much there is to do; `None` when the phase is short or its
        /// length unknown.
        amount: Option<Amount>,
    },
    /// So much of the current phase is done, in its unit, since its start.
    Advance(u64),
    /// Something worth knowing, in one line.
    Note(&'a str),
}

/// A receiver of [`Event`]s.
pub trait Progress {
    /// Takes one report. Called often: must not block for long.
    fn event(&mut self, event: Event<'_>);
}

/// A [`Progress`] that keeps quiet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _event: Event<'_>) {}
}
