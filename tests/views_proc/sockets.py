"""A process with sockets of every kind and in every state, and what it knows of them.

Prints a JSON object for each socket that it and its child have open: what the system calls
say of it. Says `ready PID` in the end, and sleeps then. `sockets.py fleeting` leaves connections
that are nobody's any more.
"""

import fcntl
import json
import os
import socket
import struct
import sys
import termios
import time

# include/uapi/linux/sockios.h
SIOCOUTQ = termios.TIOCOUTQ
SIOCINQ = termios.FIONREAD

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
kept = []
# What the kernel still works on: its queues and its state are not told.
moving = []
# Who has sent something.
senders = []


def keep(sock):
    kept.append(sock)
    return sock


def place(sock, address):
    """An address as JSON."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return {"address": address[0], "port": address[1]}
    if sock.family == socket.AF_UNIX:
        name = os.fsencode(address)
        return {"name": name.lstrip(b"\0").decode(), "abstract": name.startswith(b"\0")}
    if sock.family == socket.AF_NETLINK:
        return {"port": address[0], "groups": address[1]}
    return {"interface": address[0], "ethertype": address[1]}


def facts(sock):
    """What the process can know of a socket."""
    said = {
        "fd": sock.fileno(),
        "inode": os.fstat(sock.fileno()).st_ino,
        "family": sock.family.name,
        "type": sock.type.name,
        "protocol": sock.proto,
        "uid": os.fstat(sock.fileno()).st_uid,
        "listens": bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)),
        "moves": sock in moving,
        "local": place(sock, sock.getsockname()),
        "remote": None,
    }
    try:
        said["remote"] = place(sock, sock.getpeername())
    except OSError:
        pass
    for name, request in [("unread", SIOCINQ), ("unsent", SIOCOUTQ)]:
        try:
            said[name] = count(sock, request)
        except OSError:
            said[name] = None
    return said


def count(sock, request):
    return struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))[0]


def up():
    """Without it, there is no network: SIOCSIFFLAGS, IFF_UP."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))


def pair(listener):
    client = socket.socket(listener.family)
    client.connect(listener.getsockname()[:2])
    server, _ = listener.accept()
    return client, server


def tcp(family, host):
    listener = keep(socket.socket(family))
    listener.bind((host, 0))
    listener.listen(7)
    connected, accepted = keep(pair(listener))
    connected.send(b"not read yet")
    senders.append(connected)
    # More than fits: the rest is not acknowledged.
    connected, accepted = keep(pair(listener))
    accepted.setblocking(False)
    try:
        while True:
            accepted.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    moving.extend([connected, accepted])
    # Closed on one side.
    connected, accepted = keep(pair(listener))
    connected.shutdown(socket.SHUT_WR)
    senders.append(connected)
    # To be accepted.
    keep(socket.socket(family)).connect(listener.getsockname()[:2])
    # In no list of the kernel's.
    keep(socket.socket(family))
    keep(socket.socket(family)).bind((host, 0))
    if family == socket.AF_INET:
        # The second one gets no answer.
        full = keep(socket.socket(family))
        full.bind((host, 0))
        full.listen(0)
        keep(socket.socket(family)).connect(full.getsockname())
        last = keep(socket.socket(family))
        last.setblocking(False)
        last.connect_ex(full.getsockname())
        moving.append(last)
        # Somebody else's.
        os.fchown(full.fileno(), 1000, 1000)


def udp(family, host, protocol):
    bound = keep(socket.socket(family, DGRAM, protocol))
    bound.bind((host, 0))
    connected = keep(socket.socket(family, DGRAM, protocol))
    connected.connect(bound.getsockname()[:2])
    connected.send(b"a datagram")
    connected.send(b"another one")
    keep(socket.socket(family, DGRAM, protocol))


def unix():
    listener = keep(socket.socket(socket.AF_UNIX))
    listener.bind("a path")
    listener.listen(9)
    connected = keep(socket.socket(socket.AF_UNIX))
    connected.connect("a path")
    accepted = keep(listener.accept()[0])
    connected.send(b"0123456789")
    accepted.recv(3)
    connected.send(b"more")
    # To be accepted.
    keep(socket.socket(socket.AF_UNIX)).connect("a path")
    abstract = keep(socket.socket(socket.AF_UNIX, DGRAM))
    abstract.bind(b"\0with a\0zero")
    connected = keep(socket.socket(socket.AF_UNIX, DGRAM))
    connected.connect(b"\0with a\0zero")
    connected.send(b"first")
    connected.send(b"second one")
    keep(socket.socket(socket.AF_UNIX, DGRAM)).bind("")
    one, other = keep(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    one.send(b"one")
    one.send(b"two")
    one, other = keep(socket.socketpair())
    other.close()
    keep(socket.socket(socket.AF_UNIX))


def others():
    route = keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    # Groups 1, 5 and 9.
    route.bind((0, 0x111))
    keep(socket.socket(socket.AF_NETLINK, DGRAM, 15)).bind((0, 1))
    keep(socket.socket(socket.AF_NETLINK, DGRAM, 0))
    everything = socket.htons(3)
    keep(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, everything)).bind(("lo", 3))
    keep(socket.socket(socket.AF_PACKET, DGRAM, socket.htons(0x800)))
    raw = keep(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
    keep(socket.socket(socket.AF_INET, socket.SOCK_RAW, 89)).connect(("127.0.0.1", 0))
    raw.bind(("127.0.0.1", 0))
    with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
        file.write("0 2147483647")
    ping = keep(socket.socket(socket.AF_INET, DGRAM, 1))
    ping.bind(("127.0.0.1", 77))
    keep(socket.socket(socket.AF_INET, DGRAM, 1))


def fleeting():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    # The first to close waits.
    client, server = pair(listener)
    client.close()
    server.close()
    # Closed on one side, and nobody has that any more.
    client, server = pair(listener)
    client.close()
    if os.fork() == 0:
        # Keeps it.
        time.sleep(1000)
    # Waits for the data that the connection begins with.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 100)
    client = socket.socket()
    client.connect(listener.getsockname())
    if os.fork() == 0:
        time.sleep(1000)


if sys.argv[1:] == ["fleeting"]:
    fleeting()
    sys.exit()

up()
tcp(socket.AF_INET, "127.0.0.1")
udp(socket.AF_INET, "0.0.0.0", 0)
unix()
others()
protocols = [0]
try:
    # IPPROTO_UDPLITE: up to 7.0.
    socket.socket(socket.AF_INET, DGRAM, 136).close()
    protocols.append(136)
    udp(socket.AF_INET, "127.0.0.1", 136)
except OSError:
    pass
try:
    socket.socket(socket.AF_INET6).close()
    has_ipv6 = True
except OSError:
    has_ipv6 = False
if has_ipv6:
    tcp(socket.AF_INET6, "::1")
    for protocol in protocols:
        udp(socket.AF_INET6, "::1", protocol)
    # An address that is only good on its interface.
    keep(socket.socket(socket.AF_INET6, DGRAM)).bind(("ff02::1", 0, 0, 1))
    keep(socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
    keep(socket.socket(socket.AF_INET6, DGRAM, 58)).bind(("::1", 78))
    # IPv4 addresses on an IPv6 socket.
    both = keep(socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True))
    client = keep(socket.create_connection(("127.0.0.1", both.getsockname()[1])))
    keep(both.accept()[0])

sockets = []
for thing in kept:
    sockets.extend(thing if isinstance(thing, tuple) else [thing])
sockets = [sock for sock in sockets if sock.fileno() >= 0]
# Twice in this process.
os.dup(sockets[0].fileno())
child = os.fork()
if child == 0:
    os.dup(sockets[1].fileno())
    time.sleep(1000)
while any(count(sock, SIOCOUTQ) for sock in senders):
    time.sleep(0.01)
for sock in sockets:
    print(json.dumps(facts(sock)))
print("ready", os.getpid(), child, flush=True)
while True:
    time.sleep(1000)
