"""A process that has some of everything that /proc shows: mappings, files, sockets.

Says `ready PID` when it is set up, and sleeps then.
"""

import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
import time

kept = []


def keep(thing):
    kept.append(thing)
    return thing


# Memory: private, shared, of a file, of a file that is gone, and of none.
anonymous = keep(mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
anonymous[: 5 * 4096] = b"x" * 5 * 4096
# Reading makes no page of its own.
anonymous[8 * 4096]
keep(mmap.mmap(-1, 65536))[:4096] = b"s" * 4096
with open("mapped file", "wb") as file:
    file.write(b"m" * 3 * 4096)
file = keep(open("mapped file", "r+b"))
keep(mmap.mmap(file.fileno(), 2 * 4096, offset=4096))[0]
gone = keep(open("gone", "w+b"))
gone.write(b"g" * 9000)
gone.flush()
keep(mmap.mmap(gone.fileno(), 9000))[0]
os.unlink("gone")
memfd = keep(os.memfd_create("a memfd"))
os.truncate(memfd, 8192)
keep(mmap.mmap(memfd, 8192))[0] = 1
keep(mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0))
# A name for memory, where the kernel knows such (PR_SET_VMA, PR_SET_VMA_ANON_NAME).
named = keep(mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
address = ctypes.addressof(ctypes.c_char.from_buffer(named))
libc = ctypes.CDLL(None)
libc.prctl(
    0x53564D41,
    0,
    ctypes.c_ulong(address),
    ctypes.c_ulong(8192),
    ctypes.c_char_p(b"a name"),
)

# Files: flags and positions, pipes, and what has no place in the tree.
append = keep(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_SYNC))
os.write(append, b"twelve bytes")
keep(os.open(".", os.O_PATH | os.O_DIRECTORY))
keep(os.pipe2(os.O_NONBLOCK))
os.mkfifo("fifo")
keep(os.open("fifo", os.O_RDWR))
keep(os.open("/dev/null", os.O_RDONLY))
keep(os.open("/proc/self/ns/mnt", os.O_RDONLY))
keep(os.open("/proc/self/status", os.O_RDONLY))
keep(select.epoll())
for name, arguments in [
    ("eventfd", (7, 0)),
    ("timerfd_create", (1, 0)),
    ("inotify_init1", (0,)),
]:
    assert keep(getattr(libc, name)(*arguments)) >= 0, name

# Sockets, connected and not, with something in their queues.
listening = keep(socket.socket())
# SIOCSIFFLAGS, IFF_UP: so that there is a network.
fcntl.ioctl(listening, 0x8914, struct.pack("16sH14x", b"lo", 1))
listening.bind(("127.0.0.1", 8080))
listening.listen(5)
connected = keep(socket.create_connection(("127.0.0.1", 8080)))
accepted, _ = keep(listening.accept())
connected.send(b"hello")
# Waits to be accepted.
keep(socket.create_connection(("127.0.0.1", 8080)))
udp = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
udp.bind(("0.0.0.0", 5353))
connected_udp = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
connected_udp.connect(("127.0.0.1", 5353))
connected_udp.send(b"a datagram")
unix = keep(socket.socket(socket.AF_UNIX))
unix.bind("socket")
unix.listen()
keep(socket.socket(socket.AF_UNIX)).connect("socket")
abstract = keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
abstract.bind("\0an abstract name")
keep(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
keep(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))).bind(("lo", 3))
keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)).bind((0, 1))
keep(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))

os.mkdir("cwd")
os.chdir("cwd")
os.rmdir("../cwd")

print("ready", os.getpid(), flush=True)
while True:
    time.sleep(1000)
