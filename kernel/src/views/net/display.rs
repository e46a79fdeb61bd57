//! Sockets as text.

use std::fmt;

use super::{Address, Endpoint, Net, Socket};
use crate::table::Table;

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        on_interface(self, None).fmt(f)
    }
}

/// `127.0.0.1:80`, `[::1]:80`, `0.0.0.0%eth0:*`.
fn on_interface(end: &Endpoint, interface: Option<&str>) -> String {
    let Endpoint { address, port } = end;
    let interface = interface.map_or(String::new(), |name| format!("%{name}"));
    let port = or_any(u32::from(*port));
    match address.is_ipv6() {
        true => format!("[{address}{interface}]:{port}"),
        false => format!("{address}{interface}:{port}"),
    }
}

/// A port; 0 is none.
fn or_any(port: u32) -> String {
    match port {
        0 => "*".to_owned(),
        port => port.to_string(),
    }
}

impl Address {
    /// The socket's own end.
    fn local(&self) -> String {
        match self {
            Address::Inet {
                local, interface, ..
            } => on_interface(local, interface.as_deref()),
            Address::Unix {
                name, is_abstract, ..
            } => match name {
                Some(name) if *is_abstract => format!("@{name}"),
                Some(name) => name.clone(),
                None => "-".to_owned(),
            },
            Address::Netlink { protocol, port, .. } => format!("{protocol}:{}", or_any(*port)),
            Address::Packet {
                ethertype,
                interface,
            } => {
                let interface = interface.as_deref().unwrap_or("*");
                match *ethertype {
                    ETH_P_ALL => format!("*:{interface}"),
                    ethertype => format!("{ethertype:#06x}:{interface}"),
                }
            }
        }
    }

    /// The other end.
    fn remote(&self) -> Option<String> {
        match self {
            Address::Inet { remote, .. } => remote.map(|remote| remote.to_string()),
            Address::Unix {
                peer: Some(_),
                peer_inode,
                ..
            } => Some(match peer_inode {
                Some(inode) => format!("socket:[{inode}]"),
                // Not accepted yet, or closed.
                None => "socket".to_owned(),
            }),
            _ => None,
        }
    }
}

/// ETH_P_ALL of include/uapi/linux/if_ether.h.
const ETH_P_ALL: u16 = 3;

impl Socket {
    /// `tcp6` as in netstat(8).
    fn netid(&self) -> String {
        let six = if self.family == "inet6" { "6" } else { "" };
        format!("{}{six}", self.protocol)
    }
}

/// In one line: `tcp 127.0.0.1:8080 -> 127.0.0.1:34567 close_wait`.
impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.netid())?;
        if self.family == "unix" {
            write!(f, " {}", self.kind)?;
        }
        if let Some(address) = &self.address {
            let local = address.local();
            if local != "-" {
                write!(f, " {local}")?;
            }
            if let Some(remote) = address.remote() {
                write!(f, " -> {remote}")?;
            }
        }
        match &*self.state {
            "established" | "unconnected" => Ok(()),
            state => write!(f, " {state}"),
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut columns = vec![
            "PROTO",
            "TYPE",
            "STATE",
            ">RECV-Q",
            ">SEND-Q",
            "LOCAL",
            "PEER",
            ">UID",
            ">INODE",
            "PROCESSES",
        ];
        let several = self.namespaces.len() > 1;
        if several {
            columns.insert(0, ">NETNS");
        }
        let mut table = Table::new(&columns);
        for socket in &self.sockets {
            let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            let address = socket.address.as_ref();
            let processes = socket.processes.iter().map(|process| {
                let fds: Vec<_> = process.fds.iter().map(u32::to_string).collect();
                format!("{}[{}] fd {}", process.comm, process.pid, fds.join(","))
            });
            let processes: Vec<_> = processes.collect();
            let netns = several.then(|| socket.netns.to_string());
            table.row(netns.into_iter().chain([
                socket.netid(),
                socket.kind.clone(),
                socket.state.clone(),
                socket.recv_queue.to_string(),
                socket.send_queue.to_string(),
                or_none(address.map(Address::local)),
                or_none(address.and_then(Address::remote)),
                or_none(socket.uid.map(|uid| uid.to_string())),
                or_none(socket.inode.map(|inode| inode.to_string())),
                match processes.is_empty() {
                    true => "-".to_owned(),
                    false => processes.join("; "),
                },
            ]));
        }
        table.fmt(f)
    }
}
