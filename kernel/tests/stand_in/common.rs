//! A stand-in for a kernel, compiled by the system's compiler, and its memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kscope_kernel::{KernelAddr, Memory, ReadError};
use object::{Object, ObjectSegment};
use tempfile::TempDir;

/// Runs a program to its end and shows its complaints if it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The stand-in and the directory it is in.
pub struct Fixture {
    directory: TempDir,
    pub kernel: PathBuf,
}

/// Compiles `tests/stand_in/kernel` in the layout of a version (601, 612 or 703).
pub fn compile(version: u32, flags: &[&str]) -> Fixture {
    let directory = TempDir::new().expect("a temporary directory");
    let kernel = directory.path().join("linux");
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in/kernel/init/init_task.c");
    run(Command::new("gcc")
        .args(["-no-pie", "-O1", "-g", "-fno-omit-frame-pointer"])
        .arg(format!("-DVERSION={version}"))
        .args(flags)
        .arg("-o")
        .arg(&kernel)
        .arg(source)
        .env("TMPDIR", directory.path()));
    Fixture { directory, kernel }
}

impl Fixture {
    /// A path for another file beside the kernel.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The memory as it would be after loading the kernel.
    pub fn memory(&self) -> Loaded {
        let bytes = std::fs::read(&self.kernel).expect("the kernel was just linked");
        let file = object::File::parse(&*bytes).expect("the linker writes ELF");
        let mut memory = Loaded {
            segments: Vec::new(),
            changed: BTreeMap::new(),
        };
        for segment in file.segments() {
            let mut content = segment.data().expect("segments are in the file").to_vec();
            content.resize(segment.size() as usize, 0);
            memory.segments.push((segment.address(), content));
        }
        memory
    }
}

/// The segments of a program, and what a test wrote over them.
#[derive(Clone)]
pub struct Loaded {
    segments: Vec<(u64, Vec<u8>)>,
    changed: BTreeMap<u64, u8>,
}

impl Loaded {
    pub fn write(&mut self, addr: KernelAddr, bytes: &[u8]) {
        self.changed
            .extend((addr.get()..).zip(bytes.iter().copied()));
    }

    pub fn write_u64(&mut self, addr: KernelAddr, value: u64) {
        self.write(addr, &value.to_le_bytes());
    }

    fn byte(&self, at: u64) -> Option<u8> {
        self.changed.get(&at).copied().or_else(|| {
            self.segments.iter().find_map(|(start, content)| {
                content
                    .get(usize::try_from(at.checked_sub(*start)?).ok()?)
                    .copied()
            })
        })
    }
}

impl Memory for Loaded {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let error = ReadError {
            addr,
            len: buf.len(),
        };
        for (offset, byte) in buf.iter_mut().enumerate() {
            let at = addr.checked_add(offset as u64).ok_or(error)?;
            *byte = self.byte(at.get()).ok_or(error)?;
        }
        Ok(())
    }
}
