//! Commands on a terminal of their own.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::pty::Winsize;

/// A terminal's size.
pub fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Gives a command a terminal for all its streams, which it is the master of.
pub fn on_terminal(command: &mut Command, slave: &OwnedFd) {
    let stream = || slave.try_clone().expect("a descriptor");
    command
        .stdin(stream())
        .stdout(stream())
        .stderr(stream())
        .env("TERM", "xterm");
    // SAFETY: two system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
