//! The flame graph as an interactive SVG, drawn by [inferno](https://docs.rs/inferno).

use std::collections::HashMap;
use std::io::{self, Write};

use inferno::flamegraph::color::{Color, PaletteMap};
use inferno::flamegraph::{Options, TextTruncateDirection, from_lines};

use crate::folded;
use crate::stacks::{FrameKind, Stacks};

/// What is written around the picture.
#[derive(Debug, Clone, Default)]
pub struct SvgOptions {
    /// Above the picture, large.
    pub title: String,
    /// Below the title: where the samples come from.
    pub subtitle: Option<String>,
    /// What a weight counts, "samples" when empty.
    pub unit: String,
    /// Draw from the top downwards.
    pub inverted: bool,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SvgError {
    /// There is nothing to draw.
    #[error("there are no samples to draw")]
    Empty,
    /// It cannot be written.
    #[error("cannot write the flame graph: {0}")]
    Io(#[from] io::Error),
}

/// Draws the stacks as a flame graph.
///
/// Boxes are coloured by what they are (kernel, inlined, host library, user) and their tooltips name the source line
/// that was met most often.
///
/// # Errors
///
/// No samples, or `out` fails.
pub fn write_svg(
    stacks: &Stacks,
    options: &SvgOptions,
    mut out: impl Write,
) -> Result<(), SvgError> {
    if stacks.is_empty() {
        return Err(SvgError::Empty);
    }
    let boxes = Boxes::of(stacks);
    let mut palette = boxes.palette();
    let mut drawing = Options::default();
    drawing.title.clone_from(&options.title);
    drawing.subtitle.clone_from(&options.subtitle);
    drawing.count_name = if options.unit.is_empty() {
        "samples".into()
    } else {
        options.unit.clone()
    };
    drawing.palette_map = Some(&mut palette);
    drawing.text_truncate_direction = TextTruncateDirection::Right;
    // Function names tell little at their end; keep the picture itself small, too.
    drawing.min_width = 0.05;
    if options.inverted {
        drawing.direction = inferno::flamegraph::Direction::Inverted;
    }
    let lines = folded::lines(stacks);
    let mut svg = Vec::new();
    from_lines(&mut drawing, lines.iter().map(String::as_str), &mut svg)?;
    out.write_all(
        boxes
            .add_locations(&String::from_utf8_lossy(&svg))
            .as_bytes(),
    )?;
    out.flush()?;
    Ok(())
}

/// What is known of all frames of one name.
#[derive(Debug, Default)]
struct Boxes(HashMap<String, NamedBox>);

#[derive(Debug)]
struct NamedBox {
    kind: FrameKind,
    /// Weight by location.
    locations: HashMap<String, u64>,
}

impl Boxes {
    fn of(stacks: &Stacks) -> Self {
        let mut boxes = HashMap::<String, NamedBox>::new();
        for (frames, weight) in stacks.iter() {
            for frame in frames {
                let entry = boxes
                    .entry(folded::sanitize(&frame.name))
                    .or_insert_with(|| NamedBox {
                        kind: frame.kind,
                        locations: HashMap::new(),
                    });
                // A function that is inlined here and called there has the colour of a called one.
                entry.kind = entry.kind.min(frame.kind);
                if let Some(location) = &frame.location {
                    *entry.locations.entry(location.clone()).or_default() += weight;
                }
            }
        }
        Self(boxes)
    }

    fn palette(&self) -> PaletteMap {
        let mut palette = PaletteMap::default();
        // inferno's own root box has no name.
        palette.insert("", color(FrameKind::Unknown, "all"));
        for (name, named) in &self.0 {
            palette.insert(name, color(named.kind, name));
        }
        palette
    }

    /// Puts `file:line` into the tooltips, inside of the parenthesis that inferno's script cuts off for the label.
    fn add_locations(&self, svg: &str) -> String {
        const OPEN: &str = "<title>";
        const CLOSE: &str = "</title>";
        let by_escaped: HashMap<String, String> = self
            .0
            .iter()
            .filter_map(|(name, named)| {
                // The lighter one of two equals, by name, so that the picture does not change from run to run.
                let (location, _) = named
                    .locations
                    .iter()
                    .max_by_key(|(location, weight)| (**weight, std::cmp::Reverse(*location)))?;
                Some((escape(name), escape(&location.replace(['(', ')'], "_"))))
            })
            .collect();
        let mut out = String::with_capacity(svg.len() + svg.len() / 4);
        let mut rest = svg;
        while let Some(begin) = rest.find(OPEN) {
            let (before, after) = rest.split_at(begin + OPEN.len());
            out.push_str(before);
            let Some(end) = after.find(CLOSE) else {
                rest = after;
                break;
            };
            let (title, tail) = after.split_at(end);
            let location = title
                .rsplit_once(" (")
                .and_then(|(name, _)| by_escaped.get(name));
            match (location, title.strip_suffix(')')) {
                (Some(location), Some(open_title)) => {
                    out.push_str(open_title);
                    out.push_str(", ");
                    out.push_str(location);
                    out.push(')');
                }
                _ => out.push_str(title),
            }
            rest = tail;
        }
        out.push_str(rest);
        out
    }
}

/// As inferno's XML writer escapes text.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A hue for the kind, a shade for the name, the same in every picture.
fn color(kind: FrameKind, name: &str) -> Color {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The high bits are the well-mixed ones.
    let shade = (hash >> 56) as u8;
    let from = |low: u8, span: u8| low + ((u16::from(shade) * u16::from(span)) >> 8) as u8;
    let (r, g, b) = match kind {
        FrameKind::Task => (from(120, 30), from(160, 30), from(210, 25)),
        FrameKind::Kernel => (from(225, 30), from(90, 90), from(40, 30)),
        FrameKind::Inlined => (from(240, 15), from(180, 50), from(80, 40)),
        FrameKind::Host => (from(175, 30), from(165, 20), from(190, 30)),
        FrameKind::User => (from(90, 30), from(190, 40), from(90, 30)),
        FrameKind::Unknown => (from(190, 20), from(190, 20), from(190, 20)),
    };
    Color { r, g, b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::Frame;

    fn frame(name: &str, kind: FrameKind, location: Option<&str>) -> Frame {
        Frame {
            name: name.into(),
            kind,
            location: location.map(str::to_owned),
        }
    }

    fn sample() -> Stacks {
        let mut stacks = Stacks::new();
        let task = stacks.frame(frame("<dd> & co (31)", FrameKind::Task, None));
        let read = stacks.frame(frame(
            "read_zero",
            FrameKind::Kernel,
            Some("drivers/char/mem.c:5"),
        ));
        let hot = stacks.frame(frame(
            "read_zero",
            FrameKind::Kernel,
            Some("drivers/char/mem.c:9"),
        ));
        let user = stacks.frame(frame("[guest user]", FrameKind::User, None));
        stacks.add(&[task, read], 1);
        stacks.add(&[task, hot], 7);
        stacks.add(&[task, user], 2);
        stacks
    }

    fn draw(stacks: &Stacks) -> String {
        let options = SvgOptions {
            title: "t".into(),
            subtitle: Some("Linux <6.12>".into()),
            ..SvgOptions::default()
        };
        let mut svg = Vec::new();
        write_svg(stacks, &options, &mut svg).unwrap();
        String::from_utf8(svg).unwrap()
    }

    #[test]
    fn tooltips_name_the_hottest_line() {
        let svg = draw(&sample());
        assert!(
            svg.contains("<title>read_zero (8 samples, 80.00%, drivers/char/mem.c:9)</title>"),
            "{svg}"
        );
        assert!(svg.contains("<title>&lt;dd&gt; &amp; co (31) (10 samples, 100.00%)</title>"));
        assert!(svg.contains("Linux &lt;6.12&gt;"));
    }

    #[test]
    fn the_same_stacks_give_the_same_picture() {
        assert_eq!(draw(&sample()), draw(&sample()));
    }

    #[test]
    fn no_samples_no_picture() {
        let error = write_svg(&Stacks::new(), &SvgOptions::default(), io::sink()).unwrap_err();
        assert!(matches!(error, SvgError::Empty));
    }

    #[test]
    fn kinds_can_be_told_apart() {
        let kernel = color(FrameKind::Kernel, "f");
        let user = color(FrameKind::User, "f");
        assert!(kernel.r > user.r && user.g > kernel.g);
    }
}
