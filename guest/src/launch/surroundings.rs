//! What the command in the guest finds around itself.

use std::os::unix::ffi::{OsStrExt, OsStringExt};

pub(super) fn current_umask() -> u16 {
    use nix::sys::stat::{Mode, umask};
    // The only way to ask is to set it.
    let mask = umask(Mode::from_bits_truncate(0o077));
    umask(mask);
    mask.bits() as u16
}

/// Variables of the user's that the command gets as they are.
const PASSED: [&str; 20] = [
    "PATH",
    "HOME",
    "SHELL",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "LANG",
    "LANGUAGE",
    "TZ",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "LESS",
    "LS_COLORS",
    "MAKEFLAGS",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
    "SOURCE_DATE_EPOCH",
];

/// Where a root shell looks for programs.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command's environment: the variables above and `LC_*`, with a PATH that
/// root can use and root's names. Others, such as sockets of a session and
/// secrets, stay outside.
pub(super) fn environment(name: &str) -> Vec<Vec<u8>> {
    let mut env = Vec::new();
    let mut path = None;
    for (key, value) in std::env::vars_os() {
        let wanted = PASSED.iter().any(|p| key == *p) || key.as_bytes().starts_with(b"LC_");
        if key == "PATH" {
            path = Some(value);
        } else if wanted {
            env.push([key.as_bytes(), b"=", value.as_bytes()].concat());
        }
    }
    let mut path = path.unwrap_or_default().into_vec();
    for dir in SYSTEM_PATH.split(':') {
        if !path.split(|&b| b == b':').any(|d| d == dir.as_bytes()) {
            if !path.is_empty() {
                path.push(b':');
            }
            path.extend_from_slice(dir.as_bytes());
        }
    }
    env.push([b"PATH=", &path[..]].concat());
    env.push(b"USER=root".to_vec());
    env.push(b"LOGNAME=root".to_vec());
    env.push(format!("KSCOPE_GUEST={name}").into_bytes());
    env
}
