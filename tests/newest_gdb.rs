//! The newest gdb in Debian: binary memory reads, and its own adapter for editors (`gdb -i dap`).
//!
//! `scripts/newest-gdb` unpacks it when it is first needed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::session::Session;
use common::{TestKernel, finish, kernels};
use serde_json::{Value, json};

/// In the guest, for ever: reads a file.
const READS: &str = "until [ -e /tmp/end ]; do cat /proc/uptime >/dev/null; sleep 0.1; done";

fn newest_gdb() -> &'static Path {
    static GDB: OnceLock<PathBuf> = OnceLock::new();
    GDB.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/newest-gdb");
        // It may take minutes, the first time.
        let made = Command::new("timeout")
            .arg("900")
            .arg(script)
            .output()
            .expect("a shell");
        let said = String::from_utf8_lossy(&made.stdout);
        assert!(
            made.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&made.stderr)
        );
        said.trim().into()
    })
}

/// The newest kernels of each kind.
fn some_kernels() -> impl Iterator<Item = &'static TestKernel> {
    let chosen = |kernel: &&TestKernel| ["6.12", "7.3 smp"].contains(&kernel.name);
    assert_eq!(kernels().iter().filter(chosen).count(), 2);
    kernels().iter().filter(chosen)
}

fn socket(guest: &Session) -> String {
    let path = guest.place().path().join("kscope/asked/gdb.sock");
    path.display().to_string()
}

/// A command whose output is read.
fn piped(guest: &Session, program: &Path) -> Command {
    let mut command = Command::new(program);
    guest.place().surround(&mut command);
    command
}

/// What a gdb says to commands.
fn gdb(program: &Path, kernel: &TestKernel, guest: &Session, commands: &[&str]) -> String {
    let mut gdb = piped(guest, program);
    gdb.args(["-nx", "-q", "-batch", "-ex", "set pagination off"]);
    gdb.args(["-ex", "set width 0", "-iex", "set sysroot /"]);
    gdb.arg("-ex")
        .arg(format!("target remote {}", socket(guest)));
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let said = finish(gdb.arg(&kernel.path));
    said.text() + &said.stderr
}

#[test]
fn memory_is_read_in_binary() {
    for kernel in some_kernels() {
        let name = kernel.name;
        let mut guest = Session::start(kernel, &[]);
        guest.begin(READS);
        let dump = |gdb: &str| guest.place().path().join(gdb).display().to_string();
        let (new, old) = (dump("new"), dump("old"));
        let dump =
            |file: &str| format!("dump binary memory {file} vfs_read (char *) vfs_read + 0x8000");
        let said = gdb(
            newest_gdb(),
            kernel,
            &guest,
            &[
                "info threads",
                "break vfs_read",
                "continue",
                "backtrace",
                "print count > 0",
                "set debug remote 1",
                &dump(&new),
                "set debug remote 0",
                "print sizeof(struct file)",
                "next",
                "finish",
                "detach",
            ],
        );
        for part in [
            "\"kthreadd [S] kthreadd\"",
            "hit Breakpoint 1, vfs_read (",
            " ksys_read (",
            " userspace (",
            "$1 = 1",
            "Sending packet: $x",
            "Value returned is",
            "detached]",
        ] {
            assert!(said.contains(part), "{name}: no {part:?}: {said}");
        }
        assert!(!said.contains("Sending packet: $m"), "{name}: {said}");
        gdb(Path::new("gdb"), kernel, &guest, &[&dump(&old), "detach"]);
        let (new, old) = (
            fs::read(new).expect("a dump"),
            fs::read(old).expect("a dump"),
        );
        assert_eq!(new.len(), 0x8000);
        assert!(new == old, "{name}: two gdbs read different memory");
        guest.kill();
    }
}

/// The configuration for an editor that the documentation shows.
fn documented_configuration() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/debugging.md");
    let text = fs::read_to_string(path).expect("the documentation");
    let block = text
        .split("```json\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let file: Value = serde_json::from_str(block.expect("a launch.json")).expect("JSON");
    file["configurations"][0].clone()
}

#[test]
fn an_editor_attaches_through_gdbs_own_adapter() {
    let documented = documented_configuration();
    assert_eq!(documented["request"], "attach");
    assert_eq!(documented["target"], ":1234");
    for kernel in some_kernels() {
        let name = kernel.name;
        let mut guest = Session::start(kernel, &[]);
        guest.begin(READS);
        let mut configuration = documented.clone();
        configuration["target"] = json!(socket(&guest));
        configuration["program"] = json!(kernel.path);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dap.py");
        let mut client = piped(&guest, Path::new("python3"));
        client
            .arg(script)
            .arg(newest_gdb())
            .arg(configuration.to_string());
        let said = finish(&mut client);
        let seen: Value = serde_json::from_slice(&said.stdout)
            .unwrap_or_else(|error| panic!("{name}: {error}: {}{}", said.text(), said.stderr));
        assert_eq!(seen["breakpoints"][0]["verified"], true, "{name}: {seen:#}");
        let threads = seen["threads"].as_array().expect("threads");
        assert!(threads.len() > 15, "{name}: {seen:#}");
        let is_kthreadd =
            |name: &Value| name.as_str().is_some_and(|name| name.contains("kthreadd"));
        assert!(threads.iter().any(is_kthreadd), "{name}: {seen:#}");
        assert_eq!(seen["stopped"]["reason"], "breakpoint", "{name}: {seen:#}");
        assert_eq!(seen["stack"][0], "vfs_read", "{name}: {seen:#}");
        let stack = seen["stack"].as_array().expect("a stack");
        assert!(stack.contains(&json!("userspace")), "{name}: {seen:#}");
        let source = seen["source"].as_str().unwrap_or_default();
        assert!(source.ends_with("fs/read_write.c"), "{name}: {seen:#}");
        let arguments = seen["arguments"].as_array().expect("arguments");
        assert!(arguments.contains(&json!("count")), "{name}: {seen:#}");
        assert_eq!(seen["stepped"], "step", "{name}: {seen:#}");
        assert_eq!(seen["evaluated"], "42", "{name}: {seen:#}");
        guest.kill();
    }
}
