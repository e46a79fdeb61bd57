//! Reads gcov arc counters from a guest's memory and solves them to lines, functions and branches.

pub mod counters;
mod cycles;
pub mod gcda;
pub mod gcno;
pub mod map;
pub mod object;
mod solve;
