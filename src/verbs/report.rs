//! `kscope report`: shows what `kscope record` recorded.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context, bail};
use clap::ValueEnum;
use kscope_flamegraphs::{Frame, FrameKind, Stacks, SvgOptions, write_folded, write_svg};
use kscope_profiler::{FunctionKind, Profile};

use crate::exit;

/// Show a recording: its hottest functions and tasks, as a flame graph or as folded stacks.
///
/// Samples of idle CPUs are counted, but not shown.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kscope report record.kscope
  kscope report record.kscope --flamegraph flame.svg
  kscope report record.kscope --folded - | flamegraph.pl --hash > flame.svg
  kscope report record.kscope --format json | jq '.functions[0]'

What is said of the samples:
  late                 lost, because the one before took until then, or the guest had a rest
  without a host CPU   the host ran something else instead of the guest; not shown
  not fully unwound    their outermost callers are not known; the inner ones are shown")]
pub struct Args {
    /// The file that `kscope record` wrote
    file: PathBuf,
    /// Write a flame graph, which any browser shows
    #[arg(long, value_name = "OUT.svg")]
    flamegraph: Option<PathBuf>,
    /// Write the stacks in folded form, for other tools (`-` for standard output, in place of the table)
    #[arg(long, value_name = "OUT")]
    folded: Option<PathBuf>,
    /// How to print the table
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// How many functions and tasks to print
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// What stands for a task at the root of its stacks
    #[arg(long, value_enum, default_value_t = TaskRoot::Pid)]
    tasks: TaskRoot,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables
    Human,
    /// One JSON object, versioned
    Json,
}

/// The outermost frame of flame graphs and folded stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskRoot {
    /// Its name and pid
    Pid,
    /// Its name: tasks of one name are one
    Name,
    /// Nothing: all tasks are one
    None,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let folded_to_stdout = args.folded.as_deref() == Some(Path::new("-"));
    if folded_to_stdout && args.format == Format::Json {
        bail!("--folded - and --format json both want standard output: give --folded a file");
    }
    let profile = Profile::read(&args.file)?;
    if let Some(doubt) = doubt(&profile) {
        eprintln!("kscope: warning: {doubt}");
    }
    let stacks = stacks(&profile, args.tasks);
    if let Some(path) = &args.flamegraph {
        if stacks.is_empty() {
            bail!(
                "{} has no samples of a busy CPU to draw ({} of idle ones): was there any work?",
                args.file.display(),
                profile.sampling.idle
            );
        }
        let mut svg = Vec::new();
        write_svg(&stacks, &caption(&profile), &mut svg)?;
        save(path, &svg)?;
    }
    if let Some(path) = &args.folded {
        let mut folded = Vec::new();
        write_folded(&stacks, &mut folded)?;
        if folded_to_stdout {
            print(&folded)?;
        } else {
            save(path, &folded)?;
        }
    }
    match args.format {
        _ if folded_to_stdout => {}
        Format::Human => print(human(&profile, args.top).as_bytes())?,
        Format::Json => print(&json(&profile, args.top)?)?,
    }
    Ok(exit::OK)
}

fn save(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Prints; a reader that has seen enough (`| head`) is no error.
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// The on-CPU stacks, rooted in their tasks.
fn stacks(profile: &Profile, root: TaskRoot) -> Stacks {
    let mut stacks = Stacks::new();
    for group in &profile.samples {
        if !group.state.is_on_cpu() {
            continue;
        }
        let mut stack: Vec<_> = profile
            .frames_of(group.stack)
            .filter_map(|frame| {
                let function = profile.function(frame)?;
                let location = function.file.as_ref().map(|file| match frame.line {
                    Some(line) => format!("{file}:{line}"),
                    None => file.clone(),
                });
                Some(stacks.frame(Frame {
                    name: function.name.clone(),
                    kind: match function.kind {
                        FunctionKind::Kernel if frame.inlined => FrameKind::Inlined,
                        FunctionKind::Kernel => FrameKind::Kernel,
                        FunctionKind::Host => FrameKind::Host,
                        FunctionKind::User => FrameKind::User,
                        FunctionKind::Unknown => FrameKind::Unknown,
                    },
                    location,
                }))
            })
            .collect();
        let task = group.task.and_then(|task| profile.tasks.get(task as usize));
        let label = match (root, task) {
            (TaskRoot::None, _) => None,
            (TaskRoot::Pid, Some(task)) => Some(format!("{} ({})", task.comm, task.pid)),
            (TaskRoot::Name, Some(task)) => Some(task.comm.clone()),
            (_, None) => Some("[unknown task]".to_owned()),
        };
        if let Some(name) = label {
            stack.push(stacks.frame(Frame {
                name,
                kind: FrameKind::Task,
                location: None,
            }));
        }
        stack.reverse();
        stacks.add(&stack, group.count);
    }
    stacks
}

fn caption(profile: &Profile) -> SvgOptions {
    let guest = &profile.guest;
    let sampling = &profile.sampling;
    let title = if guest.command.is_empty() {
        format!("guest {}: on CPU", guest.name)
    } else {
        format!("{}: on CPU", shorten(&guest.command.join(" "), 80))
    };
    let mut subtitle = format!(
        "Linux {}, build-id {}, {} Hz, {}: {} samples on CPU, {} idle, {} lost",
        guest.release.as_deref().unwrap_or("?"),
        guest
            .build_id
            .as_deref()
            .map_or("?", |id| &id[..id.len().min(12)]),
        sampling.hz,
        Seconds(sampling.duration_ns),
        profile.on_cpu(),
        sampling.idle,
        sampling.lost.total(),
    );
    if profile.truncated() > 0 {
        subtitle.push_str(&format!(", {} not fully unwound", profile.truncated()));
    }
    SvgOptions {
        title,
        subtitle: Some(subtitle),
        ..SvgOptions::default()
    }
}

fn shorten(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit - 1).chain(['…']).collect()
}

/// Nanoseconds, shown as seconds.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0 as f64 / 1e9)
    }
}

/// What `record` and `report` say of a recording's quality: how many samples, and what is missing.
pub fn summary(profile: &Profile) -> String {
    let sampling = &profile.sampling;
    let mut text = format!(
        "{} samples in {} at {} Hz: {} on CPU ({} in user code), {} idle{}; {} lost",
        sampling.samples,
        Seconds(sampling.duration_ns),
        sampling.hz,
        profile.on_cpu(),
        sampling.user,
        sampling.idle,
        match sampling.stolen {
            0 => String::new(),
            stolen => format!(", {stolen} without a host CPU"),
        },
        sampling.lost.total(),
    );
    let lost = &sampling.lost;
    let causes: Vec<String> = [
        (lost.missed, "late"),
        (lost.held, "while a debugger held the guest"),
        (lost.overflowed, "for a slow reader"),
        (lost.unstopped, "as the guest did not stop"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, cause)| format!("{count} {cause}"))
    .collect();
    if !causes.is_empty() {
        text.push_str(&format!(" ({})", causes.join(", ")));
    }
    text.push_str(&format!("; {} not fully unwound", profile.truncated()));
    text
}

/// Percentage of lost samples above which a recording is doubtful.
const TOO_MANY_LOST: u64 = 20;

/// Why a recording may not tell the truth, if it lost too much for that.
pub fn doubt(profile: &Profile) -> Option<String> {
    let sampling = &profile.sampling;
    let lost = sampling.lost.total();
    let ticks = sampling.samples.saturating_add(lost).max(1);
    let percent = u128::from(lost) * 100 / u128::from(ticks);
    (percent > u128::from(TOO_MANY_LOST)).then(|| {
        format!(
            "{percent} % of the samples are lost: the host was too busy, or {} Hz too many for it (record -F)",
            sampling.hz
        )
    })
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

fn human(profile: &Profile, top: usize) -> String {
    let guest = &profile.guest;
    let mut text = format!(
        "Guest {}, Linux {}, {}\n",
        guest.name,
        guest.release.as_deref().unwrap_or("of unknown release"),
        guest.kernel.display(),
    );
    if !guest.command.is_empty() {
        text.push_str(&format!("Command {}\n", guest.command.join(" ")));
    }
    text.push_str(&summary(profile));
    text.push('\n');
    for (reason, count) in &profile.sampling.truncated {
        text.push_str(&format!("  {count} not fully unwound: {reason}\n"));
    }
    let on_cpu = profile.on_cpu();
    if on_cpu == 0 {
        let sampling = &profile.sampling;
        text.push_str(match (sampling.samples, sampling.idle) {
            (0, _) => "\nThere are no samples.\n",
            (_, 0) => "\nThe host never let the guest run.\n",
            _ => "\nThe guest was idle: no sample met a CPU at work.\n",
        });
        return text;
    }
    let tasks = profile.tasks_by_cost();
    text.push_str("\n  on CPU   kernel     user     pid  task\n");
    for total in tasks.iter().take(top) {
        let (pid, comm) = match total.task {
            Some(task) => (task.pid.to_string(), task.comm.as_str()),
            None => ("?".to_owned(), "[unknown task]"),
        };
        text.push_str(&format!(
            "{:6.2} % {:6.2} % {:6.2} % {pid:>7}  {comm}\n",
            percent(total.samples(), on_cpu),
            percent(total.kernel_samples, on_cpu),
            percent(total.user_samples, on_cpu),
        ));
    }
    more(&mut text, tasks.len(), top, "tasks");
    let functions = profile.functions_by_cost();
    text.push_str("\n    self    total  function\n");
    for total in functions.iter().take(top) {
        text.push_str(&format!(
            "{:6.2} % {:6.2} %  {}{}\n",
            percent(total.self_samples, on_cpu),
            percent(total.total_samples, on_cpu),
            total.function.name,
            match (&total.function.file, total.hottest_line) {
                (Some(file), Some(line)) => format!("  {file}:{line}"),
                (Some(file), None) => format!("  {file}"),
                (None, _) => String::new(),
            },
        ));
    }
    more(&mut text, functions.len(), top, "functions");
    text
}

fn more(text: &mut String, all: usize, shown: usize, what: &str) {
    if all > shown {
        text.push_str(&format!(
            "         … and {} more {what} (--top {all})\n",
            all - shown
        ));
    }
}

/// Version of the `--format json` output.
const JSON_VERSION: u32 = 1;

fn json(profile: &Profile, top: usize) -> anyhow::Result<Vec<u8>> {
    let functions: Vec<_> = profile
        .functions_by_cost()
        .into_iter()
        .take(top)
        .map(|total| {
            serde_json::json!({
                "name": total.function.name,
                "file": total.function.file,
                "hottest_line": total.hottest_line,
                "kind": total.function.kind,
                "self": total.self_samples,
                "total": total.total_samples,
            })
        })
        .collect();
    let tasks: Vec<_> = profile
        .tasks_by_cost()
        .into_iter()
        .take(top)
        .map(|total| {
            serde_json::json!({
                "pid": total.task.map(|task| task.pid),
                "tgid": total.task.map(|task| task.tgid),
                "comm": total.task.map(|task| &task.comm),
                "kernel_thread": total.task.map(|task| task.kernel_thread),
                "kernel": total.kernel_samples,
                "user": total.user_samples,
            })
        })
        .collect();
    let report = serde_json::json!({
        "version": JSON_VERSION,
        "guest": profile.guest,
        "sampling": profile.sampling,
        "on_cpu": profile.on_cpu(),
        "functions": functions,
        "tasks": tasks,
    });
    let mut text = serde_json::to_vec_pretty(&report)?;
    text.push(b'\n');
    Ok(text)
}
