//! `--dump-on-panic`: the memory of a guest that panicked, kept before the guest is ended.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use kscope_guest::dump::{self, DumpError, Target};
use kscope_guest::guest::{Failure, Guest};
use kscope_guest::hostjob::Cancel;
use kscope_guest::progress::Silent;
use kscope_guest::registry::CONTROL_SOCKET;
use kscope_guest::remote::Connection;
use kscope_kernel::Image;

use crate::ui::tell;

/// Makes the directory: that it cannot be made is told before anything has happened.
pub fn prepare(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| {
        format!(
            "cannot make the directory `{}` of --dump-on-panic",
            dir.display()
        )
    })
}

/// Has the guest dumped into `dir` when it panics.
pub fn arrange(guest: &mut Guest, dir: &Path) {
    let (name, image) = (guest.name().to_owned(), guest.image().clone());
    let socket = guest.dir().join(CONTROL_SOCKET);
    let dir = dir.to_owned();
    guest.on_failure(move |failure| {
        let Failure::Panicked(reason) = failure else {
            return;
        };
        let path = dir.join(format!("{name}-{}.core.zst", stamp(SystemTime::now())));
        tell(&match write(&socket, &image, reason, &path) {
            Ok(()) => format!(
                "kscope: the memory of {name} is in {0}; every view reads it: kscope bt --core {0}",
                path.display()
            ),
            Err(error) => format!("kscope: warning: the memory of {name} is lost: {error:#}"),
        });
    });
}

fn write(socket: &Path, image: &Image, reason: &str, path: &Path) -> anyhow::Result<()> {
    let mut connection = Connection::connect(socket)?;
    let target = Target { path, force: false };
    let result: Result<_, DumpError> = dump::dump(
        &mut connection,
        image,
        Some(reason),
        target,
        &mut Silent,
        &Cancel::new(),
    );
    for warning in result?.warnings {
        tell(&format!("kscope: warning: {warning}"));
    }
    Ok(())
}

/// A time in UTC that sorts as text and is a file name everywhere: `20260904T061205Z`.
fn stamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for (number, len) in (1..).zip([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
        let len = len + u64::from(number == 2 && is_leap(year));
        month = number;
        if days < len {
            break;
        }
        days -= len;
    }
    format!(
        "{year:04}{month:02}{:02}T{:02}{:02}{:02}Z",
        days + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_as_date_has_them() {
        // From `date -u -d @SECONDS +%Y%m%dT%H%M%SZ`.
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_868_799, "20000229T235959Z"),
            (1_709_164_800, "20240229T000000Z"),
            (1_735_689_599, "20241231T235959Z"),
            (1_788_502_325, "20260904T061205Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(stamp(time), text);
        }
    }
}
