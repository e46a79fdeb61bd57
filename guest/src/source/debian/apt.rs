//! apt, under the machine's own configuration or a private one.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Package;
use crate::hostjob::{Cancel, JobError, capture};

/// What the names of Debian's kernel source packages begin with.
pub(super) const SOURCE: &str = "linux-source-";

/// apt under one configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Apt {
    /// A file that is read after the machine's configuration; `None` for that
    /// alone.
    config: Option<PathBuf>,
}

impl Apt {
    /// apt as the machine has it configured.
    pub(super) fn machine() -> Self {
        Self::default()
    }

    /// apt with `config` laid over the machine's configuration.
    pub(super) fn with(config: &Path) -> Self {
        Self {
            config: Some(config.to_owned()),
        }
    }

    /// A quiet command of apt: `apt-get` or `apt-cache`.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("-qq");
        if let Some(config) = &self.config {
            command.arg("-c").arg(config);
        }
        if nix::unistd::geteuid().is_root() {
            // Else apt warns that its own user cannot write to our directory.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command
    }

    /// What it would download now as `name`.
    pub(super) fn offers(
        &self,
        name: &str,
        suite: Option<&'static str>,
        cancel: &Cancel,
    ) -> Result<Option<Package>, JobError> {
        let mut command = self.command("apt-get");
        command.args(["--print-uris", "download", name]);
        let (status, text) = capture(command, cancel)?;
        let parsed = text.lines().find_map(|line| parse_uri(name, line));
        Ok(parsed
            .filter(|_| status.success())
            .map(|package| Package { suite, ..package }))
    }

    /// The versions in the names of all kernel sources that it knows: `6.12`.
    pub(super) fn versions(&self, cancel: &Cancel) -> Result<Vec<String>, JobError> {
        let mut command = self.command("apt-cache");
        command.args(["search", "--names-only", "^linux-source-[0-9]"]);
        let (_, text) = capture(command, cancel)?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.strip_prefix(SOURCE))
            .map(str::to_owned)
            .collect())
    }
}

/// Parses `'URI' linux-source-6.12_6.12.117-1~deb12u1_all.deb 153476148 SHA256:…`.
fn parse_uri(name: &str, line: &str) -> Option<Package> {
    let mut words = line.strip_prefix('\'')?.split_once("' ")?.1.split(' ');
    let file = words.next()?;
    let size = words.next()?.parse().ok()?;
    let version = file.strip_prefix(name)?.strip_prefix('_')?;
    let version = version.rsplit_once('_')?.0;
    Some(Package {
        name: name.to_owned(),
        // An epoch's colon is escaped in file names.
        version: version.replace("%3a", ":"),
        size: Some(size),
        suite: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_offers() {
        const LINE: &str = "'http://mirror.example/debian-security/pool/updates/main/l/linux-6.12/linux-source-6.12_6.12.117-1%7edeb12u1_all.deb' linux-source-6.12_6.12.117-1~deb12u1_all.deb 153476148 SHA256:e849";
        let package = parse_uri("linux-source-6.12", LINE).unwrap();
        assert_eq!(package.version, "6.12.117-1~deb12u1");
        assert_eq!(package.size, Some(153_476_148));
        assert_eq!(parse_uri("linux-source-6.1", LINE), None);
        assert_eq!(parse_uri("linux-source-6.12", "E: Unable to locate"), None);
    }
}
