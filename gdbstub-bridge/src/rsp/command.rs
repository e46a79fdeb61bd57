//! `qRcmd` of an ordinary process: `monitor` commands, those that gdbserver has.
//!
//! GDB manual, "General Query Packets", `qRcmd`. A guest's are gdbstub's to read and [`crate::monitor`]'s to answer.

use super::encode::{Reply, from_hex};
use super::{Answer, EINVAL};
use crate::format::{DebugFormat, set_debug_format};
use crate::target::GuestTarget;

const HELP: &str = "\
The following monitor commands are supported:
  set debug <0|1>               tell what is done, on the stub's standard error
  set remote-debug <0|1>        tell every packet there, too
  set debug-format option1[,option2...]
                                what the lines begin with: all, none, timestamp
  help                          this text
  version                       the stub's version
  exit                          kill the process and end the stub
";

pub(super) fn answer(target: &GuestTarget, packet: &[u8]) -> Option<Answer> {
    target.process.as_ref()?;
    let hex = packet.strip_prefix(b"qRcmd,")?;
    let Some(command) = from_hex(hex) else {
        return Some(Answer::Reply(Reply::error(EINVAL)));
    };
    let command = String::from_utf8_lossy(&command);
    let words: Vec<_> = command.split_whitespace().collect();
    let level = |level, text: &str| {
        log::set_max_level(level);
        said(text)
    };
    Some(match words[..] {
        ["help"] => said(HELP),
        ["version"] | ["info", "version"] => {
            said(&format!("kscope {}\n", env!("CARGO_PKG_VERSION")))
        }
        ["exit"] => Answer::Exit(Reply::ok()),
        ["set", "debug", "1"] => level(log::LevelFilter::Debug, "Debug output enabled.\n"),
        ["set", "debug", "0"] => level(log::LevelFilter::Warn, "Debug output disabled.\n"),
        ["set", "remote-debug", "1"] => {
            level(log::LevelFilter::Trace, "Protocol debug output enabled.\n")
        }
        ["set", "remote-debug", "0"] => {
            level(log::LevelFilter::Warn, "Protocol debug output disabled.\n")
        }
        ["set", "debug-format", options] => match DebugFormat::parse(options) {
            Ok(format) => {
                set_debug_format(format);
                said(match options {
                    "all" => "All extra debug format options enabled.\n",
                    "none" => "All extra debug format options disabled.\n",
                    _ if format == DebugFormat::Timestamps => {
                        "Timestamps will be added to debug output.\n"
                    }
                    _ => "",
                })
            }
            Err(error) => failed(&format!("{error}\n")),
        },
        _ => failed(&format!("Unknown monitor command.\n\n{HELP}")),
    })
}

fn said(text: &str) -> Answer {
    Answer::Replies(vec![Reply::console(text.as_bytes()), Reply::ok()])
}

fn failed(text: &str) -> Answer {
    Answer::Replies(vec![Reply::console(text.as_bytes()), Reply::error(EINVAL)])
}
