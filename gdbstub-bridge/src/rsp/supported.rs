//! `qSupported`: what client and stub can do.
//!
//! GDB manual, "General Query Packets", `qSupported`. gdbstub answers for what it handles; this adds the rest.

use super::Client;
use super::encode::Reply;
use super::link::PACKET_SIZE;

/// What is supported here and not by gdbstub.
const OURS: [&str; 7] = [
    "BreakpointCommands+",
    "ConditionalBreakpoints+",
    "QStartNoAckMode+",
    "qXfer:auxv:read+",
    "qXfer:exec-file:read+",
    "qXfer:libraries-svr4:read+",
    "qXfer:threads:read+",
];

/// What is supported besides for an ordinary process.
const OF_PROCESS: [&str; 7] = [
    "QNonStop+",
    "QPassSignals+",
    "QProgramSignals+",
    "QThreadEvents+",
    "no-resumed+",
    "qXfer:siginfo:read+",
    "qXfer:siginfo:write+",
];

/// Whether the client follows a process that becomes another program.
pub(crate) fn follows_exec(features: &[u8]) -> bool {
    each(features).any(|feature| feature == b"exec-events+")
}

/// Whether the client understands that nothing runs any more.
pub(crate) fn expects_none_runs(features: &[u8]) -> bool {
    each(features).any(|feature| feature == b"no-resumed+")
}

/// Whether the client follows what a process forks, which it has to be able to name.
pub(crate) fn follows_forks(features: &[u8]) -> bool {
    let says = |wanted: &[u8]| each(features).any(|feature| feature == wanted);
    says(b"fork-events+") && says(b"vfork-events+") && multiprocess(features)
}

/// Whether the client expects replies to `x` to begin with a `b`.
///
/// Every GDB that has the packet does, and no GDB says so; but no other client relocates instructions. An LLDB that
/// does says so.
pub(crate) fn marks_binary(features: &[u8]) -> bool {
    each(features).any(|feature| matches!(feature, b"binary-upload+" | b"qRelocInsn+"))
}

/// Whether the client is GDB: no other relocates instructions.
pub(crate) fn is_gdb(features: &[u8]) -> bool {
    each(features).any(|feature| feature == b"qRelocInsn+")
}

/// Whether thread ids are to have a process's in front.
pub(crate) fn multiprocess(features: &[u8]) -> bool {
    each(features).any(|feature| feature == b"multiprocess+")
}

fn each(features: &[u8]) -> impl Iterator<Item = &[u8]> {
    features.split(|&byte| matches!(byte, b':' | b';'))
}

/// gdbstub's answer with ours.
pub(crate) fn complete(answer: &[u8], client: &Client, is_process: bool) -> Vec<u8> {
    let text = String::from_utf8_lossy(answer);
    let text = text.strip_prefix('$').unwrap_or(&text);
    let text = text.split('#').next().unwrap_or_default();
    let mut features = vec![format!("PacketSize={PACKET_SIZE:x}")];
    features.extend(
        text.split(';')
            .filter(|feature| !feature.starts_with("PacketSize="))
            .filter(|feature| !OURS.contains(feature) && !feature.is_empty())
            .map(str::to_owned),
    );
    features.extend(OURS.map(str::to_owned));
    if is_process {
        features.extend(OF_PROCESS.map(str::to_owned));
        if client.follows_exec {
            features.push("exec-events+".to_owned());
        }
        if client.follows_forks {
            features.extend(["fork-events+", "vfork-events+"].map(str::to_owned));
        }
    }
    if client.marks_binary {
        features.push("binary-upload+".to_owned());
    }
    Reply::text(&features.join(";")).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_apart() {
        assert!(marks_binary(
            b":multiprocess+;swbreak+;qRelocInsn+;vContSupported+"
        ));
        assert!(marks_binary(b":binary-upload+"));
        assert!(!marks_binary(
            b":xmlRegisters=i386,arm,mips,arc;multiprocess+"
        ));
        assert!(!marks_binary(b""));
    }

    #[test]
    fn answers_are_completed() {
        let client = Client {
            marks_binary: true,
            follows_exec: true,
            follows_forks: true,
            ..Client::default()
        };
        let answer = b"$PacketSize=1000;vContSupported+;QStartNoAckMode+#00";
        let of_process = String::from_utf8(complete(answer, &client, true)).unwrap();
        assert!(of_process.contains("QPassSignals+"), "{of_process}");
        assert!(of_process.contains("exec-events+"), "{of_process}");
        assert!(of_process.contains(";vfork-events+"), "{of_process}");
        let answer = complete(answer, &client, false);
        let text = String::from_utf8(answer).unwrap();
        let size = format!("$PacketSize={PACKET_SIZE:x};vContSupported+;");
        assert!(text.starts_with(&size), "{text}");
        assert_eq!(text.matches("QStartNoAckMode+").count(), 1, "{text}");
        assert!(text.contains("binary-upload+"), "{text}");
        assert!(!text.contains("QPassSignals+"), "{text}");
    }
}
