//! Reads gcov arc counters from a guest's memory and solves them to lines, functions and branches.
//!
//! [`map::CounterMap`] finds the counters in memory and reads them into
//! [`counters::Counters`]; [`report::Coverage`] solves those against the
//! `.gcno` files of a [`tree::BuildTree`]; [`summary`] and [`lcov`] write it
//! down. Nothing runs in the guest for it, and the guest need not end.

mod cached;
pub mod counters;
mod cycles;
pub mod export;
pub mod gcda;
pub mod gcno;
pub mod lcov;
pub mod map;
pub mod object;
pub mod report;
mod solve;
pub mod summary;
pub mod tree;
