//! Builds the in-guest init, which the library carries inside itself.
//!
//! It is a package of its own, since it is linked statically: the guest's root
//! is whatever the host has, and pid 1 starts before any of that is mounted.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for input in [
        "init/Cargo.toml",
        "init/Cargo.lock",
        "init/src",
        "wire/Cargo.toml",
        "wire/src",
    ] {
        println!("cargo::rerun-if-changed={}", here.join(input).display());
    }
    let cargo = env::var_os("CARGO").expect("cargo sets it");
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--target", TARGET])
        .arg("--manifest-path")
        .arg(here.join("init/Cargo.toml"))
        // The outer build holds the lock of its own target directory.
        .arg("--target-dir")
        .arg(out.join("init"))
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static",
        )
        // These belong to the outer build: clippy, and the profile under test.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTFLAGS")
        .status()
        .expect("cargo cannot be run");
    assert!(
        status.success(),
        "the in-guest init did not build; a static build needs libc.a (Debian: libc6-dev)"
    );
    let binary = out.join("init").join(TARGET).join("release/kscope-init");
    println!("cargo::rustc-env=KSCOPE_INIT={}", binary.display());
}
