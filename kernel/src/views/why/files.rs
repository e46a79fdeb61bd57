//! Files: pipes, what is polled, locks on files, and who has what open.

use std::collections::{HashMap, HashSet};

use super::look::Look;
use super::sleeper::Sleeper;
use super::{MAX_WAKERS, PipeSide, Polled, Reason, Role, Wait, Waker};
use crate::addr::KernelAddr;
use crate::memory::{Memory, MemoryExt};
use crate::reader::Object;
use crate::tasks::Task;

/// FMODE_READ and FMODE_WRITE of include/linux/fs.h.
const MODE_READ: u64 = 1;
const MODE_WRITE: u64 = 2;

/// Descriptors of one process that are looked at.
const MAX_FDS: u64 = 1 << 16;

/// Files that are shown of those that are polled.
const MAX_POLLED: usize = 32;

/// Pages of a `poll()`'s table that are looked at.
const MAX_PAGES: usize = 1024;

const PIPE: &str = "struct pipe_inode_info";

/// Which files are open where.
#[derive(Default)]
pub(super) struct OpenFiles {
    /// Descriptors by `files_struct`.
    open: HashMap<KernelAddr, Vec<(u32, KernelAddr)>>,
    /// The `files_struct`s that have a file.
    holders: HashMap<KernelAddr, Vec<KernelAddr>>,
    /// Files and how they are open by what they belong to, `file.private_data`.
    ends: HashMap<KernelAddr, Vec<(KernelAddr, u64)>>,
}

impl OpenFiles {
    pub(super) fn read<M: Memory>(look: &Look<'_, '_, M>) -> OpenFiles {
        let mut files = OpenFiles::default();
        for &table in look.links().by_files.keys() {
            let open = descriptors(look, table).unwrap_or_default();
            for &(_, file) in &open {
                let holders = files.holders.entry(file).or_default();
                if holders.is_empty() {
                    let file = look.reader.object("struct file", file);
                    if let (Ok(owner), Ok(mode)) =
                        (file.addr_value("private_data"), file.u64("f_mode"))
                    {
                        files
                            .ends
                            .entry(owner)
                            .or_default()
                            .push((file.addr(), mode));
                    }
                }
                // A process may have it twice.
                if holders.last() != Some(&table) {
                    holders.push(table);
                }
            }
            files.open.insert(table, open);
        }
        files
    }

    /// The files that belong to something, and how they are open.
    fn ends(&self, owner: KernelAddr) -> &[(KernelAddr, u64)] {
        self.ends.get(&owner).map(Vec::as_slice).unwrap_or_default()
    }
}

fn descriptors<M: Memory>(
    look: &Look<'_, '_, M>,
    files: KernelAddr,
) -> Option<Vec<(u32, KernelAddr)>> {
    let files = look.reader.object("struct files_struct", files);
    let table = files.addr_value("fdt").ok()?;
    let table = look.reader.object("struct fdtable", table);
    let count = table.u64("max_fds").ok()?.min(MAX_FDS);
    let array = table.addr_value("fd").ok()?;
    let bytes = look
        .reader
        .kernel()
        .read_vec(array, count as usize * 8)
        .ok()?;
    let words = bytes.chunks_exact(8);
    let words = words.map(|word| KernelAddr(word.try_into().map_or(0, u64::from_le_bytes)));
    Some(
        (0..)
            .zip(words)
            .filter(|(_, file)| !file.is_null())
            .collect(),
    )
}

impl<M: Memory> Look<'_, '_, M> {
    /// The descriptors of a task.
    pub(super) fn descriptors_of(&self, task: &Task) -> &[(u32, KernelAddr)] {
        let table = self.object(task).addr_value("files").ok();
        let open = table.and_then(|table| self.files().open.get(&table));
        open.map(Vec::as_slice).unwrap_or_default()
    }

    /// The descriptor by which a task has a file.
    pub(super) fn descriptor_of(&self, task: &Task, file: KernelAddr) -> Option<u32> {
        let mut open = self.descriptors_of(task).iter();
        open.find(|(_, other)| *other == file).map(|&(fd, _)| fd)
    }

    /// The tasks that have one of these files open.
    pub(super) fn holders(&self, files: impl IntoIterator<Item = KernelAddr>) -> Vec<&Task> {
        let holders = &self.files().holders;
        let by_files = &self.links().by_files;
        let tables = files
            .into_iter()
            .filter_map(|file| holders.get(&file))
            .flatten();
        let tables: HashSet<_> = tables.collect();
        let tasks = tables
            .into_iter()
            .filter_map(|table| by_files.get(table))
            .flatten();
        // One more than are kept, so that it shows that these are not all.
        let tasks = tasks.filter_map(|task| self.task(*task));
        let mut tasks: Vec<_> = tasks.take(MAX_WAKERS + 1).collect();
        tasks.sort_by_key(|task| task.pid);
        tasks
    }

    /// A pipe: whether it is empty or full, and who has the other end open.
    pub(super) fn pipe(&self, sleeper: &Sleeper, side: PipeSide) -> Wait {
        let found = self.pipe_of(sleeper, side);
        let Some((pipe, queue)) = found else {
            return Wait::new(Reason::Pipe {
                side,
                inode: None,
                fd: None,
                bytes: None,
            });
        };
        let (own, other) = match side {
            PipeSide::Write => (MODE_WRITE, MODE_READ),
            // A FIFO is opened for reading when it has readers and no writers.
            PipeSide::Open if pipe.u64("writers").unwrap_or(0) > 0 => (MODE_WRITE, MODE_READ),
            PipeSide::Read | PipeSide::Open => (MODE_READ, MODE_WRITE),
        };
        let ends = self.files().ends(pipe.addr());
        let ends = |mode| ends.iter().filter(move |end| end.1 & mode != 0);
        let fd =
            ends(own).find_map(|&(file, _)| Some((self.descriptor_of(&sleeper.task, file)?, file)));
        let others = self.holders(ends(other).map(|&(file, _)| file)).into_iter();
        let wakers = others.map(|task| Waker::new(task, Role::OtherEnd, true));
        let inode = fd.and_then(|(_, file)| {
            let file = self.reader.object("struct file", file);
            let inode = file.addr_value("f_inode").ok()?;
            self.reader.object("struct inode", inode).u64("i_ino").ok()
        });
        let reason = Reason::Pipe {
            side,
            inode,
            fd: fd.map(|(fd, _)| fd),
            bytes: self.pipe_bytes(&pipe),
        };
        let named = self.named(queue, "struct wait_queue_head");
        let wait = Wait::new(reason).on(Some(named));
        match side {
            // Anybody may open it.
            PipeSide::Open => wait,
            _ => wait.only(wakers.collect()),
        }
    }

    /// The pipe in whose queue a task is, and that queue.
    fn pipe_of(&self, sleeper: &Sleeper, side: PipeSide) -> Option<(Object<'_, M>, KernelAddr)> {
        let path = match side {
            PipeSide::Write => "wr_wait",
            PipeSide::Read | PipeSide::Open => "rd_wait",
        };
        let queue = self.first_queue(sleeper)?;
        let offset = self.layout()?.member(PIPE, path).ok()?.offset;
        let pipe = self.reader.object(PIPE, queue - offset);
        let slots = pipe.u64("ring_size").ok()?;
        (slots.is_power_of_two() && pipe.u64("max_usage").ok()? <= slots).then_some((pipe, queue))
    }

    fn pipe_bytes(&self, pipe: &Object<'_, M>) -> Option<u64> {
        let (head, tail) = (pipe.u64("head").ok()?, pipe.u64("tail").ok()?);
        let slots = pipe.u64("ring_size").ok()?;
        let width = pipe.size_of("head").ok()? * 8;
        let mask = 1_u64
            .checked_shl(width as u32)
            .map_or(u64::MAX, |end| end - 1);
        let used = head.wrapping_sub(tail) & mask;
        let size = self.layout()?.size_of("struct pipe_buffer").ok()?;
        let buffers = pipe.addr_value("bufs").ok()?;
        if used > slots || used > MAX_FDS {
            return None;
        }
        let lens = (0..used).map(|at| {
            let slot = tail.wrapping_add(at) & (slots - 1);
            let buffer = self
                .reader
                .object("struct pipe_buffer", buffers + slot * size);
            buffer.u64("len").ok()
        });
        lens.sum()
    }

    /// `poll()` and `select()`.
    pub(super) fn polled(&self, sleeper: &Sleeper, call: &'static str) -> Wait {
        let tables = sleeper.left(self, "struct poll_wqueues", "polling_task");
        let mut files: Vec<KernelAddr> = Vec::new();
        let mut seen = HashSet::new();
        // Whoever is polled wakes the table, not the task.
        let is_table = |table: &Object<'_, M>| {
            let entry = table.addr_value("inline_entries[0].wait.private");
            entry.ok() == Some(table.addr())
        };
        let mut tables = tables.iter();
        if let Some(table) = tables.find(|table| is_table(table)) {
            let size = self.layout().and_then(|layout| {
                let size = layout.size_of("struct poll_table_entry").ok();
                size.filter(|&size| size > 0)
            });
            let inline = table.u64("inline_index").unwrap_or(0);
            let inline = inline.min(table.len("inline_entries").unwrap_or(0));
            let start = table.addr_of("inline_entries").unwrap_or(KernelAddr(0));
            let mut add = |at: KernelAddr| {
                let entry = self.reader.object("struct poll_table_entry", at);
                let file = entry.addr_value("filp").unwrap_or(KernelAddr(0));
                // A file may have several queues.
                if !file.is_null() && files.len() < MAX_FDS as usize && seen.insert(file) {
                    files.push(file);
                }
            };
            if let Some(size) = size {
                (0..inline).for_each(|at| add(start + at * size));
                // Those that do not fit are in pages of their own, each up to its `entry`.
                let mut page = table.addr_value("table").unwrap_or(KernelAddr(0));
                for _ in 0..MAX_PAGES {
                    if page.is_null() {
                        break;
                    }
                    let object = self.reader.object("struct poll_table_page", page);
                    let (Ok(first), Ok(end)) =
                        (object.addr_of("entries"), object.addr_value("entry"))
                    else {
                        break;
                    };
                    let count = (end.get().saturating_sub(first.get()) / size).min(1024);
                    (0..count).for_each(|at| add(first + at * size));
                    page = object.addr_value("next").unwrap_or(KernelAddr(0));
                }
            }
        }
        let count = files.len() as u64;
        self.among(sleeper, call, files.into_iter(), count)
    }

    /// `epoll_wait()`.
    pub(super) fn epolled(&self, sleeper: &Sleeper) -> Wait {
        const OWNER: &str = "struct eventpoll";
        let offset = self
            .layout()
            .and_then(|layout| layout.member(OWNER, "wq").ok());
        let queue = self.first_queue(sleeper);
        let (Some(offset), Some(queue)) = (offset, queue) else {
            return self.among(sleeper, "epoll", std::iter::empty(), 0);
        };
        let epoll = self.reader.object(OWNER, queue - offset.offset);
        let root = epoll.addr_of("rbr.rb_root");
        let items = root.and_then(|root| {
            self.reader
                .tree(root, "struct epitem", "rbn", "epoll items")
        });
        let items = items.into_iter().flatten();
        let files: Vec<_> = items
            .take(MAX_FDS as usize)
            .filter_map(|item| item.addr_value("ffd.file").ok())
            .collect();
        let count = files.len() as u64;
        let named = self.named(queue, "struct wait_queue_head");
        self.among(sleeper, "epoll", files.into_iter(), count)
            .on(Some(named))
    }

    fn among(
        &self,
        sleeper: &Sleeper,
        call: &'static str,
        files: impl Iterator<Item = KernelAddr>,
        count: u64,
    ) -> Wait {
        let files = files.take(MAX_POLLED).map(|file| Polled {
            fd: self.descriptor_of(&sleeper.task, file),
            file: self.describe_file(file).unwrap_or_else(|| file.to_string()),
        });
        let files = files.collect();
        Wait::new(Reason::Files { call, files, count })
    }

    /// `flock()` and `fcntl(F_SETLKW)`: the lock that is in the way, and whose it is.
    pub(super) fn file_lock(&self, sleeper: &Sleeper) -> Wait {
        let found = self.first_queue(sleeper).and_then(|queue| {
            // A part of its own since 6.9.
            let layout = self.layout()?;
            let (owner, prefix) = match layout.has_member("struct file_lock_core", "flc_wait") {
                true => ("struct file_lock_core", "flc_"),
                false => ("struct file_lock", "fl_"),
            };
            let offset = layout.member(owner, &format!("{prefix}wait")).ok()?.offset;
            Some((
                self.reader.object(owner, queue - offset),
                owner,
                prefix,
                queue,
            ))
        });
        let Some((lock, owner, prefix, queue)) = found else {
            return Wait::new(Reason::FileLock { file: None });
        };
        let file = lock.addr_value(&format!("{prefix}file")).ok();
        let file = file.and_then(|file| self.describe_file(file));
        let blocker = lock.addr_value(&format!("{prefix}blocker"));
        let blocker = blocker.ok().filter(|blocker| !blocker.is_null());
        let wakers = blocker.map(|blocker| {
            let blocker = self.reader.object(owner, blocker);
            self.lock_holders(&blocker, prefix)
        });
        let named = self.named(queue, "struct wait_queue_head");
        let wait = Wait::new(Reason::FileLock { file }).on(Some(named));
        wait.only(wakers.unwrap_or_default())
    }

    /// The tasks that hold a lock on a file: a POSIX lock belongs to a process's descriptors, an
    /// flock to everybody who has that open file.
    fn lock_holders(&self, lock: &Object<'_, M>, prefix: &str) -> Vec<Waker> {
        // FL_FLOCK of include/linux/filelock.h (linux/fs.h up to 6.2).
        const FLOCK: u64 = 2;
        let flock = lock.u64(&format!("{prefix}flags")).unwrap_or(0) & FLOCK != 0;
        let held = |path: &str| lock.addr_value(&format!("{prefix}{path}")).ok();
        let tasks = match flock {
            true => self.holders(held("file")),
            false => {
                let tasks = held("owner").and_then(|owner| self.links().by_files.get(&owner));
                let tasks = tasks.into_iter().flatten();
                tasks.filter_map(|task| self.task(*task)).collect()
            }
        };
        let owners = tasks.into_iter();
        owners
            .map(|task| Waker::new(task, Role::Owner, true))
            .collect()
    }
}
