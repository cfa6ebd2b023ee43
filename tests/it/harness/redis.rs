//! A private Redis server on loopback that keeps nothing; killed when dropped.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;

use tempfile::TempDir;

use super::{Program, eventually, free_port};
use crate::harness::wait::DEADLINE;

const SERVER: &str = "/usr/bin/redis-server";

pub(crate) struct Redis {
    port: u16,
    folder: TempDir,
    server: Program,
}

impl Redis {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let (port, folder) = (free_port(), TempDir::new().expect("a directory"));
        let server = Self::spawn(port, &folder);
        let mut redis = Self { port, folder, server };
        redis.until_it_answers();
        redis
    }

    #[track_caller]
    fn spawn(port: u16, folder: &TempDir) -> Program {
        assert!(
            std::path::Path::new(SERVER).exists(),
            "these tests need a real Redis server and {SERVER} is not there: run `apt-get install redis-server`"
        );
        let mut command = Command::new(SERVER);
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no"])
            .current_dir(folder.path());
        Program::spawn("redis-server", command, &[])
    }

    #[track_caller]
    fn until_it_answers(&mut self) {
        let port = self.port;
        eventually("redis-server answers", || {
            if let Some(status) = self.server.ended() {
                panic!("redis-server ended with {status}: {}", self.server.stdout.text());
            }
            tell(port, &["PING"])
        });
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Sets one field of a hash.
    #[track_caller]
    pub(crate) fn set(&self, key: &str, field: &str, value: &str) {
        let answer = tell(self.port, &["HSET", key, field, value]).expect("an answer");
        assert!(answer.starts_with(':'), "{answer}");
    }

    /// Runs one command, whose answer is a number.
    #[track_caller]
    pub(crate) fn number(&self, words: &[&str]) -> u64 {
        let answer = tell(self.port, words).expect("an answer");
        let number = answer.trim().strip_prefix(':').and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("{words:?}: {answer}"))
    }

    /// Ends the server at once; what it knew is gone.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again at the same port, empty.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.server = Self::spawn(self.port, &self.folder);
        self.until_it_answers();
    }
}

/// One command on a connection of its own; the first line of the answer.
fn tell(port: u16, words: &[&str]) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "*{}\r\n", words.len())?;
    for word in words {
        write!(stream, "${}\r\n{word}\r\n", word.len())?;
    }
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.starts_with(['+', ':']) { Ok(answer) } else { Err(io::Error::other(answer)) }
}
