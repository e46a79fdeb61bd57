//! Agent expressions: any program ends, within its bounds of steps and output, without a panic.
//!
//! The first bytes of an input are memory, the rest is the program.

#![no_main]

#[allow(dead_code, reason = "the bridge needs more of it")]
#[path = "../../gdbstub-bridge/src/agent/mod.rs"]
mod agent;

use agent::{Machine, Program};
use libfuzzer_sys::fuzz_target;

/// Bytes of memory that there are, in the middle of nothing.
const MEMORY: usize = 64;
/// Where it is.
const BASE: u64 = 0x6000_0000;
/// More than this is printed only by a program without bounds.
const MOST_PRINTED: usize = 64 << 20;

/// Registers that are in memory, and some that there are not.
struct Guest<'i> {
    memory: &'i [u8],
    printed: usize,
}

impl Machine for Guest<'_> {
    fn register(&mut self, number: u16) -> Option<u64> {
        (number < 24).then(|| BASE + u64::from(number))
    }

    fn read(&mut self, addr: u64, buf: &mut [u8]) -> bool {
        let start = addr
            .checked_sub(BASE)
            .and_then(|at| usize::try_from(at).ok());
        let bytes = start.and_then(|at| self.memory.get(at..at.checked_add(buf.len())?));
        bytes.is_some_and(|bytes| {
            buf.copy_from_slice(bytes);
            true
        })
    }

    fn print(&mut self, text: &[u8]) {
        self.printed += text.len();
    }
}

fuzz_target!(|input: &[u8]| {
    let (memory, code) = input.split_at(input.len().min(MEMORY));
    let mut guest = Guest { memory, printed: 0 };
    if let Some(program) = Program::new(code) {
        let _ = program.run(&mut guest);
    }
    assert!(guest.printed <= MOST_PRINTED, "{} bytes", guest.printed);
});
