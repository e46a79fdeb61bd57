//! Call stacks made by hand, whole ones and corrupt ones.

use std::ops::Range;

use kscope_kernel::{
    Backtrace, Image, KernelAddr, Memory, ReadError, Reg, Registers, Truncation, UnwindEnd,
    Unwinder, format_backtrace,
};
use proptest::prelude::*;

use crate::common::compile;

/// One mapped area, and code of no known file.
struct Stack {
    start: u64,
    words: Vec<u64>,
}

const CODE: u64 = 0x7000_0000;
/// mov $15, %rax; syscall
const RESTORER: [u8; 16] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 5, 0, 0, 0, 0, 0, 0, 0];

impl Memory for Stack {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let error = ReadError {
            addr,
            len: buf.len(),
        };
        let stack: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let (start, bytes) = if addr.get() >= CODE {
            (CODE, &RESTORER[..])
        } else {
            (self.start, &stack[..])
        };
        let from = addr.get().checked_sub(start).ok_or(error)? as usize;
        let to = from.checked_add(buf.len()).ok_or(error)?;
        buf.copy_from_slice(bytes.get(from..to).ok_or(error)?);
        Ok(())
    }
}

impl Stack {
    fn new(start: u64, len: usize) -> Stack {
        Stack {
            start,
            words: vec![0; len],
        }
    }

    fn set(&mut self, addr: u64, value: u64) {
        self.words[(addr - self.start) as usize / 8] = value;
    }

    fn range(&self) -> Range<u64> {
        self.start..self.start + self.words.len() as u64 * 8
    }
}

fn registers(pc: u64, sp: u64, fp: u64) -> Registers {
    [(Reg::Rip, pc), (Reg::Rsp, sp), (Reg::Rbp, fp)]
        .into_iter()
        .collect()
}

fn unwinder() -> (Unwinder, Image) {
    let fixture = compile(612, &[]);
    let image = Image::open(&fixture.kernel).expect("a kernel");
    (Unwinder::new(&image).expect("its unwind tables"), image)
}

fn pcs(backtrace: &Backtrace) -> Vec<u64> {
    backtrace
        .frames
        .iter()
        .map(|frame| frame.pc.get())
        .collect()
}

/// An address in no file: unwound by frame pointers.
const NOWHERE: u64 = 0x5000_0000;

/// Three frames by frame pointers, the first at 0x10100.
fn three_frames() -> Stack {
    let mut stack = Stack::new(0x10000, 512);
    stack.set(0x10100, 0x10140);
    stack.set(0x10108, NOWHERE + 1);
    stack.set(0x10140, 0x10180);
    stack.set(0x10148, NOWHERE + 2);
    stack.set(0x10180, 0);
    stack.set(0x10188, 0);
    stack
}

#[test]
fn frame_pointers_are_followed_to_a_return_address_of_zero() {
    let (mut unwinder, image) = unwinder();
    let stack = three_frames();
    let backtrace = unwinder.unwind(&registers(NOWHERE, 0x100f0, 0x10100), &stack, &[]);
    assert_eq!(pcs(&backtrace), [NOWHERE, NOWHERE + 1, NOWHERE + 2]);
    assert!(backtrace.is_complete());
    let exact: Vec<_> = backtrace
        .frames
        .iter()
        .map(|frame| frame.is_return_address)
        .collect();
    assert_eq!(exact, [false, true, true]);
    assert_eq!(backtrace.frames[1].lookup(), KernelAddr(NOWHERE));
    assert_eq!(format_backtrace(&image, &backtrace)[1], "#1  0x50000001");
}

#[test]
fn the_end_of_the_stack_is_an_end_whatever_lies_there() {
    let (mut unwinder, _) = unwinder();
    let mut stack = three_frames();
    let range = stack.range();
    let top = range.end;
    stack.set(0x10180, 0x41);
    stack.set(0x10140, top - 16);
    stack.set(top - 8, 0x4141_4141_4141);
    let known = [range];
    let start = registers(NOWHERE, 0x100f0, 0x10100);
    let backtrace = unwinder.unwind(&start, &stack, &known);
    assert_eq!(pcs(&backtrace), [NOWHERE, NOWHERE + 1, NOWHERE + 2]);
    assert!(backtrace.is_complete());
    let unaware = unwinder.unwind(&start, &stack, &[]);
    assert_eq!(pcs(&unaware).last(), Some(&0x4141_4141_4141));
}

#[test]
fn a_frame_pointer_to_itself_ends_the_walk() {
    let (mut unwinder, image) = unwinder();
    let mut stack = three_frames();
    stack.set(0x10140, 0x10140);
    let backtrace = unwinder.unwind(&registers(NOWHERE, 0x100f0, 0x10100), &stack, &[]);
    assert!(
        matches!(
            backtrace.end,
            UnwindEnd::Truncated(Truncation::NotAdvancing { .. })
        ),
        "{backtrace:?}"
    );
    assert!(backtrace.frames.len() <= 4);
    let text = format_backtrace(&image, &backtrace);
    assert!(
        text.last()
            .is_some_and(|line| line.contains("does not advance")),
        "{text:?}"
    );
}

#[test]
fn wild_frame_pointers_and_return_addresses_end_the_walk() {
    let (mut unwinder, _) = unwinder();
    for wild in [1, 0xffff_ffff_ffff_fff8, 0x1000_0000, 8] {
        let mut stack = three_frames();
        stack.set(0x10140, wild);
        let backtrace = unwinder.unwind(&registers(NOWHERE, 0x100f0, 0x10100), &stack, &[]);
        assert!(!backtrace.is_complete(), "{wild:#x}: {backtrace:?}");
        assert_eq!(backtrace.frames.len(), 3, "{wild:#x}: {backtrace:?}");
    }
    // The second is a stack protector's canary.
    for wild in [7, 0xf4a4_4f8c_36be_a000] {
        let mut stack = three_frames();
        stack.set(0x10148, wild);
        let backtrace = unwinder.unwind(&registers(NOWHERE, 0x100f0, 0x10100), &stack, &[]);
        let end = UnwindEnd::Truncated(Truncation::NotCode {
            pc: KernelAddr(wild),
        });
        assert_eq!(backtrace.end, end);
        assert_eq!(backtrace.frames.len(), 2);
    }
}

#[test]
fn without_registers_there_is_nothing() {
    let (mut unwinder, _) = unwinder();
    let stack = three_frames();
    let backtrace = unwinder.unwind(&Registers::new(), &stack, &[]);
    assert_eq!(backtrace.frames, []);
    assert_eq!(backtrace.end, UnwindEnd::Truncated(Truncation::NoRegisters));
}

#[test]
fn a_signal_leads_back_to_the_instruction_it_interrupted() {
    let (mut unwinder, _) = unwinder();
    let mut stack = three_frames();
    // The handler was called with the restorer as its return address; the host's kernel put the
    // interrupted registers above it.
    let handler_fp = 0x10800;
    stack.set(handler_fp + 8, CODE);
    let mcontext = handler_fp + 16 + 40;
    stack.set(mcontext + 10 * 8, 0x10100);
    stack.set(mcontext + 15 * 8, 0x100f0);
    stack.set(mcontext + 16 * 8, NOWHERE);
    let backtrace = unwinder.unwind(
        &registers(NOWHERE + 9, handler_fp - 16, handler_fp),
        &stack,
        &[],
    );
    assert_eq!(
        pcs(&backtrace),
        [NOWHERE + 9, CODE, NOWHERE, NOWHERE + 1, NOWHERE + 2]
    );
    assert!(backtrace.is_complete());
    assert!(
        !backtrace.frames[2].is_return_address,
        "an interrupted instruction is exact"
    );
}

#[test]
fn a_signal_that_interrupts_itself_ends_the_walk() {
    let (mut unwinder, _) = unwinder();
    let mut stack = three_frames();
    let handler_fp = 0x10800;
    stack.set(handler_fp + 8, CODE);
    let mcontext = handler_fp + 16 + 40;
    stack.set(mcontext + 10 * 8, handler_fp);
    stack.set(mcontext + 15 * 8, handler_fp - 16);
    stack.set(mcontext + 16 * 8, NOWHERE);
    let backtrace = unwinder.unwind(
        &registers(NOWHERE + 9, handler_fp - 16, handler_fp),
        &stack,
        &[],
    );
    assert!(!backtrace.is_complete());
    assert!(backtrace.frames.len() < 100, "{}", backtrace.frames.len());
}

proptest! {
    /// Whatever is on a stack, unwinding it ends and does not panic.
    #[test]
    fn no_stack_hangs_the_unwinder(
        words in proptest::collection::vec(
            prop_oneof![
                (0u64..256).prop_map(|word| 0x10000 + word * 8),
                Just(CODE),
                Just(NOWHERE),
                any::<u64>(),
            ],
            256,
        ),
        pc in prop_oneof![Just(NOWHERE), Just(CODE), any::<u64>()],
        sp in 0u64..300,
        fp in 0u64..300,
    ) {
        thread_local! {
            static IMAGE: Image = Image::open(&compile(612, &[]).kernel).expect("a kernel");
        }
        let image = IMAGE.with(Image::clone);
        let mut unwinder = Unwinder::new(&image).expect("its unwind tables");
        let main = image.symbol("linux_main").expect("linux_main").get();
        let words = words.into_iter().map(|word| if word % 5 == 0 { main + 4 } else { word });
        let stack = Stack { start: 0x10000, words: words.collect() };
        let start = registers(pc, 0x10000 + sp * 8, 0x10000 + fp * 8);
        let backtrace = unwinder.unwind(&start, &stack, &[stack.range()]);
        prop_assert!(!backtrace.frames.is_empty());
        prop_assert!(backtrace.frames.len() <= 1024);
        let lines = format_backtrace(&image, &backtrace);
        prop_assert!(lines.len() >= backtrace.frames.len());
    }
}
