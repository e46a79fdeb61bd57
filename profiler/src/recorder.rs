//! Raw samples in, a profile out.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use kscope_guest::remote::{RawSample, SampleEnd, SampleSummary, SampledTask};
use kscope_kernel::{
    CpuId, Image, KernelAddr, Memory, Truncation, UnwindEnd, Unwinder, UnwinderError,
};

use crate::classify::Landmarks;
use crate::host::HostCode;
use crate::profile::{
    End, Function, FunctionKind, GuestInfo, Lost, Profile, ProfileFrame, SampleGroup, Sampling,
    StackNode, State, TaskLabel,
};
use crate::regions::Regions;
use crate::table::{StackId, StackTable};

/// Different stacks (as nodes of their tree) that one recording may have: some 200 MB. A kernel at work makes
/// thousands.
const MAX_NODES: usize = 4 << 20;

/// Different tasks, and different groups of equal samples, that one recording may have.
const MAX_LABELS: usize = 1 << 20;

/// Name of the frame that stands for guest user code.
const GUEST_USER: &str = "[guest user]";
/// Name of the outermost frame of a stack that is not whole.
const NOT_UNWOUND: &str = "[not unwound]";
/// Name of code that nothing is known of: a module's, most likely.
const UNKNOWN: &str = "[unknown]";

/// A frame before it has a name: the same code is the same frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RawFrame {
    /// Code, by the address to look it up with.
    Code(KernelAddr),
    User,
    NotUnwound,
}

/// What has been recorded so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Samples taken, those of idle CPUs included.
    pub samples: u64,
    /// Of these, of idle CPUs.
    pub idle: u64,
    /// Of these, of CPUs that the host had not let run since the sample before.
    pub stolen: u64,
    /// Of these, of guest user code.
    pub user: u64,
    /// Of these, with a stack that is not whole.
    pub truncated: u64,
}

/// Unwinds and counts samples. Its memory is bounded by the number of *different* stacks, not by the time.
pub struct Recorder {
    image: Image,
    unwinder: Unwinder,
    host: HostCode,
    landmarks: Landmarks,
    stacks: StackTable<RawFrame>,
    tasks: Vec<TaskLabel>,
    task_ids: HashMap<TaskLabel, u32>,
    groups: HashMap<(Option<StackId>, Option<u32>, u32, State), u64>,
    truncated: BTreeMap<&'static str, u64>,
    /// The last sample of each CPU, without task and stack.
    before: HashMap<CpuId, RawSample>,
    tally: Tally,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("tally", &self.tally)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder for a guest that runs `image`.
    ///
    /// `maps` is the text of its kernel process's `/proc/PID/maps`: libraries found there are unwound through and named.
    ///
    /// # Errors
    ///
    /// The image has no unwind tables that can be read.
    pub fn new<M: Memory>(image: &Image, maps: &str, memory: &M) -> Result<Self, UnwinderError> {
        let mut unwinder = Unwinder::new(image)?;
        for error in unwinder.add_modules_from_maps(maps, memory) {
            // Stacks through it are cut short there, which is counted.
            log::warn!("{error}");
        }
        Ok(Self {
            image: image.clone(),
            unwinder,
            host: HostCode::parse(maps, image.path()),
            landmarks: Landmarks::of(image),
            stacks: StackTable::new(MAX_NODES),
            tasks: Vec::new(),
            task_ids: HashMap::new(),
            groups: HashMap::new(),
            truncated: BTreeMap::new(),
            before: HashMap::new(),
            tally: Tally::default(),
        })
    }

    /// What has been recorded so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Adds a sample.
    pub fn add(&mut self, sample: &RawSample) {
        self.tally.samples += 1;
        let ends: Vec<Range<u64>> = sample
            .regions
            .iter()
            .map(|region| region.addr.0..region.addr.0.saturating_add(region.bytes.len() as u64))
            .collect();
        let regions = Regions(&sample.regions);
        let backtrace = self.unwinder.unwind(&sample.registers, &regions, &ends);
        let frames = self.landmarks.without_signal_ahead(&backtrace.frames);
        let image = &self.image;
        let mut class = self
            .landmarks
            .classify(frames, &sample.registers, |addr| image.is_text(addr));
        match class.state {
            State::Idle => self.tally.idle += 1,
            State::User => self.tally.user += 1,
            State::Kernel => {
                let before = self.before.get(&sample.cpu);
                if before.is_some_and(|before| self.landmarks.stands_still(before, sample)) {
                    class.state = State::Stolen;
                    self.tally.stolen += 1;
                }
            }
            State::Stolen => {}
        }
        let before = RawSample {
            task: None,
            regions: Vec::new(),
            ..*sample
        };
        self.before.insert(sample.cpu, before);
        let mut reason = match &backtrace.end {
            UnwindEnd::Complete => None,
            UnwindEnd::Truncated(truncation) => Some(reason_of(truncation)),
        };
        let outer = reason.is_some().then_some(RawFrame::NotUnwound);
        let inner = (class.state == State::User).then_some(RawFrame::User);
        let code = frames
            .get(class.hidden..)
            .unwrap_or_default()
            .iter()
            .rev()
            .map(|frame| RawFrame::Code(frame.lookup()));
        let stack = self
            .stacks
            .intern(outer.into_iter().chain(code).chain(inner));
        if stack.is_none() {
            reason = Some("the recording has too many different stacks");
        }
        let task = sample.task.as_ref().and_then(|task| self.task(task));
        let group = (stack, task, sample.cpu.0, class.state);
        if self.groups.len() < MAX_LABELS || self.groups.contains_key(&group) {
            *self.groups.entry(group).or_default() += 1;
        } else {
            *self
                .groups
                .entry((None, None, sample.cpu.0, class.state))
                .or_default() += 1;
            reason = Some("the recording has too many different samples");
        }
        if let Some(reason) = reason {
            self.tally.truncated += 1;
            *self.truncated.entry(reason).or_default() += 1;
        }
    }

    fn task(&mut self, task: &SampledTask) -> Option<u32> {
        let label = TaskLabel {
            pid: task.pid.0,
            tgid: task.tgid.0,
            comm: task.comm.clone(),
            kernel_thread: task.kernel_thread,
        };
        if let Some(&id) = self.task_ids.get(&label) {
            return Some(id);
        }
        if self.tasks.len() >= MAX_LABELS {
            return None;
        }
        // At most MAX_LABELS.
        let id = self.tasks.len() as u32;
        self.tasks.push(label.clone());
        self.task_ids.insert(label, id);
        Some(id)
    }

    /// Ends the recording and names everything in it.
    pub fn finish(mut self, guest: GuestInfo, hz: u32, summary: &SampleSummary) -> Profile {
        let counts = &summary.counts;
        let mut naming = Naming::default();
        // A frame with inlined functions becomes several nodes, so the indexes shift.
        let mut last_node = Vec::with_capacity(self.stacks.nodes().len());
        let mut stacks = Vec::with_capacity(self.stacks.nodes().len());
        let mut named = HashMap::<RawFrame, Vec<u32>>::new();
        for &(parent, raw) in self.stacks.nodes() {
            let mut node = parent.map(|parent| last_node[parent.0 as usize]);
            let frames = named
                .entry(raw)
                .or_insert_with(|| naming.frames_of(raw, &self.image, &mut self.host));
            for &frame in frames.iter() {
                let id = stacks.len() as u32;
                stacks.push(StackNode {
                    parent: node,
                    frame,
                });
                node = Some(id);
            }
            // `frames_of` gives at least one frame.
            last_node.push(node.unwrap_or_default());
        }
        let mut samples: Vec<SampleGroup> = self
            .groups
            .iter()
            .map(|(&(stack, task, cpu, state), &count)| SampleGroup {
                stack: stack.map(|stack| last_node[stack.0 as usize]),
                task,
                cpu,
                state,
                count,
            })
            .collect();
        // The order of a hash map is none.
        samples.sort_by_key(|group| (group.task, group.stack, group.cpu, group.state));
        Profile {
            guest,
            sampling: Sampling {
                hz,
                duration_ns: counts.duration_ns,
                samples: self.tally.samples,
                idle: self.tally.idle,
                stolen: self.tally.stolen,
                user: self.tally.user,
                lost: Lost {
                    missed: counts.missed,
                    held: counts.held,
                    overflowed: counts.overflowed,
                    unstopped: counts.unstopped,
                },
                truncated: self
                    .truncated
                    .into_iter()
                    .map(|(reason, count)| (reason.to_owned(), count))
                    .collect(),
                end: match summary.end {
                    SampleEnd::Stopped | SampleEnd::Duration => End::Done,
                    SampleEnd::GuestExited | SampleEnd::Disconnected => End::GuestEnded,
                    SampleEnd::Failed(_) => End::Failed,
                },
                failure: match &summary.end {
                    SampleEnd::Failed(reason) => Some(reason.clone()),
                    _ => None,
                },
            },
            functions: naming.functions,
            frames: naming.frames,
            stacks,
            tasks: self.tasks,
            samples,
        }
    }
}

/// Why a stack is not whole, without addresses, so that equal reasons are counted together.
fn reason_of(truncation: &Truncation) -> &'static str {
    match truncation {
        Truncation::NoRegisters => "no registers to begin with",
        Truncation::Unreadable { .. } => "the caller's frame is outside of the copied stack",
        Truncation::NotAdvancing { .. } => "the frame pointer does not advance",
        Truncation::NotCode { .. } => "the return address is not code",
        Truncation::TooDeep { .. } => "more frames than a stack holds",
        _ => "another reason",
    }
}

/// Interned functions and frames of the profile.
#[derive(Debug, Default)]
struct Naming {
    functions: Vec<Function>,
    function_ids: HashMap<Function, u32>,
    frames: Vec<ProfileFrame>,
    frame_ids: HashMap<ProfileFrame, u32>,
}

impl Naming {
    /// The named frames of a raw one, outermost first; more than one where functions are inlined, never none.
    fn frames_of(&mut self, raw: RawFrame, image: &Image, host: &mut HostCode) -> Vec<u32> {
        let (name, kind) = match raw {
            RawFrame::User => (GUEST_USER.to_owned(), FunctionKind::User),
            RawFrame::NotUnwound => (NOT_UNWOUND.to_owned(), FunctionKind::Unknown),
            RawFrame::Code(addr) if image.is_text(addr) => {
                let located = image.locate(addr);
                if !located.is_empty() {
                    let outermost = located.len() - 1;
                    return located
                        .into_iter()
                        .enumerate()
                        .rev()
                        .map(|(index, frame)| {
                            let function = self.function(Function {
                                name: frame.function,
                                file: frame.file.map(|file| image.relative_path(&file).to_owned()),
                                kind: FunctionKind::Kernel,
                            });
                            self.frame(ProfileFrame {
                                function,
                                line: frame.line,
                                inlined: index < outermost,
                            })
                        })
                        .collect();
                }
                (UNKNOWN.to_owned(), FunctionKind::Unknown)
            }
            RawFrame::Code(addr) => match host.name(addr.0) {
                Some(name) => (name, FunctionKind::Host),
                None => (UNKNOWN.to_owned(), FunctionKind::Unknown),
            },
        };
        let function = self.function(Function {
            name,
            file: None,
            kind,
        });
        vec![self.frame(ProfileFrame {
            function,
            line: None,
            inlined: false,
        })]
    }

    fn function(&mut self, function: Function) -> u32 {
        if let Some(&id) = self.function_ids.get(&function) {
            return id;
        }
        // Bounded by the number of nodes.
        let id = self.functions.len() as u32;
        self.functions.push(function.clone());
        self.function_ids.insert(function, id);
        id
    }

    fn frame(&mut self, frame: ProfileFrame) -> u32 {
        if let Some(&id) = self.frame_ids.get(&frame) {
            return id;
        }
        let id = self.frames.len() as u32;
        self.frames.push(frame.clone());
        self.frame_ids.insert(frame, id);
        id
    }
}
