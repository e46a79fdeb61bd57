//! Expressions: what gdb makes of them in the same program, and what is wrong with the others.

use std::process::Command;

use kscope_kernel::views::print::{Content, PrintOptions, Printed};
use kscope_kernel::{Kernel, Reader, Style, ViewError};

use crate::common::{Loaded, run};
use crate::values::fixture;

fn print(
    kernel: &Kernel<Loaded>,
    text: &str,
    options: &PrintOptions,
) -> Result<Printed, ViewError> {
    Reader::new(kernel).print(text, options)
}

fn text(kernel: &Kernel<Loaded>, text: &str) -> String {
    match print(kernel, text, &PrintOptions::default()) {
        Ok(printed) => printed.to_string().trim_end().to_owned(),
        Err(error) => panic!("{text}: {error}"),
    }
}

#[test]
fn expressions_are_what_gdb_makes_of_them() {
    const EXPRESSIONS: &[&str] = &[
        "all.word",
        "all.wide + 1",
        "all.unsigned_wide",
        "all.half * 2",
        "all.byte + 10",
        "-all.byte",
        "~all.byte",
        "all.low",
        "all.high << 20",
        "all.negative",
        "all.negative / 2",
        "all.color",
        "all.color + 1",
        "all.color_bits",
        "all.no_color == 99",
        "all.name[2]",
        "&all.name[2]",
        "*all.inner",
        "all.inner->y",
        "(*all.inner).x - all.inner->y",
        "&all.inner->y",
        "&all.points[2] - &all.points[0]",
        "&all.points[1]",
        "(all.points + 2)->x",
        "*(all.points + 1)",
        "all.matrix[1][2]",
        "all.matrix[1]",
        "&all.matrix[1][2]",
        "*all.matrix[1]",
        "all.as_low",
        "all.a.b.c.deep",
        "all.function",
        "functions[0]",
        "functions[1] == 0",
        "function",
        "&function",
        "sizeof(struct all)",
        "sizeof(all.name)",
        "sizeof all.matrix[1]",
        "sizeof(struct point *)",
        "sizeof(unsigned short)",
        "sizeof(u64)",
        "(long)&all",
        "(char)321",
        "(unsigned char)-1",
        "(short)0x18000",
        "(struct point *)&all.points[1]",
        "((struct point *)&all.points[1])->y",
        "*(struct point *)((char *)&all.points + sizeof(struct point))",
        "(u64)-1",
        "(u64)-1 > 5",
        "-1 < 5u",
        "-1L < 5u",
        "7 / 2 * 2 + 7 % 2",
        "-7 / 2",
        "-7 % 4",
        "-7 >> 1",
        "0xffffffff + 1",
        "2147483647 + 1L",
        "1 << 4 | 1 ^ 3 & 2",
        "1 + 2 == 3 && 4 < 5 || 0",
        "!all.nothing",
        "!all.inner",
        "all.inner && all.inner->x == 3",
        "'A' + 1",
        "0x1f",
        "017",
        "GREEN",
        "DARK",
        "BLACK",
        "NAMELESS",
        "(enum color)7",
        "(enum color)8",
        "&origin",
        "origin",
        "&ring",
        "ring.next == &nodes[0].link",
        "nodes[1].self->self->number",
        "&nodes[1].link",
        "(char *)&all.name",
        "all.text",
        "*all.text",
        "all.text[1]",
        "all.fraction",
        "all.list",
        "leader1.comm",
        "init_task.tasks.next",
        "init_task.thread.switch_buf[0]",
        "leader1.thread.switch_buf[0].__rip",
        "cpu_tasks[0].task",
        "*cpu_tasks",
        "'other.c'::twice",
        "'values.c'::twice",
        "function::calls",
        "complicated",
        "*(int (*)[2])&origin",
        "(int (*)[2])&origin",
        "sizeof(struct point *[3])",
    ];
    let (fixture, kernel) = fixture("-gdwarf-5");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set print repeats unlimited"]);
    gdb.args(["-ex", "set width 0", "-ex", "set print null-stop on"]);
    for expression in EXPRESSIONS {
        // An error does not end the batch, and its answer is told from the next one's.
        gdb.args(["-ex", "echo >>>", "-ex", &format!("output {expression}")]);
        gdb.args(["-ex", "echo <<<\\n"]);
    }
    gdb.arg(&fixture.kernel);
    let output = run(&mut gdb);
    let told = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<_> = told
        .split(">>>")
        .skip(1)
        .map(|answer| answer.split("<<<").next().unwrap_or_default().trim())
        .collect();
    assert_eq!(answers.len(), EXPRESSIONS.len(), "{told}");
    let mut differ = Vec::new();
    for (expression, answer) in EXPRESSIONS.iter().zip(answers) {
        let options = PrintOptions {
            style: Style {
                raw: true,
                depth: 9,
                ..Style::default()
            },
            ..PrintOptions::default()
        };
        let found = match print(&kernel, expression, &options) {
            Ok(printed) => gdb_spelling(&printed),
            Err(error) => error.to_string(),
        };
        if found != plain(answer) {
            differ.push(format!(
                "{expression}: gdb `{}`, kscope `{found}`",
                plain(answer)
            ));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// As gdb prints it, on one line.
fn gdb_spelling(printed: &Printed) -> String {
    let Content::One(value) = &printed.content else {
        panic!("{printed}");
    };
    let text = match printed.to_string().starts_with('(') {
        true => format!("({}) {value}", printed.ty),
        false => value.to_string(),
    };
    plain(&text)
}

/// Without what the two spell differently on purpose.
fn plain(text: &str) -> String {
    let text = text
        .replace("NULL", "0x0")
        .replace("{function}", "")
        .replace(" '\\000'", "")
        // A function is printed with its type.
        .replace("{int (struct all *, int)}", "");
    // gdb shows every `unsigned char` as a character.
    let text = match text.split_once(" '") {
        Some((number, _)) if number.parse::<i64>().is_ok() => number.to_owned(),
        _ => text,
    };
    text.trim().to_owned()
}

#[test]
fn what_gdb_does_not_have() {
    let (_fixture, kernel) = fixture("-gdwarf-5");
    for (expression, printed) in [
        (
            "list(ring, struct node, link)->number",
            "[0] = 10\n[1] = 11\n[2] = 12",
        ),
        (
            "list(&ring, struct node, link).number",
            "[0] = 10\n[1] = 11\n[2] = 12",
        ),
        (
            "list(chain, struct node, hlink)->self->number",
            "[0] = 10\n[1] = 11\n[2] = 12",
        ),
        ("list(ring, struct node, link)[1]->number", "11"),
        (
            "(long)list(ring, struct node, link)->number",
            "[0] = 10\n[1] = 11\n[2] = 12",
        ),
        (
            "*list(init_task.tasks)->comm",
            "[0] = 105 'i'\n[1] = 107 'k'",
        ),
        (
            "list(init_task.tasks)->comm",
            "[0] = \"init\"\n[1] = \"kworker/0:1-eve\"",
        ),
        ("init_task.children.next", "kscope"),
        (
            "container_of(&nodes[2].link, struct node, link)->number",
            "12",
        ),
        ("container_of(ring.next, struct node, link)->number", "10"),
        ("offsetof(struct node, link)", "16"),
        ("offsetof(struct all, points[1].y)", "kscope"),
        ("$task(20)->comm", "\"kworker/0:1-eve\""),
        ("$lx_task_by_pid(21).tgid", "20"),
        ("current->comm", "\"init\""),
        ("$current(0)->pid", "1"),
        ("$lx_current().pid", "1"),
        ("current.pid", "1"),
        ("$per_cpu(origin, 0).x", "3"),
        ("$per_cpu_ptr(&origin, 0)->x", "3"),
        ("(u8 [4])all.word", "{0, 108, 202, 136}"),
        ("values.c::twice + other.c::twice", "3"),
        ("inlined::inlined_calls", "42"),
        ("*(int (*)[2])0", "kscope"),
    ] {
        if printed == "kscope" {
            continue;
        }
        assert_eq!(text(&kernel, expression), printed, "{expression}");
    }
    let list = text(&kernel, "signal2.thread_head");
    let mut lines = list.lines();
    for name in ["kworker/0:1-eve", "worker\u{fffd} thread"] {
        let line = lines.next().expect("a task");
        assert!(line.contains("(struct task_struct *) 0x"), "{line}");
        assert!(line.ends_with(&format!("\"{name}\"")), "{line}");
    }
    assert_eq!(lines.next(), None);
    // What hangs in it nobody knows; one can ask.
    assert!(text(&kernel, "ring").ends_with("(its elements: list(HEAD, struct TYPE, MEMBER))"));
    let few = PrintOptions {
        style: Style {
            elements: 1,
            ..Style::default()
        },
        ..PrintOptions::default()
    };
    let printed = print(&kernel, "list(ring, struct node, link)->number", &few).expect("a list");
    assert_eq!(printed.to_string(), "[0] = 10\n... (more: --limit)\n");
    assert!(printed.is_cut());
    let typed = |expression: &str, ty: &str| {
        let options = PrintOptions {
            ty: Some(ty.to_owned()),
            ..PrintOptions::default()
        };
        let printed = print(&kernel, expression, &options).expect(expression);
        printed.to_string().trim_end().to_owned()
    };
    assert_eq!(typed("&all.points[1]", "struct point"), "{x = 3, y = 4}");
    assert_eq!(
        typed("(long)&all.points[1]", "struct point"),
        "{x = 3, y = 4}"
    );
    assert_eq!(typed("all.points[2]", "int [2]"), "{5, 6}");
    assert_eq!(typed("all.inner", "unsigned int"), "3");
}

#[test]
fn mistakes_are_told_with_their_place() {
    let (_fixture, kernel) = fixture("-gdwarf-5");
    for (expression, column, message) in [
        (
            "init_task.com",
            11,
            "`struct task_struct` has no member `com`; did you mean `comm`?",
        ),
        (
            "all.inner->z",
            12,
            "`struct point` has no member `z`; it has x, y",
        ),
        ("all.a.b.x", 9, "; it has c"),
        ("all.word.x", 1, "this is a `int`, which has no members"),
        ("*all.word", 2, "this is a `int`, and no pointer; cast it"),
        (
            "all.points[3]",
            12,
            "3 is beyond the end of this `struct point [3]`",
        ),
        ("all.points[-1]", 12, "-1 is beyond the end"),
        ("all.word[0]", 1, "this is a `int`, and no pointer"),
        (
            "all + 1",
            1,
            "this is a `struct all`, and no number or pointer",
        ),
        ("*all.declared", 1, "NULL"),
        (
            "all.declared->x",
            1,
            "this kernel does not define `struct declared_only`",
        ),
        (
            "all.declared + 1",
            1,
            "this kernel does not define `struct declared_only`",
        ),
        ("sizeof(struct declared_only)", 8, "the kernel has no type"),
        (
            "all.nothing[0] + 1",
            1,
            "cannot read this at 0x0: a pointer on the way to it is NULL",
        ),
        (
            "*(int *)0x123456 + 1",
            1,
            "cannot read this at 0x123456: no memory is there",
        ),
        ("1 / (all.word - all.word)", 6, "this divides by zero"),
        ("1 << 32", 6, "shifts by more bits"),
        ("&all.flag", 2, "a bit-field has no address"),
        ("&1", 2, "this is not in memory"),
        (
            "(struct poin *)0",
            2,
            "the kernel has no type `struct poin`; did you mean `struct point`?",
        ),
        ("(union point *)0", 2, "did you mean `struct point`?"),
        (
            "(struct point)5",
            1,
            "a number cannot be cast to `struct point`",
        ),
        ("all.inner * 2", 1, "there is no `struct point *` * `int`"),
        ("all.inner - all.text", 1, "point to different things"),
        ("twice", 1, "2 files have their own `twice`: "),
        (
            "nowhere.c::twice",
            1,
            "`twice` is not in `nowhere.c`, but in ",
        ),
        (
            "values.c::nothing",
            1,
            "no variable and no function `nothing` is in `values.c`",
        ),
        (
            "function::nothing",
            1,
            "has no static variable `nothing`, but calls",
        ),
        ("nothing::calls", 1, "the kernel has no function `nothing`"),
        ("inti_task", 1, "; did you mean `init_task`?"),
        ("point", 1, "`point` is the type `struct point`"),
        ("NO_SUCH_MACRO_HERE", 1, "a macro is not in its DWARF"),
        (
            "list(all.word, struct node, link)",
            6,
            "this is a `int`, and no list",
        ),
        (
            "list(all, struct node, link)",
            6,
            "this is a `struct all`, and no list",
        ),
        ("list(ring)", 6, "what hangs in this list is not known here"),
        ("list(ring, struct node, lnik)", 25, "has no member `lnik`"),
        ("list(ring, int, link)", 12, "`int` has no members"),
        ("list(ring, struct node, link) + 1", 1, "this is a list"),
        (
            "list(ring, struct node, link)[3]",
            31,
            "the list has 3 elements",
        ),
        (
            "container_of(1, struct node, nothing)",
            30,
            "has no member `nothing`",
        ),
        ("$current(7)", 10, "there is no CPU 7, but 0"),
        ("$task(99999999999)", 7, "is no pid"),
        ("all.fraction + 1", 1, "only printed"),
        ("all.huge + 1", 1, "more than 8 bytes"),
        ("(float)1", 1, "nothing can be cast"),
    ] {
        let error = match print(&kernel, expression, &PrintOptions::default()) {
            Err(error) => error,
            Ok(printed) => {
                // A null pointer's target is a value that cannot be read.
                assert!(message == "NULL", "{expression}: {printed}");
                continue;
            }
        };
        let told = error.to_string();
        assert!(told.contains(message), "{expression}: {told}");
        let ViewError::Expr(error) = error else {
            panic!("{expression}: {told}");
        };
        assert_eq!(error.column(), column, "{told}");
    }
    let error = print(&kernel, "$task(99)", &PrintOptions::default()).expect_err("no task");
    assert!(matches!(error, ViewError::NoTask { .. }), "{error}");
}
