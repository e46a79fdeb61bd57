//! `qSupported`: what client and stub can do.
//!
//! GDB manual, "General Query Packets", `qSupported`. gdbstub answers for what it handles; this adds the rest.

use super::encode::Reply;
use super::link::PACKET_SIZE;

/// What is supported here and not by gdbstub.
const OURS: [&str; 5] = [
    "BreakpointCommands+",
    "ConditionalBreakpoints+",
    "QStartNoAckMode+",
    "qXfer:libraries-svr4:read+",
    "qXfer:threads:read+",
];

/// Whether the client expects replies to `x` to begin with a `b`.
///
/// Every GDB that has the packet does, and no GDB says so; but no other client relocates instructions. An LLDB that
/// does says so.
pub(crate) fn marks_binary(features: &[u8]) -> bool {
    each(features).any(|feature| matches!(feature, b"binary-upload+" | b"qRelocInsn+"))
}

/// Whether thread ids are to have a process's in front.
pub(crate) fn multiprocess(features: &[u8]) -> bool {
    each(features).any(|feature| feature == b"multiprocess+")
}

fn each(features: &[u8]) -> impl Iterator<Item = &[u8]> {
    features.split(|&byte| matches!(byte, b':' | b';'))
}

/// gdbstub's answer with ours.
pub(crate) fn complete(answer: &[u8], marks_binary: bool) -> Vec<u8> {
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
    if marks_binary {
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
        let answer = complete(
            b"$PacketSize=1000;vContSupported+;QStartNoAckMode+#00",
            true,
        );
        let text = String::from_utf8(answer).unwrap();
        let size = format!("$PacketSize={PACKET_SIZE:x};vContSupported+;");
        assert!(text.starts_with(&size), "{text}");
        assert_eq!(text.matches("QStartNoAckMode+").count(), 1, "{text}");
        assert!(text.contains("binary-upload+"), "{text}");
    }
}
