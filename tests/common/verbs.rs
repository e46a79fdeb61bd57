//! Every verb that looks at a guest, as tests that go through all of them call it. A new verb is
//! added here, and to the golden tests with it.

/// A verb and its options, without the guest.
pub const VIEWS: &[&[&str]] = &[
    &["config"],
    &["files", "1"],
    &["lsmod"],
    &["maps", "1"],
    &["mounts"],
    &["net"],
    &["print", "init_task.comm"],
    &["ps"],
    &["ps", "--threads"],
    &["ps", "--tree"],
    &["why", "--all"],
];
