//! The arguments of a verb that looks at tasks: pids, and the guest that they are counted in.

use std::convert::Infallible;
use std::str::FromStr;

use anyhow::bail;
use kscope_kernel::GuestPid;

/// What `--help` of every such verb says of its arguments.
pub const PID_HELP: &str = "\
A PID is one of the guest's own, as `kscope ps` prints it. Numbers are pids and any
other word is the guest's name, in either order; a guest whose name is a number is
given with --guest.";

/// Pids and the guest's name, in any order: a number is a pid, anything else the guest.
#[derive(Clone, Debug, clap::Args)]
pub struct PidArgs {
    /// Pids of tasks in the guest, and the guest's name [default: the only guest]
    #[arg(value_name = "PID|GUEST")]
    words: Vec<Word>,

    /// The guest, also when its name is a number
    #[arg(short, long, value_name = "NAME")]
    guest: Option<String>,
}

/// What the words mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// The guest's name, when one was given.
    pub guest: Option<&'a str>,
    /// The pids in the order they were given, each once.
    pub pids: Vec<GuestPid>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Pid(GuestPid),
    Guest(String),
}

impl FromStr for Word {
    type Err = Infallible;

    fn from_str(word: &str) -> Result<Word, Infallible> {
        let pid = word.parse().ok().filter(|_| !word.starts_with(['+', '-']));
        Ok(match pid {
            Some(pid) => Word::Pid(GuestPid(pid)),
            None => Word::Guest(word.to_owned()),
        })
    }
}

impl PidArgs {
    /// The guest and the pids.
    ///
    /// # Errors
    ///
    /// When two guests are named.
    pub fn chosen(&self) -> anyhow::Result<Chosen<'_>> {
        let mut guest = self.guest.as_deref();
        let mut pids = Vec::new();
        for word in &self.words {
            match word {
                Word::Pid(pid) if pids.contains(pid) => {}
                Word::Pid(pid) => pids.push(*pid),
                Word::Guest(name) => match guest {
                    Some(other) if other != name => {
                        bail!("one guest at a time: both `{other}` and `{name}` are named")
                    }
                    _ => guest = Some(name),
                },
            }
        }
        Ok(Chosen { guest, pids })
    }

    /// The guest and the one pid of a verb that looks at one task.
    ///
    /// # Errors
    ///
    /// When two guests are named, or not exactly one pid is given.
    pub fn one(&self) -> anyhow::Result<(Option<&str>, GuestPid)> {
        let Chosen { guest, pids } = self.chosen()?;
        match *pids {
            [pid] => Ok((guest, pid)),
            [] => bail!("which task? give its pid; `kscope ps` lists them"),
            _ => bail!("one task at a time: {} pids are given", pids.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: PidArgs,
    }

    fn parse(words: &[&str]) -> PidArgs {
        let words = ["verb"].iter().chain(words);
        Cli::try_parse_from(words).expect("arguments").args
    }

    #[test]
    fn numbers_are_pids_and_other_words_the_guest() {
        for words in [&["7", "web", "1"][..], &["web", "7", "1", "7"]] {
            let args = parse(words);
            let chosen = args.chosen().unwrap();
            assert_eq!(chosen.guest, Some("web"));
            assert_eq!(chosen.pids, [GuestPid(7), GuestPid(1)]);
        }
        let none = parse(&[]);
        assert_eq!(none.chosen().unwrap().guest, None);
        assert!(none.one().is_err());
        assert_eq!(
            parse(&["g1", "1"]).one().unwrap(),
            (Some("g1"), GuestPid(1))
        );
        let numeric = parse(&["--guest", "12", "1"]);
        assert_eq!(numeric.one().unwrap(), (Some("12"), GuestPid(1)));
        assert!(parse(&["1", "2"]).one().is_err());
        assert!(parse(&["a", "1", "b"]).chosen().is_err());
        assert!(parse(&["a", "-g", "b"]).chosen().is_err());
    }
}
