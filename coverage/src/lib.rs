//! Reads gcov arc counters from a guest's memory and solves them to lines, functions and branches.
