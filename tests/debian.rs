//! `kscope build --source debian:VERSION` on a machine of its own: a small
//! archive with suites, packages and keys, and a real apt.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

#[path = "debian/archive.rs"]
mod archive;
#[path = "../guest/tests/fake_tree/mod.rs"]
mod fake_tree;

use archive::World;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A machine with `linux-source-6.1`, beside suites that have more.
fn world() -> World {
    let world = World::new();
    for (name, version) in [
        ("linux-source-6.1", "6.1.5-1"),
        ("linux-source-6.1", "6.1.9-1"),
        ("linux-source-7.3", "7.3.4-1~x"),
        ("linux-source-7.4", "7.4.1-1"),
    ] {
        world.kernel_package(name, version);
    }
    world.publish("bookworm", &[("linux-source-6.1", "6.1.5-1")], "old");
    world.publish(
        "trixie-backports",
        &[
            ("linux-source-6.1", "6.1.9-1"),
            ("linux-source-7.3", "7.3.4-1~x"),
        ],
        "old",
    );
    world.publish("sid", &[("linux-source-7.4", "7.4.1-1")], "old");
    world.update_machine();
    world
}

/// Makes the private lists as old as they would be the day after tomorrow.
fn age_lists(world: &World) {
    let old = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    for suite in fs::read_dir(world.path("cache/kscope/apt")).unwrap() {
        let stamp = suite.unwrap().path().join("read");
        if stamp.exists() {
            let file = fs::File::options().write(true).open(stamp).unwrap();
            file.set_modified(old).unwrap();
        }
    }
}

#[test]
fn the_machines_own_suites_come_first() {
    let world = world();
    let output = world.build("debian:6.1");
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("6.1.5-1") && !text.contains("Reading"),
        "{text}"
    );
}

#[test]
fn other_suites_are_read_without_touching_the_machine() {
    let mut world = world();
    let before = world.machine();
    let output = world.build("debian:7.3");
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("from trixie-backports"), "{text}");
    // It stops at the first suite that has it.
    assert!(!text.contains("sid"), "{text}");
    let kernel = String::from_utf8(output.stdout).unwrap();
    assert!(kernel.trim().ends_with("/build/linux"), "{kernel}");

    let output = world.build("debian:7.4");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(world.machine(), before);
    assert!(!world.path("machine/hooked").exists());

    // What is fetched stays, with and without a look at old lists.
    world.disconnect();
    let again = world.build("debian:7.3");
    let text = stderr(&again);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), kernel);
    assert!(
        text.contains("Cached") && !text.contains("Reading"),
        "{text}"
    );
    age_lists(&world);
    let again = world.build("debian:7.3");
    let text = stderr(&again);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), kernel);
    assert!(
        text.contains("Reading") && text.contains("Cached"),
        "{text}"
    );
}

#[test]
fn an_unknown_version_is_told_what_there_is() {
    let world = world();
    let output = world.build("debian:9.9");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(96), "{text}");
    let last = text.lines().last().unwrap();
    assert!(
        last.ends_with("Debian offers only debian:6.1, debian:7.3, debian:7.4"),
        "{text}"
    );
    // Suites that are not there are not asked for again the same day.
    let text = stderr(&world.build("debian:9.9"));
    assert!(!text.contains("Reading"), "{text}");
}

#[test]
fn without_a_network_the_error_says_so() {
    let mut world = world();
    world.disconnect();
    let output = world.build("debian:7.3");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(96), "{text}");
    for words in [
        "debian:7.3",
        "offers only debian:6.1,",
        "trixie-backports cannot be read",
        "is the network there?",
    ] {
        assert!(text.contains(words), "{text}");
    }
    // One attempt is enough.
    assert_eq!(text.matches("Reading").count(), 1, "{text}");
}

#[test]
fn a_newer_key_is_believed_when_the_machines_suites_vouch_for_it() {
    let world = world();
    world.publish(
        "trixie-backports",
        &[("linux-source-7.3", "7.3.4-1~x")],
        "new",
    );
    let output = world.build("debian:7.3");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(96), "{text}");
    assert!(
        text.contains("trixie-backports cannot be read")
            && text.contains("install it")
            && text.contains("debian-archive-keyring"),
        "{text}"
    );
    assert!(!world.path("cache/kscope/sources").exists());

    world.keyring_package("2030.1");
    world.publish(
        "bookworm",
        &[
            ("linux-source-6.1", "6.1.5-1"),
            ("debian-archive-keyring", "2030.1"),
        ],
        "old",
    );
    world.update_machine();
    let output = world.build("debian:7.3");
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn what_is_not_as_it_was_signed_is_refused() {
    let world = world();
    let dist = world.path("archive/debian/dists/trixie-backports");
    let edit = |file: &str| {
        let path = dist.join(file);
        let status = Command::new("sed")
            .args(["-i", "s/7\\.3\\.4/7.3.5/; s/^Codename:/Codename: /"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        assert!(path.exists());
    };
    let architecture = Command::new("dpkg").arg("--print-architecture").output();
    let architecture = String::from_utf8(architecture.unwrap().stdout).unwrap();
    edit(&format!("main/binary-{}/Packages", architecture.trim()));
    let output = world.build("debian:7.3");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(96), "{text}");
    assert!(text.contains("trixie-backports cannot be read"), "{text}");

    edit("InRelease");
    let output = world.build("debian:7.3");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(96), "{text}");
    assert!(text.contains("trixie-backports cannot be read"), "{text}");
    assert!(!world.path("cache/kscope/sources").exists());
}
