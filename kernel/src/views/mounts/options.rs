//! The options that file systems keep for themselves. Each knows how to print them, in C; here are
//! those that a guest usually has.

use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

/// More layers than overlay has (OVL_MAX_STACK).
const MAX_LAYERS: u64 = 512;

/// The mode of a tmpfs that is not given one.
const TMPFS_MODE: u64 = 0o1777;

/// NR_UNIX98_PTY_MAX of include/linux/devpts_fs.h: as many terminals as there can be.
const MAX_TERMINALS: u64 = 1 << 20;

/// An option, its value and its default: shown when they differ.
struct Switch {
    option: &'static str,
    member: &'static str,
    /// The module's parameter that has the default.
    default: &'static str,
}

const OVERLAY_SWITCHES: [Switch; 3] = [
    Switch {
        option: "index",
        member: "config.index",
        default: "ovl_index_def",
    },
    Switch {
        option: "nfs_export",
        member: "config.nfs_export",
        default: "ovl_nfs_export_def",
    },
    Switch {
        option: "metacopy",
        member: "config.metacopy",
        default: "ovl_metacopy_def",
    },
];

impl<M: Memory> Reader<'_, M> {
    /// The options of a file system's own, as its `show_options` prints them; `None` when it is
    /// one that is not known here.
    pub(super) fn own_options(
        &self,
        super_block: &Object<'_, M>,
    ) -> Result<Option<Vec<String>>, ViewError> {
        let function = super_block.deref("s_op")?.addr_value("show_options")?;
        if function.is_null() {
            return Ok(Some(Vec::new()));
        }
        let symbol = self.kernel().image().symbol_at(function);
        let symbol = symbol.map_or("", |(symbol, _)| symbol);
        // What `s_fs_info` points to, with its type.
        let info = |owner| -> Result<Object<'_, M>, ViewError> {
            Ok(self.object(owner, super_block.pointer("s_fs_info")?))
        };
        Ok(Some(match symbol {
            "ovl_show_options" => self.overlay(&info("struct ovl_fs")?)?,
            "hostfs_show_options" => self.hostfs(super_block)?,
            "shmem_show_options" => self.tmpfs(&info("struct shmem_sb_info")?)?,
            "proc_show_options" => proc(&info("struct proc_fs_info")?)?,
            "devpts_show_options" => devpts(&info("struct pts_fs_info")?)?,
            "debugfs_show_options" => owner_and_mode(&info("struct debugfs_fs_info")?, 0o700)?,
            "tracefs_show_options" => owner_and_mode(&info("struct tracefs_fs_info")?, 0o700)?,
            "ramfs_show_options" => {
                let mode = info("struct ramfs_fs_info")?.u64("mount_opts.mode")?;
                let mode = (mode != 0o755).then(|| format!("mode={mode:o}"));
                mode.into_iter().collect()
            }
            // What it shows is for cgroups; sysfs has none.
            "kernfs_sop_show_options" if super_block.deref("s_type")?.text("name")? == "sysfs" => {
                Vec::new()
            }
            _ => return Ok(None),
        }))
    }

    fn overlay(&self, fs: &Object<'_, M>) -> Result<Vec<String>, ViewError> {
        let mut options = Vec::new();
        self.overlay_layers(fs, &mut options)?;
        for (option, member) in [
            ("upperdir", "config.upperdir"),
            ("workdir", "config.workdir"),
        ] {
            // Both or none.
            if !fs.pointer("config.upperdir")?.is_null() {
                options.push(format!("{option}={}", fs.text(member)?));
            }
        }
        if fs.bool("config.default_permissions")? {
            options.push("default_permissions".to_owned());
        }
        let on_off = |on| if on { "on" } else { "off" };
        let global = |name| self.global(name)?.bool("");
        // A mode has a string in 6.1, and later an index into a table of names.
        let named = |member: &str, table: &str| -> Result<String, ViewError> {
            let value = fs.u64(member)?;
            self.global(table)?.text(&format!("[{value}].name"))
        };
        let (redirect, default) = if fs.has("config.redirect_dir") {
            let default = on_off(global("ovl_redirect_dir_def")?);
            (fs.text("config.redirect_mode")?, default)
        } else {
            let default = match global("ovl_redirect_dir_def")? {
                true => "on",
                false if global("ovl_redirect_always_follow")? => "follow",
                false => "nofollow",
            };
            let mode = named("config.redirect_mode", "ovl_parameter_redirect_dir")?;
            (mode, default)
        };
        if redirect != default {
            options.push(format!("redirect_dir={redirect}"));
        }
        let switch = |switch: &Switch| -> Result<Option<String>, ViewError> {
            let on = fs.bool(switch.member)?;
            let differs = on != global(switch.default)?;
            Ok(differs.then(|| format!("{}={}", switch.option, on_off(on))))
        };
        let [index, nfs_export, metacopy] = OVERLAY_SWITCHES.each_ref().map(switch);
        options.extend(index?);
        let has_uuids = self.global("ovl_parameter_uuid").is_ok();
        let uuid = match has_uuids {
            true => named("config.uuid", "ovl_parameter_uuid")?,
            false => on_off(fs.bool("config.uuid")?).to_owned(),
        };
        if uuid != if has_uuids { "auto" } else { "on" } {
            options.push(format!("uuid={uuid}"));
        }
        options.extend(nfs_export?);
        let xino = match self.global("ovl_parameter_xino") {
            Ok(_) => named("config.xino", "ovl_parameter_xino")?,
            Err(_) => {
                let value = fs.u64("config.xino")?;
                self.global("ovl_xino_str")?.text(&format!("[{value}]"))?
            }
        };
        let default = match global("ovl_xino_auto_def")? {
            true => "auto",
            false => "off",
        };
        // In one file system, inode numbers are simply taken over.
        if xino != default && fs.i64("xino_mode")? != 0 {
            options.push(format!("xino={xino}"));
        }
        options.extend(metacopy?);
        for member in ["config.ovl_volatile", "config.volatile"] {
            if fs.has(member) && fs.bool(member)? {
                options.push("volatile".to_owned());
            }
        }
        if fs.has("config.fsync_mode") {
            let mode = named("config.fsync_mode", "ovl_parameter_fsync")?;
            if mode != "auto" {
                options.push(format!("fsync={mode}"));
            }
        }
        if fs.bool("config.userxattr")? {
            options.push("userxattr".to_owned());
        }
        if fs.has("config.verity_mode") {
            let mode = named("config.verity_mode", "ovl_parameter_verity")?;
            if mode != "off" {
                options.push(format!("verity={mode}"));
            }
        }
        Ok(options)
    }

    /// The lower layers of an overlay.
    fn overlay_layers(
        &self,
        fs: &Object<'_, M>,
        options: &mut Vec<String>,
    ) -> Result<(), ViewError> {
        // One string before 6.5. Since, an array, whose first has all that were given as one
        // string; from 6.7 on, the others have those that were given one by one.
        if fs.has("config.lowerdir") {
            options.push(format!("lowerdir={}", fs.text("config.lowerdir")?));
            return Ok(());
        }
        let array = fs.pointer("config.lowerdirs")?;
        let layer = |at: u64| -> Result<Option<String>, ViewError> {
            let text = self.pointer(array + at * 8, "name of a layer")?;
            if text.is_null() {
                return Ok(None);
            }
            self.text_at(text).map(Some)
        };
        if let Some(all) = layer(0)? {
            options.push(format!("lowerdir={all}"));
            return Ok(());
        }
        let count = fs.u64("numlayer")?.min(MAX_LAYERS);
        let merged = count.saturating_sub(fs.u64("numdatalayer")?);
        for at in 1..count {
            let option = if at < merged { "lowerdir+" } else { "datadir+" };
            options.push(format!("{option}={}", layer(at)?.unwrap_or_default()));
        }
        Ok(())
    }

    /// The directory of the host, from the one that the kernel's parameter `hostfs=` names (where
    /// that also sets `append`, it is not told).
    fn hostfs(&self, super_block: &Object<'_, M>) -> Result<Vec<String>, ViewError> {
        let mut info = super_block.pointer("s_fs_info")?;
        let layout = self.kernel().image().layout()?;
        if layout.has_member("struct hostfs_fs_info", "host_root_path") {
            let object = self.object("struct hostfs_fs_info", info);
            info = object.pointer("host_root_path")?;
        }
        let path = self.text_at(info)?;
        let above = self.global("root_ino")?.text("")?;
        // `root_ino` and a slash come first.
        let below = path.get(above.len().saturating_add(1)..).unwrap_or("");
        Ok(match below {
            "" => Vec::new(),
            below => vec![below.to_owned()],
        })
    }

    fn tmpfs(&self, fs: &Object<'_, M>) -> Result<Vec<String>, ViewError> {
        let mut options = Vec::new();
        // Half of the memory is the default.
        let default = self.global("_totalram_pages")?.u64("")? / 2;
        let blocks = fs.u64("max_blocks")?;
        if blocks != default {
            let kib = blocks.saturating_mul(self.kernel().page_size() / 1024);
            options.push(format!("size={kib}k"));
        }
        let inodes = fs.u64("max_inodes")?;
        if inodes != default {
            options.push(format!("nr_inodes={inodes}"));
        }
        let mode = fs.u64("mode")?;
        if mode != TMPFS_MODE {
            options.push(format!("mode={mode:03o}"));
        }
        options.extend(owner(fs)?);
        // Where 64 bits are the default (CONFIG_TMPFS_INODE64), 32 would be shown, too.
        if fs.bool("full_inums")? {
            options.push("inode64".to_owned());
        }
        if fs.has("noswap") && fs.bool("noswap")? {
            options.push("noswap".to_owned());
        }
        Ok(options)
    }
}

fn proc<M: Memory>(fs: &Object<'_, M>) -> Result<Vec<String>, ViewError> {
    let mut options = Vec::new();
    let gid = fs.u64("pid_gid")?;
    if gid != 0 {
        options.push(format!("gid={gid}"));
    }
    // `enum proc_hidepid`, which mount(8) knows by these names and numbers.
    let hidden = match fs.u64("hide_pid")? {
        0 => None,
        1 => Some("noaccess"),
        2 => Some("invisible"),
        4 => Some("ptraceable"),
        _ => Some("unknown"),
    };
    options.extend(hidden.map(|mode| format!("hidepid={mode}")));
    if fs.bool("pidonly")? {
        options.push("subset=pid".to_owned());
    }
    Ok(options)
}

fn devpts<M: Memory>(fs: &Object<'_, M>) -> Result<Vec<String>, ViewError> {
    let own = fs.member("mount_opts")?;
    let mut options = Vec::new();
    if own.bool("setuid")? {
        options.push(format!("uid={}", own.u64("uid")?));
    }
    if own.bool("setgid")? {
        options.push(format!("gid={}", own.u64("gid")?));
    }
    options.push(format!("mode={:03o}", own.u64("mode")?));
    options.push(format!("ptmxmode={:03o}", own.u64("ptmxmode")?));
    let max = own.u64("max")?;
    if max < MAX_TERMINALS {
        options.push(format!("max={max}"));
    }
    Ok(options)
}

/// `uid=`, `gid=` and `mode=` where they are not the default.
fn owner_and_mode<M: Memory>(fs: &Object<'_, M>, mode: u64) -> Result<Vec<String>, ViewError> {
    // In a struct of their own before 6.10.
    let own = match fs.has("mount_opts") {
        true => fs.member("mount_opts")?,
        false => fs.clone(),
    };
    let mut options = owner(&own)?;
    let has = own.u64("mode")?;
    if has != mode {
        options.push(format!("mode={has:o}"));
    }
    Ok(options)
}

fn owner<M: Memory>(fs: &Object<'_, M>) -> Result<Vec<String>, ViewError> {
    let mut options = Vec::new();
    for option in ["uid", "gid"] {
        let id = fs.u64(option)?;
        if id != 0 {
            options.push(format!("{option}={id}"));
        }
    }
    Ok(options)
}
