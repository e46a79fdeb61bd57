//! The system's gcov as the judge: the same counters, compared line by line.

// Each test binary uses its own part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use kscope_coverage::object::ObjectCoverage;
use serde_json::Value;

/// The program that the environment variable `variable` names instead of `usual`:
/// for other versions of GCC than the system's.
pub fn tool(variable: &str, usual: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| usual.into())
}

/// What gcov says about each of `objects` (`.gcda` or `.gcno` files), by file.
///
/// gcov writes one line of JSON per object, in the order of its arguments.
pub fn run_gcov(objects: &[PathBuf]) -> Vec<Value> {
    let mut results = Vec::new();
    for chunk in objects.chunks(100) {
        let output = Command::new(tool("KSCOPE_TEST_GCOV", "gcov"))
            .args(["--json-format", "--stdout", "--branch-probabilities"])
            .args(chunk)
            .output()
            .expect("gcov runs");
        assert!(
            output.status.success(),
            "gcov: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = output
            .stdout
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty());
        results.extend(lines.map(|line| serde_json::from_slice::<Value>(line).expect("JSON")));
    }
    assert_eq!(results.len(), objects.len());
    results
}

/// How much was compared.
#[derive(Debug, Default, Clone, Copy)]
pub struct Compared {
    pub files: usize,
    pub functions: usize,
    pub lines: usize,
    pub branches: usize,
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.functions += other.functions;
        self.lines += other.lines;
        self.branches += other.branches;
    }
}

/// Compares one object's coverage with gcov's; every difference is a line of the result.
pub fn compare(object: &Path, ours: &ObjectCoverage, gcov: &Value) -> (Compared, Vec<String>) {
    let mut compared = Compared::default();
    let mut differences = Vec::new();
    let mut theirs: BTreeMap<&str, &Value> = BTreeMap::new();
    for file in gcov["files"].as_array().expect("files") {
        let empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
        if !empty(&file["lines"]) || !empty(&file["functions"]) {
            theirs.insert(file["file"].as_str().expect("name"), file);
        }
    }
    let object = object.display();
    for file in &ours.files {
        let Some(their) = theirs.remove(file.name.as_str()) else {
            differences.push(format!("{object}: {}: only here", file.name));
            continue;
        };
        compared.files += 1;

        let mut our_functions: Vec<String> = file
            .functions
            .iter()
            .map(|f| {
                format!(
                    "{} {}:{}-{} ran {} blocks {}/{}",
                    f.name,
                    f.start_line,
                    f.start_column,
                    f.end_line,
                    f.count,
                    f.blocks_executed,
                    f.blocks
                )
            })
            .collect();
        let mut their_functions: Vec<String> = their["functions"]
            .as_array()
            .expect("functions")
            .iter()
            .map(|f| {
                format!(
                    "{} {}:{}-{} ran {} blocks {}/{}",
                    f["name"].as_str().expect("name"),
                    f["start_line"],
                    f["start_column"],
                    f["end_line"],
                    f["execution_count"],
                    f["blocks_executed"],
                    f["blocks"]
                )
            })
            .collect();
        compared.functions += their_functions.len();
        note_differences(&mut our_functions, &mut their_functions, |what| {
            differences.push(format!("{object}: {}: {what}", file.name));
        });

        let mut our_lines: Vec<String> = file
            .lines
            .iter()
            .map(|l| {
                let branches: Vec<_> = l
                    .branches
                    .iter()
                    .map(|b| (b.count, b.fallthrough, b.throw))
                    .collect();
                let group = l.function.map(|f| file.functions[f as usize].name.as_str());
                line(group, l.number, l.count, l.unexecuted_block, &branches)
            })
            .collect();
        let grouped: BTreeMap<&str, bool> = file
            .functions
            .iter()
            .map(|f| {
                let together = |o: &&_| {
                    let o: &kscope_coverage::object::ObjectFunction = o;
                    o.start_line == f.start_line
                };
                (
                    f.name.as_str(),
                    file.functions.iter().filter(together).count() > 1,
                )
            })
            .collect();
        let mut their_lines: Vec<String> = their["lines"]
            .as_array()
            .expect("lines")
            .iter()
            .map(|l| {
                let branches = l["branches"].as_array().expect("branches").iter();
                let branches: Vec<_> = branches
                    .map(|b| {
                        let flag = |name: &str| b[name].as_bool().expect("flag");
                        (
                            b["count"].as_i64().expect("count"),
                            flag("fallthrough"),
                            flag("throw"),
                        )
                    })
                    .collect();
                compared.branches += branches.len();
                // gcov also names the function of lines that are not a group's.
                let group = l["function_name"]
                    .as_str()
                    .filter(|f| grouped.get(f) == Some(&true));
                line(
                    group,
                    l["line_number"].as_u64().expect("line") as u32,
                    l["count"].as_i64().expect("count"),
                    l["unexecuted_block"].as_bool().expect("flag"),
                    &branches,
                )
            })
            .collect();
        compared.lines += their_lines.len();
        note_differences(&mut our_lines, &mut their_lines, |what| {
            differences.push(format!("{object}: {}: {what}", file.name));
        });
    }
    differences.extend(
        theirs
            .keys()
            .map(|name| format!("{object}: {name}: only in gcov")),
    );
    (compared, differences)
}

fn line(
    group: Option<&str>,
    number: u32,
    count: i64,
    unexecuted: bool,
    branches: &[(i64, bool, bool)],
) -> String {
    format!("{number} ({group:?}): {count} unexecuted {unexecuted} {branches:?}")
}

fn note_differences(ours: &mut [String], theirs: &mut [String], mut note: impl FnMut(String)) {
    ours.sort_unstable();
    theirs.sort_unstable();
    if ours == theirs {
        return;
    }
    for line in ours.iter().filter(|l| theirs.binary_search(l).is_err()) {
        note(format!("here: {line}"));
    }
    for line in theirs.iter().filter(|l| ours.binary_search(l).is_err()) {
        note(format!("gcov: {line}"));
    }
    if ours.len() != theirs.len() {
        note(format!(
            "{} entries here, {} in gcov",
            ours.len(),
            theirs.len()
        ));
    }
}
