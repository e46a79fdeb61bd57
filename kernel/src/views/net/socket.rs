//! One socket: its protocol, state, addresses and queues.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Address, Endpoint, LISTEN, Namespace, Socket};
use crate::addr::KernelAddr;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError, unreadable};

/// AF_UNIX and others of include/linux/socket.h.
const FAMILIES: [(u64, &str); 12] = [
    (UNIX, "unix"),
    (INET, "inet"),
    (INET6, "inet6"),
    (15, "key"),
    (NETLINK, "netlink"),
    (PACKET, "packet"),
    (29, "can"),
    (30, "tipc"),
    (38, "alg"),
    (40, "vsock"),
    (43, "smc"),
    (44, "xdp"),
];
const UNIX: u64 = 1;
const INET: u64 = 2;
const INET6: u64 = 10;
const NETLINK: u64 = 16;
const PACKET: u64 = 17;

/// More buffers than a socket's receive queue has room for.
const MAX_BUFFERS: u64 = 1 << 14;

/// Whether sockets of an address family are kept in tables that are known.
pub(super) fn has_table(family: u64) -> bool {
    [UNIX, INET, INET6, NETLINK, PACKET].contains(&family)
}

/// NETLINK_ROUTE and others of include/uapi/linux/netlink.h.
const NETLINK_PROTOCOLS: [(u64, &str); 20] = [
    (0, "route"),
    (2, "usersock"),
    (3, "firewall"),
    (4, "sock_diag"),
    (5, "nflog"),
    (6, "xfrm"),
    (7, "selinux"),
    (8, "iscsi"),
    (9, "audit"),
    (10, "fib_lookup"),
    (11, "connector"),
    (12, "netfilter"),
    (13, "ip6_fw"),
    (14, "dnrtmsg"),
    (15, "kobject_uevent"),
    (16, "generic"),
    (18, "scsitransport"),
    (19, "ecryptfs"),
    (20, "rdma"),
    (21, "crypto"),
];

/// The enumeration of the states that a `struct sock` can be in.
const STATE: &str = "enum {TCP_ESTABLISHED}";

/// Its enumerators; include/net/tcp_states.h.
const STATES: [&str; 13] = [
    "TCP_ESTABLISHED",
    "TCP_SYN_SENT",
    "TCP_SYN_RECV",
    "TCP_FIN_WAIT1",
    "TCP_FIN_WAIT2",
    "TCP_TIME_WAIT",
    "TCP_CLOSE",
    "TCP_CLOSE_WAIT",
    "TCP_LAST_ACK",
    "TCP_LISTEN",
    "TCP_CLOSING",
    "TCP_NEW_SYN_RECV",
    "TCP_BOUND_INACTIVE",
];

/// `enum sock_type` of include/linux/net.h.
const TYPES: [&str; 7] = [
    "SOCK_STREAM",
    "SOCK_DGRAM",
    "SOCK_RAW",
    "SOCK_RDM",
    "SOCK_SEQPACKET",
    "SOCK_DCCP",
    "SOCK_PACKET",
];

/// Bytes of a UNIX socket's name, at most: UNIX_PATH_MAX.
const MAX_NAME: u64 = 108;

/// Netlink groups that are looked at; a protocol has some tens.
const MAX_GROUPS: u64 = 1 << 12;

/// What a family is called, or its number.
pub(in crate::views) fn family_name(family: u64) -> String {
    name_of(&FAMILIES, family)
}

fn name_of(names: &[(u64, &str)], number: u64) -> String {
    let name = names.iter().find(|(value, _)| *value == number);
    name.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// Reads sockets. What is the same for many of them is remembered.
pub(in crate::views) struct Sockets<'r, M> {
    reader: &'r Reader<'r, M>,
    states: Vec<(u64, String)>,
    types: Vec<(u64, String)>,
    /// The operations by which files are known that are sockets.
    operations: Option<KernelAddr>,
    /// The names of the network interfaces by number, by namespace.
    interfaces: RefCell<HashMap<KernelAddr, HashMap<u64, String>>>,
}

impl<'r, M: Memory> Sockets<'r, M> {
    /// # Errors
    ///
    /// When the kernel has no sockets, or its types are not known.
    pub(in crate::views) fn new(reader: &'r Reader<'r, M>) -> Result<Sockets<'r, M>, ViewError> {
        let image = reader.kernel().image();
        if image.symbol("net_namespace_list").is_none() {
            return Err(ViewError::NotConfigured {
                what: "network",
                option: "CONFIG_NET",
            });
        }
        let layout = image.layout()?;
        // Those that this kernel has.
        let values = |owner, names: &[&str], prefix| -> Vec<(u64, String)> {
            let values = names.iter().filter_map(|name| {
                let value = layout.enumerator_of(owner, name).ok()?;
                let name = name.strip_prefix(prefix)?.to_ascii_lowercase();
                Some((value as u64, name))
            });
            values.collect()
        };
        let mut states = values(STATE, &STATES, "TCP_");
        for (_, name) in &mut states {
            // These two are as people know them.
            match &**name {
                "close" => "unconnected".clone_into(name),
                "new_syn_recv" => "syn_recv".clone_into(name),
                _ => {}
            }
        }
        Ok(Sockets {
            reader,
            states,
            types: values("enum sock_type", &TYPES, "SOCK_"),
            operations: image.symbol("socket_file_ops"),
            interfaces: RefCell::default(),
        })
    }

    pub(super) fn reader(&self) -> &'r Reader<'r, M> {
        self.reader
    }

    /// The network namespaces, and their `struct net`.
    pub(super) fn namespaces(&self) -> Result<Vec<(Namespace, Object<'r, M>)>, ViewError> {
        let head = self.reader.global("net_namespace_list")?.addr();
        let list = self
            .reader
            .list(head, "struct net", "list", "network namespaces")?;
        let read = |net: Object<'r, M>| -> Result<_, ViewError> {
            let namespace = Namespace {
                inode: net.u64("ns.inum")?,
                addr: net.addr(),
            };
            Ok((namespace, net))
        };
        Ok(list
            .filter_map(|net| self.reader.or_warn(read(net)))
            .collect())
    }

    /// The `struct sock` of a file, if it is a socket.
    pub(super) fn of_file(&self, file: &Object<'_, M>) -> Result<Option<KernelAddr>, ViewError> {
        if Some(file.addr_value("f_op")?) != self.operations {
            return Ok(None);
        }
        let socket = file.pointer("private_data")?;
        // Without one, it is being made or closed.
        let sock = self.reader.object("struct socket", socket).pointer("sk")?;
        Ok((!sock.is_null()).then_some(sock))
    }

    /// A file that is a socket, in one line.
    pub(in crate::views) fn describe(
        &self,
        file: &Object<'_, M>,
    ) -> Result<Option<String>, ViewError> {
        let sock = self.of_file(file)?;
        let socket = sock.map(|sock| self.read(sock)).transpose()?;
        Ok(socket.map(|socket| socket.to_string()))
    }

    /// Reads the socket whose `struct sock` is at an address; the processes that have it open are
    /// not looked for.
    pub(super) fn read(&self, addr: KernelAddr) -> Result<Socket, ViewError> {
        let common = self.reader.object("struct sock_common", addr).fetched();
        let family = common.u64("skc_family")?;
        let net = match common.has("skc_net.net") {
            true => common.deref("skc_net.net")?,
            // Without CONFIG_NET_NS, there is one.
            false => self.reader.global("init_net")?,
        };
        let mut socket = Socket {
            netns: net.u64("ns.inum")?,
            protocol: self.protocol(&common, family)?,
            family: family_name(family),
            kind: "stream".to_owned(),
            state: self.state(common.u64("skc_state")?),
            recv_queue: 0,
            send_queue: 0,
            address: None,
            uid: None,
            inode: None,
            refs: common.u64("skc_refcnt")?,
            processes: Vec::new(),
            addr,
        };
        if matches!(family, INET | INET6) {
            socket.address = Some(self.inet(&common, family, &net)?);
        }
        match &*socket.state {
            // Neither is a whole socket.
            "time_wait" => {
                let rest = self.reader.object("struct inet_timewait_sock", addr);
                socket.state = self.state(rest.u64("tw_substate")?);
            }
            "syn_recv" if self.is_request(&common)? => {
                if let Some(listener) = common.follow("skc_listener")? {
                    socket.uid = Some(listener.u64("sk_uid")? as u32);
                }
            }
            _ => self.whole(&mut socket, family, &net)?,
        }
        Ok(socket)
    }

    /// TCP_NEW_SYN_RECV is a `struct request_sock`, TCP_SYN_RECV is not.
    fn is_request(&self, common: &Object<'_, M>) -> Result<bool, ViewError> {
        let layout = self.reader.kernel().image().layout()?;
        let state = common.u64("skc_state")? as i64;
        Ok(layout.enumerator_of(STATE, "TCP_NEW_SYN_RECV")? == state)
    }

    fn state(&self, state: u64) -> String {
        let named = self.states.iter().find(|(value, _)| *value == state);
        named.map_or_else(|| state.to_string(), |(_, name)| name.clone())
    }

    fn protocol(&self, common: &Object<'_, M>, family: u64) -> Result<String, ViewError> {
        if matches!(family, UNIX | NETLINK | PACKET) {
            return Ok(family_name(family));
        }
        // "UDP-Lite", "UDPLITEv6", "TCPv6".
        let name = common.deref("skc_prot")?.text("name")?;
        let name = name.to_ascii_lowercase().replace('-', "");
        Ok(name.strip_suffix("v6").unwrap_or(&name).to_owned())
    }

    /// What only a whole `struct sock` has.
    fn whole(
        &self,
        socket: &mut Socket,
        family: u64,
        net: &Object<'_, M>,
    ) -> Result<(), ViewError> {
        let sock = self.reader.object("struct sock", socket.addr).fetched();
        let kind = sock.u64("sk_type")?;
        let named = self.types.iter().find(|(value, _)| *value == kind);
        socket.kind = named.map_or_else(|| kind.to_string(), |(_, name)| name.clone());
        socket.uid = Some(sock.u64("sk_uid")? as u32);
        socket.inode = inode(&sock)?;
        let allocated = |member| Ok::<_, ViewError>(sock.i64(member)?.max(0) as u64);
        socket.recv_queue = allocated("sk_backlog.rmem_alloc")?;
        // It holds one reference on itself.
        socket.send_queue = allocated("sk_wmem_alloc")?.saturating_sub(1);
        if matches!(family, UNIX | INET | INET6) && socket.state == LISTEN {
            socket.recv_queue = match family {
                // Connections wait as buffers.
                UNIX => sock.u64("sk_receive_queue.qlen")?,
                _ => sock.u64("sk_ack_backlog")?,
            };
            socket.send_queue = sock.u64("sk_max_ack_backlog")?;
        } else if socket.protocol == "tcp" {
            let tcp = self.reader.object("struct tcp_sock", socket.addr);
            let between = |end, start| -> Result<u32, ViewError> {
                Ok((tcp.u64(end)? as u32).wrapping_sub(tcp.u64(start)? as u32))
            };
            socket.send_queue = u64::from(between("write_seq", "snd_una")?);
            // Without a lock, the end can be the older one of the two.
            let unread = between("rcv_nxt", "copied_seq")? as i32;
            socket.recv_queue = u64::from(unread.max(0).unsigned_abs());
        } else if matches!(&*socket.protocol, "udp" | "udplite") {
            let udp = self.reader.object("struct udp_sock", socket.addr);
            // Read, but not yet given back.
            let deficit = udp.u64("forward_deficit")?;
            socket.recv_queue = socket.recv_queue.saturating_sub(deficit);
        } else if family == UNIX {
            socket.recv_queue = self.unix_unread(&sock, &socket.kind)?;
        }
        match family {
            UNIX => socket.address = Some(self.unix(&sock)?),
            NETLINK => socket.address = Some(self.netlink(&sock)?),
            PACKET => socket.address = Some(self.packet(&sock, net)?),
            _ => {}
        }
        Ok(())
    }

    fn inet(
        &self,
        common: &Object<'_, M>,
        family: u64,
        net: &Object<'_, M>,
    ) -> Result<Address, ViewError> {
        let ends = match family {
            INET6 => ["skc_v6_rcv_saddr", "skc_v6_daddr"],
            _ => ["skc_rcv_saddr", "skc_daddr"],
        };
        let [local, remote] = ends.map(|end| -> Result<IpAddr, ViewError> {
            let bytes = common.bytes(end)?;
            Ok(match <[u8; 16]>::try_from(&bytes[..]) {
                Ok(bytes) => IpAddr::V6(Ipv6Addr::from(bytes)),
                Err(_) => {
                    let bytes = bytes.first_chunk().copied().unwrap_or_default();
                    IpAddr::V4(Ipv4Addr::from(bytes))
                }
            })
        });
        let remote = Endpoint {
            address: remote?,
            port: big_endian(common, "skc_dport")?,
        };
        let is_connected = remote.port != 0 || !remote.address.is_unspecified();
        Ok(Address::Inet {
            local: Endpoint {
                address: local?,
                port: common.u64("skc_num")? as u16,
            },
            remote: is_connected.then_some(remote),
            interface: self.interface(net, common.u64("skc_bound_dev_if")?)?,
        })
    }

    /// The name of a network interface; its number when it is gone. 0 is none.
    fn interface(&self, net: &Object<'_, M>, index: u64) -> Result<Option<String>, ViewError> {
        if index == 0 {
            return Ok(None);
        }
        let mut known = self.interfaces.borrow_mut();
        let names = match known.entry(net.addr()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.interfaces(net)?),
        };
        let name = names.get(&index).cloned();
        Ok(Some(name.unwrap_or_else(|| format!("if{index}"))))
    }

    /// The names of a namespace's network interfaces by their numbers.
    fn interfaces(&self, net: &Object<'_, M>) -> Result<HashMap<u64, String>, ViewError> {
        let reader = self.reader;
        let head = net.addr_of("dev_base_head")?;
        let list = reader.list(head, "struct net_device", "dev_list", "network interfaces")?;
        let read = |device: Object<'_, M>| -> Result<_, ViewError> {
            Ok((device.u64("ifindex")?, device.text("name")?))
        };
        Ok(list
            .filter_map(|device| reader.or_warn(read(device)))
            .collect())
    }

    fn unix(&self, sock: &Object<'_, M>) -> Result<Address, ViewError> {
        let own = self.reader.object("struct unix_sock", sock.addr());
        let mut bytes = match own.follow("addr")? {
            Some(address) => {
                let family = address.size_of("name[0].sun_family")?;
                let len = address.u64("len")?.saturating_sub(family).min(MAX_NAME);
                let at = address.addr_of("name[0].sun_path")?;
                let bytes = self.reader.kernel().read_vec(at, len as usize);
                bytes.map_err(|source| unreadable("name of a socket", source))?
            }
            None => Vec::new(),
        };
        let is_abstract = bytes.first() == Some(&0);
        if is_abstract {
            bytes.remove(0);
        } else if bytes.last() == Some(&0) {
            bytes.pop();
        }
        let has_name = is_abstract || !bytes.is_empty();
        let peer = own.follow("peer")?;
        Ok(Address::Unix {
            name: has_name.then(|| String::from_utf8_lossy(&bytes).into_owned()),
            is_abstract,
            peer: peer.as_ref().map(Object::addr),
            peer_inode: match peer {
                Some(peer) => inode(&peer)?,
                None => None,
            },
        })
    }

    /// What was sent to a UNIX socket, bytes: `unix_inq_len()`.
    fn unix_unread(&self, sock: &Object<'_, M>, kind: &str) -> Result<u64, ViewError> {
        let queue = sock.addr_of("sk_receive_queue")?;
        let buffers = self
            .reader
            .list(queue, "struct sk_buff", "list", "socket buffers")?;
        // The others are read one by one.
        let many = match kind {
            "dgram" => 1,
            _ => sock.u64("sk_receive_queue.qlen")?.min(MAX_BUFFERS) as usize,
        };
        let mut bytes: u64 = 0;
        for buffer in buffers.take(many) {
            let parms = buffer.addr_of("cb")?;
            let parms = self.reader.object("struct unix_skb_parms", parms);
            let consumed = parms.u64("consumed")?;
            let len = buffer.u64("len")?.saturating_sub(consumed);
            bytes = bytes.saturating_add(len);
        }
        Ok(bytes)
    }

    fn netlink(&self, sock: &Object<'_, M>) -> Result<Address, ViewError> {
        let own = self.reader.object("struct netlink_sock", sock.addr());
        let count = own.u64("ngroups")?.min(MAX_GROUPS);
        let mut groups = Vec::new();
        let at = own.pointer("groups")?;
        if !at.is_null() {
            let bytes = self
                .reader
                .kernel()
                .read_vec(at, count.div_ceil(8) as usize);
            let bytes = bytes.map_err(|source| unreadable("netlink groups", source))?;
            for (byte, bits) in (0..).zip(bytes) {
                let set = (0..8).filter(|bit| bits >> bit & 1 == 1);
                // They are counted from 1.
                groups.extend(set.map(|bit| byte * 8 + bit + 1));
            }
        }
        Ok(Address::Netlink {
            protocol: name_of(&NETLINK_PROTOCOLS, sock.u64("sk_protocol")?),
            port: own.u64("portid")? as u32,
            groups,
        })
    }

    fn packet(&self, sock: &Object<'_, M>, net: &Object<'_, M>) -> Result<Address, ViewError> {
        let own = self.reader.object("struct packet_sock", sock.addr());
        // -1: it was unregistered.
        let index = own.i64("ifindex")?.max(0) as u64;
        Ok(Address::Packet {
            ethertype: big_endian(&own, "num")?,
            interface: self.interface(net, index)?,
        })
    }
}

/// The inode number of a socket that has a file, or had.
fn inode<M: Memory>(sock: &Object<'_, M>) -> Result<Option<u64>, ViewError> {
    let Some(socket) = sock.follow("sk_socket")? else {
        return Ok(None);
    };
    let allocated = socket.container("struct socket_alloc", "socket")?;
    Ok(Some(allocated.u64("vfs_inode.i_ino")?))
}

/// A `__be16`.
fn big_endian<M: Memory>(object: &Object<'_, M>, path: &str) -> Result<u16, ViewError> {
    Ok((object.u64(path)? as u16).swap_bytes())
}
