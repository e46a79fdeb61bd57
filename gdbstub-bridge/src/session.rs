//! One client's session, from connect to whatever ends it.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError};
use kscope_guest::control::{Control, ControlError, Debugger};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clamp::Clamp;
use crate::connection::{Buffered, Stream};
use crate::listen::Listeners;
use crate::target::{Fatal, GuestTarget};
use crate::{is_readable, refuse};

/// The longest packet. Large enough for a page of stack or a screen of disassembly at once; beyond, an interrupt would
/// have to wait.
const PACKET_SIZE: usize = 131_104;

/// The most memory that is read for one request, in bytes: what fits a packet in hexadecimal.
const MOST_READ: u64 = 65_536;

/// How long the guest may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client is gone, for this reason.
    Client(String),
    /// The server is to end.
    Stopped,
}

type Machine = GdbStubStateMachine<'static, GuestTarget, Buffered>;

/// Serves one client. Whatever happens, the guest runs on afterwards.
pub(crate) fn run(stream: Stream, listeners: &Listeners, control: &Control, stop: &EventFd) -> End {
    let target = match begin(control) {
        Ok(target) => target,
        Err(error) => {
            refuse(stream, &error.to_string());
            return End::Client(format!("not connected: {error}"));
        }
    };
    log::info!("debugger connected to guest {}", control.pid());
    let mut session = Session {
        target,
        listeners,
        stop,
        clamp: Clamp::new(MOST_READ),
    };
    match session.serve(stream) {
        Ok(end) => end,
        Err(error) => End::Client(format!("disconnected: {error}")),
    }
}

/// Stops the guest for a client.
fn begin(control: &Control) -> Result<GuestTarget, ControlError> {
    let debugger = control.debug()?;
    if !debugger.is_stopped() {
        debugger.stop(STOP_TIMEOUT)?;
    }
    // The client asks for the reason itself.
    while debugger.next_event().is_some() {}
    GuestTarget::new(debugger, control.image().clone())
}

/// Whether the client will not send anything any more, beyond what has arrived already.
fn has_hung_up(connection: &Buffered) -> bool {
    let mut fds = [PollFd::new(
        connection.as_fd(),
        PollFlags::from_bits_retain(libc::POLLRDHUP),
    )];
    // A hang-up or an error is told unasked, too.
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

struct Session<'s> {
    target: GuestTarget,
    listeners: &'s Listeners,
    stop: &'s EventFd,
    clamp: Clamp,
}

/// What ends a session early.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("protocol error: {0}")]
    Protocol(#[from] GdbStubError<Fatal, io::Error>),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Control(#[from] ControlError),
    #[error("{0}")]
    Setup(String),
}

impl Session<'_> {
    fn serve(&mut self, stream: Stream) -> Result<End, SessionError> {
        let stub = GdbStub::builder(Buffered::new(stream))
            .packet_buffer_size(PACKET_SIZE)
            .build()
            .map_err(|error| SessionError::Setup(error.to_string()))?;
        let mut machine = stub.run_state_machine(&mut self.target)?;
        let mut buf = vec![0; 64 * 1024];
        loop {
            machine = match machine {
                GdbStubStateMachine::Disconnected(inner) => {
                    return Ok(End::Client(self.disconnected(inner.get_reason())));
                }
                GdbStubStateMachine::CtrlCInterrupt(inner) => {
                    // Bytes that came behind the interrupt are still to be fed: see `feed`.
                    inner.interrupt_handled(&mut self.target, None::<crate::target::Stop>)?
                }
                GdbStubStateMachine::Running(mut inner) => {
                    if let Some(event) = self.target.debugger.next_event() {
                        match self.target.on_event(event)? {
                            Some(reason) => inner.report_stop(&mut self.target, reason)?,
                            None => inner.into(),
                        }
                    } else {
                        // The acknowledgement of the request that set the guest running.
                        inner.borrow_conn().flush()?;
                        let events = Some(&self.target.debugger);
                        if !self.wait(inner.borrow_conn(), events)? {
                            // The client is still to hear of the guest's end, which is why this one comes.
                            if let Some(event) = self.target.debugger.next_event()
                                && let Some(reason) = self.target.on_event(event)?
                            {
                                inner.report_stop(&mut self.target, reason)?;
                            }
                            return Ok(End::Stopped);
                        }
                        match self.read(inner.into(), &mut buf)? {
                            Some(machine) => machine,
                            None => return Ok(End::Client("the client is gone".to_owned())),
                        }
                    }
                }
                GdbStubStateMachine::Idle(mut inner) => {
                    if !self.wait(inner.borrow_conn(), None)? {
                        return Ok(End::Stopped);
                    }
                    match self.read(inner.into(), &mut buf)? {
                        Some(machine) => machine,
                        None => return Ok(End::Client("the client is gone".to_owned())),
                    }
                }
            };
        }
    }

    /// Sleeps until there is something to do. False when the server is to end.
    fn wait(&self, connection: &Buffered, events: Option<&Debugger>) -> Result<bool, SessionError> {
        let mut fds = vec![
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(connection.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(events) = events {
            fds.push(PollFd::new(events.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(self.listeners.fds());
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        drop(fds);
        // Whoever comes right after this client's end is served next, not refused.
        if !has_hung_up(connection)
            && let Some(stream) = self.listeners.accept()
        {
            log::info!("refused a second debugger");
            refuse(
                stream,
                "another debugger is connected to this guest: detach it first",
            );
        }
        Ok(!is_readable(self.stop))
    }

    /// Feeds the machine what the client has sent, if anything. None when the client is gone.
    fn read(
        &mut self,
        mut machine: Machine,
        buf: &mut [u8],
    ) -> Result<Option<Machine>, SessionError> {
        let connection = match &mut machine {
            GdbStubStateMachine::Idle(inner) => inner.borrow_conn(),
            GdbStubStateMachine::Running(inner) => inner.borrow_conn(),
            GdbStubStateMachine::CtrlCInterrupt(inner) => inner.borrow_conn(),
            GdbStubStateMachine::Disconnected(inner) => inner.borrow_conn(),
        };
        if !is_readable(connection.as_fd()) {
            return Ok(Some(machine));
        }
        let read = connection.read(buf)?;
        if read == 0 {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(read);
        self.clamp.push(&buf[..read], &mut bytes);
        for byte in bytes {
            machine = self.feed(machine, byte)?;
        }
        Ok(Some(machine))
    }

    fn feed(&mut self, machine: Machine, byte: u8) -> Result<Machine, SessionError> {
        let machine = match machine {
            GdbStubStateMachine::Idle(inner) => inner.incoming_data(&mut self.target, byte)?,
            GdbStubStateMachine::Running(inner) => inner.incoming_data(&mut self.target, byte)?,
            // Nothing that comes after the end matters.
            other => return Ok(other),
        };
        let GdbStubStateMachine::CtrlCInterrupt(mut inner) = machine else {
            return Ok(machine);
        };
        self.target.plan.interrupted = true;
        // The stop is an event like any other; when the guest has stopped already, there is none.
        match self.target.debugger.stop(STOP_TIMEOUT) {
            Ok(()) | Err(ControlError::Ended) => {}
            Err(error) => {
                log::warn!("{error}");
                inner.borrow_conn().say(&format!("kscope: {error}\n"))?;
            }
        }
        Ok(inner.interrupt_handled(&mut self.target, None::<crate::target::Stop>)?)
    }

    fn disconnected(&self, reason: DisconnectReason) -> String {
        match reason {
            DisconnectReason::Kill => {
                // What the user asked for, in so many words.
                let pid = Pid::from_raw(self.target.debugger.control().pid().0);
                match kill(pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => log::warn!("killing guest {pid}: {errno}"),
                }
                "guest killed".to_owned()
            }
            DisconnectReason::TargetExited(code) => format!("the guest has exited with {code}"),
            DisconnectReason::TargetTerminated(signal) => {
                format!("the guest was killed by {signal}")
            }
            DisconnectReason::Disconnect => "detached".to_owned(),
        }
    }
}
