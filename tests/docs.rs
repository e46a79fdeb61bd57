//! Every command in the documentation is run, so that it cannot drift.
//!
//! In a fenced `console` block, a line that begins with `$ ` is a command, and
//! the `(gdb) ` lines after a command are typed into it; everything else is
//! output, shown for the reader. A block is one shell script: it must end with
//! exit code 0, and what it left in the background is ended with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One `console` block of a document.
#[derive(Debug)]
struct Block {
    line: usize,
    script: String,
}

/// The shell form of one command and of what is typed into it.
fn shell(command: &str, typed: &[&str]) -> String {
    if typed.is_empty() {
        return format!("{command}\n");
    }
    format!(
        "{command} <<'END_OF_INPUT'\n{}\nEND_OF_INPUT\n",
        typed.join("\n")
    )
}

/// The `console` blocks of `text`, as shell scripts.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() != "```console" {
            continue;
        }
        let mut commands: Vec<(&str, Vec<&str>)> = Vec::new();
        for (_, line) in lines.by_ref() {
            if line.trim() == "```" {
                break;
            }
            if let Some(command) = line.strip_prefix("$ ") {
                commands.push((command, Vec::new()));
            } else if let Some(input) = line.strip_prefix("(gdb) ")
                && let Some((_, typed)) = commands.last_mut()
            {
                typed.push(input);
            }
        }
        let script = commands
            .iter()
            .map(|(command, typed)| shell(command, typed))
            .collect();
        blocks.push(Block {
            line: number + 1,
            script,
        });
    }
    blocks
}

/// Runs one block as a user would: a shell with kscope in its PATH.
///
/// In a network namespace of its own, since `:1234` in a document means the
/// guest of that document and not one of another test.
fn run(document: &Path, block: &Block) {
    let work = tempfile::tempdir().expect("a temporary directory");
    let bin = Path::new(env!("CARGO_BIN_EXE_kscope"))
        .parent()
        .expect("a directory");
    let path = format!(
        "{}:{}",
        bin.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let script = format!(
        "ip link set lo up\ntrap 'code=$?; for job in $(jobs -p); do kill $job; done; wait; exit $code' EXIT\nset -eu\n{}",
        block.script
    );
    let output = Command::new("timeout")
        .args([
            "--kill-after=10",
            "180",
            "unshare",
            "--map-root-user",
            "--net",
            "bash",
            "-c",
        ])
        .arg(&script)
        .current_dir(work.path())
        .env("PATH", path)
        .env("XDG_RUNTIME_DIR", work.path())
        .stdin(Stdio::null())
        .output()
        .expect("timeout(1) and unshare(1)");
    assert!(
        output.status.success(),
        "{}:{}: {}\n--- script\n{}--- stdout\n{}--- stderr\n{}",
        document.display(),
        block.line,
        output.status,
        block.script,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![root.join("README.md")];
    for entry in fs::read_dir(root.join("docs")).expect("docs/") {
        let path = entry.expect("an entry of docs/").path();
        if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_command_in_the_documentation_works() {
    let mut ran = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a readable document");
        for block in blocks(&text) {
            run(&document, &block);
            ran += 1;
        }
    }
    assert!(
        ran > 0,
        "no console block was found: has the convention changed?"
    );
}

#[test]
fn blocks_become_scripts() {
    let text = "a\n```console\n$ one\nout\n$ two x\n(gdb) bt\n(gdb) quit\n```\n";
    let found = blocks(text);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].line, 2);
    assert_eq!(
        found[0].script,
        "one\ntwo x <<'END_OF_INPUT'\nbt\nquit\nEND_OF_INPUT\n"
    );
}
