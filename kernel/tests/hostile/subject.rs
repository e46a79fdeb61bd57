//! A kernel and its core, of which every view is shown while the core's memory is damaged.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use kscope_kernel::{Core, GuestPid, Image, Kernel, Unwinder, ViewError};
use tempfile::TempDir;

use super::damage::{Damage, Hostile, Recording};
use super::limits;
use super::views::{self, CpusOf};

/// A view may read so often, and 20 times as often again as of a good guest.
const LEAST_READS: u64 = 4_000_000;

/// A kernel, its core, and what each view reads of it.
pub struct Subject {
    kernel: Kernel<Hostile<Core>>,
    core: Core,
    pid: GuestPid,
    recordings: RefCell<HashMap<&'static str, Rc<Recording>>>,
}

/// Where the golden dump of a version is, if there is one.
pub fn golden(version: &str) -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(version);
    directory.join("core.zst").exists().then_some(directory)
}

impl Subject {
    /// Opens the golden dump in a directory.
    ///
    /// # Panics
    ///
    /// When it cannot be used.
    pub fn golden(directory: &Path) -> Subject {
        // It is mapped, and can be removed then.
        let unpacked = TempDir::new().expect("a temporary directory");
        let unpack = |name: &str| {
            let from = directory.join(format!("{name}.zst"));
            let packed = File::open(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
            let path = unpacked.path().join(name);
            let file = File::create(&path).expect("a file");
            zstd::stream::copy_decode(packed, file).expect("a zstd file");
            path
        };
        let subject = Subject::open(&unpack("linux"), &unpack("core"));
        fs::remove_dir_all(unpacked.path()).expect("it can be removed");
        subject
    }

    /// Opens a core and its kernel.
    ///
    /// # Panics
    ///
    /// When they cannot be used.
    pub fn open(kernel: &Path, core: &Path) -> Subject {
        let image = Image::open(kernel).unwrap_or_else(|error| panic!("{error}"));
        let core = Core::open(core).unwrap_or_else(|error| panic!("{error}"));
        let core = core.with_image(&image).expect("its kernel");
        let kernel = Kernel::new(image, Hostile::new(core.clone())).expect("its types");
        // The youngest process is a program rather than the init.
        let tasks = kernel.tasks().map(|task| task.expect("a good list"));
        let programs = tasks.filter(|task| !task.kernel_thread && task.pid == task.tgid);
        let pid = programs.map(|task| task.pid).max().expect("a process");
        Subject {
            kernel,
            core,
            pid,
            recordings: RefCell::default(),
        }
    }

    /// Shows a view of memory as it is now.
    fn show(&self, view: &str) -> Result<usize, ViewError> {
        let mut unwinder = Unwinder::new(self.kernel.image()).expect("the kernel's own tables");
        if view.starts_with("bt") {
            unwinder.add_modules_from_core(&self.core);
        }
        let cpus = CpusOf {
            kernel: &self.kernel,
            core: &self.core,
            unwinder: RefCell::new(Some(unwinder)),
        };
        views::show(&cpus, view, self.pid)
    }

    /// What a view reads while nothing is damaged, and whether it could be shown.
    fn recording(&self, view: &'static str) -> Rc<Recording> {
        if let Some(known) = self.recordings.borrow().get(view) {
            return Rc::clone(known);
        }
        let memory = self.kernel.memory();
        // What it takes from the kernel's binary is there when it counts.
        memory.repair();
        let _ = self.show(view);
        let recording = memory.record(|| {
            // Some are not for this kernel, which is an answer, too.
            let _ = self.show(view);
        });
        let recording = Rc::new(recording);
        let mut recordings = self.recordings.borrow_mut();
        recordings.insert(view, Rc::clone(&recording));
        recording
    }

    /// How much a view says of a guest that is not damaged.
    ///
    /// # Errors
    ///
    /// When it cannot be shown.
    pub fn undamaged(&self, view: &'static str) -> Result<usize, ViewError> {
        self.kernel.memory().repair();
        self.show(view)
    }

    /// Shows a view while the memory that it reads is damaged.
    ///
    /// # Panics
    ///
    /// When it takes too long, too much memory, or panics itself.
    pub fn damaged(&self, view: &'static str, script: &[Damage]) {
        let recording = self.recording(view);
        let budget = LEAST_READS + 20 * recording.reads;
        let memory = self.kernel.memory();
        memory.damage(&recording, script, budget);
        // An error is an answer.
        let _ = limits::in_time(view, || self.show(view));
        memory.repair();
    }
}
