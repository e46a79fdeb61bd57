//! Any file is a core, or is none: it is opened, read and unwound in time, in little memory,
//! without a panic.
//!
//! The first byte of an input says how the rest is stored: as it is, which may be a compressed
//! file, or as the content of a compressed file of one of the two kinds.

#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

use kscope_fuzz::limits::{Counting, in_time};
use kscope_kernel::{Core, FrameCompressor, FrameTable, Image, KernelAddr, Memory, Unwinder};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// With a kernel, the libraries in a core are looked at, too.
    static IMAGE: Option<Image> = std::env::var_os("KSCOPE_FUZZ_KERNEL")
        .map(|path| Image::open(Path::new(&path)).unwrap_or_else(|error| panic!("{error}")));
}

/// Content of a frame.
const FRAME: usize = 1000;

fn stored(kind: u8, content: &[u8]) -> Vec<u8> {
    match kind & 3 {
        1 => {
            let mut compressor = FrameCompressor::new().expect("zstd");
            let (mut file, mut table) = (Vec::new(), FrameTable::default());
            for part in content.chunks(FRAME) {
                let frame = compressor.frame(part).expect("it is compressed");
                table.push(frame.len(), part.len());
                file.extend(frame);
            }
            file.extend(table.to_bytes());
            file
        }
        2 => zstd::stream::encode_all(content, 1).expect("it is compressed"),
        _ => content.to_vec(),
    }
}

/// A file without a name.
fn file(bytes: &[u8]) -> File {
    // SAFETY: the name is a string, and the descriptor is nobody else's.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"core".as_ptr(), 0)) };
    file.write_all(bytes).expect("a file in memory");
    file
}

fn look(path: &Path) {
    let Ok(core) = Core::open(path) else {
        return;
    };
    let mut buf = vec![0; 70_000];
    for offset in [0, core.content_len() / 2, core.content_len()] {
        let _ = core.read_content(offset, &mut buf);
    }
    let _ = (core.guest(), core.taken_at(), core.panicked(), core.size());
    for (_, registers) in core.cpus().iter().take(16) {
        for addr in [registers.pc(), registers.sp()].into_iter().flatten() {
            let _ = core.read(KernelAddr(addr), &mut buf[..4096]);
        }
    }
    IMAGE.with(|image| {
        let Some(image) = image else {
            return;
        };
        let mut unwinder = Unwinder::new(image).expect("the kernel's own tables");
        let _ = unwinder.add_modules_from_core(&core);
        for (_, registers) in core.cpus().iter().take(16) {
            let trace = unwinder.unwind(registers, &core, &[]);
            for frame in &trace.frames {
                let _ = unwinder.foreign_function(frame.clone().lookup());
            }
        }
    });
}

fuzz_target!(|input: &[u8]| {
    let Some((&kind, content)) = input.split_first() else {
        return;
    };
    let file = file(&stored(kind, content));
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    in_time("the core", || look(Path::new(&path)));
});
