//! Damaged guests: whatever is in memory, every view ends, in time and in little memory, without a
//! panic.
//!
//! What becomes of a guest's memory is made up from fixed seeds. The fuzz target `views` makes up
//! more.

mod common;
#[path = "../kernel/tests/hostile/damage.rs"]
mod damage;
#[path = "../kernel/tests/hostile/limits.rs"]
mod limits;
#[allow(dead_code, reason = "the fuzz target takes golden dumps, too")]
#[path = "../kernel/tests/hostile/subject.rs"]
mod subject;
#[path = "../kernel/tests/hostile/views.rs"]
mod views;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::session::Session;
use common::{TestKernel, kernels};
use subject::Subject;
use views::VIEWS;

#[global_allocator]
static ALLOCATOR: limits::Counting = limits::Counting;

/// Scripts for each view of each guest.
const SCRIPTS: u64 = 60;

/// The most damage of one script.
const MOST_DAMAGE: u64 = 8;

/// Numbers that look random (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The bytes of a script.
    fn script(&mut self) -> Vec<u8> {
        let steps = 1 + self.next() % MOST_DAMAGE;
        (0..steps).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

/// Shows a view of a damaged guest; tells what would bring a failure back.
fn survive(guest: &Subject, kernel: &str, view: &'static str, script: &[u8]) {
    let damage = damage::script(script);
    let result = catch_unwind(AssertUnwindSafe(|| guest.damaged(view, &damage)));
    if result.is_err() {
        panic!("`{view}` of {kernel} with {script:?}: {damage:?}");
    }
}

/// The dump of a guest with all sorts of tasks.
fn dumped(kernel: &TestKernel) -> Subject {
    let mut guest = Session::start(kernel, &["-m", "64M"]);
    guest.ask(
        "sleep 1000 & sleep 1000 | cat & sleep 1001 & kill -STOP $!; \
         mkdir /m; mount -t tmpfs none /m; sleep 1000 >/m/file &",
    );
    let dir = tempfile::tempdir().expect("a temporary directory");
    let core = dir.path().join("core");
    let name = core.to_str().expect("a name");
    guest.kscope(&["dump", "-o", name]).expect(0);
    // It stays mapped.
    Subject::open(&kernel.path, &core)
}

// One test: memory that is in use is counted for all of the process.
#[test]
fn views_survive_any_memory() {
    for kernel in kernels()
        .iter()
        .filter(|kernel| kernel.name != "7.3 seccomp")
    {
        let guest = dumped(kernel);
        for (number, &view) in (1..).zip(VIEWS) {
            if let Err(error) = guest.undamaged(view) {
                panic!("`{view}` of {}: {error}", kernel.name);
            }
            let mut numbers = Numbers(number);
            for _ in 0..SCRIPTS {
                survive(&guest, kernel.name, view, &numbers.script());
            }
        }
    }
}
