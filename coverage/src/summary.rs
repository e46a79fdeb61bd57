//! Coverage in short: a table by directory, and the same as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::report::{Coverage, Doubts, Ratio, Totals};

/// The version of [`json`]'s format. It changes when a field changes its
/// meaning or goes; new fields can come at any time.
pub const JSON_VERSION: u32 = 1;

/// A table by directory, `depth` levels deep, with the total at its end.
/// Directories in which nothing ran share a row: there are many.
pub fn table(coverage: &Coverage, depth: usize) -> String {
    let mut rows: Vec<(String, Totals)> = Vec::new();
    if depth > 0 {
        let (reached, rest): (Vec<_>, Vec<_>) = coverage
            .directories(depth)
            .into_iter()
            .partition(|(_, totals)| totals.lines.hit > 0);
        rows.extend(reached);
        if !rest.is_empty() {
            let name = format!("({} not reached)", rest.len());
            let mut sum = Totals::default();
            for (_, totals) in rest {
                sum += totals;
            }
            rows.push((name, sum));
        }
    }
    rows.push(("total".to_owned(), coverage.totals()));
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0)
        .max(9);
    let heads = ["lines", "functions", "branches"].map(|head| format!("{head:>23}"));
    let mut out = format!("{:width$}{}\n", "directory", heads.concat());
    for (name, totals) in rows {
        let _ = write!(out, "{name:width$}");
        for ratio in [totals.lines, totals.functions, totals.branches] {
            let hit = format!("{}/{}", ratio.hit, ratio.found);
            let percent = ratio
                .percent()
                .map_or_else(|| "-".to_owned(), |p| format!("{p:.1} %"));
            let _ = write!(out, "{hit:>15}{percent:>8}");
        }
        out.push('\n');
    }
    out
}

#[derive(Serialize)]
struct Json<'a> {
    format: &'static str,
    version: u32,
    kernel: &'a str,
    source_root: Option<&'a str>,
    build_root: &'a str,
    objects: usize,
    skipped: Vec<JsonSkipped>,
    mismatched_functions: usize,
    inconsistent_functions: usize,
    negative_counts: usize,
    total: Totals,
    directories: Vec<JsonRow<'a>>,
    files: Vec<JsonRow<'a>>,
}

#[derive(Serialize)]
struct JsonSkipped {
    notes: String,
    reason: String,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    path: &'a str,
    lines: Ratio,
    functions: Ratio,
    branches: Ratio,
}

/// The summary of the kernel at the path `kernel` as one JSON object.
pub fn json(coverage: &Coverage, kernel: &str, depth: usize) -> String {
    let row = |path, totals: Totals| JsonRow {
        path,
        lines: totals.lines,
        functions: totals.functions,
        branches: totals.branches,
    };
    let directories = coverage.directories(depth);
    let skipped = coverage.skipped.iter().map(|s| JsonSkipped {
        notes: s.notes.display().to_string(),
        reason: s.reason.to_string(),
    });
    let Doubts {
        mismatched,
        torn,
        negative,
    } = coverage.doubts;
    let json = Json {
        format: "kscope-coverage",
        version: JSON_VERSION,
        kernel,
        source_root: coverage.source_root.as_deref(),
        build_root: &coverage.build_root,
        objects: coverage.objects,
        skipped: skipped.collect(),
        mismatched_functions: mismatched,
        inconsistent_functions: torn,
        negative_counts: negative,
        total: coverage.totals(),
        directories: directories
            .iter()
            .map(|(path, totals)| row(path, *totals))
            .collect(),
        files: coverage
            .files
            .iter()
            .map(|(path, file)| row(path, file.totals()))
            .collect(),
    };
    serde_json::to_string_pretty(&json).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FileCoverage, FunctionCoverage, LineCoverage};

    fn sample() -> Coverage {
        let mut coverage = Coverage {
            objects: 2,
            source_root: Some("/src".to_owned()),
            build_root: "/src/build".to_owned(),
            ..Coverage::default()
        };
        for (path, count) in [
            ("/src/fs/proc/array.c", 3),
            ("/src/fs/ext4/inode/x.c", 0),
            ("/src/build/include/generated/a.h", 1),
            ("/elsewhere/b.h", 1),
        ] {
            let mut file = FileCoverage::default();
            file.lines.insert(
                1,
                LineCoverage {
                    count,
                    branches: Vec::new(),
                },
            );
            let function = FunctionCoverage {
                start_line: 1,
                end_line: 1,
                count,
            };
            file.functions.insert("f".to_owned(), function);
            coverage.files.insert(path.to_owned(), file);
        }
        coverage
    }

    #[test]
    fn the_table_groups_by_directory() {
        let table = table(&sample(), 2);
        let names: Vec<_> = table
            .lines()
            .filter_map(|l| l.split_whitespace().next())
            .collect();
        assert_eq!(
            names,
            [
                "directory",
                "/elsewhere",
                "fs/proc",
                "include/generated",
                "(1",
                "total"
            ]
        );
        let total = table.lines().last().unwrap();
        let cells: Vec<_> = total.split_whitespace().collect();
        assert_eq!(
            cells,
            ["total", "3/4", "75.0", "%", "3/4", "75.0", "%", "0/0", "-"]
        );
    }

    #[test]
    fn files_can_be_filtered() {
        let mut coverage = sample();
        coverage.retain(|path| path.starts_with("fs/"));
        assert_eq!(coverage.files.len(), 2);
    }

    #[test]
    fn the_json_has_its_version_and_totals() {
        let json: serde_json::Value =
            serde_json::from_str(&json(&sample(), "/src/build/linux", 1)).unwrap();
        assert_eq!(json["format"], "kscope-coverage");
        assert_eq!(json["version"], JSON_VERSION);
        assert_eq!(json["total"]["lines"]["hit"], 3);
        assert_eq!(json["directories"][1]["path"], "fs");
        assert_eq!(json["files"][0]["path"], "/elsewhere/b.h");
    }
}
