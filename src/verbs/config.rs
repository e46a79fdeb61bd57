//! `kscope config`: the configuration that the kernel was built with.

use kscope_guest::registry::Registry;

use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope config                         all of it, as /proc/config.gz has it
  kscope config hz preempt              the options with HZ or PREEMPT in their names
  kscope config web CONFIG_HZ           one option, of the guest web
  kscope config 'CONFIG_*_FS=y'         the file systems that are built in
  kscope config --format json debug | jq -r '.config[] | .name + \" \" + .value'

A word that starts with CONFIG_ is an option's whole name, another one is searched for
in all names. Upper and lower case are the same, `*` stands for anything. WORD=VALUE
wants that value as well; an option that is not set has the value n.

The configuration is in the kernel itself (CONFIG_IKCONFIG), so it is that of the kernel
that runs, whatever has become of its sources.";

/// Print the configuration that the kernel was built with.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub struct Args {
    /// The guest's name, if the first word is the name of one [default: the only guest], and
    /// what to search for
    #[arg(value_name = "GUEST|PATTERN")]
    words: Vec<String>,

    /// The guest: every word is searched for
    #[arg(short, long, value_name = "NAME")]
    guest: Option<String>,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let (guest, patterns) = args.split()?;
    args.view.show(guest, "config", |reader| {
        let mut config = reader.config()?;
        if !patterns.is_empty() {
            for pattern in config.filter(patterns) {
                reader.warn(format!("no option of this kernel matches `{pattern}`"));
            }
        }
        Ok(config)
    })
}

impl Args {
    /// The guest's name and the patterns.
    fn split(&self) -> anyhow::Result<(Option<&str>, &[String])> {
        match (&self.guest, self.words.split_first()) {
            (Some(guest), _) => Ok((Some(guest), &self.words)),
            (None, _) if self.view.is_core() => Ok((None, &self.words)),
            (None, Some((first, patterns))) if Registry::open()?.find(Some(first)).is_ok() => {
                Ok((Some(first), patterns))
            }
            (None, _) => Ok((None, &self.words)),
        }
    }
}
