//! `kscope net`: the sockets, and who has them open.

use kscope_kernel::views::net::NetOptions;

use super::pid_args::{PID_HELP, PidArgs};
use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope net
  kscope net --tcp --listening
  kscope net web 20
  kscope net --format json | jq -r '.net.sockets[] | select(.state == \"close_wait\").addr'

The sockets of every family and network namespace, as ss -anp lists them, and also those that
are in no list of /proc/net since they are not bound. STATE is the kernel's TCP state, which
UDP, UNIX and other sockets have as well. RECV-Q is what the process has not read yet, SEND-Q
what the other end has not acknowledged or taken, in bytes; of a listening socket, how many
connections wait to be accepted and how many may. PEER of a UNIX socket is the other one's
inode. The last column is who has it open, PROGRAM[PID] fd N; - is the kernel itself, or
nobody any more. With several network namespaces, the first column is the one it is in, N of
net:[N] as in /proc/PID/ns.";

const FIELDS: &str = "\
In JSON, \"net\" is {\"namespaces\": [{\"inode\", \"addr\" (the struct net)}], \"sockets\": [{\"netns\"
(the inode of its namespace), \"protocol\", \"family\", \"type\", \"state\", \"recv_queue\",
\"send_queue\", \"address\", \"uid\", \"inode\", \"refs\", \"processes\": [{\"pid\", \"comm\", \"fds\"}],
\"addr\" (the struct sock)}]}. \"address\" is null or an object with one of: \"inet\": {\"local\"
and \"remote\" ({\"address\", \"port\"}; remote may be null), \"interface\"}, \"unix\": {\"name\",
\"abstract\", \"peer\", \"peer_inode\"}, \"netlink\": {\"protocol\", \"port\", \"groups\"}, \"packet\":
{\"ethertype\", \"interface\"}. \"uid\" and \"inode\" may be null.";

/// List the sockets: their addresses, states and queues, and who has them open.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{PID_HELP}\n\n{FIELDS}\n\n{JSON_HELP}"))]
pub struct Args {
    #[command(flatten)]
    pids: PidArgs,

    /// Only sockets that anybody may come to: that listen, or need no connection
    #[arg(short, long)]
    listening: bool,

    /// Only TCP
    #[arg(short, long)]
    tcp: bool,

    /// Only UDP
    #[arg(short, long)]
    udp: bool,

    /// Only UNIX
    #[arg(short = 'x', long)]
    unix: bool,

    #[command(flatten)]
    view: ViewArgs,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let chosen = args.pids.chosen()?;
    let protocols = [(args.tcp, "tcp"), (args.udp, "udp"), (args.unix, "unix")];
    let protocols = protocols.into_iter().filter(|(wanted, _)| *wanted);
    let options = NetOptions {
        pids: chosen.pids,
        protocols: protocols.map(|(_, protocol)| protocol).collect(),
        listening: args.listening,
    };
    args.view
        .show(chosen.guest, "net", |reader| reader.sockets(&options))
}
