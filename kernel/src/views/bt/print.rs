//! Stacks as people read them.

use std::fmt;

use super::{KernelFrame, Stacks, TaskStack, UserFrame, Variable};
use crate::table::printable;

impl fmt::Display for Stacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, stack) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            stack.fmt(f)?;
        }
        Ok(())
    }
}

/// A line for the task, then one for every frame, numbered as gdb does.
impl fmt::Display for TaskStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if self.tid != self.pid {
            write!(f, " tid {}", self.tid)?;
        }
        let name = printable(&self.comm);
        match self.kernel_thread {
            true => write!(f, " [{name}]")?,
            false => write!(f, " {name}")?,
        }
        write!(f, ": {}", self.state.describe())?;
        match self.cpu {
            Some(cpu) => writeln!(f, " on CPU {cpu}")?,
            None => writeln!(f)?,
        }
        let mut number = 0;
        for frame in &self.kernel {
            writeln!(f, "#{number:<2} {frame}")?;
            let locals = frame.locals.iter().flatten();
            for local in locals {
                writeln!(f, "        {local}")?;
            }
            number += 1;
        }
        lost(f, self.kernel_end.as_ref())?;
        if self.user.is_empty() && self.user_end.is_none() {
            return Ok(());
        }
        writeln!(f, "    -- program --")?;
        for frame in &self.user {
            writeln!(f, "#{number:<2} {frame}")?;
            number += 1;
        }
        lost(f, self.user_end.as_ref())
    }
}

fn lost(f: &mut fmt::Formatter<'_>, why: Option<&String>) -> fmt::Result {
    match why {
        Some(why) => writeln!(f, "    (the rest is not known: {why})"),
        None => Ok(()),
    }
}

impl fmt::Display for KernelFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.interrupt {
            return f.write_str("<interrupt>");
        }
        let arguments = self.arguments.as_ref().map(|arguments| {
            let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
            format!(" ({})", arguments.join(", "))
        });
        match (
            self.symbol.as_ref().or(self.function.as_ref()),
            self.offset,
            self.inlined,
        ) {
            (Some(function), _, true) => write!(f, "{} [inlined]", printable(function))?,
            (Some(function), Some(offset), false) => {
                write!(f, "{}+{offset:#x}", printable(function))?;
            }
            (Some(function), None, false) => f.write_str(&printable(function))?,
            (None, ..) => write!(f, "{}", self.pc)?,
        }
        f.write_str(&arguments.unwrap_or_default())?;
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, " at {}:{line}", printable(file))?,
            (Some(file), None) => write!(f, " at {}", printable(file))?,
            (None, _) => {}
        }
        match &self.object {
            Some(object) => write!(f, " in {}", printable(object)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for UserFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.signal {
            return f.write_str("<signal handler called>");
        }
        match (&self.function, self.offset) {
            (Some(function), Some(offset)) => write!(f, "{}+{offset:#x}", printable(function))?,
            _ => write!(f, "{}", self.pc)?,
        }
        match &self.object {
            Some(object) => write!(f, " in {}", printable(object)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", printable(&self.name)),
            None => write!(f, "{}=<optimized out>", printable(&self.name)),
        }
    }
}
