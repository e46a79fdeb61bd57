//! The folded format: one line per stack, `outermost;…;innermost WEIGHT`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use crate::stacks::{Frame, FrameKind, Stacks};

/// Why text is not folded stacks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FoldedError {
    /// A line does not end in a weight.
    #[error("line {line} of the folded stacks does not end in a count: {text:?}")]
    NoWeight {
        /// Its number, from 1.
        line: usize,
        /// Its beginning.
        text: String,
    },
    /// The text cannot be read.
    #[error("cannot read the folded stacks: {0}")]
    Io(#[from] io::Error),
}

/// A frame's name as the format can carry it.
///
/// `;` separates frames, a line break ends the line, and what follows the last space is the weight, so that a name that
/// ends in a number of its own would be read as a second weight by some tools.
pub(crate) fn sanitize(name: &str) -> String {
    let mut clean: String = name
        .trim()
        .chars()
        .map(|c| match c {
            ';' => ':',
            c if c.is_control() => '?',
            c if c.is_whitespace() => ' ',
            c => c,
        })
        .collect();
    if clean.is_empty() {
        return "?".into();
    }
    if let Some(space) = clean.rfind(' ')
        && clean[space + 1..].parse::<f64>().is_ok()
    {
        clean.replace_range(space..=space, "_");
    }
    if clean.starts_with('#') {
        // A line that begins so is a comment.
        clean.insert(0, '_');
    }
    clean
}

/// The lines of the folded form, sorted, stacks of equal names merged.
pub(crate) fn lines(stacks: &Stacks) -> Vec<String> {
    let mut merged = BTreeMap::<String, u64>::new();
    for (frames, weight) in stacks.iter().filter(|(_, weight)| *weight > 0) {
        let names: Vec<String> = frames.map(|frame| sanitize(&frame.name)).collect();
        if !names.is_empty() {
            *merged.entry(names.join(";")).or_default() += weight;
        }
    }
    merged
        .into_iter()
        .map(|(names, weight)| format!("{names} {weight}"))
        .collect()
}

/// Writes the stacks in folded form, sorted, for every tool that reads it (flamegraph.pl, inferno, speedscope, …).
///
/// # Errors
///
/// When `out` fails.
pub fn write_folded(stacks: &Stacks, mut out: impl Write) -> io::Result<()> {
    for line in lines(stacks) {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

/// Reads stacks in folded form. Kinds and locations are not part of it: every frame is [`FrameKind::Kernel`].
///
/// # Errors
///
/// A line without a weight, or text that cannot be read.
pub fn read_folded(input: impl BufRead) -> Result<Stacks, FoldedError> {
    let mut stacks = Stacks::new();
    for (index, line) in input.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = line
            .rsplit_once(' ')
            .and_then(|(names, weight)| Some((names, weight.parse::<u64>().ok()?)));
        let Some((names, weight)) = parsed else {
            return Err(FoldedError::NoWeight {
                line: index + 1,
                text: line.chars().take(80).collect(),
            });
        };
        let stack: Vec<_> = names
            .split(';')
            .map(|name| {
                stacks.frame(Frame {
                    name: name.into(),
                    kind: FrameKind::Kernel,
                    location: None,
                })
            })
            .collect();
        stacks.add(&stack, weight);
    }
    Ok(stacks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stacks_of(input: &[(Vec<String>, u64)]) -> Stacks {
        let mut stacks = Stacks::new();
        for (names, weight) in input {
            let stack: Vec<_> = names
                .iter()
                .map(|name| {
                    stacks.frame(Frame {
                        name: name.clone(),
                        kind: FrameKind::Kernel,
                        location: None,
                    })
                })
                .collect();
            stacks.add(&stack, *weight);
        }
        stacks
    }

    fn text_of(stacks: &Stacks) -> String {
        let mut text = Vec::new();
        write_folded(stacks, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn names_cannot_break_the_format() {
        assert_eq!(sanitize("a;b\nc"), "a:b?c");
        assert_eq!(sanitize("task 12"), "task_12");
        assert_eq!(sanitize("dd (12)"), "dd (12)");
        assert_eq!(sanitize("# x"), "_# x");
        assert_eq!(sanitize(" "), "?");
    }

    #[test]
    fn a_line_without_weight_is_named() {
        let error = read_folded("a;b 3\na;b three\n".as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"line 2 of the folded stacks does not end in a count: "a;b three""#
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            input in prop::collection::vec((prop::collection::vec(".{0,12}", 1..6), 1u64..1000), 0..20)
        ) {
            let stacks = stacks_of(&input);
            let text = text_of(&stacks);
            let back = read_folded(text.as_bytes()).unwrap();
            prop_assert_eq!(back.total(), stacks.total());
            prop_assert_eq!(text_of(&back), text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = read_folded(text.as_bytes());
        }
    }
}
