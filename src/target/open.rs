//! Finding what is looked at: a running guest, or a core file and the binary that fits it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{anyhow, bail};
use kscope_guest::cache::Cache;
use kscope_guest::locate::locate;
use kscope_guest::registry::{Registry, RegistryError};
use kscope_guest::remote::Connection;
use kscope_kernel::{Core, Image, ImageError, Kernel};

use super::{Source, ViewArgs};
use crate::exit::{self, Coded};

/// A kernel whose memory can be read.
pub struct Target {
    /// The kernel.
    pub kernel: Kernel<Source>,
    pub(super) subject: Subject,
}

/// What the kernel's memory belongs to.
pub(super) enum Subject {
    /// A running guest.
    Guest {
        name: String,
        connection: RefCell<Connection>,
        /// It is to stand still while it is read.
        stop: bool,
    },
    /// A core file.
    Core(Core),
}

/// A running guest, and the binary of its kernel.
pub struct RunningGuest {
    /// Its name.
    pub name: String,
    /// To its supervisor.
    pub connection: Connection,
    /// Its kernel.
    pub image: Image,
}

impl RunningGuest {
    /// Finds the guest of this name, or the only one.
    ///
    /// # Errors
    ///
    /// When there is no such guest, or its kernel's binary is gone or another one.
    pub fn open(guest: Option<&str>) -> anyhow::Result<RunningGuest> {
        let entry = Registry::open()?.find(guest)?;
        let name = entry.record.name.clone();
        let connection = Connection::to(&entry)?;
        let path = &entry.record.kernel;
        let image = open_image(path)?;
        if image.build_id() != entry.record.build_id {
            bail!(
                "`{}` was built anew since guest {name} was started: its types may be others. \
                 Start the guest again",
                path.display(),
            );
        }
        Ok(RunningGuest {
            name,
            connection,
            image,
        })
    }
}

impl ViewArgs {
    /// Opens what is looked at: the core, the guest of this name, or the only guest.
    ///
    /// # Errors
    ///
    /// When there is no such guest or core, its kernel's binary is gone or another one, or both a
    /// guest and a core are named.
    pub fn open(&self, guest: Option<&str>) -> anyhow::Result<Target> {
        match (&self.core, guest) {
            (Some(core), None) => self.open_core(core),
            (None, guest) => self.open_guest(guest),
            (Some(core), Some(guest)) => Err(Coded {
                code: exit::USAGE,
                error: anyhow!(
                    "which is to be read, the guest {guest} or the core {}? Name one of them",
                    core.display()
                ),
            }
            .into()),
        }
    }

    fn open_guest(&self, guest: Option<&str>) -> anyhow::Result<Target> {
        let mut running = RunningGuest::open(guest)?;
        let memory: Source = Arc::new(running.connection.memory()?);
        Ok(Target {
            kernel: Kernel::new(running.image, memory)?,
            subject: Subject::Guest {
                name: running.name,
                connection: RefCell::new(running.connection),
                stop: self.stop,
            },
        })
    }

    fn open_core(&self, path: &Path) -> anyhow::Result<Target> {
        let core = Core::open(path)?;
        let image = match &self.kernel {
            Some(kernel) => open_image(kernel)?,
            None => find_image(&core)?,
        };
        let core = core.with_image(&image)?;
        let memory: Source = Arc::new(core.clone());
        Ok(Target {
            kernel: Kernel::new(image, memory)?,
            subject: Subject::Core(core),
        })
    }
}

/// The binary of a kernel, for verbs that need no memory: the named one, that of a core or of a
/// guest; of none of them that of the only guest, else the one that would be booted.
///
/// # Errors
///
/// When it cannot be found or opened, or was built anew since the guest was started.
pub fn open_binary(
    kernel: Option<&Path>,
    core: Option<&Path>,
    guest: Option<&str>,
) -> anyhow::Result<Image> {
    match (kernel, core) {
        (Some(kernel), _) => return Ok(open_image(kernel)?),
        (None, Some(core)) => return find_image(&Core::open(core)?),
        (None, None) => {}
    }
    match (Registry::open()?.find(guest), guest) {
        (Ok(entry), _) => {
            let image = open_image(&entry.record.kernel)?;
            if image.build_id() != entry.record.build_id {
                bail!(
                    "`{}` was built anew since guest {} was started: its types may be others. \
                     Start the guest again, or name the kernel with -k",
                    entry.record.kernel.display(),
                    entry.record.name,
                );
            }
            Ok(image)
        }
        (Err(RegistryError::Ambiguous { names }), None) if names.is_empty() => {
            Ok(open_image(&locate(None, &[])?.path)?)
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Opens a kernel's binary, of which is kept what is found out about it.
///
/// # Errors
///
/// As [`Image::open`].
pub(crate) fn open_image(path: &Path) -> Result<Image, ImageError> {
    match Cache::open() {
        Ok(cache) => Image::open_with_cache(path, &cache.facts_dir()),
        // Without a home, slowly.
        Err(_) => Image::open(path),
    }
}

/// The binary of a core's kernel: where it was when the core was taken, or where kernels are
/// looked for.
fn find_image(core: &Core) -> anyhow::Result<Image> {
    let usual = locate(None, &[]).ok().map(|located| located.path);
    let Some(wanted) = core.build_id() else {
        let Some(path) = core.kernel_path_hint().map(Path::to_owned).or(usual) else {
            bail!(
                "the core file `{}` does not tell which kernel it is of: name its `linux` file \
                 with -k",
                core.path().display()
            );
        };
        return Ok(open_image(&path)?);
    };
    let mut looked: Vec<PathBuf> = Vec::new();
    let cached = Cache::open()
        .map(|cache| cache.entries().unwrap_or_default())
        .unwrap_or_default();
    let candidates = core
        .kernel_path_hint()
        .map(Path::to_owned)
        .into_iter()
        .chain(usual)
        .chain(cached.into_iter().map(|entry| entry.linux));
    for path in candidates {
        if looked.contains(&path) {
            continue;
        }
        // What is no kernel is not it.
        if let Ok(image) = open_image(&path)
            && image.build_id().as_deref() == Some(wanted)
        {
            return Ok(image);
        }
        looked.push(path);
    }
    let looked: Vec<_> = looked.iter().map(|p| p.display().to_string()).collect();
    bail!(
        "the kernel of the core file `{}` (build-id {wanted}) is not to be found{}: name its \
         `linux` file with -k",
        core.path().display(),
        match &looked[..] {
            [] => String::new(),
            looked => format!("; it is not {}", looked.join(", nor ")),
        }
    )
}
