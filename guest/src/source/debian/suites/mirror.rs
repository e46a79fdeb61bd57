//! Where the machine has Debian's archive from.

use std::fs;
use std::path::Path;

use crate::hostjob::{Cancel, JobError, capture};
use crate::source::debian::apt::Apt;

/// The machine's own entry for Debian's archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    /// The archive's address, as the machine's configuration has it.
    uri: String,
    /// Debian's name of the machine's architecture.
    architecture: String,
    /// The entry's `Signed-By`, with its separator (it may go over several
    /// lines); `None` when apt is to use its own trusted keys.
    pub(super) signed_by: Option<String>,
    /// The suites that the machine has from there.
    suites: Vec<String>,
}

/// What is asked of apt about each of the machine's package lists.
const FORMAT: &str = "$(LABEL)|$(ARCHITECTURE)|$(RELEASE)|$(CODENAME)|$(SOURCESENTRY)|$(REPO_URI)";

impl Mirror {
    /// The first entry of the machine's configuration that is Debian's main
    /// archive; `None` on another system, or when apt has not read its lists.
    pub(super) fn of_machine(cancel: &Cancel) -> Result<Option<Self>, JobError> {
        let mut command = Apt::machine().command("apt-get");
        command.args([
            "indextargets",
            "--format",
            FORMAT,
            "Created-By: Packages",
            "Origin: Debian",
        ]);
        let (_, text) = capture(command, cancel)?;
        Ok(Self::parse(&text, signed_by))
    }

    fn parse(targets: &str, signed_by: impl FnOnce(&str) -> Option<String>) -> Option<Self> {
        let mut mirror: Option<(Self, &str)> = None;
        for line in targets.lines() {
            let mut fields = line.splitn(6, '|');
            let mut next = || fields.next();
            let (Some(label), Some(architecture)) = (next(), next()) else {
                continue;
            };
            let (Some(release), Some(codename)) = (next(), next()) else {
                continue;
            };
            let (Some(entry), Some(uri)) = (next(), next()) else {
                continue;
            };
            if label != "Debian" {
                continue;
            }
            let (mirror, _) = mirror.get_or_insert_with(|| {
                let mirror = Self {
                    uri: uri.to_owned(),
                    architecture: architecture.to_owned(),
                    signed_by: None,
                    suites: Vec::new(),
                };
                (mirror, entry)
            });
            mirror
                .suites
                .extend([release, codename].map(|name| name.trim_end_matches('/').to_owned()));
        }
        let (mirror, entry) = mirror?;
        Some(Self {
            signed_by: signed_by(entry),
            ..mirror
        })
    }

    /// Whether the machine has this suite itself.
    pub(super) fn has(&self, suite: &str) -> bool {
        self.suites.iter().any(|own| own == suite)
    }

    /// The entry for another suite of the archive, without its `Signed-By`.
    pub(super) fn entry(&self, suite: &str) -> String {
        format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nArchitectures: {}\nTargets: Packages\n",
            self.uri, self.architecture
        )
    }
}

/// The `Signed-By` of an entry that apt names as `FILE:NUMBER`.
fn signed_by(entry: &str) -> Option<String> {
    let (file, number) = entry.rsplit_once(':')?;
    let number = number.parse().ok()?;
    let text = fs::read_to_string(file).ok()?;
    if Path::new(file).extension().is_some_and(|e| e == "sources") {
        in_stanza(&text, number)
    } else {
        in_line(&text, number)
    }
}

/// The field of the stanza with this number, from 1: all after its colon, with
/// the lines that continue it.
fn in_stanza(text: &str, number: usize) -> Option<String> {
    const NAME: &str = "Signed-By:";
    let mut stanza = 1;
    let mut is_empty = true;
    let mut value: Option<String> = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            stanza += usize::from(!is_empty);
            is_empty = true;
            continue;
        }
        is_empty = false;
        if stanza != number {
            continue;
        }
        match &mut value {
            Some(value) if line.starts_with([' ', '\t']) => {
                value.push('\n');
                value.push_str(line);
            }
            Some(_) => return value,
            None => {
                let field = line.get(..NAME.len());
                if field.is_some_and(|field| field.eq_ignore_ascii_case(NAME)) {
                    value = line.get(NAME.len()..).map(str::to_owned);
                }
            }
        }
    }
    value
}

/// The option of the line with this number, from 1:
/// `deb [arch=amd64 signed-by=/path] uri suite main`.
fn in_line(text: &str, number: usize) -> Option<String> {
    let line = text.lines().nth(number.checked_sub(1)?)?;
    let options = line.split_once('[')?.1.split_once(']')?.0;
    let value = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="))?;
    Some(format!(" {}", value.replace(',', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_told_from_its_neighbours() {
        let text = "Debian-Security|amd64|b-security|b-security|/s:1|http://m/debian-security/\n\
                    Debian|amd64|oldstable|bookworm|/s:2|http://m/debian/\n\
                    nonsense\n\
                    Debian|amd64|bookworm-updates|bookworm-updates|/s:3|http://m/debian/\n";
        let mirror = Mirror::parse(text, |entry| Some(format!(" key of {entry}"))).unwrap();
        assert_eq!(mirror.signed_by.as_deref(), Some(" key of /s:2"));
        assert!(mirror.has("bookworm") && mirror.has("oldstable"));
        assert!(!mirror.has("sid") && !mirror.has("b-security"));
        let entry = mirror.entry("sid");
        assert!(
            entry.contains("URIs: http://m/debian/\nSuites: sid\n"),
            "{entry}"
        );
        assert_eq!(Mirror::parse("", |_| None), None);
    }

    #[test]
    fn finds_the_key_of_a_stanza() {
        let text = "# made by hand\n\n\
                    Types: deb\nURIs: http://m/debian\n# Signed-By: /no\nsigned-by: /a.gpg /b.gpg\n\n\n\
                    Types: deb\nSigned-By:\n -----BEGIN PGP-----\n .\n xyz\nSuites: sid\n\n\
                    Types: deb\n";
        assert_eq!(in_stanza(text, 1).as_deref(), Some(" /a.gpg /b.gpg"));
        assert_eq!(
            in_stanza(text, 2).as_deref(),
            Some("\n -----BEGIN PGP-----\n .\n xyz")
        );
        assert_eq!(in_stanza(text, 3), None);
        assert_eq!(in_stanza(text, 4), None);
    }

    #[test]
    fn finds_the_key_of_a_line() {
        let text = "# deb x\ndeb [ arch=amd64 signed-by=/a.gpg,/b.gpg ] http://m/debian sid main\ndeb http://m x main\n";
        assert_eq!(in_line(text, 2).as_deref(), Some(" /a.gpg /b.gpg"));
        assert_eq!(in_line(text, 3), None);
        assert_eq!(in_line(text, 9), None);
    }
}
