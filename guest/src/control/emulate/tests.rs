//! The processor itself is the judge: it steps through the same instructions.

use std::ptr::null_mut;

use kscope_kernel::{KernelAddr, Memory};
use libc::{MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::control::HostTid;
use crate::control::sys::{self, Wait};
use crate::mem::ProcMem;

const PAGE: usize = 4096;

/// A process that is stopped, with a page of code and two of data.
struct Subject {
    tid: HostTid,
    memory: ProcMem,
    code: u64,
    data: u64,
    regs: user_regs_struct,
}

fn map(len: usize, protection: i32) -> u64 {
    // SAFETY: a new mapping at a place of the host's choice.
    let at = unsafe {
        libc::mmap(
            null_mut(),
            len,
            protection,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(at, MAP_FAILED);
    at as u64
}

impl Subject {
    fn new() -> Self {
        let code = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
        let data = map(2 * PAGE, PROT_READ | PROT_WRITE);
        // SAFETY: the child only makes system calls that are async-signal-safe.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            loop {
                // SAFETY: as above.
                unsafe { libc::pause() };
            }
        }
        let tid = HostTid(pid);
        sys::seize(tid, libc::PTRACE_O_EXITKILL).unwrap();
        sys::interrupt(tid).unwrap();
        wait(tid);
        let mut regs = sys::registers(tid).unwrap();
        // Not in a system call that would be restarted.
        regs.orig_rax = u64::MAX;
        Self {
            tid,
            memory: ProcMem::open(tid).unwrap(),
            code,
            data,
            regs,
        }
    }

    /// What the processor makes of an instruction.
    fn step(&self, regs: &user_regs_struct, code: &[u8]) -> user_regs_struct {
        self.memory.write(KernelAddr(self.code), code).unwrap();
        sys::set_registers(self.tid, regs).unwrap();
        sys::step(self.tid, 0).unwrap();
        assert_eq!(wait(self.tid), Wait::Signal(libc::SIGTRAP), "{code:02x?}");
        sys::registers(self.tid).unwrap()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // SAFETY: our own child.
        unsafe { libc::kill(self.tid.0, libc::SIGKILL) };
        while !matches!(sys::wait(self.tid), Ok(Some(Wait::Signaled(_))) | Err(_)) {
            std::thread::yield_now();
        }
    }
}

fn wait(tid: HostTid) -> Wait {
    loop {
        if let Some(wait) = sys::wait(tid).unwrap() {
            return wait;
        }
        std::thread::yield_now();
    }
}

/// The subject's own memory, which keeps what is written to itself. What else the process has mapped, the processor may
/// not let it read.
struct Dry<'s> {
    memory: &'s ProcMem,
    own: [std::ops::Range<u64>; 2],
    written: std::cell::RefCell<Vec<(u64, Vec<u8>)>>,
}

impl Bus for Dry<'_> {
    fn load(&self, addr: u64, buf: &mut [u8]) -> bool {
        let end = addr.saturating_add(buf.len() as u64);
        let is_own = |range: &std::ops::Range<u64>| range.start <= addr && end <= range.end;
        self.own.iter().any(is_own) && self.memory.read(KernelAddr(addr), buf).is_ok()
    }

    fn store(&self, addr: u64, bytes: &[u8]) -> bool {
        let mut now = vec![0; bytes.len()];
        let mapped = self.load(addr, &mut now);
        self.written.borrow_mut().push((addr, bytes.to_vec()));
        mapped
    }
}

fn general(regs: &user_regs_struct) -> Vec<u64> {
    let mut regs = *regs;
    let mut values: Vec<_> = (0..16).map(|number| *register(&mut regs, number)).collect();
    values.extend([regs.rip, regs.eflags & STATUS]);
    values
}

/// Bytes that are mostly instructions known here.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop_oneof![
        6 => Just(vec![]),
        6 => (0x40_u8..0x50).prop_map(|rex| vec![rex]),
        1 => Just(vec![0x66]),
        1 => (0x40_u8..0x50).prop_map(|rex| vec![0x66, rex]),
        1 => Just(vec![0xf3, 0x0f, 0x1e, 0xfa]),
        1 => Just(vec![0x66, 0x2e, 0x0f, 0x1f, 0x84]),
    ];
    let known = [
        0x63, 0x80, 0x81, 0x83, 0x84, 0x85, 0x88, 0x89, 0x8a, 0x8b, 0x8d, 0x90, 0xa8, 0xa9, 0xc6,
        0xc7, 0xe9, 0xeb, 0xf6, 0xf7,
    ];
    let opcode = prop_oneof![
        4 => proptest::sample::select(known.to_vec()).prop_map(|byte| vec![byte]),
        2 => (0_u8..0x40).prop_map(|byte| vec![byte]),
        1 => (0x50_u8..0x60).prop_map(|byte| vec![byte]),
        1 => (0x70_u8..0x80).prop_map(|byte| vec![byte]),
        1 => (0xb0_u8..0xc0).prop_map(|byte| vec![byte]),
        4 => prop_oneof![Just(0x1f_u8), 0x40_u8..0x50, 0x80_u8..0xa0, Just(0xb6), Just(0xb7), Just(0xbe), Just(0xbf)]
            .prop_map(|byte| vec![0x0f, byte]),
    ];
    let rest = proptest::collection::vec(any::<u8>(), 14);
    (prefix, opcode, rest).prop_map(|(prefix, opcode, rest)| {
        let mut bytes = [prefix, opcode, rest].concat();
        bytes.truncate(LONGEST);
        bytes
    })
}

#[test]
fn the_processor_does_the_same() {
    let subject = Subject::new();
    let noise: Vec<u8> = (0..2 * PAGE).map(|at| (at * 7 + at / 256) as u8).collect();
    subject
        .memory
        .write(KernelAddr(subject.data), &noise)
        .unwrap();
    let values = proptest::collection::vec(any::<u64>(), 16);
    let known = std::cell::Cell::new(0_u32);
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::with_cases(20_000)
    });
    let result = runner.run(
        &(instruction(), values, any::<u16>(), any::<bool>()),
        |(code, values, flags, addresses)| {
            let mut regs = subject.regs;
            for (number, value) in (0..16).zip(values) {
                // Into the middle of the data, so that addresses in registers mean something.
                let near = subject.data + PAGE as u64 + value % 128;
                *register(&mut regs, number) = if addresses || number == 4 {
                    near
                } else {
                    value
                };
            }
            regs.rsp &= !7;
            regs.rip = subject.code;
            regs.eflags = regs.eflags & !STATUS | u64::from(flags) & STATUS;
            let bus = Dry {
                memory: &subject.memory,
                own: [
                    subject.code..subject.code + PAGE as u64,
                    subject.data..subject.data + 2 * PAGE as u64,
                ],
                written: Default::default(),
            };
            // Some instructions refer to their own place.
            subject
                .memory
                .write(KernelAddr(subject.code), &code)
                .unwrap();
            let mut ours = regs;
            if emulate(&mut ours, &code, &bus).is_none() {
                return Ok(());
            }
            known.set(known.get() + 1);
            let theirs = subject.step(&regs, &code);
            let undefined = if is_logic(&code) { AF } else { 0 };
            let (mut ours, mut theirs) = (general(&ours), general(&theirs));
            for values in [&mut ours, &mut theirs] {
                values[17] &= !undefined;
            }
            prop_assert_eq!(ours, theirs, "{:02x?}", code);
            for (addr, bytes) in bus.written.take() {
                let mut now = vec![0; bytes.len()];
                subject.memory.read(KernelAddr(addr), &mut now).unwrap();
                prop_assert_eq!(now, bytes);
            }
            Ok(())
        },
    );
    if let Err(error) = result {
        panic!("{error}");
    }
    // A test in which nothing was known would be none.
    assert!(known.get() > 4_000, "{}", known.get());
}

/// Whether the adjust flag is undefined after it.
fn is_logic(code: &[u8]) -> bool {
    let mut code = code;
    while let [0x66 | 0x40..=0x4f, rest @ ..] = code {
        code = rest;
    }
    match code {
        [
            0x08..=0x0d | 0x20..=0x25 | 0x30..=0x35 | 0x84 | 0x85 | 0xa8 | 0xa9 | 0xf6 | 0xf7,
            ..,
        ] => true,
        [0x80 | 0x81 | 0x83, modrm, ..] => matches!(modrm >> 3 & 7, 1 | 4 | 6),
        _ => false,
    }
}
