//! The parser on what nobody would write.

use proptest::prelude::*;

use super::ast::{Kind, Node, Unary};
use super::parser::{parse, parse_type};

/// The tree with brackets around everything.
fn bracketed(text: &str) -> String {
    let is_type = |word: &str| matches!(word, "u64" | "pid_t" | "list_head");
    show(&parse(text, &is_type).unwrap_or_else(|error| panic!("{error}")))
}

fn show(node: &Node) -> String {
    match &node.kind {
        Kind::Number { value, .. } => value.to_string(),
        Kind::Name(name) => name.clone(),
        Kind::Scoped { scope, name } => format!("{scope}::{name}"),
        Kind::Member { of, name } => format!("{}.{}", show(of), name.text),
        Kind::Index { of, index } => format!("{}[{}]", show(of), show(index)),
        Kind::Unary(operator, of) => {
            let operator = match operator {
                Unary::Deref => "*",
                Unary::AddressOf => "&",
                Unary::Minus => "-",
                Unary::Plus => "+",
                Unary::Not => "!",
                Unary::Complement => "~",
            };
            format!("({operator}{})", show(of))
        }
        Kind::Binary(operator, left, right) => {
            format!("({} {operator} {})", show(left), show(right))
        }
        Kind::Cast(ty, of) => format!(
            "(({}{}){})",
            ty.base,
            "*".repeat(ty.stars as usize),
            show(of)
        ),
        Kind::SizeOf(of) => format!("sizeof {}", show(of)),
        Kind::SizeOfType(ty) => format!("sizeof({}{:?})", ty.base, ty.counts),
        Kind::OffsetOf(ty, path) => format!("offsetof({}, {})", ty.base, path.text),
        Kind::ContainerOf(of, ty, path) => {
            format!("container_of({}, {}, {})", show(of), ty.base, path.text)
        }
        Kind::List { head, of } => match of {
            Some((ty, path)) => format!("list({}, {}, {})", show(head), ty.base, path.text),
            None => format!("list({})", show(head)),
        },
        Kind::User(task, of) => format!("user({}, {})", show(task), show(of)),
        Kind::Current { cpu, pointer } => {
            let cpu = cpu.as_ref().map(|cpu| show(cpu)).unwrap_or_default();
            format!("current({cpu}, {pointer})")
        }
        Kind::Task { pid, pointer } => format!("task({}, {pointer})", show(pid)),
        Kind::PerCpu { of, cpu, pointer } => {
            format!("per_cpu({}, {}, {pointer})", show(of), show(cpu))
        }
    }
}

#[test]
fn operators_bind_as_in_c() {
    for (text, tree) in [
        ("a + b * c - d", "((a + (b * c)) - d)"),
        ("a - b - c", "((a - b) - c)"),
        (
            "a << 1 + 2 == b & 3 | 4 ^ 5",
            "((((a << (1 + 2)) == b) & 3) | (4 ^ 5))",
        ),
        ("a && b || c && d", "((a && b) || (c && d))"),
        ("*p->q[2].r", "(*p.q[2].r)"),
        ("-a[1] * !b", "((-a[1]) * (!b))"),
        ("&a == ~b", "((&a) == (~b))"),
        ("(struct task_struct *)0x10", "((struct task_struct*)16)"),
        (
            "((struct task_struct *)0x10)->comm",
            "((struct task_struct*)16).comm",
        ),
        ("(unsigned long)p + 1", "(((unsigned long)p) + 1)"),
        ("(foo **)p", "((foo**)p)"),
        ("(u64)*p", "((u64)(*p))"),
        ("(x)*p", "(x * p)"),
        ("(u64)-1", "((u64)(-1))"),
        ("(x)-1", "(x - 1)"),
        ("(x)->y", "x.y"),
        ("(foo)x", "((foo)x)"),
        ("sizeof(struct page)", "sizeof(struct page[])"),
        ("sizeof(u64 [16])", "sizeof(u64[16])"),
        ("(foo (*)[16])p", "((foo)p)"),
        ("(foo [16])p", "((foo)p)"),
        ("sizeof init_task", "sizeof init_task"),
        ("sizeof(init_task) + 1", "(sizeof init_task + 1)"),
        (
            "offsetof(struct task_struct, se.run_node)",
            "offsetof(struct task_struct, se.run_node)",
        ),
        (
            "container_of(p, struct s, a[3].b)->c",
            "container_of(p, struct s, a[3].b).c",
        ),
        ("list(a.b, struct s, m)[0]", "list(a.b, struct s, m)[0]"),
        ("list(a.b)->c", "list(a.b).c"),
        ("user(12, (char *)p)", "user(12, ((char*)p))"),
        ("current->pid", "current(, true).pid"),
        ("$lx_current().pid", "current(, false).pid"),
        ("$lx_current(1).pid", "current(1, false).pid"),
        ("$task(12)->mm", "task(12, true).mm"),
        (
            "$per_cpu(runqueues, 0).nr_running",
            "per_cpu(runqueues, 0, false).nr_running",
        ),
        (
            "kernel/sched/core.c::x + f::y",
            "(kernel/sched/core.c::x + f::y)",
        ),
    ] {
        assert_eq!(bracketed(text), tree, "{text}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_column() {
    for (text, column, message) in [
        ("", 1, "something is missing at the end"),
        ("init_task.", 11, "the name of a member is missing here"),
        ("a + ", 5, "something is missing at the end"),
        ("a b", 3, "an operator is missing before this"),
        ("a = 1", 3, "`==` compares"),
        ("(a", 3, "a `)` is missing"),
        ("a)", 2, "never opened"),
        ("a[1", 4, "a `]` is missing"),
        ("schedule()", 1, "nothing runs here"),
        ("struct", 1, "is the name of a type"),
        ("(struct *)1", 9, "the name of the struct is missing"),
        ("$nothing", 1, "there is no `$nothing`"),
        ("$task 1", 7, "$task"),
        ("list(a, struct b)", 17, "list(HEAD, TYPE, MEMBER)"),
        ("a ä b", 3, "means nothing"),
        ("äö", 1, "means nothing"),
        ("\"text\"", 1, "no strings"),
        ("a[99999999999999999999]", 3, "beyond 64 bits"),
    ] {
        let error = parse(text, &|_| false).expect_err(text);
        let told = error.to_string();
        let message = message.trim_start_matches('$');
        assert!(told.contains(message), "{text}: {told}");
        assert_eq!(error.column(), column, "{told}");
        let mut lines = told.lines();
        assert_eq!(lines.clone().count(), 3, "{told}");
        let marks = lines.nth(2).expect("a line");
        assert_eq!(marks.find('^'), Some(column + 1), "{told}");
    }
}

#[test]
fn nesting_is_bounded() {
    let long = |part: &str, times: usize| part.repeat(times);
    for text in [
        format!("{}1{}", long("(", 1500), long(")", 1500)),
        format!("{}p", long("*", 3000)),
        format!("{}p", long("- ", 2000)),
        format!("a{}", long(".b", 2000)),
        format!("a{}", long("+a", 2000)),
        format!("a{}1{}", long("[a", 1000), long("]", 1000)),
        format!("{}1", long("(u64)", 800)),
        format!("{}1", long("(int*)", 600)),
        format!("{}1", long("a&&", 1200)),
        long("x", 5000),
    ] {
        assert!(parse(&text, &|_| true).is_err());
    }
    assert!(parse(&format!("{}1{}", long("(", 20), long(")", 20)), &|_| true).is_ok());
}

proptest! {
    #[test]
    fn any_text_parses_or_has_an_error_in_it(text in ".{0,80}", types in any::<bool>()) {
        check(&text, types)?;
    }

    #[test]
    fn words_in_any_order_parse_or_have_an_error(
        words in prop::collection::vec(prop::sample::select(WORDS), 0..40),
        types in any::<bool>(),
    ) {
        check(&words.concat(), types)?;
        check(&words.join(" "), types)?;
    }
}

const WORDS: &[&str] = &[
    "a",
    "init_task",
    "struct",
    "union",
    "enum",
    "unsigned",
    "long",
    "char",
    "void",
    "const",
    "sizeof",
    "offsetof",
    "container_of",
    "list",
    "user",
    "current",
    "$task",
    "$per_cpu",
    "$lx_current",
    "$",
    "(",
    ")",
    "[",
    "]",
    ".",
    "->",
    ",",
    "*",
    "&",
    "&&",
    "||",
    "+",
    "-",
    "<<",
    "==",
    "=",
    "!",
    "~",
    "/",
    "%",
    "0x1f",
    "12",
    "0",
    "'a'",
    "'",
    "f.c::",
    "g::",
    "::",
    "\"",
    "ä",
    "\u{0}",
    "u64",
];

fn check(text: &str, types: bool) -> Result<(), TestCaseError> {
    for error in [parse(text, &|_| types).err(), parse_type(text).err()]
        .into_iter()
        .flatten()
    {
        prop_assert!(error.column() <= text.chars().count() + 1);
        prop_assert_eq!(error.to_string().lines().count(), 3, "{}", error);
    }
    Ok(())
}
