//! What one input may cost: time of the CPU, which a loaded machine does not change, and memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The most memory that a verb may take.
pub const MOST_MEMORY: usize = 512 << 20;

/// The longest that a verb may take.
pub const MOST_TIME: Duration = Duration::from_secs(2);

/// The system's allocator, up to [`MOST_MEMORY`].
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

fn grow(by: usize) {
    let live = LIVE.fetch_add(by, Ordering::Relaxed).wrapping_add(by);
    if live > MOST_MEMORY {
        // What is allocated for the message is counted, and must not come here again.
        LIVE.store(0, Ordering::Relaxed);
        panic!("{live} bytes of memory are in use");
    }
}

// SAFETY: every call is the system allocator's own, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are those that it makes to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Time of the CPU that this thread has had.
pub fn cpu_time() -> Duration {
    // SAFETY: all bytes of a timespec are numbers.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is a timespec to write to.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "this thread has a clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Does something that may not take longer than [`MOST_TIME`].
pub fn in_time<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let before = cpu_time();
    let result = work();
    let took = cpu_time() - before;
    assert!(took <= MOST_TIME, "{what} took {took:?}");
    result
}
