use std::collections::VecDeque;
use std::fs::File;

use super::log::TAIL;
use super::*;

fn source(identity: &str) -> Resolved {
    Resolved {
        name: identity.into(),
        version: "6.12".into(),
        dir: PathBuf::from(identity),
        package: None,
    }
}

fn toolchain() -> Toolchain {
    Toolchain {
        cc: None,
        identity: "gcc version 12.2.0".into(),
    }
}

fn wanted(text: &str) -> Fragment {
    Fragment::parse("test", text).unwrap()
}

#[test]
fn keys_depend_on_all_that_decides_the_build() {
    let presets = Selection::new([Preset::Debug]);
    let config = wanted("CONFIG_A=y\n");
    let base = key(&source("/a/linux"), &presets, &config, &[], &toolchain());
    let other_compiler = Toolchain {
        cc: None,
        identity: "gcc version 14.1.0".into(),
    };
    let other_cc = Toolchain {
        cc: Some("gcc".into()),
        ..toolchain()
    };
    let coverage = Selection::new([Preset::Coverage]);
    let other_config = wanted("CONFIG_A=m\n");
    let fragment = [PathBuf::from("/my.config")];
    let keys = [
        base.clone(),
        key(&source("/b/linux"), &presets, &config, &[], &toolchain()),
        key(&source("/a/linux"), &coverage, &config, &[], &toolchain()),
        key(
            &source("/a/linux"),
            &presets,
            &other_config,
            &[],
            &toolchain(),
        ),
        key(
            &source("/a/linux"),
            &presets,
            &config,
            &fragment,
            &toolchain(),
        ),
        key(&source("/a/linux"), &presets, &config, &[], &other_compiler),
        key(&source("/a/linux"), &presets, &config, &[], &other_cc),
    ];
    let different: std::collections::BTreeSet<&String> = keys.iter().collect();
    assert_eq!(different.len(), keys.len(), "{keys:?}");

    let same = wanted("# a comment\nCONFIG_A=y\n");
    assert_eq!(
        base,
        key(&source("/a/linux"), &presets, &same, &[], &toolchain())
    );
    assert!(base.starts_with("linux-debug-"), "{base}");
}

#[test]
fn keys_are_good_directory_names() {
    let presets = Selection::new([Preset::Debug, Preset::Coverage]);
    let odd = source("/x/my linux: \u{fc}ber");
    let key = key(&odd, &presets, &wanted(""), &[], &toolchain());
    assert!(
        key.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
        "{key}"
    );
}

#[test]
fn steps_are_told_from_other_lines() {
    for line in [
        "  CC      init/main.o",
        "  CC [M]  drivers/net/dummy.o",
        "  HOSTCC  scripts/basic/fixdep",
        "  LD      vmlinux",
        "  AR      built-in.a",
    ] {
        assert!(is_step(line), "{line}");
    }
    for line in [
        "",
        "  ",
        "  CC",
        "make[1]: Entering directory '/x'",
        "kernel/foo.c:12:3: error: expected ';'",
        "   12 |   int x",
        "  A comment",
    ] {
        assert!(!is_step(line), "{line}");
    }
}

#[test]
fn the_environment_is_cleaned_of_what_the_key_does_not_hold() {
    for name in [
        "ARCH",
        "KBUILD_OUTPUT",
        "KCONFIG_ALLCONFIG",
        "MAKEFLAGS",
        "LLVM",
        "KCFLAGS",
    ] {
        assert!(changes_the_build(name), "{name}");
    }
    for name in [
        "PATH",
        "HOME",
        "TMPDIR",
        "CCACHE_DIR",
        "KBUILD_BUILD_TIMESTAMP",
    ] {
        assert!(!changes_the_build(name), "{name}");
    }
}

#[test]
fn the_log_keeps_everything_and_shows_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("build.log");
    let mut log = Log::create(&path).unwrap();
    for n in 0..50 {
        log.line(&format!("line {n}")).unwrap();
    }
    let tail = log.tail();
    assert_eq!(tail.lines().count(), TAIL);
    assert!(
        tail.starts_with("  line 30\n") && tail.ends_with("  line 49"),
        "{tail}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 50);
}

#[test]
fn a_full_disk_under_the_log_is_an_error_with_its_path() {
    let mut log = Log {
        path: "/dev/full".into(),
        file: File::options().write(true).open("/dev/full").unwrap(),
        tail: VecDeque::new(),
    };
    let error = log.line("x").unwrap_err().to_string();
    assert!(
        error.contains("/dev/full") && error.contains("make room"),
        "{error}"
    );
}
