//! Who is at the other end of a socket.
//!
//! A debugger can do with the guest whatever the guest's user can, and a guest's user is a user of the host: a stub is
//! a shell. Machines are shared, and loopback is open to all of a machine's users.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The user at the other end of a Unix socket.
pub(crate) fn uid_of_unix(stream: &UnixStream) -> io::Result<u32> {
    Ok(getsockopt(stream, PeerCredentials)?.uid())
}

/// The process that has made the other end of a Unix socket, in words.
pub(crate) fn process_at(stream: &UnixStream) -> String {
    let Ok(peer) = getsockopt(stream, PeerCredentials) else {
        return "on the Unix socket".to_owned();
    };
    let pid = peer.pid();
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (process {pid})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

/// The user at the other end of a TCP connection on this host; none when the host does not know.
pub(crate) fn uid_of_tcp(stream: &TcpStream) -> io::Result<Option<u32>> {
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    // An IPv4 connection may have been made by an IPv6 socket.
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => {
                if let Some(uid) = find(&text, peer, local) {
                    return Ok(Some(uid));
                }
            }
            // A host without IPv6 has no table for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The owner, in a table of the host's sockets, of the one that is bound to `own` and connected to `other`.
fn find(table: &str, own: SocketAddr, other: SocketAddr) -> Option<u32> {
    const ESTABLISHED: &str = "01";
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = parse(words.next()?)?;
        let remote = parse(words.next()?)?;
        let state = words.next()?;
        if local != canonical(own) || remote != canonical(other) || state != ESTABLISHED {
            return None;
        }
        words.nth(3)?.parse().ok()
    })
}

/// An IPv4 address in an IPv6 one is the IPv4 one.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// An address as the host's tables have it: the words of the address in the machine's order, the port in the usual.
fn parse(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(
            u32::from_str_radix(ip.get(at..at + 8)?, 16)
                .ok()?
                .to_ne_bytes(),
        );
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::from(four),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
    };
    Some(canonical(SocketAddr::new(
        ip,
        u16::from_str_radix(port, 16).ok()?,
    )))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:04D2 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31 1
   1: 0100007F:C000 0100007F:04D2 01 00000000:00000000 02:000006E7 00000000  1001        0 32 2
   2: 0100007F:04D2 0100007F:C000 01 00000000:00000000 00:00000000 00000000  1000        0 33 1
";

    const TABLE6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100007F:C000 0000000000000000FFFF00000100007F:04D2 01 00000000:00000000 00:00000000 00000000  1002        0 34 1
";

    #[test]
    fn the_peer_is_found_and_not_this_end() {
        let (peer, local) = (
            "127.0.0.1:49152".parse().unwrap(),
            "127.0.0.1:1234".parse().unwrap(),
        );
        assert_eq!(find(TABLE, peer, local), Some(1001));
        assert_eq!(find(TABLE6, peer, local), Some(1002));
        assert_eq!(find(TABLE, "127.0.0.1:49153".parse().unwrap(), local), None);
        assert_eq!(find("garbage\nx: y z", peer, local), None);
    }

    #[test]
    fn a_real_connection_is_ours() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(
            uid_of_tcp(&server).unwrap(),
            Some(nix::unistd::geteuid().as_raw())
        );
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(uid_of_unix(&one).unwrap(), nix::unistd::geteuid().as_raw());
        let process = process_at(&one);
        let own = format!("(process {})", std::process::id());
        assert!(process.contains(&own), "{process}");
    }
}
