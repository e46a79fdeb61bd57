//! The sockets: of every family and network namespace, and the processes that have them open.

mod display;
mod socket;
mod tables;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde::Serialize;

use crate::addr::{GuestPid, KernelAddr};
use crate::memory::Memory;
use crate::reader::{Reader, ViewError};

pub(super) use socket::{Sockets, family_name};

/// The sockets of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Net {
    /// The network namespaces, that of the first process first.
    pub namespaces: Vec<Namespace>,
    /// The sockets, by namespace, protocol, and where they listen.
    pub sockets: Vec<Socket>,
}

/// A network namespace (`struct net`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// Its number, as in /proc/PID/ns/net: `net:[INODE]`.
    pub inode: u64,
    /// The address of the `struct net`.
    pub addr: KernelAddr,
}

/// A socket, or what is left of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Socket {
    /// The inode number of its namespace.
    pub netns: u64,
    /// `tcp`, `udp`, `udplite`, `raw`, `ping`, `unix`, `netlink`, `packet`, or what the kernel
    /// calls it.
    pub protocol: String,
    /// The address family: `inet`, `inet6`, `unix`, `netlink`, `packet` and others.
    pub family: String,
    /// `stream`, `dgram`, `raw`, `rdm`, `seqpacket`, `packet`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kernel's TCP_ states in lower case, which it has for all families: `listen`,
    /// `established`, `time_wait`. `unconnected` is TCP_CLOSE.
    pub state: String,
    /// What the process has not read yet, bytes. Of a listening socket, connections that wait to be
    /// accepted.
    pub recv_queue: u64,
    /// What was sent and not yet received, bytes: of TCP what is not acknowledged, of others what
    /// it takes in memory. Of a listening socket, how many connections may wait.
    pub send_queue: u64,
    /// Its address, and that of the other end. `None` of families of which kscope knows none.
    pub address: Option<Address>,
    /// Whose it is: the user, by the numbers of the root user namespace. `None` of a connection that
    /// has no socket any more.
    pub uid: Option<u32>,
    /// Its inode number, as in `socket:[7]`. `None` without a file: what the kernel has for
    /// itself, waits to be accepted, or outlives its process.
    pub inode: Option<u64>,
    /// References that the kernel holds on it.
    pub refs: u64,
    /// The processes that have it open.
    pub processes: Vec<Holder>,
    /// The address of its `struct sock` (`inet_timewait_sock`, `request_sock`).
    pub addr: KernelAddr,
}

/// The addresses of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    /// IPv4 and IPv6.
    Inet {
        /// Its own.
        local: Endpoint,
        /// The other end's. `None` when it is not connected.
        remote: Option<Endpoint>,
        /// The network interface that it is bound to.
        interface: Option<String>,
    },
    /// UNIX.
    Unix {
        /// The name that it was bound to, as it was given: a path, perhaps a relative one, or an
        /// abstract name without the zero that it begins with. `None` without one.
        name: Option<String>,
        /// Whether the name is an abstract one.
        #[serde(rename = "abstract")]
        is_abstract: bool,
        /// The address of the other end's `struct sock`.
        peer: Option<KernelAddr>,
        /// The inode number of the other end, if it has one.
        peer_inode: Option<u64>,
    },
    /// Netlink.
    Netlink {
        /// The part of the kernel that it talks with: `route`, or its number.
        protocol: String,
        /// Its address, mostly a pid; 0 is the kernel.
        port: u32,
        /// The groups that it listens to, by their numbers.
        groups: Vec<u32>,
    },
    /// Packets of an interface.
    Packet {
        /// What it receives: the protocol in the Ethernet header, 3 (ETH_P_ALL) is all.
        ethertype: u16,
        /// The network interface; `None` is any.
        interface: Option<String>,
    },
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Endpoint {
    /// The address; all zeros is any.
    pub address: IpAddr,
    /// The port; 0 is none. Of raw sockets, the protocol in the IP header.
    pub port: u16,
}

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its pid.
    pub pid: GuestPid,
    /// Its name.
    pub comm: String,
    /// The numbers of its open files that are the socket.
    pub fds: Vec<u32>,
}

/// Which sockets [`Reader::sockets`] lists.
#[derive(Clone, Debug, Default)]
pub struct NetOptions {
    /// Only those that these processes, or threads, have open; all when empty.
    pub pids: Vec<GuestPid>,
    /// Only those of these protocols; all when empty.
    pub protocols: Vec<&'static str>,
    /// Only those that wait for somebody to come; see [`Socket::is_listening`].
    pub listening: bool,
}

impl Socket {
    /// Whether anybody may come to it: it listens, or it needs no connection, has none, and has an
    /// address in IP or a UNIX name.
    pub fn is_listening(&self) -> bool {
        let is_open = match &self.address {
            Some(Address::Inet { local, remote, .. }) => local.port != 0 && remote.is_none(),
            Some(Address::Unix { name, peer, .. }) => name.is_some() && peer.is_none(),
            _ => false,
        };
        self.state == LISTEN || is_open && matches!(&*self.kind, "dgram" | "raw")
    }

    fn is_of(&self, options: &NetOptions) -> bool {
        let protocols = &options.protocols;
        let by = |holder: &Holder| options.pids.contains(&holder.pid);
        (protocols.is_empty() || protocols.contains(&&*self.protocol))
            && (options.pids.is_empty() || self.processes.iter().any(by))
            && (!options.listening || self.is_listening())
    }
}

/// Who has a socket open, by the address of its `struct sock`.
type Open = HashMap<KernelAddr, Vec<Holder>>;

const LISTEN: &str = "listen";

/// More sockets than a guest has memory for, and with less than this a view stays under 200 MB.
const MAX_SOCKETS: usize = 1 << 18;

/// Protocols in the order in which they are listed; others follow.
const ORDER: [&str; 8] = [
    "tcp", "udp", "udplite", "raw", "ping", "packet", "netlink", "unix",
];

impl<M: Memory> Reader<'_, M> {
    /// The sockets.
    ///
    /// # Errors
    ///
    /// When the kernel has none, its types are not known, or there is no task of a pid that was
    /// asked for.
    pub fn sockets(&self, options: &NetOptions) -> Result<Net, ViewError> {
        let sockets = Sockets::new(self)?;
        let namespaces = sockets.namespaces()?;
        let (mut open, pids) = self.open_sockets(&sockets, &options.pids)?;
        let options = NetOptions {
            pids,
            ..options.clone()
        };
        let held: Vec<_> = open.keys().copied().collect();
        let mut list = Vec::new();
        for sock in sockets.everywhere(&namespaces, held) {
            let socket = sockets.read(sock);
            let Some(mut socket) = self.or_warn(socket) else {
                continue;
            };
            socket.processes = open.remove(&sock).unwrap_or_default();
            if socket.is_of(&options) {
                list.push(socket);
            }
        }
        list.sort_by_cached_key(Socket::key);
        let namespaces = namespaces.into_iter();
        Ok(Net {
            namespaces: namespaces.map(|(namespace, _)| namespace).collect(),
            sockets: list,
        })
    }

    /// The processes that have sockets open; and those of `pids` as they are named in there.
    fn open_sockets(
        &self,
        sockets: &Sockets<'_, M>,
        pids: &[GuestPid],
    ) -> Result<(Open, Vec<GuestPid>), ViewError> {
        let mut open = Open::new();
        let mut named = Vec::new();
        // Threads share their files, and a process may share them with another one.
        let mut seen = HashMap::new();
        let mut found = HashSet::new();
        for task in self.kernel().tasks() {
            let Some(task) = self.or_warn(task) else {
                continue;
            };
            let object = self.task(task.addr);
            let files = object.pointer("files");
            let files = self.or_warn(files).unwrap_or_default();
            let first = *seen.entry((files, task.tgid)).or_insert(task.pid);
            if pids.contains(&task.pid) {
                found.insert(task.pid);
                named.push(first);
            }
            if first != task.pid {
                continue;
            }
            let slots = self.open_files(&object);
            for slot in self.or_warn(slots).unwrap_or_default() {
                let sock = sockets.of_file(&slot.file);
                let Some(sock) = self.or_warn(sock).flatten() else {
                    continue;
                };
                let holders = open.entry(sock).or_default();
                match holders.last_mut() {
                    Some(last) if last.pid == task.pid => last.fds.push(slot.fd),
                    _ => holders.push(Holder {
                        pid: task.pid,
                        comm: task.comm.clone(),
                        fds: vec![slot.fd],
                    }),
                }
            }
        }
        match pids.iter().find(|pid| !found.contains(pid)) {
            Some(&pid) => Err(ViewError::NoTask { pid }),
            None => Ok((open, named)),
        }
    }
}

impl Socket {
    /// What sockets are sorted by.
    fn key(&self) -> impl Ord + use<> {
        let at = ORDER.iter().position(|name| *name == self.protocol);
        let (number, text) = match &self.address {
            Some(Address::Inet { local, .. }) => (u32::from(local.port), local.to_string()),
            Some(Address::Unix { name, .. }) => (0, name.clone().unwrap_or_default()),
            Some(Address::Netlink { protocol, port, .. }) => (*port, protocol.clone()),
            Some(Address::Packet { ethertype, .. }) => (u32::from(*ethertype), String::new()),
            None => (0, String::new()),
        };
        (
            self.netns,
            (at.unwrap_or(ORDER.len()), self.protocol.clone()),
            (self.state != LISTEN, number, text),
            (self.inode, self.addr),
        )
    }
}
