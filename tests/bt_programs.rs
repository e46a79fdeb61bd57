//! `kscope bt` beyond the kernel's functions: stacks of programs against glibc's backtrace(),
//! functions of modules against the kernel's own symbols, and tasks that have no stack any more.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::session::Session;
use common::{kernels, programs, until};
use serde_json::Value;

/// The ways that the program is built, since each leaves other stacks.
const BUILDS: [(&str, &[&str]); 3] = [
    ("dynamic", &["-O2", "-pthread", "-rdynamic"]),
    ("static", &["-O2", "-pthread", "-static"]),
    (
        "frame pointers",
        &["-O1", "-pthread", "-rdynamic", "-fno-omit-frame-pointer"],
    ),
];

/// The program's functions on each of its stacks below `block`; main's caller is libc's.
const FUNCTIONS: [(&str, &[&str]); 6] = [
    (
        "recursion",
        &[
            "descend",
            "descend",
            "descend",
            "descend",
            "descend",
            "descend",
            "recursion",
            "main",
        ],
    ),
    ("callback", &["compare", "callback", "main"]),
    (
        "signalled",
        &["descend", "descend", "handler", "signalled", "main"],
    ),
    (
        "interrupted",
        &["descend", "descend", "handler", "interrupted", "main"],
    ),
    ("sizes", &["grow", "align", "sizes", "main"]),
    ("threads", &["descend", "descend", "descend", "thread"]),
];

/// A frame as backtrace_symbols_fd() prints it: `FILE(FUNCTION+0xOFFSET)[0xADDRESS]`.
#[derive(Debug)]
struct Traced {
    pc: String,
    function: Option<String>,
    offset: Option<u64>,
}

impl Traced {
    fn parse(line: &str) -> Traced {
        let (place, pc) = line.split_once('[').expect(line);
        let (_, place) = place.split_once('(').unwrap_or_default();
        let (function, offset) = place
            .trim_end_matches(')')
            .split_once("+0x")
            .unwrap_or_default();
        let is_known = !function.is_empty();
        Traced {
            pc: pc.trim_end_matches(']').to_owned(),
            function: is_known.then(|| function.to_owned()),
            offset: u64::from_str_radix(offset, 16).ok().filter(|_| is_known),
        }
    }
}

/// What the program has said of each of its stacks: a task and its frames, by name.
fn traces(said: &str) -> BTreeMap<String, (String, Vec<Traced>)> {
    let mut traces = BTreeMap::new();
    let mut lines = said.lines();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("trace ") else {
            continue;
        };
        let (name, tid) = rest.split_once(' ').expect(line);
        let frames = lines.by_ref().take_while(|line| *line != "end");
        let frames = frames.map(Traced::parse).collect();
        traces.insert(name.to_owned(), (tid.to_owned(), frames));
    }
    traces
}

#[test]
#[ignore = "needs kernels"]
fn stacks_of_programs_are_those_of_backtrace() {
    for kernel in kernels() {
        let mut session = Session::start(kernel, &[]);
        for (build, flags) in BUILDS {
            let program = programs::program_with("depths", flags);
            let path = program.path("depths");
            let path = path.to_str().expect("a plain path");
            let said = session.ask(path);
            let traces = traces(&said);
            for (name, functions) in FUNCTIONS {
                let what = format!("{}, {build}, {name}", kernel.name);
                let (tid, traced) = &traces.get(name).unwrap_or_else(|| panic!("{what}: {said}"));
                let seen = session.view(&["bt", tid]);
                compare(&what, &seen[0], traced, path, functions);
            }
        }
    }
}

fn compare(what: &str, seen: &Value, traced: &[Traced], path: &str, functions: &[&str]) {
    let frames = seen["user"].as_array().expect("an array");
    let what = format!("{what}: {frames:#?}\n{traced:#?}");
    assert_eq!(seen["user_end"], Value::Null, "{what}");
    // It blocks in a function of libc; the frames below `block` are those that it told.
    let block = frames.iter().position(|frame| frame["function"] == "block");
    let block = block.unwrap_or_else(|| panic!("no block: {what}"));
    assert!((1..=2).contains(&block), "{what}");
    let frames = &frames[block + 1..];
    assert_eq!(frames.len(), traced.len(), "{what}");
    for (frame, traced) in frames.iter().zip(traced) {
        assert_eq!(frame["pc"], traced.pc, "{what}");
        // Of several names at one place either may be told.
        if let Some(function) = &traced.function
            && frame["function"] != **function
        {
            assert_eq!(frame["offset"].as_u64(), traced.offset, "{frame}: {what}");
        }
    }
    let own = frames.iter().filter(|frame| frame["object"] == path);
    let own = own.filter_map(|frame| frame["function"].as_str());
    // In a program that is linked statically, libc is the program's.
    let own: Vec<_> = own.filter(|name| functions.contains(name)).collect();
    assert_eq!(own, functions, "{what}");
    let signals = frames.iter().filter(|frame| frame["signal"] == true);
    let handlers = functions.iter().filter(|name| **name == "handler");
    assert_eq!(signals.count(), handlers.count(), "{what}");
}

#[test]
#[ignore = "needs kernels"]
fn functions_of_modules_have_their_names() {
    for kernel in kernels() {
        let name = kernel.name;
        let module = programs::module("locks", &kernel.path);
        let program = programs::program("waits");
        let mut session = Session::start(kernel, &[]);
        let told = session.ask(&format!(
            "mount -t debugfs d /sys/kernel/debug
             {} insmod:{} >/dev/null &
             file=/sys/kernel/debug/kscope_locks/do
             until [ -e $file ]; do sleep 0.1; done
             echo m0c0 >$file & echo $!
             until grep -q wait_for_completion /proc/$!/stack; do sleep 0.1; done
             grep '\\[kscope_locks\\]' /proc/kallsyms",
            program.path("waits").display(),
            module.path("kscope_locks.ko").display()
        ));
        let (tid, symbols) = told.split_once('\n').expect("a pid");
        let symbols: BTreeMap<&str, u64> = symbols
            .lines()
            .filter_map(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                Some((*words.get(2)?, u64::from_str_radix(words[0], 16).ok()?))
            })
            .collect();
        let seen = session.view(&["bt", tid]);
        let frames = seen[0]["kernel"].as_array().expect("an array");
        assert_eq!(seen[0]["kernel_end"], Value::Null, "{name}: {frames:#?}");
        let own: Vec<_> = frames
            .iter()
            .filter(|frame| frame["object"] == "kscope_locks")
            .collect();
        assert!(!own.is_empty(), "{name}: {frames:#?}");
        for frame in own {
            let function = frame["function"].as_str().expect("a function");
            let text = frame["pc"].as_str().expect("an address");
            let pc = u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("hexadecimal");
            let start = symbols.get(function);
            let start = start.unwrap_or_else(|| panic!("{name}: {function}: {symbols:?}"));
            assert_eq!(frame["offset"], pc - start, "{name}: {frame}");
        }
        let functions: Vec<_> = frames.iter().map(|frame| &frame["function"]).collect();
        for function in ["wait_for_completion", "do_write", "vfs_write"] {
            let is_there = functions.iter().any(|name| **name == function);
            assert!(is_there, "{name}: no {function} in {functions:?}");
        }
    }
}

#[test]
#[ignore = "needs kernels"]
fn a_zombie_has_its_stack_or_is_told_to_have_none() {
    for kernel in kernels() {
        let name = kernel.name;
        let build = kernel.path.parent().expect("a build directory");
        let config = fs::read_to_string(build.join(".config")).expect("its configuration");
        // Since its thread_info is elsewhere, a stack is freed as soon as it is left.
        let is_freed = config.contains("\nCONFIG_THREAD_INFO_IN_TASK=y\n");
        let mut session = Session::start(kernel, &[]);
        // Its parent becomes a program that does not wait for it.
        let tid = session.ask(
            "(true & echo $! >/tmp/pid; exec sleep 1000) &
             until grep -q 'State:.Z' /proc/$(cat /tmp/pid)/status; do sleep 0.1; done 2>/dev/null
             cat /tmp/pid",
        );
        let bt = |format: &[&str]| session.kscope(&[&["bt", tid.trim()], format].concat());
        until("the zombie has left its CPU", || {
            let seen = session.view(&["bt", tid.trim()]);
            seen[0]["state"] == "Z" && seen[0]["kernel"][0].is_null() == is_freed
        });
        let text = bt(&[]).expect(0).text();
        assert!(text.contains(": zombie\n"), "{name}: {text}");
        let (there, not) = match is_freed {
            true => ("its stack is freed", "#0"),
            false => (" do_exit+", "not known"),
        };
        assert!(
            text.contains(there) && !text.contains(not),
            "{name}: {text}"
        );
        assert!(!text.contains("program"), "{name}: {text}");
    }
}
