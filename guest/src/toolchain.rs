//! The programs that a kernel build needs, and which compiler it will use.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use thiserror::Error;

use crate::hostjob::{Cancel, JobError, capture};

/// Programs that every build runs, and Debian's packages of them.
const PROGRAMS: &[(&str, &str)] = &[
    // Also builds the programs of the build itself when $CC is another.
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl-base"),
];

/// This machine cannot build kernels.
#[derive(Debug, Error)]
pub enum ToolchainError {
    /// Programs or headers are missing.
    #[error(
        "cannot build a kernel here: {} missing; install with: apt-get install {}",
        .what.join(", "), .packages.join(" ")
    )]
    Missing {
        /// What is missing.
        what: Vec<&'static str>,
        /// The packages, in Debian's names.
        packages: Vec<&'static str>,
    },
    /// `$CC` is not usable.
    #[error("CC={cc}: `{cc} -v` does not work: {reason}")]
    Compiler {
        /// `$CC`.
        cc: String,
        /// Why.
        reason: String,
    },
    /// UML runs on x86-64 only.
    #[error("User Mode Linux does not run on {0}, only on x86_64")]
    Architecture(&'static str),
    /// A host command.
    #[error(transparent)]
    Job(#[from] JobError),
}

/// What a kernel will be built with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// `$CC`, when set.
    pub cc: Option<String>,
    /// All that the compiler says of itself; part of the cache key.
    pub identity: String,
}

impl Toolchain {
    /// Finds the compiler (`$CC`, else gcc) and checks that everything else is
    /// there.
    ///
    /// # Errors
    ///
    /// One error that names all that is missing.
    pub fn detect(cancel: &Cancel) -> Result<Self, ToolchainError> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(ToolchainError::Architecture(std::env::consts::ARCH));
        }
        let (mut what, mut packages): (Vec<_>, Vec<_>) = PROGRAMS
            .iter()
            .copied()
            .filter(|(program, _)| find_program(program).is_none())
            .unzip();
        if !what.contains(&"gcc") && !has_libc_headers() {
            what.push("the C library's headers");
            packages.push("libc6-dev");
        }
        if !what.is_empty() {
            return Err(ToolchainError::Missing { what, packages });
        }
        let cc = std::env::var("CC").ok().filter(|cc| !cc.trim().is_empty());
        let identity = identify(cc.as_deref().unwrap_or("gcc"), cancel)?;
        Ok(Self { cc, identity })
    }

    /// The compiler in a line: `gcc version 12.2.0 (Debian 12.2.0-14)`.
    pub fn summary(&self) -> &str {
        self.identity
            .lines()
            .find(|line| line.contains(" version "))
            .or_else(|| self.identity.lines().next())
            .unwrap_or_default()
            .trim()
    }
}

/// What the compiler says about itself. `cc` may have arguments (`ccache gcc`).
fn identify(cc: &str, cancel: &Cancel) -> Result<String, ToolchainError> {
    let error = |reason: String| ToolchainError::Compiler {
        cc: cc.to_owned(),
        reason,
    };
    let mut words = cc.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("gcc"));
    command.args(words).arg("-v").env("LC_ALL", "C");
    match capture(command, cancel) {
        Ok((status, text)) if status.success() => Ok(text),
        Ok((status, text)) => {
            let said = text.lines().next().unwrap_or("no output");
            Err(error(format!("{status}: {said}")))
        }
        Err(JobError::Spawn { reason, .. }) => Err(error(reason.to_string())),
        Err(other) => Err(other.into()),
    }
}

fn has_libc_headers() -> bool {
    Command::new("gcc")
        .args(["-E", "-x", "c", "-include", "stdio.h", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The program of this name on `$PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program-anywhere"), None);
    }

    #[test]
    fn names_a_bad_compiler() {
        for cc in ["no-such-compiler", "false", "ccache-that-is-not-there gcc"] {
            let error = identify(cc, &Cancel::new()).unwrap_err();
            assert!(error.to_string().contains(cc), "{error}");
        }
    }

    #[test]
    fn missing_things_come_in_one_message() {
        let error = ToolchainError::Missing {
            what: vec!["flex", "bison"],
            packages: vec!["flex", "bison"],
        };
        assert_eq!(
            error.to_string(),
            "cannot build a kernel here: flex, bison missing; install with: apt-get install flex bison"
        );
    }

    #[test]
    fn sums_a_compiler_up() {
        let toolchain = Toolchain {
            cc: None,
            identity: "Using built-in specs.\ngcc version 12.2.0 (Debian 12.2.0-14) \n".into(),
        };
        assert_eq!(toolchain.summary(), "gcc version 12.2.0 (Debian 12.2.0-14)");
    }
}
