//! Turns raw samples of a guest into stacks with task, CPU and time.
