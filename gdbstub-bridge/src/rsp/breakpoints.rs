//! `Z0` and `Z1` with conditions and commands: decided, and printed, where the breakpoint is hit.
//!
//! GDB manual, "Packets", `Z0`: `Z0,ADDR,KIND[;COND_LIST][;cmds:PERSIST,CMD_LIST]`, where a list is of `XLEN,BYTECODE`.
//! Plain breakpoints, most watchpoints and removals are gdbstub's.

use super::encode::{Reply, address_and_length, from_hex, number, split};
use super::{Client, EFAULT, EINVAL};
use crate::agent::Program;
use crate::target::GuestTarget;

/// The most conditions and commands of one breakpoint.
const MOST_PROGRAMS: usize = 64;

/// What a breakpoint does when it is hit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Actions {
    /// The hit counts when any of these is not 0, or when there is none.
    pub(crate) conditions: Vec<Program>,
    /// What is done when it counts. With any, the guest does not stop.
    pub(crate) commands: Vec<Program>,
}

pub(super) fn answer(client: &Client, target: &mut GuestTarget, packet: &[u8]) -> Option<Reply> {
    if client.is_gdb && (packet.starts_with(b"Z3,") || packet.starts_with(b"z3,")) {
        // The processor cannot watch reads alone. GDB then watches all accesses, and leaves out those that change the
        // value.
        return Some(Reply::default());
    }
    let request = packet
        .strip_prefix(b"Z0,")
        .or_else(|| packet.strip_prefix(b"Z1,"))?;
    let (place, lists) = split(request, b';')?;
    let place = address_and_length(place);
    let (Some((addr, _)), Some(actions)) = (place, actions(lists)) else {
        return Some(Reply::error(EINVAL));
    };
    Some(match target.insert_with(addr, actions) {
        Ok(()) => Reply::ok(),
        Err(error) => {
            log::info!("{error}");
            Reply::error(EFAULT)
        }
    })
}

fn actions(mut lists: &[u8]) -> Option<Actions> {
    let mut actions = Actions::default();
    let mut in_commands = false;
    while let Some((&first, rest)) = lists.split_first() {
        match first {
            b';' => lists = rest,
            b'X' => {
                let (len, rest) = split(rest, b',')?;
                let digits = usize::try_from(number(len)?).ok()?.checked_mul(2)?;
                let (code, rest) = rest.split_at_checked(digits)?;
                let list = if in_commands {
                    &mut actions.commands
                } else {
                    &mut actions.conditions
                };
                if list.len() >= MOST_PROGRAMS {
                    return None;
                }
                list.push(Program::new(&from_hex(code)?)?);
                lists = rest;
            }
            _ if in_commands => return None,
            _ => {
                // Whether they stay when the client goes: they do not, nothing does.
                let (persist, rest) = split(lists.strip_prefix(b"cmds:")?, b',')?;
                number(persist)?;
                in_commands = true;
                lists = rest;
            }
        }
    }
    Some(actions)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn program(bytes: &[u8]) -> Program {
        Program::new(bytes).unwrap()
    }

    #[test]
    fn lists_are_told_apart() {
        let both = actions(b"X3,220127X1,27;cmds:0,X2,2227").unwrap();
        assert_eq!(
            both.conditions,
            [program(&[0x22, 1, 0x27]), program(&[0x27])]
        );
        assert_eq!(both.commands, [program(&[0x22, 0x27])]);
        let commands = actions(b"cmds:1,X1,27X1,27").unwrap();
        assert_eq!((commands.conditions.len(), commands.commands.len()), (0, 2));
        assert_eq!(actions(b""), Some(Actions::default()));
    }

    #[test]
    fn malformed_lists_are_none() {
        for bad in [
            &b"X3,2201"[..],
            b"X3,22012",
            b"X,27",
            b"Xffffffffffffffff,27",
            b"X8000000000000000,27",
            b"X1,2g",
            b"cmds",
            b"cmds:0",
            b"cmds:x,X1,27",
            b"cmds:0,X1,27;cmds:0,X1,27",
            b"Y",
        ] {
            assert_eq!(actions(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn any_list_is_survived(lists in "[X;,:cmds0-9a-f]{0,60}") {
            let _ = actions(lists.as_bytes());
        }
    }
}
