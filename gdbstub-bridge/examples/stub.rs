//! Serves GDB for a User Mode Linux kernel that runs already, whoever has started it:
//!
//! ```text
//! cargo run -p kscope-gdbstub-bridge --example stub -- ./linux PID [PORT]
//! gdb ./linux -ex 'target remote :1234'
//! ```

use std::error::Error;
use std::path::Path;

use kscope_gdbstub_bridge::{Listeners, bind_tcp, serve};
use kscope_guest::control::{Control, HostTid, Options, block_sigchld};
use kscope_kernel::Image;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    block_sigchld()?;
    log::set_logger(&Stderr).map_err(|error| error.to_string())?;
    let verbose = std::env::var_os("VERBOSE").is_some();
    log::set_max_level(if verbose {
        log::LevelFilter::Trace
    } else {
        log::LevelFilter::Info
    });
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(pid)) = (arguments.next(), arguments.next()) else {
        return Err("usage: stub KERNEL PID [PORT]".into());
    };
    let port = arguments.next().unwrap_or_else(|| "1234".to_owned());
    let options = Options {
        kill_on_exit: false,
    };
    let image = Image::open(Path::new(&kernel))?;
    let control = Control::start_with(HostTid(pid.parse()?), image, options)?;
    let listeners = Listeners {
        tcp: Some(bind_tcp(format!("127.0.0.1:{port}").parse()?, 1)?),
        ..Listeners::default()
    };
    let _server = serve(listeners, control.clone())?;
    println!("listening on 127.0.0.1:{port}");
    println!("the guest has ended: {:?}", control.wait_exit(None));
    Ok(())
}
