//! Where the kernel keeps its sockets: a hash table or a list for each protocol.

use std::collections::HashSet;

use super::socket::{Sockets, has_table};
use super::{MAX_SOCKETS, Namespace};
use crate::addr::KernelAddr;
use crate::hashtable::Buckets;
use crate::kernel::Corruption;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

/// Protocols of netlink (include/uapi/linux/netlink.h).
const MAX_LINKS: u64 = 32;

/// In warnings.
const WHAT: &str = "socket";

/// The sockets that were found, each once.
struct Found<'r, M> {
    reader: &'r Reader<'r, M>,
    socks: Vec<KernelAddr>,
    seen: HashSet<KernelAddr>,
    /// Tables that were walked: network namespaces share them.
    tables: HashSet<KernelAddr>,
}

impl<M: Memory> Sockets<'_, M> {
    /// The addresses of all sockets: those that are held by files, and those in the tables.
    pub(super) fn everywhere(
        &self,
        namespaces: &[(Namespace, Object<'_, M>)],
        held: Vec<KernelAddr>,
    ) -> Vec<KernelAddr> {
        let mut found = Found {
            reader: self.reader(),
            socks: Vec::new(),
            seen: HashSet::new(),
            tables: HashSet::new(),
        };
        // What a kernel was built without has no table.
        for (_, net) in namespaces {
            found.attempt(net.has("ipv4.tcp_death_row.hashinfo"), |found| {
                found.tcp(net)
            });
            found.attempt(net.has("ipv4.udp_table"), |found| {
                let table = net.deref("ipv4.udp_table")?;
                found.udp(&table)
            });
            found.attempt(net.has("unx.table"), |found| found.unix(net));
            found.attempt(net.has("packet.sklist"), |found| {
                found.chain(net.addr_of("packet.sklist")?)
            });
        }
        for name in ["udp_table", "udplite_table"] {
            found.global(name, |found, table| found.udp(&table));
        }
        for name in ["raw_v4_hashinfo", "raw_v6_hashinfo"] {
            found.global(name, |found, table| found.array(&table.member("ht")?));
        }
        found.global("ping_table", |found, table| {
            found.array(&table.member("hash")?)
        });
        found.global("nl_table", |found, table| found.netlink(&table));
        for sock in held {
            // Of any family.
            if found.seen.insert(sock) && found.socks.len() < MAX_SOCKETS {
                found.socks.push(sock);
            }
        }
        found.socks
    }
}

impl<'r, M: Memory> Found<'r, M> {
    fn attempt(&mut self, is_there: bool, walk: impl FnOnce(&mut Self) -> Result<(), ViewError>) {
        if is_there {
            let result = walk(self);
            self.reader.or_warn(result);
        }
    }

    /// A table that is a variable, if this kernel has it.
    fn global(
        &mut self,
        name: &str,
        walk: impl FnOnce(&mut Self, Object<'r, M>) -> Result<(), ViewError>,
    ) {
        let reader = self.reader;
        if let Ok(table) = reader.global(name) {
            self.attempt(table.has(""), |found| walk(found, table));
        }
    }

    /// Whether a socket is a new one. A socket is in one chain: whoever comes to it again is on a
    /// chain that was joined to another one.
    fn add(&mut self, sock: KernelAddr) -> bool {
        let common = self.reader.object("struct sock_common", sock);
        match common.u64("skc_family") {
            Ok(family) if has_table(family) => {}
            Ok(family) => {
                let what =
                    format!("what a socket table has at {sock} is none: its family is {family}");
                self.reader.warn(what);
                return false;
            }
            Err(error) => {
                self.reader.warn(error);
                return false;
            }
        }
        let problem = match self.seen.len() {
            0..MAX_SOCKETS if self.seen.insert(sock) => {
                self.socks.push(sock);
                return true;
            }
            0..MAX_SOCKETS => Corruption::Cycle {
                what: WHAT,
                addr: sock,
            },
            _ => Corruption::TooLong {
                what: WHAT,
                limit: MAX_SOCKETS,
            },
        };
        self.reader.warn(problem);
        false
    }

    /// The sockets of one chain. `skc_node` and `skc_nulls_node` are one.
    fn chain(&mut self, head: KernelAddr) -> Result<(), ViewError> {
        let reader = self.reader;
        let mut socks = reader.hlist(head, "struct sock_common", "skc_node", WHAT)?;
        while socks.next().is_some_and(|sock| self.add(sock.addr())) {}
        Ok(())
    }

    /// The sockets of the chains that begin in the members `head` of an array of type `owner`.
    fn buckets(
        &mut self,
        first: KernelAddr,
        count: u64,
        owner: &str,
        head: &str,
    ) -> Result<(), ViewError> {
        if !self.tables.insert(first) {
            return Ok(());
        }
        let layout = self.reader.kernel().image().layout()?;
        let buckets = Buckets {
            first: first + layout.member(owner, head)?.offset,
            count,
            stride: layout.size_of(owner)?,
        };
        for (at, head) in self.reader.heads(buckets, "socket table") {
            if self.reader.is_hopeless() {
                break;
            }
            // Odd is the end of a chain that has nothing in it.
            if head & 1 == 0 {
                self.chain(at)?;
            }
        }
        Ok(())
    }

    /// A table that is an array of heads.
    fn array(&mut self, heads: &Object<'_, M>) -> Result<(), ViewError> {
        self.buckets(heads.addr(), heads.len("")?, "struct hlist_head", "first")
    }

    fn tcp(&mut self, net: &Object<'_, M>) -> Result<(), ViewError> {
        let table = net.deref("ipv4.tcp_death_row.hashinfo")?;
        let count = table.u64("lhash2_mask")?.saturating_add(1);
        self.buckets(
            table.pointer("lhash2")?,
            count,
            "struct inet_listen_hashbucket",
            "nulls_head",
        )?;
        let count = table.u64("ehash_mask")?.saturating_add(1);
        self.buckets(
            table.pointer("ehash")?,
            count,
            "struct inet_ehash_bucket",
            "chain",
        )
    }

    fn udp(&mut self, table: &Object<'_, M>) -> Result<(), ViewError> {
        let count = table.u64("mask")?.saturating_add(1);
        self.buckets(table.pointer("hash")?, count, "struct udp_hslot", "head")
    }

    fn unix(&mut self, net: &Object<'_, M>) -> Result<(), ViewError> {
        // UNIX_HASH_SIZE is a macro; half of the chains are for sockets with a path, and this has
        // as many.
        let count = self.reader.global("bsd_socket_buckets")?.len("")?;
        self.buckets(
            net.pointer("unx.table.buckets")?,
            count * 2,
            "struct hlist_head",
            "first",
        )
    }

    fn netlink(&mut self, tables: &Object<'_, M>) -> Result<(), ViewError> {
        let reader = self.reader;
        let first = tables.pointer("")?;
        let layout = reader.kernel().image().layout()?;
        let size = layout.size_of("struct netlink_table")?;
        let sk = layout.member("struct netlink_sock", "sk")?.offset;
        for protocol in 0..MAX_LINKS {
            let table = reader.object("struct netlink_table", first + protocol * size);
            let walked = reader.rhashtable(
                &table.member("hash")?,
                "struct netlink_sock",
                "node",
                WHAT,
                |sock| self.add(sock.addr() + sk),
            );
            reader.or_warn(walked);
        }
        Ok(())
    }
}
