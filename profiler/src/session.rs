//! One recording of a guest, from the first sample to the finished profile.

use std::path::PathBuf;

use kscope_guest::remote::{
    Connection, RemoteError, SampleCounts, SampleMessage, SampleRequest, SampleStopper,
};
use kscope_kernel::{Image, ImageError, Memory, MemoryExt, UnwinderError};

use crate::profile::{GuestInfo, Profile};
use crate::recorder::{Recorder, Tally};

/// Why a guest cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Its supervisor refuses or is gone.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Its kernel's binary cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its kernel's stacks cannot be unwound.
    #[error(transparent)]
    Unwinder(#[from] UnwinderError),
    /// The file has changed since the guest booted.
    #[error(
        "{kernel} is not the kernel that the guest runs (build-id {found}, the guest's is {running}): it was rebuilt; boot the guest again"
    )]
    Rebuilt {
        /// The binary.
        kernel: PathBuf,
        /// Its build-id.
        found: String,
        /// The guest's.
        running: String,
    },
}

/// News of a recording that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// From now on the guest is sampled.
    Started,
    /// Counts so far, some times a second.
    Counts {
        /// What the recorder has.
        tally: Tally,
        /// What the sampler says.
        counts: SampleCounts,
    },
}

/// A recording about to be made.
#[derive(Debug)]
pub struct Recording {
    connection: Connection,
    recorder: Recorder,
    guest: GuestInfo,
}

impl Recording {
    /// Makes everything ready, so that the first sample can be taken at once. `command` is what is recorded, empty for
    /// the guest as a whole.
    ///
    /// # Errors
    ///
    /// The guest is gone, or its kernel's binary is not what it was.
    pub fn prepare(mut connection: Connection, command: Vec<String>) -> Result<Self, RecordError> {
        let description = connection.describe()?;
        let image = Image::open(&description.kernel)?;
        if let (Some(running), Some(found)) = (&description.build_id, image.build_id())
            && *running != found
        {
            return Err(RecordError::Rebuilt {
                kernel: description.kernel,
                found: found.to_string(),
                running: running.clone(),
            });
        }
        let memory = connection.memory()?;
        let recorder = Recorder::new(&image, &connection.maps()?, &memory)?;
        Ok(Self {
            guest: GuestInfo {
                name: description.name,
                release: release(&image, &memory),
                kernel: description.kernel,
                build_id: description.build_id,
                command,
            },
            connection,
            recorder,
        })
    }

    /// The guest.
    pub fn guest(&self) -> &GuestInfo {
        &self.guest
    }

    /// What ends the recording from another thread.
    pub fn stopper(&self) -> SampleStopper {
        self.connection.sample_stopper()
    }

    /// Records until the time is up, the stopper is used or the guest ends.
    ///
    /// # Errors
    ///
    /// The guest cannot be sampled. That it ends is no error.
    pub fn run(
        mut self,
        request: SampleRequest,
        mut progress: impl FnMut(Progress),
    ) -> Result<Profile, RecordError> {
        let recorder = &mut self.recorder;
        let summary = self.connection.sample(request, |message| match message {
            SampleMessage::Started => progress(Progress::Started),
            SampleMessage::Sample(sample) => recorder.add(&sample),
            SampleMessage::Progress(counts) => progress(Progress::Counts {
                tally: recorder.tally(),
                counts,
            }),
            SampleMessage::Done { .. } => {}
        })?;
        Ok(self.recorder.finish(self.guest, request.hz, &summary))
    }
}

/// `6.12.30` of the banner `Linux version 6.12.30 (user@host) …`.
fn release(image: &Image, memory: &impl Memory) -> Option<String> {
    let banner = memory.read_cstr(image.symbol("linux_banner")?, 256).ok()?;
    let release = banner.strip_prefix("Linux version ")?.split(' ').next()?;
    Some(release.to_owned())
}
