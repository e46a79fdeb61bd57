//! Which kernel to run when none is named.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::cache;
use crate::presets::Preset;

/// A kernel, and why it is the one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The `linux` file.
    pub path: PathBuf,
    /// Where it was found.
    pub found: Found,
}

/// Where a kernel was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was named.
    Named,
    /// `./linux`: the user stands in a build tree.
    Here,
    /// `$KBUILD_OUTPUT/linux`.
    KbuildOutput,
    /// `./.kunit/linux`: what kunit.py has built.
    Kunit,
    /// A kernel of `kscope build`.
    Cache,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::Named => "as named",
            Found::Here => "in the current directory",
            Found::KbuildOutput => "in $KBUILD_OUTPUT",
            Found::Kunit => "built by kunit.py",
            Found::Cache => "built by `kscope build`",
        })
    }
}

/// There is no kernel.
#[derive(Debug, thiserror::Error)]
#[error(
    "no kernel: there is no {}, and none with {} in the cache; build one with `kscope build{}`, or name one with -k",
    list(looked),
    match presets.as_str() { "" => "the base preset".to_owned(), p => format!("the preset {p}") },
    match presets.as_str() {
        "" => String::new(),
        p if p.contains("smp") => format!(" --source debian:7.3 --preset {p}"),
        p => format!(" --preset {p}"),
    },
)]
pub struct NoKernel {
    /// The files that were looked for.
    pub looked: Vec<PathBuf>,
    /// The needed presets, for the command line; empty when any kernel will do.
    pub presets: String,
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    names.join(", no ")
}

/// The kernel called `named`; without a name `./linux`, `$KBUILD_OUTPUT/linux`,
/// `./.kunit/linux`, or a cached build that has the `needed` presets.
///
/// Only that a file is there is checked, not what it is.
///
/// # Errors
///
/// None of them is there.
pub fn locate(named: Option<&Path>, needed: &[Preset]) -> Result<Located, NoKernel> {
    if let Some(path) = named {
        return Ok(Located {
            path: path.to_owned(),
            found: Found::Named,
        });
    }
    let mut places = vec![(PathBuf::from("./linux"), Found::Here)];
    if let Some(dir) = std::env::var_os("KBUILD_OUTPUT").filter(|d| !d.is_empty()) {
        places.push((PathBuf::from(dir).join("linux"), Found::KbuildOutput));
    }
    places.push((PathBuf::from("./.kunit/linux"), Found::Kunit));
    // A directory called linux is a source tree, most likely.
    if let Some((path, found)) = places.iter().find(|(path, _)| path.is_file()) {
        return Ok(Located {
            path: path.clone(),
            found: *found,
        });
    }
    match cache::find(needed) {
        Some(path) => Ok(Located {
            path,
            found: Found::Cache,
        }),
        None => Err(NoKernel {
            looked: places.into_iter().map(|(path, _)| path).collect(),
            presets: needed
                .iter()
                .filter(|p| **p != Preset::Base)
                .map(|p| p.name())
                .collect::<Vec<_>>()
                .join(","),
        }),
    }
}
