//! `kscope bt` against gdb, and against what programs know of their own stacks.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use common::{Place, TestKernel, collect, finish, kernels, programs, until};
use serde_json::Value;

#[test]
#[ignore = "needs kernels"]
fn stacks_are_those_of_gdb() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        compare_with_gdb(kernel);
    }
}

fn compare_with_gdb(kernel: &TestKernel) {
    let dir = tempfile::tempdir().expect("a directory");
    let family = programs::program("family");
    let family = family.path("family").display().to_string();
    let place = Place::new();
    let script = format!(
        "{family} & dd if=/dev/zero of=/dev/null bs=1M 2>/dev/null & dd=$!; read -r line; kill $dd"
    );
    let mut run = place.shell_on(kernel, &["--name", "stacks"], &script);
    let mut guest = run.stdin(Stdio::piped()).spawn().expect("kscope starts");
    place.await_guest("stacks");
    until("the family sleeps", || {
        let listed = finish(place.kscope().args(["ps", "--threads"])).text();
        listed.contains(" reading ") && listed.contains(" dd ")
    });

    let own = env!("CARGO_BIN_EXE_kscope");
    let kscope = [own, "bt", "stacks", "--all", "--locals", "--format", "json"];
    let setup = format!("python KSCOPE = {kscope:?}; OUT = {:?}", dir.path());
    let commands = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bt/stacks.py");
    let mut gdb = place.kscope();
    gdb.args([
        "gdb", "stacks", "--", "-nx", "-q", "-batch", "-ex", &setup, "-x",
    ]);
    let out = finish(gdb.arg(commands)).expect(0);
    for moment in ["stopped", "interrupt"] {
        let text = fs::read_to_string(dir.path().join(format!("{moment}.json")));
        let text = text.unwrap_or_else(|e| panic!("{e}: {} {}", out.text(), out.stderr));
        let both: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(both["code"], 0, "{}", out.stderr);
        let compared = compare(&both);
        assert!(
            compared.differences.is_empty(),
            "{moment}, {}:\n{}",
            kernel.name,
            compared.differences.join("\n")
        );
        println!("{moment}: {compared:?}");
        assert!(
            compared.tasks >= 25 && compared.functions > 250,
            "{compared:?}"
        );
        assert!(compared.values > 300, "{compared:?}");
        assert!(compared.elsewhere * 50 < compared.functions, "{compared:?}");
        // gdb knows a little more: what went where when a loop was unrolled, and the like.
        assert!(compared.missing * 20 < compared.values, "{compared:?}");
        assert!(
            moment != "interrupt" || compared.interrupts > 0,
            "{compared:?}"
        );
    }
    drop(guest.stdin.take());
    collect(guest).expect(0);
    place.assert_clean();
}

/// How much was compared.
#[derive(Debug, Default)]
struct Compared {
    tasks: usize,
    functions: usize,
    /// Of these, those that gdb sees in another file.
    elsewhere: usize,
    interrupts: usize,
    /// Arguments and variables that both know.
    values: usize,
    /// Those that only gdb knows.
    missing: usize,
    differences: Vec<String>,
}

fn compare(both: &Value) -> Compared {
    let mut compared = Compared::default();
    let ours = both["kscope"]["bt"].as_array().expect("an array");
    let mut theirs = both["gdb"].as_object().expect("an object").clone();
    for task in ours {
        // The idle task of every CPU has pid 0; gdb needs different ones.
        let id = match (task["tid"].as_u64(), task["cpu"].as_u64()) {
            (Some(0), cpu) => 10_000_000 + cpu.unwrap_or(0),
            (Some(tid), _) => tid,
            (None, _) => panic!("no tid: {task}"),
        };
        let Some(stack) = theirs.remove(&id.to_string()) else {
            // An idle task that does not run is none of gdb's threads.
            assert_eq!(task["tid"], 0, "gdb does not know of {task}");
            continue;
        };
        // Kernels of today free the stack of a task that has ended.
        if task["state"] == "Z" {
            continue;
        }
        compared.tasks += 1;
        assert_eq!(task["kernel_end"], Value::Null, "{task}");
        compare_stacks(&mut compared, task, &stack);
    }
    assert!(theirs.is_empty(), "only gdb has {:?}", theirs.keys());
    compared
}

fn compare_stacks(compared: &mut Compared, task: &Value, theirs: &Value) {
    let (tid, comm) = (&task["tid"], &task["comm"]);
    let ours = task["kernel"].as_array().expect("an array");
    let mut theirs: &[Value] = theirs.as_array().expect("an array");
    // What gdb makes of the empty word at the beginning of a stack.
    while let Some((last, rest)) = theirs.split_last()
        && last["pc"] == 0
    {
        theirs = rest;
    }
    let count = |frames: &[Value], what: &str| frames.iter().filter(|f| f[what] == true).count();
    compared.interrupts += count(theirs, "signal");
    if count(ours, "interrupt") != count(theirs, "signal") {
        let text = format!("{tid} {comm}: interrupts, {ours:?}\n    gdb: {theirs:?}");
        compared.differences.push(text);
    }
    // With libc's debug information gdb has other names for its functions, and inlined ones.
    const LIBRARIES: u64 = 0x7f00_0000_0000;
    let is_kernels = |pc: &Value| {
        let text = pc.as_str().map(|pc| pc.trim_start_matches("0x"));
        let pc = text.map_or(pc.as_u64(), |pc| u64::from_str_radix(pc, 16).ok());
        pc.expect("an address") < LIBRARIES
    };
    let kernels = |frames: &[Value]| -> Vec<Value> {
        let frames = frames.iter().filter(|frame| is_kernels(&frame["pc"]));
        frames.cloned().collect()
    };
    let (ours, theirs) = (&kernels(ours), &kernels(theirs));
    let shown = |frames: &[Value], name: &str| -> Vec<String> {
        let frames = frames.iter().map(|frame| {
            let name = frame[name].as_str().unwrap_or("?");
            format!("{name} {}", frame["line"])
        });
        frames.collect()
    };
    if ours.len() != theirs.len() {
        compared.differences.push(format!(
            "{tid} {comm}: {:?}\n    gdb: {:?}",
            shown(ours, "function"),
            shown(theirs, "name")
        ));
        return;
    }
    for (depth, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let mut differ = |what: &str| {
            let text = format!("{tid} {comm}: {what}: {ours}\n    gdb: {theirs}");
            compared.differences.push(text);
        };
        let pc = ours["pc"].as_str().expect("an address");
        let pc = u64::from_str_radix(pc.trim_start_matches("0x"), 16).expect("hexadecimal");
        if theirs["pc"] != pc {
            differ("pc");
        }
        compared.functions += 1;
        if ours["function"] != theirs["name"] {
            differ("function");
        }
        let file = ours["file"].as_str().unwrap_or_default();
        let known = theirs["file"].as_str().unwrap_or_default();
        if theirs["line"] != Value::Null && !known.ends_with(file) {
            // gdb passes over rows of the line table that begin no statement, and may so end up in
            // a header's code that was inlined before.
            compared.elsewhere += 1;
        } else if ours["line"] != theirs["line"] && depth > 0 {
            // In the middle of a statement gdb shows the line where that began.
            differ("line");
        }
        for kind in ["arguments", "locals"] {
            compare_variables(compared, ours, theirs, kind);
        }
    }
}

fn compare_variables(compared: &mut Compared, ours: &Value, theirs: &Value, kind: &str) {
    let none = Vec::new();
    let variables = |frame: &Value| frame[kind].as_array().unwrap_or(&none).clone();
    let ours_all = variables(ours);
    let theirs_all = variables(theirs);
    let names = |list: &[Value], name: &dyn Fn(&Value) -> Value| {
        let mut names: Vec<_> = list.iter().map(|v| name(v).to_string()).collect();
        names.sort();
        names
    };
    let our_names = names(&ours_all, &|variable| variable["name"].clone());
    let their_names = names(&theirs_all, &|variable| variable[0].clone());
    if kind == "arguments" && our_names != their_names {
        let text = format!("{}: {our_names:?}, gdb: {their_names:?}", ours["function"]);
        compared.differences.push(text);
    }
    for theirs in &theirs_all {
        let same = |other: &&Value| other["name"] == theirs[0];
        let name = theirs[0].to_string();
        let is_shadowed = |names: &[String]| names.iter().filter(|n| **n == name).count() > 1;
        let Some(variable) = ours_all.iter().find(same) else {
            continue;
        };
        // Which of two variables of one name, in blocks within each other, is not told.
        if is_shadowed(&their_names) || is_shadowed(&our_names) {
            continue;
        }
        let bits = theirs[3].as_u64().unwrap_or(8).clamp(1, 8) * 8;
        match (variable.get("value"), theirs[1].as_u64()) {
            (None, Some(_)) => compared.missing += 1,
            (Some(value), Some(number)) => {
                compared.values += 1;
                if bits_of(value, bits).is_some_and(|ours| ours != number) {
                    compared.differences.push(format!(
                        "{} of {}: {value}, gdb: {number:#x}",
                        theirs[0], ours["function"]
                    ));
                }
            }
            // A struct, or nothing.
            _ => {}
        }
    }
}

/// The bits of a value, where its JSON is a number.
fn bits_of(value: &Value, bits: u64) -> Option<u64> {
    let mask = u64::MAX >> (64 - bits);
    match value {
        Value::Null => Some(0),
        Value::Bool(truth) => Some(u64::from(*truth)),
        Value::Number(number) => number
            .as_u64()
            .or_else(|| number.as_i64().map(|number| number as u64))
            .map(|number| number & mask),
        Value::Object(pointer) => {
            let addr = pointer.get("addr")?.as_str()?;
            u64::from_str_radix(addr.strip_prefix("0x")?, 16).ok()
        }
        // An enumerator.
        _ => None,
    }
}
