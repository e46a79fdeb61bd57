//! `kscope list`: the guests that are running.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use kscope_guest::registry::{Entry, FORMAT_VERSION, Record, Registry};
use kscope_kernel::Table;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  kscope list
  kscope list --format json | jq -r '.guests[].name'

JSON: {\"version\": 1, \"guests\": [{\"name\", \"pid\" (the guest's kernel process),
\"supervisor\", \"kernel\", \"build_id\", \"gdb\" (HOST:PORT or null), \"started\" (seconds
since 1970), \"cpu\" (the host CPU it is kept on, or null), \"cpus\" (how many it has),
\"mode\" (ptrace or seccomp), \"memory\" (bytes), \"command\", \"protocol\", \"dir\",
\"version\"}]}";

/// List the guests that are running.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How to print them.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Human,
    Json,
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    guests: Vec<&'a Record>,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let guests = Registry::open()?.list()?;
    let mut out = io::stdout().lock();
    let printed = match args.format {
        Format::Json => json(&mut out, &guests),
        Format::Human => human(&mut out, &guests),
    };
    match printed {
        // The reader has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(e) => Err(e.into()),
        Ok(()) => Ok(0),
    }
}

fn json(out: &mut impl Write, guests: &[Entry]) -> io::Result<()> {
    let value = Json {
        version: FORMAT_VERSION,
        guests: guests.iter().map(|e| &e.record).collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &value)?;
    writeln!(out)
}

fn human(out: &mut impl Write, guests: &[Entry]) -> io::Result<()> {
    if guests.is_empty() {
        return writeln!(out, "no guest is running");
    }
    let mut table = Table::new(&[
        "NAME", "PID", "UP", "MEMORY", "CPUS", "CPU", "MODE", "GDB", "KERNEL", "COMMAND",
    ]);
    for Entry { record, .. } in guests {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(record.started);
        let age = SystemTime::now().duration_since(since).unwrap_or_default();
        table.row([
            record.name.clone(),
            record.pid.to_string(),
            duration(age),
            format!("{}M", record.memory >> 20),
            record.cpus.to_string(),
            record.cpu.map_or("-".to_owned(), |c| c.to_string()),
            record.mode.to_string(),
            record.gdb.clone().unwrap_or_else(|| "-".to_owned()),
            record.kernel.display().to_string(),
            record.command.join(" "),
        ]);
    }
    write!(out, "{table}")
}

fn duration(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        assert_eq!(duration(Duration::from_secs(59)), "59s");
        assert_eq!(duration(Duration::from_secs(61)), "1m01s");
        assert_eq!(duration(Duration::from_secs(7265)), "2h01m");
    }
}
