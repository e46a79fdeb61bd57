//! Where a debugger is waited for: a port, or standard input and output.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use kscope_gdbstub_bridge::{BindError, Listeners, bind_tcp};

/// Where a debugger is waited for.
pub(super) struct Comm {
    pub(super) listeners: Arc<Listeners>,
    port: Option<u16>,
}

impl Comm {
    pub(super) fn open(comm: &str) -> anyhow::Result<Self> {
        if matches!(comm, "stdio" | "-") {
            return Ok(Self {
                listeners: Arc::new(Listeners {
                    pair: Some(take_stdio().context("cannot use standard input and output")?)
                        .into(),
                    ..Listeners::default()
                }),
                port: None,
            });
        }
        let address = address(comm)?;
        match bind_tcp(address, 1) {
            Ok(listener) => Ok(Self {
                port: Some(listener.local_addr()?.port()),
                listeners: Arc::new(Listeners {
                    tcp: Some(listener),
                    ..Listeners::default()
                }),
            }),
            Err(BindError::Tcp { error, .. }) if error.kind() == io::ErrorKind::AddrInUse => {
                // GDB's test suite waits for just this.
                eprintln!("Can't bind address: Address already in use.");
                bail!("{comm} is taken")
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn listening(&self) {
        if let Some(port) = self.port {
            eprintln!("Listening on port {port}");
        }
    }
}

fn address(comm: &str) -> anyhow::Result<SocketAddr> {
    let usage = || anyhow!("{comm} is no place to listen: it has to be HOST:PORT, :PORT or stdio");
    let (host, port) = comm.rsplit_once(':').ok_or_else(usage)?;
    let port: u16 = port.parse().map_err(|_| usage())?;
    if host.is_empty() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = (host, port).to_socket_addrs();
    let mut found = found.with_context(|| format!("{host}: cannot resolve name"))?;
    // `localhost` may be both; clients try both.
    let all: Vec<_> = found.by_ref().collect();
    let ipv4 = all.iter().find(|address| address.is_ipv4());
    ipv4.or(all.first()).copied().ok_or_else(usage)
}

/// The debugger has standard input and output; the program gets nothing for the one and standard error for the other.
fn take_stdio() -> anyhow::Result<(File, File)> {
    let own = |fd: OwnedFd| File::from(fd);
    // Not for the program.
    let input = own(io::stdin().as_fd().try_clone_to_owned()?);
    let output = own(io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(io::stderr())?;
    eprintln!("stdin/stdout redirected");
    Ok((input, output))
}
