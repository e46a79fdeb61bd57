//! Weighted stacks over interned frames.

use std::collections::HashMap;

/// What a frame is, which decides its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameKind {
    /// A label, not code: a task.
    Task,
    /// A kernel function.
    Kernel,
    /// A kernel function that the compiler has put into its caller.
    Inlined,
    /// A function of the host's libraries.
    Host,
    /// User code.
    User,
    /// Code that could not be named, or a remark in the place of frames that are missing.
    Unknown,
}

/// One frame of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Frame {
    /// What the box shows. Any text: the writers replace what their format cannot carry.
    pub name: String,
    /// What it is.
    pub kind: FrameKind,
    /// `file:line`, where known. Frames that differ only here are one box.
    pub location: Option<String>,
}

/// A frame of a [`Stacks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameId(u32);

/// Weighted stacks.
#[derive(Debug, Clone, Default)]
pub struct Stacks {
    frames: Vec<Frame>,
    ids: HashMap<Frame, FrameId>,
    stacks: Vec<(Vec<FrameId>, u64)>,
    by_frames: HashMap<Vec<FrameId>, usize>,
}

impl Stacks {
    /// No stacks.
    pub fn new() -> Self {
        Self::default()
    }

    /// The id of `frame`; the same for equal frames.
    ///
    /// # Panics
    ///
    /// With more than 2³² different frames, which do not fit into memory.
    pub fn frame(&mut self, frame: Frame) -> FrameId {
        if let Some(&id) = self.ids.get(&frame) {
            return id;
        }
        let id = FrameId(u32::try_from(self.frames.len()).expect("fewer than 2^32 frames"));
        self.frames.push(frame.clone());
        self.ids.insert(frame, id);
        id
    }

    /// Adds `weight` to a stack, given from the outermost frame to the innermost.
    pub fn add(&mut self, stack: &[FrameId], weight: u64) {
        match self.by_frames.get(stack) {
            Some(&index) => self.stacks[index].1 += weight,
            None => {
                self.by_frames.insert(stack.to_vec(), self.stacks.len());
                self.stacks.push((stack.to_vec(), weight));
            }
        }
    }

    /// Every different stack, from the outermost frame to the innermost, and its weight.
    pub fn iter(&self) -> impl Iterator<Item = (impl Iterator<Item = &Frame>, u64)> {
        self.stacks.iter().map(|(stack, weight)| {
            let frames = stack.iter().map(|id| &self.frames[id.0 as usize]);
            (frames, *weight)
        })
    }

    /// The sum of all weights.
    pub fn total(&self) -> u64 {
        self.stacks.iter().map(|(_, weight)| weight).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(name: &str) -> Frame {
        Frame {
            name: name.into(),
            kind: FrameKind::Kernel,
            location: None,
        }
    }

    #[test]
    fn equal_frames_and_stacks_are_stored_once() {
        let mut stacks = Stacks::new();
        let a = stacks.frame(frame("a"));
        let b = stacks.frame(frame("b"));
        assert_eq!(stacks.frame(frame("a")), a);
        assert_ne!(a, b);
        stacks.add(&[a, b], 1);
        stacks.add(&[a], 5);
        stacks.add(&[a, b], 2);
        assert_eq!(stacks.iter().count(), 2);
        assert_eq!(stacks.total(), 8);
        let (mut frames, weight) = stacks.iter().next().unwrap();
        assert_eq!(frames.next().unwrap().name, "a");
        assert_eq!(weight, 3);
    }
}
