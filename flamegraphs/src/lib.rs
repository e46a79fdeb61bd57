//! Stacks in, pictures and profile files out.
//!
//! Knows nothing of guests: a stack is a list of named [`Frame`]s with a weight. Out come the folded text that every
//! flame graph tool reads ([`write_folded`]) and an interactive SVG ([`write_svg`]).

mod folded;
mod stacks;
mod svg;

pub use folded::{FoldedError, read_folded, write_folded};
pub use stacks::{Frame, FrameId, FrameKind, Stacks};
pub use svg::{SvgError, SvgOptions, write_svg};
