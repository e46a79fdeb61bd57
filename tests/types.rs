//! Types as pahole shows them, of every kernel.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use common::{finish, kernels};
use kscope_kernel::Image;

/// What `pahole` says of every struct and union, by name.
fn pahole(kernel: &Path) -> BTreeMap<String, Vec<String>> {
    let listed = finish(
        Command::new("pahole")
            .arg(kernel)
            .stdout(std::process::Stdio::piped()),
    );
    let text = listed.text();
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(first) = lines.next() {
        let Some(name) = first.strip_suffix(" {") else {
            continue;
        };
        if !name.starts_with("struct ") && !name.starts_with("union ") {
            continue;
        }
        let mut block = format!("{first}\n");
        for line in lines.by_ref() {
            block.push_str(line);
            block.push('\n');
            if line.starts_with('}') {
                break;
            }
        }
        types.entry(name.to_owned()).or_default().push(block);
    }
    types
}

/// Without what the two spell differently on purpose, and without what spaces align.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut is_forced = false;
    let is_union = text.starts_with("union");
    for line in text.lines() {
        // Of types within types it gives totals only where they are `const`.
        let totals = [
            "size:",
            "sum ",
            "padding",
            "bit_padding",
            "forced",
            "last cacheline",
        ];
        let is_inner_total = line.strip_prefix("\t\t").is_some_and(|line| {
            let told = line.trim().strip_prefix("/* ").unwrap_or_default();
            totals.iter().any(|total| told.starts_with(total))
        });
        if is_inner_total {
            continue;
        }
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        // pahole explains how to get the same layout again.
        if line.starts_with("/* Force") || line.starts_with("/* Bitfield combined") {
            is_forced = line.starts_with("/* Force");
            continue;
        }
        if is_forced && line.contains(" :") {
            continue;
        }
        is_forced = false;
        // It gives unions no totals, and kscope tells of other types of the same name.
        let is_total = line.starts_with("/* size:") || line.starts_with("/* last cacheline");
        let is_extra = is_union && is_total || line.starts_with("/* another one");
        // It tells of padding within members only where it has met their types before.
        let is_padding = line.contains("XXX last struct") || line.starts_with("/* paddings:");
        if line.is_empty() || is_extra || is_padding {
            continue;
        }
        plain.push_str(&spelling(&line));
        plain.push('\n');
    }
    plain
}

/// A line without what it spells in its own way: stars, `const` of pointers, lengths of flexible
/// arrays, pointers to arrays, and the alignment of types, which it says twice, behind a member's
/// name, or not at all.
fn spelling(line: &str) -> String {
    let mut line = line.replace("[]", "[0]");
    for word in ["const ", " const"] {
        while line.contains(word) {
            line = line.replace(word, " ");
        }
    }
    while line.starts_with('}')
        && let Some((before, after)) = line.split_once("__attribute__((")
        && let Some((_, rest)) = after.split_once("))")
    {
        line = format!("{before}{}", rest.trim_start_matches(')'));
    }
    if line.contains(")[0];") {
        line = line.replace("(*", "*").replace(")[0]", "");
    }
    // A space only counts between two words or numbers.
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    let mut joined = String::new();
    for part in line.split_whitespace() {
        if joined.ends_with(is_word) && part.starts_with(is_word) {
            joined.push(' ');
        }
        joined.push_str(part);
    }
    joined
}

/// What is told of padding within members.
fn paddings(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| line.contains("XXX last struct"))
        .collect()
}

#[test]
#[ignore = "needs kernels"]
fn types_are_those_of_pahole() {
    let mut seen = BTreeSet::new();
    for kernel in kernels() {
        if !seen.insert(&kernel.path) {
            continue;
        }
        let image = Image::open(&kernel.path).expect("the kernel");
        let layout = image.layout().expect("DWARF");
        let mut compared = 0;
        let mut packed = 0;
        let mut differ = Vec::new();
        for (name, blocks) in pahole(&kernel.path) {
            let view = layout.view(&name, &[], 64);
            let mut views: Vec<_> = view.iter().map(ToString::to_string).collect();
            // Files may have their own types of this name, and pahole shows one of them.
            for file in view.iter().flat_map(|view| &view.others) {
                let other = layout.view(&format!("{file}::{name}"), &[], 64);
                views.push(other.expect("it is there").to_string());
            }
            let same = |view: &&String| {
                blocks.iter().any(|block| {
                    let view = match block.contains("/* size: ") {
                        true => plain(view),
                        // It sometimes forgets the totals.
                        false => plain(view.split("\t/* size: ").next().unwrap_or(view)) + "};\n",
                    };
                    plain(block) == view
                })
            };
            match views.iter().find(same) {
                Some(view) => {
                    compared += 1;
                    let told = paddings(view);
                    let missing = |line: &&str| !told.contains(line);
                    let missing = blocks
                        .iter()
                        .flat_map(|block| paddings(block))
                        .find(missing);
                    assert_eq!(missing, None, "{view}");
                    // It finds more to be packed than the source says, but no less.
                    let is_packed = |text: &str| text.trim_end().ends_with("__packed__));");
                    packed += usize::from(is_packed(view));
                    let agrees = blocks.iter().any(|block| is_packed(block));
                    assert!(agrees || !is_packed(view), "{view}");
                }
                None => {
                    let both = blocks.iter().chain(&views).map(|text| plain(text));
                    differ.push(both.collect::<Vec<_>>().join("\n"));
                }
            }
        }
        println!(
            "{}: {compared} types are the same, {packed} of them packed",
            kernel.name
        );
        assert!(
            differ.is_empty() && compared > 1000 && packed > 0,
            "{}: of {}, {} differ:\n{}",
            kernel.name,
            compared + differ.len(),
            differ.len(),
            differ.join("\n")
        );
    }
}
