//! Views: what a guest's kernel holds, as facts to print or to compute with.
//!
//! A view is a method of [`Reader`](crate::Reader). Its result is data that serialises (the JSON of
//! the verb of that name) and displays (what people read).

pub mod config;
pub mod device;
pub mod files;
pub mod maps;
pub mod modules;
pub mod mounts;
pub mod path;
pub mod print;
pub mod ps;
pub mod slab;
pub mod why;
