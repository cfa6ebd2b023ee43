//! Against a real server, which each test starts for itself.

use std::io::ErrorKind as IoError;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::*;

/// A private server on loopback that keeps nothing; killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Server {
    async fn start() -> Self {
        let (folder, address) = (TempDir::new().expect("a folder"), Self::own_address());
        let child = Self::spawn(address, &folder);
        let mut server = Self { child, address, folder };
        server.until_it_answers().await;
        server
    }

    /// A loopback address of this process and a port of this server: nobody else takes it, not even
    /// while the server is away.
    fn own_address() -> SocketAddr {
        static NEXT_PORT: AtomicU16 = AtomicU16::new(15_000);
        let [_, _, third, fourth] = std::process::id().to_be_bytes();
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        (Ipv4Addr::new(127, 88, third, fourth), port).into()
    }

    fn spawn(address: SocketAddr, folder: &TempDir) -> Child {
        let child = Command::new("redis-server")
            .args(["--save", "", "--appendonly", "no"])
            .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        match child {
            Err(error) if error.kind() == IoError::NotFound => {
                panic!("redis-server is not installed: install Debian's package redis-server")
            }
            child => child.expect("redis-server starts"),
        }
    }

    async fn until_it_answers(&mut self) {
        const LIMIT: Duration = Duration::from_secs(20);
        let answer = async {
            while self.tell(&["PING"]).await.is_err() {
                assert!(self.child.try_wait().expect("asked").is_none(), "redis-server ended");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, answer).await.expect("redis-server answers in time");
    }

    /// Runs one command on a connection of its own.
    async fn tell(&self, words: &[&str]) -> Result<redis::Value, RedisError> {
        let mut connection = Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let (name, args) = words.split_first().expect("a command");
        redis::cmd(name).arg(args).query_async(&mut connection).await
    }

    async fn set(&self, key: &str, token: &str) {
        self.tell(&["HSET", key, "token", token]).await.expect("set");
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    async fn start_again(&mut self) {
        self.child = Self::spawn(self.address, &self.folder);
        self.until_it_answers().await;
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("an id"), signal).expect("signalled");
    }

    fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    fn tokens(&self) -> RedisTokens {
        RedisTokens::new(&self.url(), "device:<id>").expect("fine")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test]
async fn only_the_token_of_the_id_is_right() {
    let server = Server::start().await;
    let tokens = server.tokens();
    server.set("device:p1", "one").await;
    server.set("device:p2", "").await;
    server.tell(&["HSET", "device:p3", "name", "pump"]).await.expect("set");
    for (id, token, right) in [
        ("p1", "one", true),
        ("p1", "On", false),
        ("p1", "one ", false),
        ("p2", "", false),
        ("p3", "", false),
        ("nobody", "one", false),
    ] {
        assert_eq!(tokens.is_right(id, token).await, Ok(right), "{id} {token:?}");
    }
}

#[tokio::test]
async fn an_id_may_have_any_characters() {
    let server = Server::start().await;
    let tokens = server.tokens();
    for id in ["a b", "p\u{fc}mp", "*", "<id>", "p1\r\nSET x y", "\"'\\", "{p}:1", "\0"] {
        server.set(&format!("device:{id}"), "one").await;
        assert_eq!(tokens.is_right(id, "one").await, Ok(true), "{id:?}");
        assert_eq!(tokens.is_right(id, "two").await, Ok(false), "{id:?}");
    }
    let keys = server.tell(&["DBSIZE"]).await.expect("counted");
    assert_eq!(keys, redis::Value::Int(8), "an id is never a command");
}

#[tokio::test]
async fn a_key_that_is_no_hash_is_an_error_and_the_connection_goes_on() {
    let server = Server::start().await;
    let tokens = server.tokens();
    server.set("device:p1", "one").await;
    server.tell(&["SET", "device:p2", "one"]).await.expect("set");
    assert_eq!(tokens.is_right("p1", "one").await, Ok(true));
    let link = tokens.link();
    let error = tokens.is_right("p2", "one").await.expect_err("no hash");
    assert!(error.contains("WRONGTYPE"), "{error}");
    assert!(Arc::ptr_eq(&link, &tokens.link()));
    assert_eq!(tokens.is_right("p1", "one").await, Ok(true));
}

#[tokio::test]
async fn a_server_that_is_away_is_an_error_at_once_and_its_return_is_noticed_at_once() {
    let mut server = Server::start().await;
    let tokens = server.tokens();
    server.set("device:p1", "one").await;
    assert_eq!(tokens.is_right("p1", "one").await, Ok(true));
    server.kill();
    for _ in 0..3 {
        let since = Instant::now();
        let error = tokens.is_right("p1", "one").await.expect_err("away");
        assert!(error.starts_with("Redis: "), "{error}");
        assert!(since.elapsed() < ANSWER_TIMEOUT, "refused, not waited for");
    }
    server.start_again().await;
    server.set("device:p1", "two").await;
    assert_eq!(tokens.is_right("p1", "two").await, Ok(true));
    // And if nobody has asked meanwhile.
    server.kill();
    server.start_again().await;
    server.set("device:p1", "three").await;
    assert_eq!(tokens.is_right("p1", "three").await, Ok(true));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_waited_for_long() {
    let server = Server::start().await;
    let tokens = server.tokens();
    server.set("device:p1", "one").await;
    assert_eq!(tokens.is_right("p1", "one").await, Ok(true));
    server.signal(Signal::STOP);
    let since = Instant::now();
    let (first, second) = tokio::join!(tokens.is_right("p1", "one"), tokens.is_right("p1", "one"));
    server.signal(Signal::CONT);
    assert!(first.is_err() && second.is_err());
    assert!(since.elapsed() < ANSWER_TIMEOUT * 2, "one limit for both");
    assert_eq!(tokens.is_right("p1", "one").await, Ok(true));
}

#[tokio::test]
async fn a_server_that_refuses_to_connect_for_a_while_is_used_afterwards() {
    let server = Server::start().await;
    let url = format!("redis://:secret@{}/0", server.address);
    let tokens = RedisTokens::new(&url, "device:<id>").expect("fine");
    server.set("device:p1", "one").await;
    let error = tokens.is_right("p1", "one").await.expect_err("no password is set there");
    assert!(!error.contains("secret"), "{error}");
    assert!(!format!("{tokens:?}").contains("secret"));
    server.tell(&["CONFIG", "SET", "requirepass", "secret"]).await.expect("set");
    assert_eq!(tokens.is_right("p1", "one").await, Ok(true));
}

#[test]
fn a_url_or_a_key_that_is_none_is_named() {
    let error = RedisTokens::new("127.0.0.1", "device:<id>").expect_err("no URL");
    assert!(error.starts_with("expected a URL as in redis://127.0.0.1:6379/0"), "{error}");
    let error = RedisTokens::new("redis://127.0.0.1", "device").expect_err("one key for all");
    assert!(error.contains("<id>"), "{error}");
}
