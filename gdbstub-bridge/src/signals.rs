//! GDB's numbers of signals, which are its own beyond the oldest: GDB manual, "Target Signals"; its sources,
//! `include/gdb/signals.def`.

use gdbstub::common::Signal;

/// What is no signal to GDB.
const UNKNOWN: u8 = 143;

/// The host's signals below the real-time ones that GDB knows by another number, or by the same.
const PAIRS: [(i32, u8); 30] = [
    (libc::SIGHUP, 1),
    (libc::SIGINT, 2),
    (libc::SIGQUIT, 3),
    (libc::SIGILL, 4),
    (libc::SIGTRAP, 5),
    (libc::SIGABRT, 6),
    (libc::SIGFPE, 8),
    (libc::SIGKILL, 9),
    (libc::SIGBUS, 10),
    (libc::SIGSEGV, 11),
    (libc::SIGSYS, 12),
    (libc::SIGPIPE, 13),
    (libc::SIGALRM, 14),
    (libc::SIGTERM, 15),
    (libc::SIGURG, 16),
    (libc::SIGSTOP, 17),
    (libc::SIGTSTP, 18),
    (libc::SIGCONT, 19),
    (libc::SIGCHLD, 20),
    (libc::SIGTTIN, 21),
    (libc::SIGTTOU, 22),
    (libc::SIGIO, 23),
    (libc::SIGXCPU, 24),
    (libc::SIGXFSZ, 25),
    (libc::SIGVTALRM, 26),
    (libc::SIGPROF, 27),
    (libc::SIGWINCH, 28),
    (libc::SIGUSR1, 30),
    (libc::SIGUSR2, 31),
    (libc::SIGPWR, 32),
];

/// The real-time signals from 33 on, in the host's numbers, of which GDB's are behind each other.
const REAL_TIME: std::ops::RangeInclusive<i32> = 33..=63;
/// GDB's number of signal 33.
const REAL_TIME_33: i32 = 45;
/// The two real-time signals that GDB got to know later, in the host's numbers and in GDB's.
const LATER: [(i32, u8); 2] = [(32, 77), (64, 78)];

/// GDB's number of a host signal.
pub(crate) fn to_gdb(signal: i32) -> Signal {
    if REAL_TIME.contains(&signal) {
        let number = signal - REAL_TIME.start() + REAL_TIME_33;
        return Signal(u8::try_from(number).unwrap_or(UNKNOWN));
    }
    let pair = PAIRS.iter().chain(&LATER).find(|pair| pair.0 == signal);
    Signal(pair.map_or(UNKNOWN, |pair| pair.1))
}

/// The host signal of GDB's number, if the host has it.
pub(crate) fn from_gdb(number: u8) -> Option<i32> {
    let real_time = i32::from(number) - REAL_TIME_33 + REAL_TIME.start();
    if REAL_TIME.contains(&real_time) {
        return Some(real_time);
    }
    let pair = PAIRS.iter().chain(&LATER).find(|pair| pair.1 == number);
    pair.map(|pair| pair.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_signal_comes_back() {
        // SIGSTKFLT, which nobody sends, GDB does not know.
        for signal in (1..=64).filter(|&signal| signal != libc::SIGSTKFLT) {
            assert_eq!(from_gdb(to_gdb(signal).0), Some(signal));
        }
        assert_eq!(to_gdb(libc::SIGSTKFLT).0, UNKNOWN);
        assert_eq!((from_gdb(0), from_gdb(UNKNOWN)), (None, None));
    }
}
