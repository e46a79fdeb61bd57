//! Attaches to a running guest and detaches from it, once a second, saying which; or, with a rate, stops it that many
//! times a second. What being attached costs is then to be read from a loop in the guest:
//!
//! ```text
//! cargo run -p kscope-guest --example attach -- ./linux PID [STOPS_PER_SECOND]
//! ```

use std::error::Error;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kscope_guest::control::{Control, HostTid, Options, block_sigchld};
use kscope_kernel::Image;

fn main() -> Result<(), Box<dyn Error>> {
    const PERIOD: Duration = Duration::from_secs(1);
    block_sigchld()?;
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(pid)) = (arguments.next(), arguments.next()) else {
        return Err("usage: attach KERNEL PID [STOPS_PER_SECOND]".into());
    };
    let rate = arguments.next().map_or(Ok(0), |rate| rate.parse::<u32>())?;
    let options = Options {
        kill_on_exit: false,
    };
    let control = Control::start_with(
        HostTid(pid.parse()?),
        Image::open(Path::new(&kernel))?,
        options,
    )?;
    while control.exit_status().is_none() {
        println!("detached");
        sleep(PERIOD);
        let attachment = control.attach()?;
        println!("attached");
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        let mut stops = 0_u32;
        while start.elapsed() < PERIOD {
            if rate == 0 {
                sleep(PERIOD);
                continue;
            }
            sleep(PERIOD / rate);
            let before = Instant::now();
            control.with_stopped(PERIOD, |stopped| {
                stopped
                    .cpus()
                    .iter()
                    .map(|vcpu| stopped.registers(vcpu.cpu).map(|_| ()))
                    .collect::<Result<Vec<_>, _>>()
            })??;
            slowest = slowest.max(before.elapsed());
            stops += 1;
        }
        if stops > 0 {
            println!("{stops} stops, the slowest {slowest:?}");
        }
        drop(attachment);
    }
    Ok(())
}
