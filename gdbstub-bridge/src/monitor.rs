//! `monitor` commands.

mod views;

use std::fmt::Write;

use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd};

use crate::target::{Fatal, GuestTarget};
use views::VIEWS;

/// What is no view.
const OTHERS: [(&str, &str, &str); 6] = [
    ("help", "", "this text"),
    ("info version", "", "the stub's version"),
    (
        "stop-on",
        "[[-]KIND...]",
        "what stops the guest by itself; alone: shows it",
    ),
    ("phys", "ADDR [LEN]", "physical memory"),
    (
        "module-path",
        "[DIR]",
        "where modules' files are looked for; alone: shows it",
    ),
    (
        "step-irq",
        "on|off",
        "whether interrupts are taken while stepping (off)",
    ),
];

fn help() -> String {
    let mut text = String::from("monitor commands of kscope:\n");
    for (command, arguments, meaning) in OTHERS.iter().chain(&VIEWS) {
        let command = format!("monitor {command} {arguments}");
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {command:<29} {meaning}");
    }
    text
}

impl GuestTarget {
    fn phys(&self, addr: &str, len: &str) -> Result<String, String> {
        const MOST: u64 = 4096;
        const LINE: u64 = 16;
        let start = number(addr).ok_or_else(|| format!("{addr} is no address"))?;
        let len = number(len)
            .ok_or_else(|| format!("{len} is no number"))?
            .min(MOST);
        let size = self.space.physical_size();
        let end = start.saturating_add(len).min(size);
        if start >= end {
            return Err(format!("physical memory has {size:#x} bytes"));
        }
        let mut text = String::new();
        for at in (start..end).step_by(LINE as usize) {
            let mut bytes = vec![0; (end - at).min(LINE) as usize];
            let place = self.space.physical(at);
            if place.is_none_or(|place| !self.space.read_here(place, &mut bytes)) {
                return Err(format!("physical memory at {at:#x} cannot be read"));
            }
            let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let shown = |byte: &u8| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '.',
            };
            let plain: String = bytes.iter().map(shown).collect();
            let _ = writeln!(text, "{at:#010x}: {:<48} {plain}", hex.join(" "));
        }
        Ok(text)
    }

    fn set_step_irq(&mut self, on: bool) -> Result<String, String> {
        self.debugger
            .set_step_interrupts(on)
            .map_err(|error| error.to_string())?;
        self.step_irq = on;
        Ok(format!("step-irq is {}\n", on_or_off(on)))
    }
}

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A number, in hexadecimal behind `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

pub(crate) fn no_types() -> String {
    "the kernel has no debugging information: build it with CONFIG_DEBUG_INFO".to_owned()
}

impl MonitorCmd for GuestTarget {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Fatal> {
        let command = String::from_utf8_lossy(command);
        let words: Vec<_> = command.split_whitespace().collect();
        let text = match words[..] {
            [] | ["help"] => Ok(help()),
            // The kernel's own gdb scripts take a non-empty answer for QEMU, whose thread N+1 is CPU N: as here.
            ["info", "version"] | ["version"] => Ok(format!(
                "kscope {}, {}\n",
                env!("CARGO_PKG_VERSION"),
                match &self.image {
                    Some(image) => image.path().display().to_string(),
                    None => String::new(),
                }
            )),
            ["phys", addr] => self.phys(addr, "64"),
            ["phys", addr, len] => self.phys(addr, len),
            ["module-path"] => self.module_path(None),
            ["module-path", directory] => self.module_path(Some(directory)),
            ["stop-on", ref kinds @ ..] => self.stop_on(kinds),
            ["step-irq"] => Ok(format!("step-irq is {}\n", on_or_off(self.step_irq))),
            ["step-irq", word @ ("on" | "off")] => self.set_step_irq(word == "on"),
            _ => self
                .view_command(&words)
                .unwrap_or_else(|| Err(format!("no such command: {command} (see `monitor help`)"))),
        };
        let text = text.unwrap_or_else(|error| format!("{error}\n"));
        // In pieces: a packet has to fit the client's buffer.
        const PIECE: usize = 1024;
        for piece in text.as_bytes().chunks(PIECE) {
            out.write_raw(piece);
        }
        Ok(())
    }
}
