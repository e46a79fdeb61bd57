//! Reports over several objects, some of which are not as they should be.

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;

use kscope_coverage::counters::{Counters, FunctionCounters, ObjectCounters};
use kscope_coverage::gcno::Notes;
use kscope_coverage::report::{Coverage, SkipReason};
use kscope_coverage::tree::BuildTree;

const SHARED: &str =
    "static inline int shared(int n)\n{\n\tif (n)\n\t\treturn 1;\n\treturn 2;\n}\n";

/// Compiles an object that includes a header, and makes up counters for it:
/// `value` for each arc that has one.
fn object(dir: &Path, name: &str, value: i64) -> ObjectCounters {
    std::fs::write(dir.join("shared.h"), SHARED).expect("write");
    let source = format!("#include \"shared.h\"\nint {name}(int n)\n{{\n\treturn shared(n);\n}}\n");
    std::fs::write(dir.join(format!("{name}.c")), source).expect("write");
    let status = Command::new("gcc")
        .current_dir(dir)
        .args(["--coverage", "-O0", "-c", &format!("{name}.c")])
        .status()
        .expect("gcc runs");
    assert!(status.success());
    let notes = std::fs::read(dir.join(format!("{name}.gcno"))).expect("notes");
    let notes = Notes::parse(&notes).expect("sound notes");
    let data_file = dir.join(format!("{name}.gcda")).display().to_string();
    let mut object = ObjectCounters::new(notes.version, notes.stamp, 0, data_file);
    for function in &notes.functions {
        object.push(FunctionCounters {
            ident: function.ident,
            lineno_checksum: function.lineno_checksum,
            cfg_checksum: function.cfg_checksum,
            values: &vec![value; function.counters()],
        });
    }
    object
}

fn solve(objects: Vec<ObjectCounters>, root: &Path) -> Coverage {
    let tree = BuildTree::locate(root, objects.iter().map(|o| o.data_file.as_str()));
    let threads = NonZeroUsize::new(2).expect("two");
    Coverage::solve(&Counters { objects }, &tree, threads).expect("some notes")
}

#[test]
fn a_header_has_the_sum_of_the_objects_that_include_it() {
    let dir = tempfile::tempdir().expect("directory");
    let objects = vec![
        object(dir.path(), "first", 2),
        object(dir.path(), "second", 5),
    ];
    let coverage = solve(objects, dir.path());
    assert_eq!((coverage.objects, coverage.skipped.len()), (2, 0));
    assert_eq!(coverage.source_root.as_deref(), dir.path().to_str());
    let header = &coverage.files[dir.path().join("shared.h").to_str().expect("text")];
    // One counter is the entry's, one an arm's; what enters one arm does not enter the other.
    assert_eq!(header.functions["shared"].count, 2 + 5);
    assert_eq!(header.lines[&4].count + header.lines[&5].count, 2 + 5);
    assert_eq!(header.lines[&3].branches.len(), 2);
    assert_eq!(header.functions["shared"].count, header.lines[&3].count);
    assert_eq!(
        coverage.relative(dir.path().join("shared.h").to_str().expect("text")),
        "shared.h"
    );
}

#[test]
fn counters_below_zero_are_shown_as_zero_and_told() {
    let dir = tempfile::tempdir().expect("directory");
    let coverage = solve(vec![object(dir.path(), "first", -3)], dir.path());
    assert!(coverage.doubts.negative > 0 && coverage.doubts.torn > 0);
    assert_eq!(coverage.totals().lines.hit, 0);
}

#[test]
fn notes_of_another_compilation_are_left_out_and_told() {
    let dir = tempfile::tempdir().expect("directory");
    let sound = object(dir.path(), "first", 1);
    let mut stale = object(dir.path(), "second", 1);
    stale.stamp ^= 1;
    let mut missing = sound.clone();
    missing.data_file = dir.path().join("third.gcda").display().to_string();
    std::fs::write(dir.path().join("fourth.gcno"), b"gcno").expect("write");
    let mut damaged = sound.clone();
    damaged.data_file = dir.path().join("fourth.gcda").display().to_string();
    let coverage = solve(vec![sound, stale, missing, damaged], dir.path());
    assert_eq!(coverage.objects, 1);
    let reasons: Vec<_> = coverage.skipped.iter().map(|s| &s.reason).collect();
    assert!(
        matches!(
            reasons[..],
            [
                SkipReason::Damaged(_),
                SkipReason::Stale,
                SkipReason::Missing
            ]
        ),
        "{reasons:?}"
    );
}

#[test]
fn functions_of_another_compilation_count_as_not_run() {
    let dir = tempfile::tempdir().expect("directory");
    let sound = object(dir.path(), "first", 1);
    let mut changed = ObjectCounters::new(
        sound.version,
        sound.stamp,
        sound.checksum,
        sound.data_file.clone(),
    );
    for function in sound.functions() {
        changed.push(FunctionCounters {
            cfg_checksum: function.cfg_checksum ^ 1,
            ..function
        });
    }
    let coverage = solve(vec![changed], dir.path());
    assert_eq!(coverage.doubts.mismatched, 2);
    assert_eq!(coverage.totals().lines.hit, 0);
    assert!(coverage.totals().lines.found > 0);
}

#[test]
fn no_notes_at_all_is_an_error_that_names_the_fix() {
    let dir = tempfile::tempdir().expect("directory");
    let mut gone = object(dir.path(), "first", 1);
    gone.data_file = "/gone/build/first.gcda".to_owned();
    let elsewhere = tempfile::tempdir().expect("directory");
    let tree = BuildTree::locate(elsewhere.path(), [gone.data_file.as_str()]);
    let error = Coverage::solve(
        &Counters {
            objects: vec![gone],
        },
        &tree,
        NonZeroUsize::MIN,
    )
    .expect_err("nothing there");
    let text = error.to_string();
    for part in [
        "/gone/build/first.gcno",
        "--build-tree",
        "kscope build --preset coverage",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
