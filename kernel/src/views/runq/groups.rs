//! The names of task groups.

use std::collections::HashSet;

use crate::kernel::Corruption;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

/// Deeper than anybody nests control groups. A kernel does not limit it unless told to.
pub(super) const MAX_DEPTH: usize = 64;

/// A group or its queue was met twice. Without an end, and with two ways on from every queue, it
/// would be met 2^64 times.
pub(super) fn circle<M: Memory>(met: &Object<'_, M>) -> ViewError {
    let what = "task group";
    let addr = met.addr();
    Corruption::Cycle { what, addr }.into()
}

impl<M: Memory> Reader<'_, M> {
    /// The path of a `struct task_group`'s control group, as in /proc/PID/cgroup, or the name of
    /// an autogroup as in /proc/PID/autogroup.
    pub(super) fn task_group_path(&self, group: &Object<'_, M>) -> Result<String, ViewError> {
        if group.has("autogroup")
            && let Some(autogroup) = group.follow("autogroup")?
        {
            return Ok(format!("/autogroup-{}", autogroup.u64("id")?));
        }
        let Some(cgroup) = group.follow("css.cgroup")? else {
            return Ok("/".to_owned());
        };
        let mut names = Vec::new();
        let mut met = HashSet::new();
        let mut node = cgroup.follow("kn")?;
        while let Some(this) = node
            && names.len() < MAX_DEPTH
        {
            if !met.insert(this.addr()) {
                return Err(circle(&this));
            }
            // `__parent` since 6.15.
            let parent = ["parent", "__parent"]
                .into_iter()
                .find(|path| this.has(path));
            let parent = this.follow(parent.unwrap_or("parent"))?;
            if parent.is_some() {
                names.push(this.text("name")?);
            }
            node = parent;
        }
        names.reverse();
        Ok(format!("/{}", names.join("/")))
    }
}
