//! Tests on a stand-in for a kernel: a small program with the types and lists of one, which the
//! system's compiler makes in the layouts of three versions. Real kernels are in `real_kernel.rs`.

mod common;
mod exprs;
mod images;
mod maple;
mod paging;
mod stacks;
mod tasks;
mod values;
