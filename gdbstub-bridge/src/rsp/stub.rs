//! gdbstub, fed with whole packets and read as replies.
//!
//! gdbstub ends with whatever it does not expect: a malformed packet, a thread that is all threads, an action it does
//! not have. Here it talks to a buffer, so that beginning anew costs nothing: the client gets an error for what was not
//! understood, and the new gdbstub is told again what the old one knew of the client.

use std::convert::Infallible;

use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError};

use super::EINVAL;
use super::encode::{Reply, checksum};
use crate::arch::Number;
use crate::target::{Fatal, GuestTarget, Stop};

/// Bytes of gdbstub's buffer, which grows with the packets. It looks through all of it for each packet.
const BUFFER_SIZE: usize = 4096;

/// What gdbstub writes to.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Connection for Buffer {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Machine = GdbStubStateMachine<'static, GuestTarget, Buffer>;
type Failure = GdbStubError<Fatal, Infallible>;

/// gdbstub and what it has been told.
pub(crate) struct Stub {
    /// None only while a packet is fed.
    machine: Option<Machine>,
    /// The packets that tell of the client: what it supports, and which threads it has chosen, by their first bytes.
    told: [Option<Vec<u8>>; 3],
}

/// The packets that a new gdbstub has to be told again.
const TOLD: [&[u8]; 3] = [b"qSupported", b"Hg", b"Hc"];

impl Stub {
    pub(crate) fn new(target: &mut GuestTarget) -> Result<Self, Fatal> {
        Ok(Self {
            machine: Some(begin(target)?),
            told: Default::default(),
        })
    }

    /// Whether the guest runs, as far as gdbstub knows.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.machine, Some(GdbStubStateMachine::Running(_)))
    }

    /// Why it is over, if it is.
    pub(crate) fn end(&self) -> Option<DisconnectReason> {
        match &self.machine {
            Some(GdbStubStateMachine::Disconnected(inner)) => Some(inner.get_reason()),
            _ => None,
        }
    }

    /// Has gdbstub handle a packet, whose body is given with its escapes. The guest has to be stopped.
    ///
    /// The reply is what is to be sent, in one packet or more; nothing when the guest now runs.
    pub(crate) fn handle(
        &mut self,
        target: &mut GuestTarget,
        body: &[u8],
    ) -> Result<Vec<u8>, Fatal> {
        let machine = self.take(target)?;
        match feed(machine, target, body) {
            Ok(machine) => {
                let mut machine = machine;
                let out = output(&mut machine);
                self.machine = Some(machine);
                self.remember(body);
                Ok(out)
            }
            Err(error) => {
                self.recover(target, error)?;
                Ok(Reply::error(EINVAL).finish())
            }
        }
    }

    fn remember(&mut self, body: &[u8]) {
        for (told, prefix) in self.told.iter_mut().zip(TOLD) {
            if body.starts_with(prefix) {
                *told = Some(body.to_vec());
            }
        }
    }

    /// Tells the client that the guest has stopped. `registers` go along, so that it need not ask for them.
    pub(crate) fn report(
        &mut self,
        target: &mut GuestTarget,
        stop: Stop,
        registers: &[(Number, Vec<u8>)],
    ) -> Result<Vec<u8>, Fatal> {
        let machine = match self.take(target)? {
            GdbStubStateMachine::Running(inner) => {
                let mut registers = registers
                    .iter()
                    .map(|(number, bytes)| (*number, bytes.as_slice()));
                inner.report_stop_with_regs(target, stop, &mut registers)
            }
            // Nobody waits for it.
            other => Ok(other),
        };
        match machine {
            Ok(machine) => {
                let mut machine = machine;
                let out = output(&mut machine);
                self.machine = Some(machine);
                Ok(out)
            }
            Err(error) => {
                self.recover(target, error)?;
                Ok(Reply::text("S05").finish())
            }
        }
    }

    fn take(&mut self, target: &mut GuestTarget) -> Result<Machine, Fatal> {
        match self.machine.take() {
            Some(machine) => Ok(machine),
            None => begin(target),
        }
    }

    /// Begins anew, unless the guest itself is what failed.
    fn recover(&mut self, target: &mut GuestTarget, error: Failure) -> Result<(), Fatal> {
        log::info!("not understood: {error}");
        if let Some(fatal) = error.into_target_error() {
            return Err(fatal);
        }
        let mut machine = begin(target)?;
        for body in self.told.iter().flatten() {
            machine = match feed(machine, target, body) {
                Ok(machine) => machine,
                // It was understood before.
                Err(error) => return Err(Fatal::Stub(error.to_string())),
            };
            output(&mut machine);
        }
        self.machine = Some(machine);
        Ok(())
    }
}

fn begin(target: &mut GuestTarget) -> Result<Machine, Fatal> {
    let stub = GdbStub::builder(Buffer::default())
        .packet_buffer_size(BUFFER_SIZE)
        .build()
        .map_err(|error| Fatal::Stub(error.to_string()))?;
    stub.run_state_machine(target)
        .map_err(|error| Fatal::Stub(error.to_string()))
}

/// Feeds one packet.
fn feed(machine: Machine, target: &mut GuestTarget, body: &[u8]) -> Result<Machine, Failure> {
    let sum = format!("#{:02x}", checksum(body));
    let mut machine = machine;
    for &byte in b"$".iter().chain(body).chain(sum.as_bytes()) {
        machine = match machine {
            GdbStubStateMachine::Idle(inner) => inner.incoming_data(target, byte)?,
            // Resumed, ended: with the last byte.
            other => other,
        };
    }
    Ok(machine)
}

/// What has been written, without the acknowledgement.
fn output(machine: &mut Machine) -> Vec<u8> {
    let buffer = match machine {
        GdbStubStateMachine::Idle(inner) => inner.borrow_conn(),
        GdbStubStateMachine::Running(inner) => inner.borrow_conn(),
        GdbStubStateMachine::CtrlCInterrupt(inner) => inner.borrow_conn(),
        GdbStubStateMachine::Disconnected(inner) => inner.borrow_conn(),
    };
    let mut out = std::mem::take(&mut buffer.0);
    if out.first() == Some(&b'+') {
        out.remove(0);
    }
    out
}
