//! The view as people read it.

use std::fmt;

use super::{Access, FutexUse, Named, PipeSide, Reason, Role, Since, Wait, Waiting, Who, Why};
use crate::table::{Table, printable};

/// Frames of a stack that are shown.
const MAX_FRAMES: usize = 12;

/// Files and tasks that are named in one cell.
const MAX_NAMED: usize = 3;

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for deadlock in &self.deadlocks {
            let what = match deadlock.certain {
                true => "deadlock",
                false => "probable deadlock",
            };
            write!(f, "{what}: ")?;
            for link in &deadlock.links {
                write!(f, "{} -> {} ", link.task, link.wait)?;
                write!(
                    f,
                    "{} ",
                    link.wait
                        .wakers
                        .first()
                        .map_or("", |waker| waker.role.verb())
                )?;
            }
            if let Some(first) = deadlock.links.first() {
                writeln!(f, "{}", first.task)?;
            }
            for link in &deadlock.links {
                writeln!(f, "  {}:", link.task)?;
                stack(f, "    ", &link.stack)?;
            }
            writeln!(f)?;
        }
        let mut table = Table::new(&[
            ">PID",
            "COMM",
            "STATE",
            "WAITS FOR",
            "IN",
            "OWNER",
            ">SINCE",
        ]);
        for waiting in &self.tasks {
            table.row([
                waiting.task.pid.to_string(),
                waiting.task.comm.clone(),
                waiting.state.to_string(),
                waiting.wait.to_string(),
                waiting
                    .wait
                    .function
                    .clone()
                    .unwrap_or_else(|| "-".to_owned()),
                owners(&waiting.wait),
                waiting
                    .since
                    .map_or_else(|| "-".to_owned(), |since| since.to_string()),
            ]);
        }
        table.fmt(f)?;
        if self.all {
            return Ok(());
        }
        for waiting in &self.tasks {
            writeln!(f)?;
            detail(f, waiting)?;
        }
        Ok(())
    }
}

/// What is told of a task that was asked for.
fn detail(f: &mut fmt::Formatter<'_>, waiting: &Waiting) -> fmt::Result {
    write!(f, "{}", waiting.task)?;
    let mut before = object_text(&waiting.wait.reason, waiting.wait.object.as_ref());
    for step in &waiting.chain {
        write!(f, " -> {before} {} {}", step.role.verb(), step.task)?;
        before = object_text(&step.reason, step.object.as_ref());
    }
    let is_circle = waiting.chain.last().is_some_and(|last| {
        let others = waiting.chain.iter().rev().skip(1);
        last.task == waiting.task || others.map(|step| &step.task).any(|task| *task == last.task)
    });
    match (is_circle, waiting.stuck) {
        (true, _) => writeln!(f, " (a circle: none of them can go on)")?,
        (false, true) => writeln!(f, " -> {before} (it can never go on)")?,
        (false, false) => writeln!(f, " -> {before}")?,
    }
    stack(f, "  ", &waiting.stack)
}

fn stack(f: &mut fmt::Formatter<'_>, indent: &str, lines: &[String]) -> fmt::Result {
    for line in lines.iter().take(MAX_FRAMES) {
        writeln!(f, "{indent}{}", printable(line))?;
    }
    match lines.len().saturating_sub(MAX_FRAMES) {
        0 => Ok(()),
        more => writeln!(f, "{indent}({more} more)"),
    }
}

fn owners(wait: &Wait) -> String {
    if let Some(gone) = wait.gone {
        return format!("a task that has ended ({gone})");
    }
    let wakers = &wait.wakers;
    let shown = wakers.iter().take(MAX_NAMED);
    let shown = shown.map(|waker| {
        let doubt = if waker.certain { "" } else { "?" };
        format!("{}{doubt}", waker.task)
    });
    let mut shown: Vec<_> = shown.collect();
    if wakers.len() > MAX_NAMED {
        shown.push(format!("{} more", wakers.len() - MAX_NAMED));
    }
    match shown.is_empty() {
        true => "-".to_owned(),
        false => shown.join(", "),
    }
}

impl Role {
    /// What leads from the object to the task in a sentence.
    fn verb(self) -> &'static str {
        match self {
            Role::Owner => "held by",
            Role::Reader => "held for reading by",
            Role::OtherEnd => "with its other end at",
            Role::Child => "namely",
            Role::Exits => "until the end of",
            Role::Worker => "done by",
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", printable(&self.comm), self.pid)
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        seconds(f, self.for_ns as f64)
    }
}

fn seconds(f: &mut fmt::Formatter<'_>, nanoseconds: f64) -> fmt::Result {
    write!(f, "{:.2} s", nanoseconds / 1e9)
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}", printable(name)),
            None => self.addr.fmt(f),
        }
    }
}

/// What is waited for, and which one of its kind.
fn object_text(reason: &Reason, object: Option<&Named>) -> String {
    let says_itself = matches!(
        reason,
        Reason::Pipe { .. }
            | Reason::Files { .. }
            | Reason::Socket { .. }
            | Reason::FileLock { .. }
            | Reason::Page { .. }
    );
    match object.filter(|_| !says_itself) {
        Some(object) => format!("{reason} {object}"),
        None => reason.to_string(),
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&object_text(&self.reason, self.object.as_ref()))?;
        if let Some(left) = self.timeout_ns {
            write!(f, ", at most ")?;
            seconds(f, left.max(0) as f64)?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = |access: &Access| match access {
            Access::Read => "to read",
            Access::Write => "to write",
        };
        match self {
            Reason::Mutex => write!(f, "mutex"),
            Reason::Rwsem {
                access: wanted,
                readers,
                ..
            } => {
                write!(f, "rwsem {}", access(wanted))?;
                match readers {
                    0 => Ok(()),
                    1 => write!(f, " (1 reader)"),
                    _ => write!(f, " ({readers} readers)"),
                }
            }
            Reason::Semaphore => write!(f, "semaphore"),
            Reason::RtMutex => write!(f, "rt_mutex"),
            Reason::PercpuRwsem { access: wanted } => write!(f, "percpu_rwsem {}", access(wanted)),
            Reason::Completion => write!(f, "completion"),
            Reason::WaitQueue => write!(f, "wait queue"),
            Reason::Bit { bit } => write!(f, "bit {bit} of"),
            Reason::Page { bit, file } => {
                write!(f, "page ({})", printable(bit))?;
                match file {
                    Some(file) => write!(f, " of {}", printable(file)),
                    None => Ok(()),
                }
            }
            Reason::Futex {
                uaddr,
                value,
                usage,
                shared,
                words,
            } => {
                let what = match usage {
                    FutexUse::Lock => "futex lock",
                    FutexUse::PriorityLock => "PI futex",
                    FutexUse::Join => "thread's end",
                    FutexUse::Requeue | FutexUse::Other => "futex",
                };
                let is_shared = *shared && *usage != FutexUse::Join;
                write!(f, "{}{what}", if is_shared { "shared " } else { "" })?;
                if let Some(uaddr) = uaddr {
                    write!(f, " {uaddr}")?;
                }
                match value {
                    Some(value) if *usage != FutexUse::Join => write!(f, " ({value:#x})")?,
                    _ => {}
                }
                match words {
                    0 | 1 => Ok(()),
                    _ => write!(f, " and {} more", words - 1),
                }
            }
            Reason::Pipe {
                side,
                inode,
                fd,
                bytes,
            } => {
                match inode {
                    Some(inode) => write!(f, "pipe:[{inode}]")?,
                    None => write!(f, "pipe")?,
                }
                if let Some(fd) = fd {
                    write!(f, " fd {fd}")?;
                }
                match (side, bytes) {
                    (PipeSide::Read, _) => write!(f, " (empty)"),
                    (PipeSide::Write, Some(bytes)) => write!(f, " (full: {bytes} bytes)"),
                    (PipeSide::Write, None) => write!(f, " (full)"),
                    (PipeSide::Open, _) => write!(f, " (its other end to be opened)"),
                }
            }
            Reason::Files { call, files, count } => {
                write!(f, "{call} of {count}")?;
                for (at, polled) in files.iter().take(MAX_NAMED).enumerate() {
                    write!(f, "{} ", if at == 0 { ":" } else { "," })?;
                    if let Some(fd) = polled.fd {
                        write!(f, "{fd} ")?;
                    }
                    write!(f, "{}", printable(&polled.file))?;
                }
                match count.saturating_sub(MAX_NAMED as u64) {
                    0 => Ok(()),
                    _ => write!(f, ", ..."),
                }
            }
            Reason::Socket { family, fd } => {
                write!(f, "{} socket", printable(family))?;
                fd.map_or(Ok(()), |fd| write!(f, " fd {fd}"))
            }
            Reason::FileLock { file } => match file {
                Some(file) => write!(f, "lock on {}", printable(file)),
                None => write!(f, "lock on a file"),
            },
            Reason::Children { which } => match which.as_str() {
                "any" => write!(f, "any child"),
                which => write!(f, "child {which}"),
            },
            Reason::Message => write!(f, "message queue"),
            Reason::Semaphores => write!(f, "SysV semaphore"),
            Reason::Sleep => write!(f, "time"),
            Reason::Signal => write!(f, "signal"),
            Reason::Work => write!(f, "work"),
            Reason::Stopped => write!(f, "SIGCONT"),
            Reason::Traced => write!(f, "tracer"),
            Reason::Zombie => write!(f, "parent to wait for it"),
            Reason::Runs => write!(f, "nothing: runs"),
            Reason::Cpu => write!(f, "CPU: ready to run"),
            Reason::Unknown => write!(f, "unknown"),
        }
    }
}
