//! Call stacks as text.

use crate::image::{Image, SourceFrame, Symbol};
use crate::unwind::{Backtrace, Frame, UnwindEnd, Unwinder};

/// Renders a call stack, a line per function, numbered as GDB does: functions that were inlined
/// have their own number.
///
/// ```text
/// #0  switch_threads+0x58 (arch/um/os-Linux/skas/process.c:631)
/// #1  __switch_to+0x47 (arch/um/kernel/process.c:81)
/// #2  context_switch [inlined] (kernel/sched/core.c:5418)
/// #3  __schedule+0x3cb (kernel/sched/core.c:6768)
/// ```
///
/// A stack that could not be followed to its beginning ends with a line that says why.
pub fn format_backtrace(image: &Image, backtrace: &Backtrace) -> Vec<String> {
    number(backtrace, |frame| format_frame(image, frame))
}

/// As [`format_backtrace`], with what `unwinder` knows of the host's libraries: the names of their
/// exported functions, and `<signal handler called>` as GDB has it.
pub fn format_backtrace_with(
    image: &Image,
    unwinder: &Unwinder,
    backtrace: &Backtrace,
) -> Vec<String> {
    number(backtrace, |frame| {
        match unwinder.foreign_function(frame.lookup()) {
            None => format_frame(image, frame),
            Some((module, Some((function, offset)))) => {
                let offset = offset + u64::from(frame.is_return_address);
                vec![format!("{function}+{offset:#x} (in {module})")]
            }
            Some((module, None)) => vec![format!("{} (in {module})", frame.pc)],
        }
    })
}

/// Renders one frame: the functions that were inlined there, innermost first, then the one whose
/// code it is.
pub fn format_frame(image: &Image, frame: Frame) -> Vec<String> {
    let functions = image.locate(frame.lookup());
    let Some((outer, inlined)) = functions.split_last() else {
        return vec![frame.pc.to_string()];
    };
    let mut lines: Vec<_> = inlined
        .iter()
        .map(|function| format!("{} [inlined]{}", function.function, place(image, function)))
        .collect();
    let place = place(image, outer);
    lines.push(match image.symbol_at(frame.lookup()) {
        Some((symbol, offset)) => {
            // The symbol, since the offset counts from there (`f.constprop.0`), but of its names
            // the one in the source: `__se_sys_read` rather than its alias `sys_read`.
            let start = frame.lookup() - offset;
            let is_alias = |symbol: Symbol<'_>| symbol.addr == start;
            let in_source = image.symbols_named(&outer.function).any(is_alias);
            let name = if in_source { &outer.function } else { symbol };
            let offset = offset + u64::from(frame.is_return_address);
            format!("{name}+{offset:#x}{place}")
        }
        None => format!("{}{place}", outer.function),
    });
    lines
}

/// Why a call stack is cut off, as a sentence fragment; `None` when it is whole.
pub fn describe_end(end: &UnwindEnd) -> Option<String> {
    match end {
        UnwindEnd::Complete => None,
        UnwindEnd::Truncated(truncation) => Some(truncation.to_string()),
    }
}

fn place(image: &Image, function: &SourceFrame) -> String {
    match (&function.file, function.line) {
        (Some(file), Some(line)) => format!(" ({}:{line})", image.relative_path(file)),
        (Some(file), None) => format!(" ({})", image.relative_path(file)),
        (None, _) => String::new(),
    }
}

fn number(backtrace: &Backtrace, render: impl Fn(Frame) -> Vec<String>) -> Vec<String> {
    let mut lines: Vec<_> = backtrace
        .frames
        .iter()
        .flat_map(|&frame| render(frame))
        .enumerate()
        .map(|(number, line)| format!("#{number:<2} {line}"))
        .collect();
    if let Some(reason) = describe_end(&backtrace.end) {
        lines.push(format!("    (the rest is lost: {reason})"));
    }
    lines
}
