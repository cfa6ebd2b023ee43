//! A reader of server-sent events, by hand.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::wait::DEADLINE;

/// A stream of events that is open.
pub(crate) struct Events(BufReader<TcpStream>);

impl Events {
    /// Opens one and waits until it follows what happens.
    #[track_caller]
    pub(crate) fn follow(server: SocketAddr, path: &str) -> Self {
        let mut events = Self::open(server, path, None).past_the_head(path);
        assert_eq!(events.line().as_deref(), Some(": following"), "{path}");
        events
    }

    /// Opens one that takes little at a time and of which nothing is read yet.
    #[track_caller]
    pub(crate) fn unread(server: SocketAddr, path: &str) -> Self {
        Self::open(server, path, Some(1)).past_the_head(path)
    }

    #[track_caller]
    fn open(server: SocketAddr, path: &str, receive_buffer: Option<usize>) -> Self {
        let socket =
            Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).expect("SO_RCVBUF");
        }
        let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        socket.bind(&from.into()).expect("a port");
        socket.connect(&server.into()).expect("the bridge listens");
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).expect("SO_RCVTIMEO");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").expect("sent");
        Self(BufReader::with_capacity(4096, stream))
    }

    /// How a request for one is answered.
    #[track_caller]
    pub(crate) fn status(server: SocketAddr, path: &str) -> String {
        Self::open(server, path, None).line().expect("a status line")
    }

    #[track_caller]
    fn past_the_head(mut self, path: &str) -> Self {
        let status = self.line().expect("a status line");
        assert!(status.contains(" 200 "), "GET {path}: {status}");
        while !self.line().expect("the head ends").is_empty() {}
        self
    }

    /// The next event: its kind and its JSON. None at the end of the stream.
    #[track_caller]
    pub(crate) fn next_or_end(&mut self) -> Option<(String, Value)> {
        let mut kind = String::new();
        loop {
            let line = self.line()?;
            if let Some(word) = line.strip_prefix("event: ") {
                word.clone_into(&mut kind);
            } else if let Some(json) = line.strip_prefix("data: ") {
                let data =
                    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
                return Some((kind, data));
            }
        }
    }

    /// The next event, which there is.
    #[track_caller]
    pub(crate) fn next(&mut self) -> (String, Value) {
        self.next_or_end().expect("the stream goes on")
    }

    #[track_caller]
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = self.0.by_ref().read_line(&mut line);
        let count = count.unwrap_or_else(|error| panic!("no event within {DEADLINE:?}: {error}"));
        (count > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }
}
