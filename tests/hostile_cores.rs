//! Damaged core files: every verb says what it can of them, in time, in little memory, and ends
//! with a code that it may end with.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use common::session::Session;
use common::{Place, finish, kernels};

/// Every verb that looks at a core. Process 1 is the guest's init.
const VERBS: &[&[&str]] = &[
    &["bt", "--all", "--locals"],
    &["config"],
    &["dmesg"],
    &["files", "1"],
    &["irq"],
    &["lsmod"],
    &["maps", "1"],
    &["mounts", "1"],
    &["net"],
    &["print", "list(init_task.tasks)->comm"],
    &["ps", "--threads"],
    &["runq"],
    &["slab"],
    &["timers"],
    &["why", "--all"],
];

/// Bytes of memory that a verb may take: of addresses, of which files that are mapped take most.
const MOST_MEMORY: u64 = 512 << 20;

/// Seconds of the CPU after which a verb counts as one that does not end. It may take two, on a
/// machine that is as fast as it should be.
const MOST_SECONDS: u32 = 20;

const PAGE: usize = 4096;

/// A dump of a guest with all sorts of tasks, and a place for what becomes of it.
struct Dump {
    place: Place,
    /// As a whole, and compressed.
    core: Vec<u8>,
    compressed: Vec<u8>,
}

/// The dump that all tests damage.
fn dump() -> &'static Dump {
    static DUMP: OnceLock<Dump> = OnceLock::new();
    DUMP.get_or_init(|| {
        let mut guest = Session::start(&kernels()[0], &["-m", "64M"]);
        guest.ask(
            "sleep 1000 & sleep 1000 | cat & sleep 1001 & kill -STOP $!; \
             mkdir /m; mount -t tmpfs none /m; sleep 1000 >/m/file &",
        );
        let place = Place::new();
        let taken = |name: &str| {
            let path = place.path().join(name);
            guest
                .kscope(&["dump", "-o", path.to_str().expect("a name")])
                .expect(0);
            fs::read(path).expect("a core")
        };
        let (core, compressed) = (taken("core"), taken("core.zst"));
        Dump {
            place,
            core,
            compressed,
        }
    })
}

impl Dump {
    /// Runs a verb on a file within the bounds that hold for all. Tells whether it could be used.
    fn survives(&self, what: &str, verb: &[&str], core: &Path) -> bool {
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--as={MOST_MEMORY}"))
            .arg(format!("--cpu={MOST_SECONDS}"))
            .arg(env!("CARGO_BIN_EXE_kscope"))
            .args(verb)
            .arg("-k")
            .arg(&kernels()[0].path)
            .arg("--core")
            .arg(core);
        self.place.surround(&mut command);
        let ended = finish(&mut command);
        let code = ended.status.code();
        assert!(
            matches!(code, Some(0 | 1 | 96)),
            "{verb:?} of a core with {what}: {}: {}",
            ended.status,
            ended.stderr
        );
        code == Some(0)
    }

    /// Runs a verb on a core with damage in it.
    fn damaged(&self, what: &str, verb: &[&str], core: &[u8]) -> bool {
        let mut file = tempfile::NamedTempFile::new_in(self.place.path()).expect("a file");
        file.write_all(core).expect("room");
        self.survives(what, verb, file.path())
    }

    /// The beginnings of pages that are not all zeros.
    fn pages(&self) -> Vec<usize> {
        let pages = self.core.chunks_exact(PAGE).enumerate();
        pages
            .filter(|(_, page)| page.iter().any(|&byte| byte != 0))
            .map(|(index, _)| index * PAGE)
            .collect()
    }
}

/// Numbers that look random, the same each time (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % end.max(1)
    }
}

#[test]
fn flipped_bits_and_lost_pages() {
    let dump = dump();
    let pages = dump.pages();
    let mut numbers = Numbers(3);
    for &verb in VERBS {
        assert!(dump.damaged("no damage", verb, &dump.core), "{verb:?}");
        let mut core = dump.core.clone();
        // One bit in each of many pages: of what a verb reads, something is hit.
        for &page in pages.iter().step_by(2) {
            core[page + numbers.below(PAGE)] ^= 1 << numbers.below(8);
        }
        dump.damaged("flipped bits", verb, &core);
        core.copy_from_slice(&dump.core);
        for _ in 0..pages.len() / 20 {
            let page = pages[numbers.below(pages.len())];
            core[page..page + PAGE].fill(0);
        }
        dump.damaged("pages of zeros", verb, &core);
        core.copy_from_slice(&dump.core);
        for _ in 0..pages.len() / 20 {
            let from = pages[numbers.below(pages.len())];
            let to = pages[numbers.below(pages.len())];
            core.copy_within(from..from + PAGE, to);
        }
        dump.damaged("pages in wrong places", verb, &core);
    }
}

#[test]
fn files_that_are_cut_off() {
    let dump = dump();
    let mut numbers = Numbers(4);
    for (kind, file) in [("whole", &dump.core), ("compressed", &dump.compressed)] {
        for (index, &verb) in VERBS.iter().enumerate() {
            // From the very beginning, where the headers are, to the end.
            let len = match index {
                0 => 0,
                1..=4 => numbers.below(2 * PAGE),
                _ => numbers.below(file.len()),
            };
            dump.damaged(&format!("{len} bytes, {kind}"), verb, &file[..len]);
        }
    }
}

#[test]
fn headers_and_notes_that_lie() {
    let dump = dump();
    let mut numbers = Numbers(5);
    for &verb in VERBS {
        for first in [64, 2 * PAGE] {
            let mut core = dump.core.clone();
            for _ in 0..8 {
                core[numbers.below(first)] = numbers.below(256) as u8;
            }
            dump.damaged("other headers", verb, &core);
        }
    }
}

#[test]
fn compressed_files_that_are_damaged() {
    let dump = dump();
    let mut numbers = Numbers(6);
    for &verb in VERBS {
        let mut file = dump.compressed.clone();
        for _ in 0..16 {
            let at = numbers.below(file.len());
            file[at] ^= 1 << numbers.below(8);
        }
        dump.damaged("flipped bits, compressed", verb, &file);
        // The table of the frames is at the end.
        let mut file = dump.compressed.clone();
        for _ in 0..8 {
            let at = file.len() - 1 - numbers.below(2 * PAGE);
            file[at] = numbers.below(256) as u8;
        }
        dump.damaged("another table", verb, &file);
    }
}
