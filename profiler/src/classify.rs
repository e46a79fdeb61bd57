//! What a CPU was doing, told by where its stack stands.

use std::ops::Range;

use kscope_guest::remote::RawSample;
use kscope_kernel::{Frame, Image, KernelAddr, Reg, Registers};

use crate::profile::State;

/// `wait4` and `waitid`, in which a kernel in ptrace mode waits for guest user code, and `futex`, in which one in seccomp
/// mode does: numbers of the host's x86-64 system calls.
const WAITING_CALLS: [u64; 3] = [61, 247, 202];

/// Host CPU time that a stop itself may cost the guest, in nanoseconds: some times the usual.
const STOP_COST_NS: u64 = 50_000;

/// The few functions of User Mode Linux that say what the CPU does.
#[derive(Debug)]
pub(crate) struct Landmarks {
    /// The loop that lets guest user code run and serves its system calls and faults.
    userspace: Vec<Range<u64>>,
    /// Waits for the stub that runs user code; called by `userspace`, and for memory management elsewhere.
    wait_for_stub: Vec<Range<u64>>,
    idle: Vec<Range<u64>>,
    /// What an idle CPU waits in since 7.x; also called elsewhere.
    poll: Vec<Range<u64>>,
    /// First instruction of the handler of all host signals.
    signal_entry: Option<KernelAddr>,
}

/// What became of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    pub state: State,
    /// How many of the innermost frames are only the mechanics of waiting, not worth showing.
    pub hidden: usize,
}

impl Landmarks {
    pub(crate) fn of(image: &Image) -> Self {
        let ranges = |names: &[&str]| {
            names
                .iter()
                .filter_map(|name| {
                    let begin = image.symbol(name)?.0;
                    // A symbol without size still has its first bytes.
                    let size = image.symbol_size(name).unwrap_or(0).max(1);
                    Some(begin..begin.saturating_add(size))
                })
                .collect()
        };
        Self {
            userspace: ranges(&["userspace"]),
            wait_for_stub: ranges(&["wait_stub_done", "wait_stub_done_seccomp"]),
            // `arch_cpu_idle` calls `um_idle_sleep`, which calls `os_idle_sleep`; 6.1 to 7.x differ in which are there.
            idle: ranges(&["arch_cpu_idle", "um_idle_sleep", "os_idle_sleep"]),
            poll: ranges(&["os_poll"]),
            signal_entry: image.symbol("hard_handler"),
        }
    }

    /// The frames without those of a signal handler that has yet to begin.
    ///
    /// A traced guest stops before each signal is delivered, and on a busy host then waits for its CPU with the
    /// handler's first instruction ahead. What it had been doing is what the signal interrupted.
    pub(crate) fn without_signal_ahead<'f>(&self, frames: &'f [Frame]) -> &'f [Frame] {
        match (frames, self.signal_entry) {
            // The handler, the libc trampoline it would return to, and the interrupted code.
            ([handler, _, interrupted @ ..], Some(entry))
                if handler.pc == entry && !interrupted.is_empty() =>
            {
                interrupted
            }
            _ => frames,
        }
    }

    /// Whether a CPU in kernel code has executed nothing since the sample before.
    ///
    /// A sample makes the guest give up its host CPU. On a busy host it may not have got one again by the next sample:
    /// it then stands where it stood, or at the beginning of the handler of a signal that came meanwhile. Its CPU time
    /// has to agree, since a loop can come back to equal registers.
    pub(crate) fn stands_still(&self, before: &RawSample, now: &RawSample) -> bool {
        let stood = before.registers == now.registers
            || self
                .signal_entry
                .is_some_and(|entry| now.registers.pc() == Some(entry.0));
        let ran = match (before.cpu_ns, now.cpu_ns) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => return false,
        };
        stood && ran < STOP_COST_NS
    }

    /// Classifies a stack, innermost frame first. `is_kernel` tells kernel text from the host's libraries.
    pub(crate) fn classify(
        &self,
        frames: &[Frame],
        registers: &Registers,
        is_kernel: impl Fn(KernelAddr) -> bool,
    ) -> Class {
        let kernel = Class {
            state: State::Kernel,
            hidden: 0,
        };
        // Host library frames at the innermost end are the wrapper of the system call in which the kernel waits.
        let mut kernel_frames = frames
            .iter()
            .map(|frame| frame.lookup())
            .enumerate()
            .skip_while(|(_, addr)| !is_kernel(*addr));
        let Some((mut index, mut addr)) = kernel_frames.next() else {
            return kernel;
        };
        if within(&self.poll, addr) {
            match kernel_frames.next() {
                Some(caller) => (index, addr) = caller,
                None => return kernel,
            }
        }
        if within(&self.idle, addr) {
            return Class {
                state: State::Idle,
                hidden: 0,
            };
        }
        // Without a waiting call it is the kernel's own work for the switch, or the call's way in or out.
        let waits = registers
            .get(Reg::OrigRax)
            .is_some_and(|call| WAITING_CALLS.contains(&call));
        if !waits {
            return kernel;
        }
        if within(&self.wait_for_stub, addr) {
            match kernel_frames.next() {
                Some(caller) => (index, addr) = caller,
                None => return kernel,
            }
        }
        if within(&self.userspace, addr) {
            return Class {
                state: State::User,
                hidden: index,
            };
        }
        kernel
    }
}

fn within(ranges: &[Range<u64>], addr: KernelAddr) -> bool {
    ranges.iter().any(|range| range.contains(&addr.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERSPACE: u64 = 0x6000_1000;
    const WAIT_STUB: u64 = 0x6000_2000;
    const IDLE: u64 = 0x6000_3000;
    const HANDLER: u64 = 0x6000_4000;
    const POLL: u64 = 0x6000_5000;
    const LIBC: u64 = 0x7fff_0000;

    fn classify(stack: &[u64], call: Option<u64>) -> Class {
        let one =
            |begin: u64| -> Vec<Range<u64>> { std::iter::once(begin..begin + 0x100).collect() };
        let landmarks = Landmarks {
            userspace: one(USERSPACE),
            wait_for_stub: one(WAIT_STUB),
            idle: one(IDLE),
            poll: one(POLL),
            signal_entry: Some(KernelAddr(HANDLER)),
        };
        let frames: Vec<Frame> = stack
            .iter()
            .enumerate()
            .map(|(index, addr)| Frame {
                pc: KernelAddr(addr + 8),
                is_return_address: index > 0,
            })
            .collect();
        let registers = call.map(|call| (Reg::OrigRax, call)).into_iter().collect();
        landmarks.classify(&frames, &registers, |addr| addr.0 < 0x7000_0000)
    }

    #[test]
    fn waiting_for_the_stub_in_the_user_loop_is_user_code() {
        let class = classify(&[LIBC, USERSPACE, HANDLER], Some(61));
        assert_eq!((class.state, class.hidden), (State::User, 1));
        let class = classify(&[LIBC, WAIT_STUB, USERSPACE, HANDLER], Some(202));
        assert_eq!((class.state, class.hidden), (State::User, 2));
    }

    #[test]
    fn switching_to_the_stub_is_kernel_work() {
        // ptrace(2), and no call at all.
        for call in [Some(101), Some(u64::MAX), None] {
            let class = classify(&[LIBC, USERSPACE, HANDLER], call);
            assert_eq!((class.state, class.hidden), (State::Kernel, 0));
        }
    }

    #[test]
    fn a_system_call_that_waits_for_the_stub_is_kernel_work() {
        let class = classify(&[LIBC, WAIT_STUB, HANDLER, USERSPACE], Some(61));
        assert_eq!(class.state, State::Kernel);
    }

    #[test]
    fn polling_is_idle_in_the_idle_loop_only() {
        let state = |stack: &[u64]| classify(stack, Some(7)).state;
        assert_eq!(state(&[LIBC, POLL, IDLE, HANDLER]), State::Idle);
        assert_eq!(state(&[POLL, IDLE]), State::Idle);
        assert_eq!(state(&[LIBC, POLL, HANDLER, IDLE]), State::Kernel);
        assert_eq!(state(&[LIBC, POLL]), State::Kernel);
    }

    #[test]
    fn an_interrupt_in_the_idle_loop_is_kernel_work() {
        assert_eq!(
            classify(&[LIBC, LIBC, IDLE, HANDLER], Some(7)).state,
            State::Idle
        );
        assert_eq!(classify(&[HANDLER, LIBC, IDLE], None).state, State::Kernel);
    }

    #[test]
    fn a_cpu_that_got_no_time_stands_still() {
        let landmarks = Landmarks {
            userspace: Vec::new(),
            wait_for_stub: Vec::new(),
            idle: Vec::new(),
            poll: Vec::new(),
            signal_entry: Some(KernelAddr(HANDLER)),
        };
        let sample = |pc: u64, cpu_ns: Option<u64>| RawSample {
            time_ns: 0,
            cpu: kscope_kernel::CpuId(0),
            task: None,
            cpu_ns,
            registers: [(Reg::Rip, pc)].into_iter().collect(),
            regions: Vec::new(),
        };
        let still = |before, now| landmarks.stands_still(&before, &now);
        assert!(still(sample(5, Some(100)), sample(5, Some(4_000))));
        // A signal came, and its handler has yet to begin.
        assert!(still(sample(5, Some(100)), sample(HANDLER, Some(4_000))));
        assert!(!still(
            sample(5, Some(100)),
            sample(HANDLER + 1, Some(4_000))
        ));
        // A loop came back to where it was.
        assert!(!still(sample(5, Some(100)), sample(5, Some(900_000))));
        // Nobody can tell.
        assert!(!still(sample(5, None), sample(5, None)));
    }

    #[test]
    fn a_handler_yet_to_begin_is_left_out() {
        let landmarks = Landmarks {
            userspace: Vec::new(),
            wait_for_stub: Vec::new(),
            idle: Vec::new(),
            poll: Vec::new(),
            signal_entry: Some(KernelAddr(HANDLER)),
        };
        let frames = |pcs: &[u64]| -> Vec<Frame> {
            let frame = |&pc| Frame {
                pc: KernelAddr(pc),
                is_return_address: false,
            };
            pcs.iter().map(frame).collect()
        };
        let begins = frames(&[HANDLER, LIBC, USERSPACE]);
        assert_eq!(landmarks.without_signal_ahead(&begins), &begins[2..]);
        for other in [
            frames(&[HANDLER + 1, LIBC, USERSPACE]),
            frames(&[HANDLER, LIBC]),
            frames(&[]),
        ] {
            assert_eq!(landmarks.without_signal_ahead(&other), &other[..]);
        }
    }

    #[test]
    fn hostile_stacks_are_kernel_work() {
        assert_eq!(classify(&[], Some(61)).state, State::Kernel);
        assert_eq!(classify(&[LIBC, LIBC], Some(61)).state, State::Kernel);
        assert_eq!(classify(&[WAIT_STUB], Some(61)).state, State::Kernel);
    }
}
