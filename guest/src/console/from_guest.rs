//! What the guest sends: frames and kernel messages.

use super::*;

impl Console {
    pub(super) fn read_line(&mut self) {
        loop {
            match self.parts.from_guest.read(&mut self.buffer) {
                Ok(0) => {
                    self.line_open = false;
                    return;
                }
                Ok(len) => self.decoder.push(&self.buffer[..len]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            loop {
                match self.decoder.next_frame::<ToHost>() {
                    Ok(Some(frame)) => self.handle(frame),
                    Ok(None) => break,
                    Err(error) => {
                        self.decoder = Decoder::new();
                        if self.phase != Phase::Over {
                            self.over(Event::LineBroken(error));
                        }
                        return;
                    }
                }
            }
        }
    }

    pub(super) fn handle(&mut self, frame: ToHost) {
        match frame {
            ToHost::Hello { version, .. } if version != VERSION => {
                self.over(Event::SetupFailed(format!(
                    "the init speaks version {version}, kscope {VERSION}"
                )));
            }
            ToHost::Hello { root, .. } => {
                if self.phase == Phase::Booting {
                    self.phase = Phase::Ready;
                    self.deadline = None;
                    self.emit(Event::Ready(root));
                }
            }
            ToHost::Warning(text) => self.emit(Event::Warning(text)),
            ToHost::Failed(reason) => self.over(Event::SetupFailed(reason)),
            ToHost::Started(_) => {
                self.stdin_open = true;
                self.emit(Event::Started);
            }
            ToHost::NotStarted { code, message } => {
                self.over(Event::NotStarted { code, message });
            }
            ToHost::Output(stream, bytes) => {
                let flow = self.flow(stream);
                if flow.closed {
                    return;
                }
                flow.queued += bytes.len();
                match stream {
                    Stream::Stdout => self.parts.stdout.write(bytes),
                    Stream::Stderr => self.parts.stderr.write(bytes),
                }
            }
            ToHost::Credit(bytes) => {
                self.credit = (self.credit + bytes as usize).min(INPUT_WINDOW);
            }
            ToHost::Taken(bytes) => {
                self.line_room = (self.line_room + bytes as usize).min(LINE_WINDOW);
                self.flush();
            }
            ToHost::StdinClosed => self.stdin_open = false,
            ToHost::Exited(status) => {
                if self.phase == Phase::Running {
                    self.phase = Phase::Delivering(status);
                    self.deadline = None;
                    self.delivered();
                }
            }
        }
    }

    /// Reports the command's end once the user has all its output.
    pub(super) fn delivered(&mut self) {
        if let Phase::Delivering(status) = self.phase
            && self.streams.iter().all(|s| s.queued == 0)
        {
            self.over(Event::Exited(status));
        }
    }

    pub(super) fn read_log(&mut self) {
        loop {
            let len = match self.parts.kernel_output.read(&mut self.buffer) {
                Ok(0) => {
                    self.log_open = false;
                    return;
                }
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let bytes = &self.buffer[..len];
            if let Err((path, error)) = self.parts.log.add(bytes) {
                self.emit(Event::Warning(format!(
                    "kernel messages are no longer kept in {}: {error}",
                    path.display()
                )));
            }
            if self.parts.user.kmsg {
                let mut text = bytes.to_vec();
                if self.raw.is_some() {
                    text = text
                        .split(|&b| b == b'\n')
                        .collect::<Vec<_>>()
                        .join(&b"\r\n"[..]);
                }
                self.parts.stderr.write(text);
            }
            if self.parts.log.panic().is_some() && self.phase != Phase::Over {
                self.panicked = Some(Instant::now());
            }
        }
    }
}
