//! What is mounted where, as /proc/PID/mounts and mountinfo list it.

mod options;

use std::fmt;

use serde::Serialize;

use crate::addr::{GuestPid, KernelAddr};
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};
use crate::table::Table;
use crate::views::device::Device;
use crate::views::path::{Paths, Place, Reach};

/// What a task sees mounted, in the order in which it was mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Mounts(pub Vec<Mount>);

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Its number, as open files tell it.
    pub id: i64,
    /// The number of the mount that it is mounted on.
    pub parent: i64,
    /// The device, or the name that was given in place of one.
    pub source: String,
    /// Where it is mounted, from the root of the task.
    pub target: String,
    /// The file system's type.
    pub fstype: String,
    /// How it is mounted, as in /proc/PID/mounts: `rw` or `ro` first, the file system's own last.
    pub options: Vec<String>,
    /// Whether `options` are all. Not for file systems whose own options kscope does not know.
    pub complete: bool,
    /// The directory of the file system that is mounted: `/`, or another of a bind mount.
    pub root: String,
    /// The device of the file system.
    pub device: Device,
    /// The address of its `struct mount`.
    pub addr: KernelAddr,
}

/// Flags of mounts, in the order in which they are shown: include/linux/mount.h. Macros before
/// 6.17, the same in all versions.
const MOUNT_FLAGS: [(u64, &str); 7] = [
    (0x01, "nosuid"),
    (0x02, "nodev"),
    (0x04, "noexec"),
    (0x08, "noatime"),
    (0x10, "nodiratime"),
    (0x20, "relatime"),
    (0x80, "nosymfollow"),
];

const MOUNT_READONLY: u64 = 0x40;

/// `MNT_CURSOR`: not a mount, but where somebody stands who reads the list. Before 6.8.
const MOUNT_CURSOR: u64 = 0x1000_0000;

/// Flags of file systems, in the order in which they are shown: include/linux/fs.h. Macros, the
/// same in all versions.
const SUPER_FLAGS: [(u64, &str); 4] = [
    (1 << 4, "sync"),
    (1 << 7, "dirsync"),
    (1 << 6, "mand"),
    (1 << 25, "lazytime"),
];

const SUPER_READONLY: u64 = 1;

impl<M: Memory> Reader<'_, M> {
    /// What the task with this pid sees mounted; without one, what the first process does.
    ///
    /// # Errors
    ///
    /// When there is no such task, it has ended, or this kernel's types are not known.
    pub fn mounts(&self, pid: Option<GuestPid>) -> Result<Mounts, ViewError> {
        let task = match pid {
            Some(pid) => self.find_task(pid)?.1,
            // Early, there is only the task that the kernel has booted with.
            None => match self.find_task(GuestPid(1)) {
                Ok((_, init)) => init,
                Err(ViewError::NoTask { .. }) => self.find_task(GuestPid(0))?.1,
                Err(error) => return Err(error),
            },
        };
        let namespaces = task.follow("nsproxy")?.ok_or_else(|| {
            let pid = pid.unwrap_or_default();
            ViewError::Invalid(format!("task {pid} has ended: it sees no mounts"))
        })?;
        let paths = self.paths_of(&task)?;
        let mut mounts = Vec::new();
        // Before `mnt_init()`, there is nothing.
        if let Some(namespace) = namespaces.follow("mnt_ns")? {
            for mount in self.mounts_in(&namespace)? {
                let mount = self.mount(&mount.fetched(), &paths);
                mounts.extend(self.or_warn(mount).flatten());
            }
        }
        Ok(Mounts(mounts))
    }

    /// The mounts of a `struct mnt_namespace`: a list before 6.8, a tree since.
    fn mounts_in(&self, namespace: &Object<'_, M>) -> Result<Vec<Object<'_, M>>, ViewError> {
        if self.has_tree()? {
            let root = namespace.addr_of("mounts")?;
            let tree = self.tree(root, "struct mount", "mnt_node", "mounts")?;
            return Ok(tree.collect());
        }
        let head = namespace.addr_of("list")?;
        let list = self.list(head, "struct mount", "mnt_list", "mounts")?;
        Ok(list.collect())
    }

    /// `None` for what is no mount, or outside the task's root.
    fn mount(
        &self,
        mount: &Object<'_, M>,
        paths: &Paths<'_, M>,
    ) -> Result<Option<Mount>, ViewError> {
        let flags = mount.u64("mnt.mnt_flags")?;
        if flags & MOUNT_CURSOR != 0 && !self.has_tree()? {
            return Ok(None);
        }
        let directory = mount.pointer("mnt.mnt_root")?;
        let place = Place {
            mount: mount.addr_of("mnt")?,
            dentry: directory,
        };
        let (target, reach) = paths.walk(place)?;
        if reach != Reach::Inside {
            return Ok(None);
        }
        let super_block = mount.deref("mnt.mnt_sb")?.fetched();
        let super_flags = super_block.u64("s_flags")?;
        let readonly = flags & MOUNT_READONLY != 0 || super_flags & SUPER_READONLY != 0;
        let mut options = vec![if readonly { "ro" } else { "rw" }.to_owned()];
        options.extend(set(super_flags, &SUPER_FLAGS));
        options.extend(set(flags, &MOUNT_FLAGS));
        if self.is_idmapped(mount, &super_block)? {
            options.push("idmapped".to_owned());
        }
        let own = self.own_options(&super_block)?;
        let complete = own.is_some();
        options.extend(own.unwrap_or_default());
        let mut fstype = super_block.deref("s_type")?.text("name")?;
        let subtype = super_block.text("s_subtype")?;
        if !subtype.is_empty() {
            fstype = format!("{fstype}.{subtype}");
        }
        let source = match mount.pointer("mnt_devname")?.is_null() {
            true => "none".to_owned(),
            false => mount.text("mnt_devname")?,
        };
        Ok(Some(Mount {
            id: mount.i64("mnt_id")?,
            parent: mount.deref("mnt_parent")?.i64("mnt_id")?,
            source,
            target,
            fstype,
            options,
            complete,
            root: paths.within(directory)?,
            device: Device::from_bits(super_block.u64("s_dev")?),
            addr: mount.addr(),
        }))
    }

    fn has_tree(&self) -> Result<bool, ViewError> {
        let layout = self.kernel().image().layout()?;
        // `mounts` of the namespace is a number before.
        Ok(layout.has_member("struct mount", "mnt_node"))
    }

    /// `is_idmapped_mnt()`.
    fn is_idmapped(
        &self,
        mount: &Object<'_, M>,
        super_block: &Object<'_, M>,
    ) -> Result<bool, ViewError> {
        if mount.has("mnt.mnt_idmap") {
            let none = self.kernel().image().symbol("nop_mnt_idmap");
            return Ok(Some(mount.addr_value("mnt.mnt_idmap")?) != none);
        }
        Ok(mount.addr_value("mnt.mnt_userns")? != super_block.addr_value("s_user_ns")?)
    }
}

/// The names of the flags that are set.
fn set(flags: u64, names: &[(u64, &str)]) -> impl Iterator<Item = String> {
    let set = names.iter().filter(move |(bit, _)| flags & bit != 0);
    set.map(|(_, name)| (*name).to_owned())
}

impl fmt::Display for Mounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["SOURCE", "TARGET", "TYPE", "OPTIONS"]);
        for mount in &self.0 {
            let more = if mount.complete { "" } else { ",..." };
            table.row([
                mount.source.clone(),
                mount.target.clone(),
                mount.fstype.clone(),
                format!("{}{more}", mount.options.join(",")),
            ]);
        }
        table.fmt(f)
    }
}
