//! `qSymbol`: whether the client's symbols are those of the kernel that the guest runs.
//!
//! GDB manual, "General Query Packets", `qSymbol`. GDB compares the file that it was given with the one that
//! `qXfer:exec-file` names, but not symbols that it has from elsewhere, and not when it was told to let that be. It does
//! look symbols up for a stub that asks. What there is to say, its user sees when the guest runs.

use kscope_kernel::{Image, KernelAddr};

use super::encode::{Reply, from_hex, number, split};
use super::{Client, EINVAL, hex};
use crate::target::GuestTarget;

/// What every kernel has, no library, and hardly two builds at the same addresses.
const NAMES: [&str; 4] = ["vfs_read", "init_task", "start_kernel", "linux_banner"];

pub(super) fn answer(client: &mut Client, target: &GuestTarget, packet: &[u8]) -> Option<Reply> {
    let image = target.image.as_ref()?;
    let (value, name) = split(packet.strip_prefix(b"qSymbol:")?, b':')?;
    let Some(name) = from_hex(name) else {
        return Some(Reply::error(EINVAL));
    };
    if let (Some(theirs), Some(ours)) = (number(value), address(image, &name)) {
        client.has_symbols = true;
        if theirs != ours.get() {
            let name = String::from_utf8_lossy(&name);
            let text = format!(
                "kscope: these are not the symbols of the kernel that the guest runs: {name} is at {ours}, not {theirs:#x}. \
                 The right ones: file {}\n",
                image.path().display()
            );
            target.console.print(text.as_bytes());
            return Some(Reply::ok());
        }
    }
    let asked = NAMES.iter().position(|known| known.as_bytes() == name);
    // It asks what is wanted again with each library.
    let next = match (asked, client.has_symbols) {
        (Some(at), _) => at + 1,
        (None, false) => 0,
        (None, true) => NAMES.len(),
    };
    let next = NAMES.get(next).map(|name| hex(name.as_bytes()));
    Some(match next {
        Some(name) => Reply::text(&format!("qSymbol:{name}")),
        None => Reply::ok(),
    })
}

/// Where the kernel has one of the symbols.
fn address(image: &Image, name: &[u8]) -> Option<KernelAddr> {
    let known = NAMES.iter().find(|known| known.as_bytes() == name)?;
    image.symbol(known)
}
