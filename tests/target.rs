//! What a view looks at: a running guest, one that is held for it, a core file.

mod common;

use std::process::Child;

use common::{Place, collect, finish, kernel};
use serde_json::Value;

fn guest(place: &Place, name: &str) -> Child {
    let child = place
        .shell(&["--name", name], "while :; do :; done")
        .spawn()
        .expect("kscope starts");
    place.await_guest(name);
    child
}

#[test]
#[ignore = "needs a kernel"]
fn a_guest_is_held_for_a_view_and_no_longer() {
    let place = Place::new();
    let child = guest(&place, "busy");
    let plain = finish(place.kscope().args(["lsmod", "busy"])).expect(0);
    assert_eq!(plain.stderr, "");
    let held = finish(place.kscope().args(["lsmod", "busy", "--stop"])).expect(0);
    assert_eq!(held.text(), plain.text());
    let held = held.says(&["kscope: busy stood still for ", " ms"]);
    assert_eq!(held.stderr.lines().count(), 1, "{}", held.stderr);
    let mut json = place.kscope();
    json.args(["lsmod", "--stop", "--format", "json"]);
    let json: Value = serde_json::from_slice(&finish(&mut json).expect(0).stdout).expect("JSON");
    assert_eq!(
        (&json["guest"], &json["torn"]),
        (&"busy".into(), &false.into())
    );
    assert!(json["stopped_ms"].as_f64().expect("a time") > 0.0);
    assert!(json.get("core").is_none());
    // It runs on: its command is ended from outside.
    let pid = place.await_guest("busy")["supervisor"].to_string();
    finish(std::process::Command::new("kill").arg(pid)).expect(0);
    assert!(!collect(child).status.success());
    place.assert_clean();
}

#[test]
#[ignore = "needs a kernel"]
fn a_guest_that_a_debugger_has_stopped_says_so() {
    let place = Place::new();
    let child = place
        .shell(&["--name", "stopped", "--wait"], "echo done")
        .spawn()
        .expect("kscope starts");
    place.await_guest("stopped");
    common::until("start_kernel", || {
        let held = finish(place.kscope().args(["lsmod", "stopped", "--stop"]));
        held.stderr.contains("stopped was stopped before")
    });
    let mut gdb = place.kscope();
    gdb.args(["gdb", "stopped", "--", "-batch", "-ex", "detach"]);
    finish(&mut gdb).expect(0);
    assert_eq!(collect(child).expect(0).text(), "done\n");
    place.assert_clean();
}

#[test]
#[ignore = "needs a kernel"]
fn wrong_targets_are_told_apart() {
    let place = Place::new();
    let run = |arguments: &[&str]| finish(place.kscope().args(arguments));
    run(&["lsmod"]).expect(96).says(&["no guest is running"]);
    run(&["lsmod", "web", "--core", "x"])
        .expect(2)
        .says(&["the guest web or the core x?"]);
    run(&["lsmod", "--core", "x", "--stop"]).expect(2);
    run(&["lsmod", "-k", "x"]).expect(2);
    run(&["lsmod", "--core", "/nowhere/core"])
        .expect(96)
        .says(&["no core file at `/nowhere/core`"]);
    let program = kernel().to_str().expect("a path");
    run(&["lsmod", "--core", program])
        .expect(96)
        .says(&["is not a core file of a kernel"]);
}
