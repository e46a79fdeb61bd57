//! Paths: where an open or mapped file is, as a process sees it; fs/d_path.c.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use crate::addr::KernelAddr;
use crate::kernel::Corruption;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError, unreadable};

/// Names and mounts on the way from a file to the root. Twice PATH_MAX: every name takes two
/// bytes, and mounts come in between.
const MAX_STEPS: usize = 8192;

/// Bytes of the longest name. NAME_MAX is 255, but the kernel's own (of `memfd_create(2)`, say) go
/// a little beyond.
const MAX_NAME: u64 = 4096;

/// A place in the tree of mounts and directories, `struct path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The `struct vfsmount`.
    pub mount: KernelAddr,
    /// The `struct dentry`.
    pub dentry: KernelAddr,
}

/// The path of a file, as /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FilePath {
    /// From the root of the process; what has no place there has a name such as `socket:[7]`.
    pub path: String,
    /// Whether the path leads there no longer: the file was removed, or never had a name.
    pub deleted: bool,
    /// How the path relates to the root.
    #[serde(skip)]
    pub reach: Reach,
}

/// Where a walk from a file towards the root has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// At the root.
    Inside,
    /// At the root of the mount namespace: the file is outside the process's root.
    Outside,
    /// At a mount that is in no namespace: the kernel's own, or unmounted.
    Detached,
    /// At a directory above which is nothing: moved out of what is mounted.
    Escaped,
}

/// As in /proc/PID/maps: with ` (deleted)` behind it.
impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        match self.deleted {
            true => f.write_str(" (deleted)"),
            false => Ok(()),
        }
    }
}

/// Turns files into paths, below one root. Directories and mounts that were seen are remembered.
pub struct Paths<'r, M> {
    reader: &'r Reader<'r, M>,
    root: Option<Place>,
    known: RefCell<HashMap<Place, FilePath>>,
}

impl<M: Memory> Reader<'_, M> {
    /// Paths below the root of the task whose `task_struct` is `task`, as the task itself would
    /// see them. Of a task that has ended, from the root of the mount namespace.
    ///
    /// # Errors
    ///
    /// When the task cannot be read.
    pub fn paths_of(&self, task: &Object<'_, M>) -> Result<Paths<'_, M>, ViewError> {
        let root = match task.follow("fs")? {
            Some(fs) => Some(Place::read(&fs.member("root")?)?),
            None => None,
        };
        Ok(self.paths(root))
    }

    /// Paths below a root; without one, from the root of the mount namespace.
    pub fn paths(&self, root: Option<Place>) -> Paths<'_, M> {
        Paths {
            reader: self,
            root,
            known: RefCell::default(),
        }
    }
}

impl Place {
    /// Reads a `struct path`.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read<M: Memory>(path: &Object<'_, M>) -> Result<Place, ViewError> {
        Ok(Place {
            mount: path.pointer("mnt")?,
            dentry: path.pointer("dentry")?,
        })
    }
}

impl<'r, M: Memory> Paths<'r, M> {
    /// The path of a `struct file`: the one that was opened, also where a file system (overlay)
    /// maps another file in its place.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn file(&self, file: &Object<'_, M>) -> Result<FilePath, ViewError> {
        self.path(self.opened(file)?)
    }

    /// What was opened as a `struct file`: `file_user_path()`.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn opened(&self, file: &Object<'_, M>) -> Result<Place, ViewError> {
        let place = Place::read(&file.member("f_path")?)?;
        // From 6.8, overlay maps a file of the layer that has it, opened through a mount of its
        // own; around that file is what the user opened. FMODE_BACKING says so, but is another bit
        // in every few releases. The mount tells as well: it is in no namespace, as the kernel's
        // own mounts are, but those are marked.
        let layout = self.reader.kernel().image().layout()?;
        if !layout.has_member("struct backing_file", "user_path") {
            return Ok(place);
        }
        let mount = self.mount(place.mount)?;
        if !is_error(mount.addr_value("mnt_ns")?) || mount.u64("mnt.mnt_flags")? & MNT_INTERNAL != 0
        {
            return Ok(place);
        }
        let file = self.reader.object("struct file", file.addr());
        let backing = file.container("struct backing_file", "file")?;
        Place::read(&backing.member("user_path")?)
    }

    /// The path to a place.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn path(&self, place: Place) -> Result<FilePath, ViewError> {
        if let Some(path) = self.known.borrow().get(&place) {
            return Ok(path.clone());
        }
        let dentry = self.dentry(place.dentry);
        let path = match self.generated(&dentry, place)? {
            Some(path) => path,
            None => {
                let (path, reach) = self.walk(place)?;
                FilePath {
                    path,
                    deleted: is_unlinked(&dentry)?,
                    reach,
                }
            }
        };
        self.known.borrow_mut().insert(place, path.clone());
        Ok(path)
    }

    /// The path of a directory within its file system, from the root of that.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn within(&self, dentry: KernelAddr) -> Result<String, ViewError> {
        let mut names = Names::default();
        let mut dentry = self.dentry(dentry);
        while let Some(parent) = parent(&dentry)? {
            names.push(name(&dentry)?, dentry.addr())?;
            dentry = self.dentry(parent);
        }
        Ok(names.path())
    }

    /// Names that a file system makes up (`d_dname`), for files that were never in a directory.
    fn generated(
        &self,
        dentry: &Object<'_, M>,
        place: Place,
    ) -> Result<Option<FilePath>, ViewError> {
        let Some(operations) = dentry.follow("d_op")? else {
            return Ok(None);
        };
        let function = operations.addr_value("d_dname")?;
        if function.is_null() {
            return Ok(None);
        }
        // What is mounted has the path where it is mounted: a bind mount of a namespace.
        let mount = self.reader.object("struct vfsmount", place.mount);
        if parent(dentry)?.is_none() && mount.addr_value("mnt_root")? == place.dentry {
            return Ok(None);
        }
        let symbol = self.reader.kernel().image().symbol_at(function);
        let symbol = symbol.map_or("", |(symbol, _)| symbol);
        let numbered = |kind: &str| -> Result<String, ViewError> {
            Ok(format!("{kind}:[{}]", inode(dentry)?.u64("i_ino")?))
        };
        let (path, deleted) = match symbol {
            "pipefs_dname" => (numbered("pipe")?, false),
            "sockfs_dname" => (numbered("socket")?, false),
            "ns_dname" => (numbered(&self.namespace(dentry)?)?, false),
            "anon_inodefs_dname" => (format!("anon_inode:{}", name(dentry)?), false),
            "pidfs_dname" => ("anon_inode:[pidfd]".to_owned(), false),
            "failfs_dname" => ("failfs:/".to_owned(), false),
            // `simple_dname`: shared memory, memfd_create(2).
            _ => (format!("/{}", name(dentry)?), true),
        };
        Ok(Some(FilePath {
            path,
            deleted,
            reach: Reach::Detached,
        }))
    }

    /// The kind of a namespace by its file: `net`.
    fn namespace(&self, dentry: &Object<'_, M>) -> Result<String, ViewError> {
        let common = inode(dentry)?.pointer("i_private")?;
        let common = self.reader.object("struct ns_common", common);
        common.deref("ops")?.text("name")
    }

    /// Walks from a place to the root: `prepend_path()`.
    pub(super) fn walk(&self, place: Place) -> Result<(String, Reach), ViewError> {
        let mut names = Names::default();
        let mut mount = self.mount(place.mount)?;
        let mut dentry = self.dentry(place.dentry);
        loop {
            let at = Place {
                mount: mount.addr_of("mnt")?,
                dentry: dentry.addr(),
            };
            if Some(at) == self.root {
                return Ok((names.path(), Reach::Inside));
            }
            if dentry.addr() == mount.pointer("mnt.mnt_root")? {
                let above = mount.pointer("mnt_parent")?;
                if above == mount.addr() {
                    let namespace = mount.pointer("mnt_ns")?;
                    let reach = match namespace.is_null() || is_error(namespace) {
                        true => Reach::Detached,
                        false if self.root.is_none() => Reach::Inside,
                        false => Reach::Outside,
                    };
                    return Ok((names.path(), reach));
                }
                names.step(dentry.addr())?;
                dentry = self.dentry(mount.pointer("mnt_mountpoint")?);
                mount = self.reader.object("struct mount", above);
                continue;
            }
            let Some(parent) = parent(&dentry)? else {
                // As the kernel has it: what was found on the way leads nowhere.
                return Ok(("/".to_owned(), Reach::Escaped));
            };
            names.push(name(&dentry)?, dentry.addr())?;
            dentry = self.dentry(parent);
        }
    }

    fn dentry(&self, addr: KernelAddr) -> Object<'r, M> {
        self.reader.object("struct dentry", addr).fetched()
    }

    /// `real_mount()`.
    fn mount(&self, vfsmount: KernelAddr) -> Result<Object<'r, M>, ViewError> {
        let vfsmount = self.reader.object("struct vfsmount", vfsmount);
        vfsmount.container("struct mount", "mnt")
    }
}

/// `MNT_INTERNAL` of include/linux/mount.h: a mount that the kernel made for itself. A macro before
/// 6.17, so not in the DWARF.
const MNT_INTERNAL: u64 = 0x4000;

/// `IS_ERR()`: the last page of the address space has no objects.
fn is_error(addr: KernelAddr) -> bool {
    const MAX_ERRNO: u64 = 4095;
    addr.get() > u64::MAX - MAX_ERRNO
}

/// The directory that a dentry is in; `None` for the root of a file system.
fn parent<M: Memory>(dentry: &Object<'_, M>) -> Result<Option<KernelAddr>, ViewError> {
    let parent = dentry.pointer("d_parent")?;
    Ok((parent != dentry.addr()).then_some(parent))
}

/// `d_unlinked()`: it is no root, and look-ups do not find it.
fn is_unlinked<M: Memory>(dentry: &Object<'_, M>) -> Result<bool, ViewError> {
    Ok(dentry.addr_value("d_hash.pprev")?.is_null() && parent(dentry)?.is_some())
}

fn inode<'r, M: Memory>(dentry: &Object<'r, M>) -> Result<Object<'r, M>, ViewError> {
    dentry.deref("d_inode")
}

/// The last part of a path.
fn name<M: Memory>(dentry: &Object<'_, M>) -> Result<String, ViewError> {
    let len = dentry.u64("d_name.len")?.min(MAX_NAME);
    let addr = dentry.pointer("d_name.name")?;
    let memory = dentry.reader().kernel();
    let bytes = memory.read_vec(addr, len as usize);
    let bytes = bytes.map_err(|source| unreadable("name of a file", source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The names on the way up, the last one of the path first.
#[derive(Default)]
struct Names {
    names: Vec<String>,
    steps: usize,
}

impl Names {
    fn push(&mut self, name: String, dentry: KernelAddr) -> Result<(), Corruption> {
        self.step(dentry)?;
        self.names.push(name);
        Ok(())
    }

    /// Counts, so that parents in a circle come to an end.
    fn step(&mut self, dentry: KernelAddr) -> Result<(), Corruption> {
        self.steps += 1;
        match self.steps <= MAX_STEPS {
            true => Ok(()),
            false => Err(Corruption::Cycle {
                what: "directory",
                addr: dentry,
            }),
        }
    }

    fn path(self) -> String {
        match self.names.is_empty() {
            true => "/".to_owned(),
            false => self
                .names
                .iter()
                .rev()
                .flat_map(|name| ["/", name])
                .collect(),
        }
    }
}
