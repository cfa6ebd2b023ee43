//! A device of the model: it reads what has come when it is asked to, and never waits.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::account::{Account, Sight, now_ms};
use crate::harness::dial;

pub(super) struct Device {
    index: usize,
    connections: usize,
    current: Option<Connection>,
    /// Replaced, or closed from this side: read to their end.
    old: Vec<Connection>,
    reads: bool,
    answers: bool,
}

struct Connection {
    number: usize,
    stream: TcpStream,
    unread: Vec<u8>,
    lines: usize,
    promptly: bool,
}

/// How a device talks.
#[derive(Clone, Copy)]
pub(super) struct Manners {
    pub(super) names_what_it_answers: bool,
    pub(super) greets: bool,
}

impl Device {
    pub(super) fn new(index: usize) -> Self {
        Self { index, connections: 0, current: None, old: Vec::new(), reads: true, answers: true }
    }

    pub(super) fn address(index: usize) -> String {
        format!("127.2.0.{}", index + 1)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.current.is_some()
    }

    /// The address and port that the bridge sees.
    pub(super) fn peer(&self) -> Option<String> {
        self.current.as_ref()?.stream.local_addr().ok().map(|peer| peer.to_string())
    }

    /// Connects, over a living connection too. Where nobody listens it stays away.
    pub(super) fn connect(
        &mut self,
        port: u16,
        narrow: bool,
        manners: Manners,
        account: &mut Account,
    ) {
        let from = Self::address(self.index);
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let Ok(socket) = dial(to, &from, narrow.then_some(1)) else { return };
        let mut stream: TcpStream = socket.into();
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_nonblocking(true).expect("O_NONBLOCK");
        if manners.greets {
            stream.write_all(b"HELLO\n").ok();
        }
        let (unread, lines) = (Vec::new(), 0);
        let number = self.connections;
        self.connections += 1;
        let connection = Connection { number, stream, unread, lines, promptly: self.reads };
        if let Some(old) = self.current.replace(connection) {
            account.device_lost[self.index].push(account.now());
            self.old.push(old);
        }
    }

    /// Says that it will send no more, and goes on reading until the bridge has closed it.
    pub(super) fn close(&mut self, account: &mut Account) {
        if let Some(connection) = self.current.take() {
            connection.stream.shutdown(Shutdown::Write).ok();
            account.device_lost[self.index].push(account.now());
            self.old.push(connection);
        }
    }

    /// Resets the connection. What it had unread is lost to it, and known only if the bridge stood
    /// still all the while.
    pub(super) fn reset(&mut self, frozen: bool, manners: Manners, account: &mut Account) {
        self.pump(manners, account);
        let Some(mut connection) = self.current.take() else { return };
        account.device_lost[self.index].push(account.now());
        if !frozen {
            account.lost_unread[self.index].push(account.now());
        }
        let mut buffer = vec![0; 1 << 20];
        if let Ok(count) = connection.stream.peek(&mut buffer) {
            connection.unread.extend_from_slice(&buffer[..count]);
        }
        connection.take_lines(self.index, account);
        SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    pub(super) fn set_reads(&mut self, on: bool) {
        self.reads = on;
        if let Some(connection) = &mut self.current {
            connection.promptly &= on;
        }
    }

    pub(super) fn set_answers(&mut self, on: bool) {
        self.answers = on;
    }

    /// Reads and answers whatever is there.
    pub(super) fn pump(&mut self, manners: Manners, account: &mut Account) {
        let (index, answers) = (self.index, self.answers);
        let mut is_open = |connection: &mut Connection| {
            let open = connection.receive();
            let asked = connection.take_lines(index, account);
            if answers {
                connection.answer(&asked, manners);
            }
            open
        };
        self.old.retain_mut(&mut is_open);
        if self.reads
            && let Some(mut connection) = self.current.take()
        {
            if is_open(&mut connection) {
                self.current = Some(connection);
            } else {
                account.device_lost[index].push(account.now());
            }
        }
    }
}

impl Connection {
    /// Takes in what has come; false once the bridge has closed the connection.
    fn receive(&mut self) -> bool {
        let mut chunk = [0; 65_536];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => self.unread.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
    }

    /// Enters the whole lines that have come in the account; gives the names of those that ask for
    /// an answer.
    fn take_lines(&mut self, device: usize, account: &mut Account) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let sight = Sight {
                connection: self.number,
                line: self.lines,
                at_ms: now_ms(),
                promptly: self.promptly,
            };
            self.lines += 1;
            asked.extend(account.line(device, &String::from_utf8_lossy(&line), sight));
        }
        asked
    }

    fn answer(&self, asked: &[String], manners: Manners) {
        for name in asked {
            let answer = if manners.names_what_it_answers {
                format!("OK {name}\n")
            } else {
                "OK\n".to_owned()
            };
            // The connection may have ended.
            (&self.stream).write_all(answer.as_bytes()).ok();
        }
    }
}
