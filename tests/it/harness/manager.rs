//! `Manager`: what systemd is told by a service it started.

use std::os::unix::net::UnixDatagram;

use tempfile::TempDir;

use super::wait::DEADLINE;

/// The socket that a service manager listens on.
pub(crate) struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let folder = TempDir::new().expect("a directory");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Self { socket, folder }
    }

    /// What it gives a service: where to tell it, and how often that it lives.
    pub(crate) fn settings(&self) -> [(&'static str, String); 2] {
        let path = self.folder.path().join("notify").display().to_string();
        [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "1000000".to_owned())]
    }

    /// Waits until it is told `word`.
    #[track_caller]
    pub(crate) fn hears(&self, word: &str) {
        let mut message = [0; 4096];
        loop {
            let received = self.socket.recv(&mut message);
            let length = received.unwrap_or_else(|error| panic!("{word} did not come: {error}"));
            let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
            if text.lines().any(|line| line == word) {
                return;
            }
        }
    }
}
