//! One client's session, from connect to whatever ends it.
//!
//! It has a thread of its own, which waits for the guest and for the client as long as the guest runs, and does what
//! takes its time. While the guest is stopped the session visits the engine's thread, where a step or a register costs
//! no other thread's wake-up.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gdbstub::stub::DisconnectReason;
use kscope_guest::control::{Control, ControlError, Debugger, Event, Visit};
use kscope_kernel::Image;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::connection::{Stream, WRITE_TIMEOUT};
use crate::listen::Listeners;
use crate::refuse;
use crate::rsp::encode::Reply;
use crate::rsp::frame::Item;
use crate::rsp::link::{Arrival, Link};
use crate::rsp::nonstop;
use crate::rsp::stub::Stub;
use crate::rsp::{Answer, Client, EINVAL};
use crate::target::{Fatal, GuestTarget, Stop};

/// How long the guest may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How many packets may wait while the guest runs. A client that waits for its reply before it goes on has none.
const MOST_WAITING: usize = 64;

/// How often a session looks for others while its client keeps it busy.
const LOOK_EVERY: Duration = Duration::from_millis(90);

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

/// The client has closed the connection, or died.
fn gone() -> End {
    End::Client("the client is gone".to_owned())
}

/// Serves one client. Whatever happens, the guest runs on afterwards.
pub(crate) fn run(
    stream: Stream,
    listeners: &Arc<Listeners>,
    control: &Control,
    stop: &Arc<EventFd>,
) -> End {
    let target = match begin(control, listeners) {
        Ok(target) => target,
        Err(error) => {
            refuse(stream, &error.to_string());
            return End::Client(format!("not connected: {error}"));
        }
    };
    log::info!("debugger connected to guest {}", control.pid());
    Session::new(stream, target, listeners, stop)
        .and_then(|session| session.serve(control))
        .unwrap_or_else(|error| End::Client(format!("disconnected: {error}")))
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
    // For the next one, also if this one never comes to its end.
    if let Some(Err(error)) = target.image.as_ref().map(Image::save) {
        log::debug!("what was found out about the kernel is not kept: {error}");
    }
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

struct Session {
    target: GuestTarget,
    link: Link,
    stub: Stub,
    client: Client,
    /// What the client has sent and what has not been dealt with.
    items: VecDeque<Item>,
    listeners: Arc<Listeners>,
    stop: Arc<EventFd>,
    /// The client wants the process killed.
    exits: bool,
    /// When it was last looked for others than the client.
    looked: Instant,
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

/// Whether a packet is dealt with in no time, so that nobody who wants something of the engine is kept waiting.
fn is_quick(item: &Item) -> bool {
    match item {
        Item::Packet(packet) => match packet.first() {
            Some(first) => {
                b"?cCgGHmMpPsSTxXzZ".contains(first)
                    || packet.starts_with(b"vCont")
                    || packet.starts_with(b"qXfer:threads")
            }
            None => true,
        },
        _ => true,
    }
}

impl Session {
    fn new(
        stream: Stream,
        mut target: GuestTarget,
        listeners: &Arc<Listeners>,
        stop: &Arc<EventFd>,
    ) -> Result<Self, SessionError> {
        Ok(Self {
            stub: Stub::new(&mut target)?,
            target,
            link: Link::new(stream),
            client: Client::default(),
            items: VecDeque::new(),
            listeners: Arc::clone(listeners),
            stop: Arc::clone(stop),
            exits: false,
            looked: Instant::now(),
        })
    }

    fn serve(mut self, control: &Control) -> Result<End, SessionError> {
        loop {
            if let Some(end) = self.go_on()? {
                return Ok(end);
            }
            if self.watches_guest() || self.is_over() {
                continue;
            }
            let (session, end) = control.visit(move |visit| {
                let end = self.stay(visit);
                (self, end)
            })?;
            self = session;
            if let Some(end) = end? {
                return Ok(end);
            }
        }
    }

    /// Whether all that is left is to part.
    fn is_over(&self) -> bool {
        self.exits || self.stub.end().is_some() || self.client.non_stop.is_over()
    }

    /// Whether the guest, or a part of it, may run, so that it and the client both are to be waited for.
    fn watches_guest(&self) -> bool {
        self.stub.is_running() || self.client.non_stop.is_on()
    }

    /// Does the next thing on the session's own thread, which may be to wait for the guest.
    fn go_on(&mut self) -> Result<Option<End>, SessionError> {
        if self.is_over() {
            self.flush()?;
            return Ok(Some(self.part()));
        }
        if self.watches_guest() {
            while let Some(event) = self.target.next_event() {
                self.on_event(event)?;
                if !self.client.non_stop.is_on() {
                    return self.flush();
                }
            }
            self.print();
        }
        if self.stub.is_running() {
            self.look_for_interrupt()?;
        } else if let Some(item) = self.items.pop_front() {
            self.on_item(item)?;
            if let Some(end) = self.flush()? {
                return Ok(Some(end));
            }
            return self.look();
        }
        if let Some(end) = self.flush()? {
            return Ok(Some(end));
        }
        if !self.watches_guest() {
            return Ok(None);
        }
        let ready = self.poll(PollTimeout::NONE)?;
        self.on_ready(ready)
    }

    /// What is left to do when it is over.
    fn part(&self) -> End {
        if let Some(reason) = self.stub.end() {
            return self.disconnected(reason);
        }
        if self.exits {
            self.kill();
            return End::Killed;
        }
        End::Ended("the process has ended".to_owned())
    }

    /// Has the client take everything. Others are looked for meanwhile: it may be long in reading, or never read.
    fn flush(&mut self) -> Result<Option<End>, SessionError> {
        let mut progress = (Instant::now(), self.link.waiting());
        while !self.link.flush_at_once()? {
            if self.link.waiting() != progress.1 {
                progress = (Instant::now(), self.link.waiting());
            }
            if progress.0.elapsed() > WRITE_TIMEOUT {
                return Ok(Some(End::Client("the client does not read".to_owned())));
            }
            self.link.wait_for_room(LOOK_EVERY)?;
            if let Some(end) = self.look()? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// Looks for others than the client, unless it has just been done.
    fn look(&mut self) -> Result<Option<End>, SessionError> {
        if self.looked.elapsed() < LOOK_EVERY {
            return Ok(None);
        }
        self.looked = Instant::now();
        let ready = Ready {
            client: false,
            ..self.poll(PollTimeout::ZERO)?
        };
        self.on_ready(ready)
    }

    /// Serves the client on the engine's thread: until something takes its time, or somebody else's turn has come.
    fn stay(&mut self, visit: &Visit) -> Result<Option<End>, SessionError> {
        while !self.is_over() && !visit.is_in_the_way() {
            if self.stub.is_running() {
                if self.target.has_none_pending() {
                    visit.wait_for_stop();
                }
                if let Some(event) = self.target.next_event() {
                    self.on_event(event)?;
                }
                // Then it may be long, and others are to be heard.
                if self.stub.is_running() {
                    break;
                }
                continue;
            }
            // First, so that nothing piles up for a client that asks and does not read.
            if !self.link.flush_at_once()? {
                break;
            }
            if self.items.is_empty() {
                let read = visit
                    .block(|| self.link.read(&mut self.items))?
                    .transpose()?;
                match read {
                    Some(Arrival::Some) => {}
                    Some(Arrival::End) => return Ok(Some(gone())),
                    Some(Arrival::Interrupted) | None => visit.catch_up(),
                }
            } else if self.items.front().is_some_and(is_quick)
                && let Some(item) = self.items.pop_front()
            {
                self.on_item(item)?;
            } else {
                break;
            }
            if let Some(end) = self.look()? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// Looks for something to do, but for what the client says while the guest is stopped.
    fn poll(&self, timeout: PollTimeout) -> Result<Ready, SessionError> {
        let mut fds = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.listeners.fds());
        let listeners = 1..fds.len();
        if self.watches_guest() {
            let events: &Debugger = &self.target.debugger;
            fds.push(PollFd::new(self.link.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(events.as_fd(), PollFlags::POLLIN));
            fds.push(PollFd::new(self.target.console.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any() == Some(true);
        Ok(Ready {
            stop: fds.first().is_some_and(is_ready),
            client: self.watches_guest() && fds.get(listeners.end).is_some_and(is_ready),
            newcomer: fds.get(listeners).unwrap_or_default().iter().any(is_ready),
        })
    }

    /// Sees to what a wait has brought, but for the guest.
    fn on_ready(&mut self, ready: Ready) -> Result<Option<End>, SessionError> {
        if ready.newcomer {
            self.refuse_newcomer();
        }
        if ready.stop {
            // The client is still to hear of the guest's end, which is why this one comes.
            if self.stub.is_running()
                && let Some(event) = self.target.next_event()
            {
                self.on_event(event)?;
                // As much as it takes: it is not waited for any more.
                self.link.flush_at_once()?;
            }
            return Ok(Some(End::Stopped));
        }
        if ready.client && self.link.read(&mut self.items)? == Arrival::End {
            return Ok(Some(gone()));
        }
        Ok(None)
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
            Event::ThreadExited { pid, tid, code } => {
                nonstop::on_thread_exit(client, pid, tid, code)
            }
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
        let answer = self.client.complete(&mut self.target, packet, answer);
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
