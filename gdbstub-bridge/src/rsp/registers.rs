//! `G` and `P` for a task that sleeps: refused, with words.
//!
//! GDB manual, "Packets", `G` and `P`; "Standard Replies" has `E.` with a text. Everything else about registers is
//! gdbstub's.

use super::Client;
use super::encode::Reply;
use crate::target::GuestTarget;

pub(super) fn answer(client: &Client, target: &mut GuestTarget, packet: &[u8]) -> Option<Reply> {
    if !matches!(packet, [b'G' | b'P', ..]) {
        return None;
    }
    let thread = target.thread(client.thread?).ok()??;
    let sleeps = thread.cpu.is_none() && thread.task.is_some();
    sleeps.then(|| {
        Reply::text(
            "E.this task is on no CPU, so that its registers cannot be written: step it first",
        )
    })
}
