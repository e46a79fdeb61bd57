//! The kernel's delay loop, measured on its behalf.
//!
//! A booting kernel spends up to a tenth of a second on finding out how often
//! its delay loop runs in a clock tick. Told beforehand (`lpj=`), it skips that.

use std::arch::asm;
use std::time::Instant;

/// Ticks per second of a User Mode Linux kernel (CONFIG_HZ is fixed there).
const HZ: u64 = 100;
const LOOPS: u64 = 200_000;
/// The best of a few, since another process may get in between.
const RUNS: usize = 3;

/// Iterations of the kernel's delay loop per tick, at least 1.
pub(crate) fn loops_per_jiffy() -> u64 {
    let nanos = (0..RUNS).map(|_| time_loops()).min().unwrap_or(0).max(1);
    (LOOPS * 1_000_000_000 / HZ / nanos).max(1)
}

/// Nanoseconds for [`LOOPS`] iterations.
fn time_loops() -> u64 {
    let start = Instant::now();
    // SAFETY: counts a register of its own down to zero and touches no memory;
    // LOOPS is positive, so that it ends.
    unsafe {
        // The loop of arch/x86/um/delay.c.
        asm!(
            ".p2align 4",
            "2: dec {n}",
            "jnz 2b",
            n = inout(reg) LOOPS => _,
            options(nomem, nostack)
        );
    }
    start.elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_delay_loop_runs_between_a_million_and_a_trillion_times_a_second() {
        let lpj = super::loops_per_jiffy();
        assert!((10_000..10_000_000_000).contains(&lpj), "{lpj}");
    }
}
