//! Programs and kernel modules of the tests' own, compiled for a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A directory with something that was compiled.
pub struct Built {
    dir: TempDir,
}

impl Built {
    /// Where a file of it is, in the guest as on the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Compiles `tests/programs/NAME.c`. The guest has the host's libraries.
pub fn program(name: &str) -> Built {
    program_with(name, &["-O1", "-pthread"])
}

/// As [`program`], with these options of the compiler.
pub fn program_with(name: &str, flags: &[&str]) -> Built {
    let built = Built {
        dir: TempDir::new().expect("a temporary directory"),
    };
    let mut gcc = Command::new("gcc");
    gcc.args(flags);
    gcc.args(["-Wall", "-Wextra", "-Werror", "-o"]);
    gcc.arg(built.path(name));
    gcc.arg(source("programs").join(format!("{name}.c")));
    succeed(&mut gcc);
    built
}

/// Compiles the module in `tests/modules/NAME` for a kernel of the cache, in whose directory
/// everything is that this needs.
pub fn module(name: &str, kernel: &Path) -> Built {
    let built = Built {
        dir: TempDir::new().expect("a temporary directory"),
    };
    for entry in fs::read_dir(source("modules").join(name)).expect("a module") {
        let path = entry.expect("a file").path();
        let copy = built.path(
            path.file_name()
                .and_then(|name| name.to_str())
                .expect("a name"),
        );
        fs::copy(path, copy).expect("a copy");
    }
    let build = kernel.parent().expect("a build directory");
    // Those of the test runner's own make, if there is one, mean something else.
    let make = |command: &str| {
        let mut make = Command::new(command);
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        make
    };
    // The linker's script for modules is no part of the kernel itself. One test makes it for all.
    if !build.join("scripts/module.lds").exists() {
        let lock = std::env::temp_dir().join("kscope-modules.lock");
        let mut prepare = make("flock");
        prepare.arg(lock).args(["make", "ARCH=um", "-C"]).arg(build);
        succeed(prepare.arg("modules_prepare"));
    }
    let symbols = build.join("vmlinux.symvers");
    succeed(
        make("make")
            .arg("-C")
            .arg(build)
            .arg("ARCH=um")
            .arg(format!("M={}", built.dir.path().display()))
            .arg(format!("KBUILD_EXTRA_SYMBOLS={}", symbols.display()))
            .arg("modules"),
    );
    built
}

fn source(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(directory)
}

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
