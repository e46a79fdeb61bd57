//! The kernels that the tests boot.

// Each test file compiles this for itself and uses its own part.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kscope_guest::cache::Cache;
use kscope_guest::presets::{Preset, Selection};

/// The debug kernel, of 6.12.
pub fn kernel() -> &'static Path {
    static KERNEL: OnceLock<PathBuf> = OnceLock::new();
    KERNEL.get_or_init(|| find_kernel("KSCOPE_TEST_KERNEL", "6.12", &[Preset::Debug]))
}

/// How [`kernel`] is run: `$KSCOPE_TEST_OPTIONS`, for running any test on
/// another kernel by hand (`--cpus 2`). Usually nothing.
pub fn options() -> Vec<String> {
    let options = std::env::var("KSCOPE_TEST_OPTIONS").unwrap_or_default();
    options.split_whitespace().map(str::to_owned).collect()
}

/// A kernel that kscope has to work on, and how to run it.
#[derive(Debug)]
pub struct TestKernel {
    /// What to call it in messages.
    pub name: &'static str,
    /// The `linux` file.
    pub path: PathBuf,
    /// Options of `kscope run` and its like.
    pub args: &'static [&'static str],
}

impl TestKernel {
    /// How many CPUs a guest of it has.
    pub fn cpus(&self) -> usize {
        if self.args.contains(&"--cpus") { 2 } else { 1 }
    }
}

/// Every kernel that kscope has to work on: the versions, and the ways to run
/// them. [`kernel`] is the first.
pub fn kernels() -> &'static [TestKernel] {
    static KERNELS: OnceLock<Vec<TestKernel>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        let debug = &[Preset::Debug][..];
        let smp = &[Preset::Debug, Preset::Smp][..];
        let list: [(_, _, _, _, &[&str]); 5] = [
            ("6.12", "KSCOPE_TEST_KERNEL", "6.12", debug, &[]),
            ("6.1", "KSCOPE_TEST_KERNEL_6_1", "6.1", debug, &[]),
            ("7.3", "KSCOPE_TEST_KERNEL_7", "7.3", debug, &[]),
            (
                "7.3 seccomp",
                "KSCOPE_TEST_KERNEL_7",
                "7.3",
                debug,
                &["--seccomp"],
            ),
            (
                "7.3 smp",
                "KSCOPE_TEST_KERNEL_7_SMP",
                "7.3",
                smp,
                &["--cpus", "2"],
            ),
        ];
        list.into_iter()
            .map(|(name, variable, version, presets, args)| TestKernel {
                name,
                path: find_kernel(variable, version, presets),
                args,
            })
            .collect()
    })
}

/// The kernel that an environment variable names, else the one in the cache
/// with just these presets. None is an error, not a reason to skip a test.
fn find_kernel(variable: &str, version: &str, presets: &[Preset]) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let source = format!("debian:{version}");
    let selection = Selection::new(presets.iter().copied());
    let entries = Cache::open().map(|cache| cache.entries().unwrap_or_default());
    entries
        .unwrap_or_default()
        .into_iter()
        .filter(|entry| entry.source.name == source && entry.fragments.is_empty())
        .filter(|entry| Selection::new(entry.presets.iter().copied()) == selection)
        .max_by_key(|entry| entry.asked)
        .map(|entry| entry.linux)
        .unwrap_or_else(|| {
            panic!(
                "no kernel {version}: set {variable}, or run `kscope build --source {source} --preset {selection}`"
            )
        })
}
