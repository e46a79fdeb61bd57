//! Small programs, compiled here and run: the solver against the system's gcov.

mod gcov;

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use gcov::{Compared, compare, run_gcov, tool};
use kscope_coverage::counters::ObjectCounters;
use kscope_coverage::gcda;
use kscope_coverage::gcno::Notes;
use kscope_coverage::object::solve;
use proptest::prelude::*;

fn gcc() -> OsString {
    tool("KSCOPE_TEST_GCC", "gcc")
}

fn gxx() -> OsString {
    tool("KSCOPE_TEST_GXX", "g++")
}

/// Compiles `source` for coverage in `dir`, runs it and returns its `.gcda` file.
fn run(compiler: &OsStr, flags: &[&str], source: &Path, dir: &Path) -> PathBuf {
    let object = dir.join("program.o");
    let program = dir.join("program");
    let status = Command::new(compiler)
        .args(["--coverage", "-w", "-c", "-o"])
        .arg(&object)
        .args(flags)
        .arg(source)
        .status()
        .expect("the compiler runs");
    assert!(status.success());
    let status = Command::new(compiler)
        .args(["--coverage", "-o"])
        .args([&program, &object])
        .status()
        .expect("the linker runs");
    assert!(status.success());
    let output = Command::new(&program)
        .current_dir(dir)
        .output()
        .expect("the program runs");
    assert!(output.status.success());
    dir.join("program.gcda")
}

fn read(gcda: &Path) -> (Notes, ObjectCounters) {
    let notes = std::fs::read(gcda.with_extension("gcno")).expect("notes");
    let data = std::fs::read(gcda).expect("data");
    let notes = Notes::parse(&notes).expect("sound notes");
    let counters = gcda::read(&data, gcda.display().to_string()).expect("sound data");
    assert_eq!(notes.stamp, counters.stamp);
    (notes, counters)
}

fn assert_equals_gcov(gcda: &Path) -> Compared {
    let (notes, counters) = read(gcda);
    let ours = solve(&notes, Some(&counters));
    assert_eq!((ours.mismatched, ours.unsolvable), (0, 0));
    let (compared, differences) = compare(gcda, &ours, &run_gcov(&[gcda.to_owned()])[0]);
    assert!(differences.is_empty(), "{}", differences.join("\n"));

    // The writer's file means the same to gcov.
    std::fs::write(gcda, gcda::write(&counters)).expect("write");
    let (_, differences) = compare(gcda, &ours, &run_gcov(&[gcda.to_owned()])[0]);
    assert!(differences.is_empty(), "{}", differences.join("\n"));

    // Without data all is there and nothing ran.
    std::fs::remove_file(gcda).expect("remove");
    let notes_file = gcda.with_extension("gcno");
    let (_, differences) = compare(gcda, &solve(&notes, None), &run_gcov(&[notes_file])[0]);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    compared
}

fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

#[test]
fn programs_in_c_are_solved_as_by_gcov() {
    for program in ["loops.c", "calls.c"] {
        for optimization in ["-O0", "-O1", "-O2", "-O3"] {
            let dir = tempfile::tempdir().expect("directory");
            let gcda = run(
                &gcc(),
                &[optimization],
                &programs().join(program),
                dir.path(),
            );
            let compared = assert_equals_gcov(&gcda);
            assert!(
                compared.lines > 10 && compared.branches > 10,
                "{compared:?}"
            );
        }
    }
}

#[test]
fn exceptions_are_solved_as_by_gcov() {
    if Command::new(gxx()).arg("--version").output().is_err() {
        eprintln!("skipped: no g++");
        return;
    }
    for optimization in ["-O0", "-O2"] {
        let dir = tempfile::tempdir().expect("directory");
        let gcda = run(
            &gxx(),
            &[optimization],
            &programs().join("throws.cc"),
            dir.path(),
        );
        assert_equals_gcov(&gcda);
    }
}

/// A statement of a random program.
#[derive(Debug, Clone)]
enum Statement {
    Step,
    If(Vec<Statement>, Vec<Statement>),
    While(Vec<Statement>),
    DoWhile(Vec<Statement>),
    Switch(Vec<Vec<Statement>>),
    Break,
    Continue,
    Goto,
    Return,
}

fn statement() -> impl Strategy<Value = Statement> {
    let leaf = prop_oneof![
        6 => Just(Statement::Step),
        1 => Just(Statement::Break),
        1 => Just(Statement::Continue),
        1 => Just(Statement::Goto),
        1 => Just(Statement::Return),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        let body = || prop::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            (body(), body()).prop_map(|(a, b)| Statement::If(a, b)),
            body().prop_map(Statement::While),
            body().prop_map(Statement::DoWhile),
            prop::collection::vec(body(), 1..4).prop_map(Statement::Switch),
        ]
    })
}

/// Writes statements as C; `end` is what separates them, a newline or a blank.
fn write_c(statements: &[Statement], in_loop: bool, end: &str, out: &mut String) {
    for statement in statements {
        // `next()` is a random bit; `fuel` ends every program.
        match statement {
            Statement::Step => out.push_str("x += next();"),
            Statement::If(then, otherwise) => {
                out.push_str("if (next()) {");
                write_c(then, in_loop, end, out);
                out.push_str("} else {");
                write_c(otherwise, in_loop, end, out);
                out.push('}');
            }
            Statement::While(body) => {
                out.push_str("while (next() && fuel-- > 0) {");
                write_c(body, true, end, out);
                out.push('}');
            }
            Statement::DoWhile(body) => {
                out.push_str("do {");
                write_c(body, true, end, out);
                out.push_str("} while (next() && fuel-- > 0);");
            }
            Statement::Switch(cases) => {
                out.push_str("switch (next() * 2 + next()) {");
                for (number, case) in cases.iter().enumerate() {
                    let _ = write!(out, "case {number}: ");
                    write_c(case, in_loop, end, out);
                }
                out.push('}');
            }
            Statement::Break if in_loop => out.push_str("if (next()) break;"),
            Statement::Continue if in_loop => out.push_str("if (next()) continue;"),
            Statement::Break | Statement::Continue => {}
            Statement::Goto => out.push_str("if (next() && fuel-- > 0) goto top;"),
            Statement::Return => out.push_str("if (next()) return x;"),
        }
        out.push_str(end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_programs_are_solved_as_by_gcov(
        body in prop::collection::vec(statement(), 1..6),
        one_line in any::<bool>(),
        optimize in any::<bool>(),
    ) {
        let end = if one_line { " " } else { "\n" };
        let mut source = String::from(
            "static int fuel; static unsigned long seed = 1;\n\
             static int next(void) { seed = seed * 6364136223846793005ul + 1442695040888963407ul; return seed >> 63; }\n\
             static int f(int x) { top: x++;\n",
        );
        write_c(&body, false, end, &mut source);
        source.push_str("\nreturn x; }\n");
        source.push_str("int main(void) { for (int i = 0; i < 50; i++) { fuel = 50; f(i); } return 0; }\n");
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("random.c");
        std::fs::write(&file, &source).expect("write");
        let gcda = run(&gcc(), &[if optimize { "-O2" } else { "-O0" }], &file, dir.path());
        let (notes, counters) = read(&gcda);
        let ours = solve(&notes, Some(&counters));
        let (_, differences) = compare(&gcda, &ours, &run_gcov(std::slice::from_ref(&gcda))[0]);
        prop_assert!(differences.is_empty(), "{}\n{}", source, differences.join("\n"));
    }
}

/// A real object's notes and data, made once.
fn sample() -> &'static (Vec<u8>, Vec<u8>) {
    static SAMPLE: std::sync::OnceLock<(Vec<u8>, Vec<u8>)> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("directory");
        let gcda = run(&gcc(), &["-O1"], &programs().join("calls.c"), dir.path());
        let notes = std::fs::read(gcda.with_extension("gcno")).expect("notes");
        (notes, std::fs::read(&gcda).expect("data"))
    })
}

/// Replaces bytes and cuts off the end.
fn damage(
    bytes: &[u8],
    changes: &[(prop::sample::Index, u8)],
    keep: prop::sample::Index,
) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    // Mostly whole: what is cut off is found out at once.
    if keep.index(4) == 0 {
        bytes.truncate(keep.index(bytes.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_files_never_panic(
        notes_changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        data_changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        keep in any::<prop::sample::Index>(),
    ) {
        let (notes, data) = sample();
        let notes = damage(notes, &notes_changes, keep);
        let data = damage(data, &data_changes, keep);
        let counters = gcda::read(&data, String::new());
        if let Ok(notes) = Notes::parse(&notes) {
            solve(&notes, counters.as_ref().ok());
            solve(&notes, None);
        }
    }

    #[test]
    fn counters_that_contradict_each_other_never_panic(
        values in prop::collection::vec(any::<i64>(), 1..16),
    ) {
        let (notes, data) = sample();
        let notes = Notes::parse(notes).expect("sound notes");
        let mut counters = gcda::read(data, String::new()).expect("sound data");
        let mut values = values.iter().cycle();
        let mut torn = ObjectCounters::new(
            counters.version, counters.stamp, counters.checksum, String::new());
        for function in counters.functions() {
            let values: Vec<i64> =
                function.values.iter().map(|_| *values.next().expect("endless")).collect();
            torn.push(kscope_coverage::counters::FunctionCounters { values: &values, ..function });
        }
        counters = torn;
        solve(&notes, Some(&counters));
    }
}
