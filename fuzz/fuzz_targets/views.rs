//! Every view of a damaged guest ends in time, in little memory, without a panic.
//!
//! The first byte of an input is the view, the rest is what becomes of the memory that it reads: see
//! `kernel/tests/hostile/damage.rs`. The guest is the core KSCOPE_FUZZ_CORE of the kernel
//! KSCOPE_FUZZ_KERNEL, or the golden one.

#![no_main]

use std::path::Path;

use kscope_fuzz::damage;
use kscope_fuzz::limits::Counting;
use kscope_fuzz::subject::{Subject, golden};
use kscope_fuzz::views::VIEWS;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn open() -> Subject {
    let named = |name| std::env::var_os(name);
    match (named("KSCOPE_FUZZ_KERNEL"), named("KSCOPE_FUZZ_CORE")) {
        (Some(kernel), Some(core)) => Subject::open(Path::new(&kernel), Path::new(&core)),
        _ => Subject::golden(&golden("6.12").expect("tests/golden")),
    }
}

thread_local! {
    static SUBJECT: Subject = open();
}

fuzz_target!(|input: &[u8]| {
    if let Some((&view, script)) = input.split_first() {
        let view = VIEWS[usize::from(view) % VIEWS.len()];
        SUBJECT.with(|subject| subject.damaged(view, &damage::script(script)));
    }
});
