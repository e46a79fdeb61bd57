//! Sockets: of those within the guest, who is at the other end.

use super::look::Look;
use super::sleeper::Sleeper;
use super::{Reason, Role, Wait, Waker};
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::Object;
use crate::views::net::family_name;

/// AF_UNIX of include/linux/socket.h.
const UNIX: u64 = 1;

/// SOCK_DGRAM of include/linux/net.h: anybody who knows its name can send to such a socket.
const DATAGRAM: u64 = 2;

impl<M: Memory> Look<'_, '_, M> {
    /// A socket that has nothing to read, no room, or nobody who connects.
    pub(super) fn socket(&self, sleeper: &Sleeper) -> Wait {
        let queue = self.first_queue(sleeper);
        let socket = queue.and_then(|queue| self.socket_of(queue));
        let Some(socket) = socket else {
            let reason = Reason::Socket {
                family: "unknown".to_owned(),
                fd: None,
            };
            let named = queue.map(|queue| self.named(queue, "struct wait_queue_head"));
            return Wait::new(reason).on(named);
        };
        let file = socket.addr_value("file").unwrap_or(KernelAddr(0));
        let fd = self.descriptor_of(&sleeper.task, file);
        let sock = socket.addr_value("sk").unwrap_or(KernelAddr(0));
        let sock = self.reader.object("struct sock", sock);
        let family = sock.u64("__sk_common.skc_family").unwrap_or(0);
        let reason = Reason::Socket {
            family: family_name(family),
            fd,
        };
        let named = queue.map(|queue| self.named(queue, "struct wait_queue_head"));
        let wait = Wait::new(reason).on(named);
        if family != UNIX || socket.u64("type").unwrap_or(DATAGRAM) == DATAGRAM {
            return wait;
        }
        wait.only(self.peers(sock.addr()))
    }

    /// The socket whose wait queue this is.
    fn socket_of(&self, queue: KernelAddr) -> Option<Object<'_, M>> {
        let offset = self
            .layout()?
            .member("struct socket", "wq.wait")
            .ok()?
            .offset;
        let socket = self.reader.object("struct socket", queue - offset);
        let sock = self
            .reader
            .object("struct sock", socket.addr_value("sk").ok()?);
        (sock.addr_value("sk_socket").ok()? == socket.addr()).then_some(socket)
    }

    /// The tasks that have the other socket of a connected pair open.
    fn peers(&self, sock: KernelAddr) -> Vec<Waker> {
        let own = self.reader.object("struct unix_sock", sock);
        let peer = own.addr_value("peer").ok().filter(|peer| !peer.is_null());
        let file = peer.and_then(|peer| {
            let peer = self.reader.object("struct sock", peer);
            let socket = peer.addr_value("sk_socket").ok()?;
            let file = self
                .reader
                .object("struct socket", socket)
                .addr_value("file")
                .ok()?;
            (!file.is_null()).then_some(file)
        });
        let Some(file) = file else {
            return Vec::new();
        };
        let tasks = self.holders([file]).into_iter();
        tasks
            .map(|task| Waker::new(task, Role::OtherEnd, true))
            .collect()
    }
}
