//! One client's session, from connect to whatever ends it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use gdbstub::stub::DisconnectReason;
use kscope_guest::control::{Control, ControlError, Debugger, Event};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::connection::Stream;
use crate::listen::Listeners;
use crate::refuse;
use crate::rsp::encode::Reply;
use crate::rsp::frame::Item;
use crate::rsp::link::Link;
use crate::rsp::nonstop;
use crate::rsp::stub::Stub;
use crate::rsp::{Answer, Client, EINVAL};
use crate::target::{Fatal, GuestTarget, Stop};

/// How long the guest may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How many packets may wait while the guest runs. A client that waits for its reply before it goes on has none.
const MOST_WAITING: usize = 64;

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client is gone, for this reason.
    Client(String),
    /// The client has let the guest go.
    Detached,
    /// The client has killed the guest, or wants it killed.
    Killed,
    /// The guest has ended.
    Ended(String),
    /// The server is to end.
    Stopped,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Client(how) | End::Ended(how) => how.fmt(f),
            End::Detached => "detached".fmt(f),
            End::Killed => "guest killed".fmt(f),
            End::Stopped => "the server ends".fmt(f),
        }
    }
}

/// Serves one client. Whatever happens, the guest runs on afterwards.
pub(crate) fn run(stream: Stream, listeners: &Listeners, control: &Control, stop: &EventFd) -> End {
    let target = match begin(control, listeners) {
        Ok(target) => target,
        Err(error) => {
            refuse(stream, &error.to_string());
            return End::Client(format!("not connected: {error}"));
        }
    };
    log::info!("debugger connected to guest {}", control.pid());
    match Session::new(stream, target, listeners, stop).and_then(|mut session| session.serve()) {
        Ok(end) => end,
        Err(error) => End::Client(format!("disconnected: {error}")),
    }
}

/// Stops the guest for a client.
fn begin(control: &Control, listeners: &Listeners) -> Result<GuestTarget, ControlError> {
    let debugger = control.debug()?;
    if !debugger.is_stopped() {
        debugger.stop(STOP_TIMEOUT)?;
    }
    // The client asks for the reason itself.
    while debugger.next_event().is_some() {}
    let mut target = GuestTarget::new(debugger)?;
    target.expect_trouble();
    target.watch_modules(listeners.directory());
    Ok(target)
}

/// Whether the client will not send anything any more, beyond what has arrived already.
fn has_hung_up(link: &Link) -> bool {
    let mut fds = [PollFd::new(
        link.as_fd(),
        PollFlags::from_bits_retain(libc::POLLRDHUP),
    )];
    // A hang-up or an error is told unasked, too.
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

struct Session<'s> {
    target: GuestTarget,
    link: Link,
    stub: Stub,
    client: Client,
    /// What the client has sent and what has not been dealt with.
    items: VecDeque<Item>,
    listeners: &'s Listeners,
    stop: &'s EventFd,
    /// The client wants the process killed.
    exits: bool,
}

/// What a session has to do.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    /// The server is to end.
    stop: bool,
    /// The client has sent something, or is gone.
    client: bool,
    /// Another client has come.
    newcomer: bool,
}

/// What ends a session early.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{0}")]
    Target(#[from] Fatal),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Control(#[from] ControlError),
}

impl<'s> Session<'s> {
    fn new(
        stream: Stream,
        mut target: GuestTarget,
        listeners: &'s Listeners,
        stop: &'s EventFd,
    ) -> Result<Self, SessionError> {
        Ok(Self {
            stub: Stub::new(&mut target)?,
            target,
            link: Link::new(stream),
            client: Client::default(),
            items: VecDeque::new(),
            listeners,
            stop,
            exits: false,
        })
    }

    fn serve(&mut self) -> Result<End, SessionError> {
        loop {
            if let Some(reason) = self.stub.end() {
                self.link.flush()?;
                return Ok(self.disconnected(reason));
            }
            if self.client.non_stop.is_over() {
                self.link.flush()?;
                return Ok(End::Ended("the process has ended".to_owned()));
            }
            if self.exits {
                self.link.flush()?;
                self.kill();
                return Ok(End::Killed);
            }
            if self.stub.is_running() {
                if let Some(event) = self.target.next_event() {
                    self.on_event(event)?;
                    continue;
                }
                self.print();
                self.look_for_interrupt()?;
            } else {
                while self.client.non_stop.is_on()
                    && let Some(event) = self.target.next_event()
                {
                    self.on_event(event)?;
                }
                if self.client.non_stop.is_on() {
                    self.print();
                }
                if let Some(item) = self.items.pop_front() {
                    self.on_item(item)?;
                    continue;
                }
            }
            self.link.flush()?;
            let ready = self.wait()?;
            if ready.newcomer {
                self.refuse_newcomer();
            }
            if ready.stop {
                // The client is still to hear of the guest's end, which is why this one comes.
                if self.stub.is_running()
                    && let Some(event) = self.target.next_event()
                {
                    self.on_event(event)?;
                    self.link.flush()?;
                }
                return Ok(End::Stopped);
            }
            if ready.client && !self.link.read(&mut self.items)? {
                return Ok(End::Client("the client is gone".to_owned()));
            }
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Result<Ready, SessionError> {
        let mut fds = vec![
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.link.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.listeners.fds());
        let listeners = 2..fds.len();
        if self.stub.is_running() || self.client.non_stop.is_on() {
            let events: &Debugger = &self.target.debugger;
            fds.push(PollFd::new(events.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(self.target.console.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any() == Some(true);
        Ok(Ready {
            stop: fds.first().is_some_and(is_ready),
            client: fds.get(1).is_some_and(is_ready),
            newcomer: fds.get(listeners).unwrap_or_default().iter().any(is_ready),
        })
    }

    /// Tells another client that this one is here.
    fn refuse_newcomer(&self) {
        // Whoever comes right after this client's end is served next, not refused.
        if let Some(stream) = self.listeners.accept_if(|| !has_hung_up(&self.link)) {
            let peer = self.link.peer();
            log::info!("refused a second debugger: {peer} is connected");
            let reason =
                format!("another debugger is connected to this guest, {peer}: detach it first");
            refuse(stream, &reason);
        }
    }

    /// What the guest has done.
    fn on_event(&mut self, event: Event) -> Result<(), SessionError> {
        if self.client.non_stop.is_on() {
            return self.on_event_of_one(event);
        }
        if matches!(event, Event::NoneRuns) {
            self.print();
            self.target.on_event(event)?;
            // Any stop will do for gdbstub.
            let stop = Stop::Signal(gdbstub::common::Signal::SIGTRAP);
            self.stub.report(&mut self.target, stop, &[])?;
            self.link.send(self.client.none_runs());
            return Ok(());
        }
        if let Some(stop) = self.target.on_event(event)? {
            self.print();
            let registers = self.target.expedited();
            let reply = self.stub.report(&mut self.target, stop, &registers)?;
            let reply = self.client.complete_stop(&mut self.target, reply);
            self.client.on_stop(self.target.stopped_thread(), &reply);
            let reply = self.client.with_threads(&mut self.target, reply);
            self.link.send_raw(&reply);
        }
        Ok(())
    }

    /// What one thread of a process has done, while others run.
    fn on_event_of_one(&mut self, event: Event) -> Result<(), SessionError> {
        let (client, target) = (&mut self.client, &mut self.target);
        let notification = match event {
            Event::ThreadExited { tid, code } => nonstop::on_thread_exit(client, target, tid, code),
            Event::NoneRuns => nonstop::on_none_runs(client),
            event => match target.on_event(event)? {
                Some(stop) => {
                    let registers = target.expedited();
                    nonstop::on_stop(client, target, &stop, &registers)
                }
                None => None,
            },
        };
        if let Some(notification) = notification {
            self.link.notify(&notification);
        }
        Ok(())
    }

    /// Sends what breakpoints have printed. The guest has been resumed: only then does the client expect it.
    fn print(&mut self) {
        /// Bytes in one packet, which has to fit the client's buffer.
        const PIECE: usize = 4096;
        let text = self.target.console.take();
        if self.client.non_stop.is_on() {
            // There is no notification for it.
            if !text.is_empty() {
                log::warn!("printed: {}", String::from_utf8_lossy(&text));
            }
            return;
        }
        for piece in text.chunks(PIECE) {
            self.link.send(Reply::console(piece));
        }
    }

    /// While the guest runs, an interrupt is all that counts; other packets wait for the stop.
    fn look_for_interrupt(&mut self) -> Result<(), SessionError> {
        if !self.items.contains(&Item::Interrupt) {
            self.items.truncate(MOST_WAITING);
            return Ok(());
        }
        self.items.retain(|item| *item != Item::Interrupt);
        self.target.plan.interrupted = true;
        // The stop is an event like any other; when the guest has stopped already, there is none.
        match self.target.debugger.stop(STOP_TIMEOUT) {
            Ok(()) | Err(ControlError::Ended) => {}
            Err(error) => {
                log::warn!("{error}");
                let text = format!("kscope: {error}\n");
                self.link.send(Reply::console(text.as_bytes()));
            }
        }
        Ok(())
    }

    /// What the client has sent, while the guest is stopped.
    fn on_item(&mut self, item: Item) -> Result<(), SessionError> {
        match item {
            Item::Packet(packet) => self.on_packet(&packet)?,
            Item::Damaged | Item::TooLong => self.link.send(Reply::error(EINVAL)),
            // The guest is stopped already.
            Item::Interrupt | Item::Ack | Item::Nak => {}
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: &[u8]) -> Result<(), SessionError> {
        log::trace!("received {}", packet.escape_ascii());
        match self.client.answer(&mut self.target, packet) {
            Answer::Reply(reply) => self.link.send(reply),
            Answer::LastAcknowledged(reply) => {
                self.link.send(reply);
                self.link.stop_acknowledging();
            }
            Answer::TheirsAll([first, last]) => {
                self.stub.handle(&mut self.target, &first)?;
                self.have_handled(&last)?;
            }
            Answer::Replies(replies) => replies.into_iter().for_each(|reply| self.link.send(reply)),
            Answer::Exit(reply) => {
                self.link.send(reply);
                self.exits = true;
            }
            Answer::Theirs => self.have_handled(packet)?,
            Answer::TheirsAs(packet) => self.have_handled(&packet)?,
        }
        Ok(())
    }

    /// Has gdbstub handle a packet.
    fn have_handled(&mut self, packet: &[u8]) -> Result<(), SessionError> {
        let answer = self.stub.handle(&mut self.target, packet)?;
        let answer = self.client.complete(&self.target, packet, answer);
        self.link.send_raw(&answer);
        Ok(())
    }

    fn disconnected(&self, reason: DisconnectReason) -> End {
        match reason {
            DisconnectReason::Kill => {
                // What the user asked for, in so many words.
                self.kill();
                End::Killed
            }
            DisconnectReason::TargetExited(code) => {
                End::Ended(format!("the guest has exited with {code}"))
            }
            DisconnectReason::TargetTerminated(signal) => {
                End::Ended(format!("the guest was killed by {signal}"))
            }
            DisconnectReason::Disconnect => {
                if let Err(error) = self.target.debugger.detach() {
                    log::debug!("{error}");
                }
                End::Detached
            }
        }
    }

    fn kill(&self) {
        let control = self.target.debugger.control();
        if let Err(error) = control.kill() {
            log::warn!("killing guest {}: {error}", control.pid());
        }
    }
}
