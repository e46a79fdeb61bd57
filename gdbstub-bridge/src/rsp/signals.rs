//! `QPassSignals` and `QProgramSignals`: what of a process's signals is nobody's business but its own.
//!
//! GDB manual, "General Query Packets". Numbers are GDB's. What `QProgramSignals` has, the program is given when its
//! client detaches; it is given every signal here, so that there is nothing to remember.

use super::EINVAL;
use super::encode::{Reply, number};
use crate::signals::from_gdb;
use crate::target::GuestTarget;

pub(super) fn answer(target: &mut GuestTarget, packet: &[u8]) -> Option<Reply> {
    target.process.as_ref()?;
    if packet.starts_with(b"QProgramSignals:") {
        return Some(Reply::ok());
    }
    let list = packet.strip_prefix(b"QPassSignals:")?;
    let numbers = list
        .split(|&byte| byte == b';')
        .filter(|digits| !digits.is_empty())
        .map(|digits| u8::try_from(number(digits)?).ok())
        .collect::<Option<Vec<_>>>();
    let Some(numbers) = numbers else {
        return Some(Reply::error(EINVAL));
    };
    let signals = numbers.into_iter().filter_map(from_gdb).collect();
    Some(match target.debugger.pass_signals(signals) {
        Ok(()) => Reply::ok(),
        Err(error) => {
            log::debug!("{error}");
            Reply::error(EINVAL)
        }
    })
}
