//! The data of a recording, as it is in memory and in the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of the file format that this program writes. It reads this one only.
pub const VERSION: u32 = 1;

/// A finished recording: every index is valid, and a stack's parent comes before it.
///
/// The file is this as JSON, field by field, with `"format": "kscope-profile"` and `"version": 1` in front. Counts are
/// numbers of samples, times are nanoseconds, indexes count from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// What was sampled.
    pub guest: GuestInfo,
    /// How it was sampled, and what was missed.
    pub sampling: Sampling,
    /// Functions, each once.
    pub functions: Vec<Function>,
    /// Functions at a line, each once.
    pub frames: Vec<ProfileFrame>,
    /// Stacks as a tree.
    pub stacks: Vec<StackNode>,
    /// Tasks, each once.
    pub tasks: Vec<TaskLabel>,
    /// Samples, equal ones counted together.
    pub samples: Vec<SampleGroup>,
}

/// The guest that was sampled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// Its name.
    pub name: String,
    /// Path of its `linux` binary.
    pub kernel: PathBuf,
    /// The binary's build-id in hexadecimal.
    pub build_id: Option<String>,
    /// The kernel's release, such as `6.12.30`.
    pub release: Option<String>,
    /// The command that was recorded; empty when a running guest was.
    pub command: Vec<String>,
}

/// How was sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Samples asked for, per second and CPU.
    pub hz: u32,
    /// How long, in nanoseconds.
    pub duration_ns: u64,
    /// Samples taken, those of idle CPUs included.
    pub samples: u64,
    /// Of these, how many met an idle CPU.
    pub idle: u64,
    /// Of these, how many met a CPU that the host had not let run since the sample before.
    pub stolen: u64,
    /// Of these, how many met guest user code.
    pub user: u64,
    /// Ticks that brought no sample.
    pub lost: Lost,
    /// Samples whose stack is not whole, by reason. Their innermost frames are in the profile.
    pub truncated: BTreeMap<String, u64>,
    /// Why the recording ended.
    pub end: End,
    /// With [`End::Failed`], what the sampler said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Ticks that brought no sample, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The sampler was late.
    pub missed: u64,
    /// A debugger held the guest.
    pub held: u64,
    /// The recorder could not keep up.
    pub overflowed: u64,
    /// The guest did not stop in time.
    pub unstopped: u64,
}

impl Lost {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.missed
            .saturating_add(self.held)
            .saturating_add(self.overflowed)
            .saturating_add(self.unstopped)
    }
}

/// Why a recording ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// As asked for: time up, command done, or interrupted by the user.
    Done,
    /// The guest ended before.
    GuestEnded,
    /// The guest could not be sampled any more.
    Failed,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The source file it was met in, relative to the kernel's tree.
    pub file: Option<String>,
    /// Whose it is.
    pub kind: FunctionKind,
}

/// Whose a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionKind {
    /// The guest kernel's.
    Kernel,
    /// A library's of the host, called by the guest kernel; the name ends in ` [library]`.
    Host,
    /// Guest user code.
    User,
    /// Unknown code, or a remark in the place of missing frames.
    Unknown,
}

/// A function at a line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProfileFrame {
    /// Index into [`Profile::functions`].
    pub function: u32,
    /// Line in the function's file, from 1.
    pub line: Option<u32>,
    /// The compiler has put the function into its caller, the next outer frame.
    pub inlined: bool,
}

/// A stack: its outer part, and one frame more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackNode {
    /// Index of the stack without its innermost frame; smaller than this one's.
    pub parent: Option<u32>,
    /// Index into [`Profile::frames`].
    pub frame: u32,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskLabel {
    /// Thread id in the guest.
    pub pid: i32,
    /// Process id in the guest.
    pub tgid: i32,
    /// Name.
    pub comm: String,
    /// It is a kernel thread.
    pub kernel_thread: bool,
}

/// What a CPU was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It ran kernel code.
    Kernel,
    /// It ran guest user code; the innermost frame is `[guest user]`.
    User,
    /// It had nothing to do.
    Idle,
    /// The host was busy elsewhere: not an instruction was executed since the sample before.
    Stolen,
}

/// Equal samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleGroup {
    /// Index into [`Profile::stacks`]; none when nothing could be unwound.
    pub stack: Option<u32>,
    /// Index into [`Profile::tasks`]; none when the guest's memory did not tell.
    pub task: Option<u32>,
    /// The CPU.
    pub cpu: u32,
    /// What it was doing.
    pub state: State,
    /// How many.
    pub count: u64,
}

impl State {
    /// The CPU was at work.
    pub fn is_on_cpu(self) -> bool {
        matches!(self, Self::Kernel | Self::User)
    }
}

impl Profile {
    /// Samples of CPUs that were at work: neither idle nor without a CPU of the host.
    pub fn on_cpu(&self) -> u64 {
        let off = self.sampling.idle.saturating_add(self.sampling.stolen);
        self.sampling.samples.saturating_sub(off)
    }

    /// Samples whose stack is not whole.
    pub fn truncated(&self) -> u64 {
        self.sampling
            .truncated
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// A stack's frames, innermost first; none for an index out of range.
    pub fn frames_of(&self, stack: Option<u32>) -> impl Iterator<Item = &ProfileFrame> {
        let mut next = stack;
        std::iter::from_fn(move || {
            let index = next?;
            let node = self.stacks.get(index as usize)?;
            // Parents come before children, so this ends on any data.
            next = node.parent.filter(|parent| *parent < index);
            self.frames.get(node.frame as usize)
        })
    }

    /// A frame's function.
    pub fn function(&self, frame: &ProfileFrame) -> Option<&Function> {
        self.functions.get(frame.function as usize)
    }

    /// Checks what [`Profile`] promises; tells what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        let outside = |what: &str, index: u32, of: &str, len: usize| {
            Err(format!("{what} refers to {of} {index} of {len}"))
        };
        for (number, frame) in self.frames.iter().enumerate() {
            if frame.function as usize >= self.functions.len() {
                let what = format!("frame {number}");
                return outside(&what, frame.function, "function", self.functions.len());
            }
        }
        for (number, node) in self.stacks.iter().enumerate() {
            let what = format!("stack {number}");
            if node.frame as usize >= self.frames.len() {
                return outside(&what, node.frame, "frame", self.frames.len());
            }
            if let Some(parent) = node.parent
                && parent as usize >= number
            {
                return Err(format!(
                    "{what} has a parent {parent} that does not come before it"
                ));
            }
        }
        let mut sum = 0_u64;
        for (number, group) in self.samples.iter().enumerate() {
            let what = format!("sample {number}");
            if let Some(stack) = group.stack
                && stack as usize >= self.stacks.len()
            {
                return outside(&what, stack, "stack", self.stacks.len());
            }
            if let Some(task) = group.task
                && task as usize >= self.tasks.len()
            {
                return outside(&what, task, "task", self.tasks.len());
            }
            sum = sum
                .checked_add(group.count)
                .ok_or_else(|| "the samples' counts overflow".to_owned())?;
        }
        if sum != self.sampling.samples {
            return Err(format!(
                "the counts add up to {sum}, the header says {}",
                self.sampling.samples
            ));
        }
        Ok(())
    }
}
