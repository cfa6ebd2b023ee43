//! A private RabbitMQ node, run by `./dev broker` as it is for developers: on a free port, all its files in a
//! temporary directory, killed when dropped.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::shared::shared;
use super::{reaper, signal, within};

const DEV: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dev");
/// Erlang starts in about four seconds alone, a good deal later beside a compiler, and after minutes on two cores that are busy
/// with a cluster of others.
const START: Duration = Duration::from_secs(300);

/// One node. It can be killed and started again with what it had on disk.
pub(crate) struct Broker {
    dir: PathBuf,
    port: u16,
    settings: String,
    plugins: &'static str,
    /// The ports of all nodes of its cluster, with blanks between; and the secret they share.
    cluster: String,
    cookie: String,
    node: Mutex<Option<Child>>,
}

impl Broker {
    /// The node that tests share which do it no harm; each uses queues and exchanges of its own.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Option<Arc<Broker>>> = OnceLock::new();
        shared(&SHARED, "the shared node", Self::alone)
    }

    /// A node for one test alone.
    pub(crate) fn alone() -> Self {
        Self::prepared(&[])
    }

    /// A node with settings of its own: of the application `rabbit`, each value an Erlang term without blanks.
    pub(crate) fn prepared(settings: &[(&str, &str)]) -> Self {
        let settings =
            settings.iter().map(|(name, value)| format!("-rabbit {name} {value} ")).collect();
        Self::started(settings, "")
    }

    /// A node with the management plugin, and the port its HTTP API listens on.
    pub(crate) fn managed() -> (Self, u16) {
        let port = free_port();
        let settings = format!("-rabbitmq_management tcp_config [{{port,{port}}}]");
        (Self::started(settings, "rabbitmq_management"), port)
    }

    /// Nodes that become one cluster when they start.
    pub(super) fn cluster(count: usize, settings: &str) -> Vec<Self> {
        let mut nodes: Vec<Self> =
            (0..count).map(|_| Self::stopped(settings.to_owned(), "")).collect();
        let ports: Vec<String> = nodes.iter().map(|node| node.port.to_string()).collect();
        let mut random = [0; 16];
        let mut source = fs::File::open("/dev/urandom").expect("random numbers");
        source.read_exact(&mut random).expect("random numbers");
        let cookie = format!("{:032x}", u128::from_ne_bytes(random));
        for node in &mut nodes {
            (node.cluster, node.cookie) = (ports.join(" "), cookie.clone());
        }
        nodes
    }

    fn started(settings: String, plugins: &'static str) -> Self {
        let broker = Self::stopped(settings, plugins);
        broker.start();
        broker
    }

    fn stopped(settings: String, plugins: &'static str) -> Self {
        assert!(
            Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server").exists(),
            "these tests need a real broker and rabbitmq-server is not installed: run `apt-get install rabbitmq-server`"
        );
        let dir = tempfile::Builder::new()
            .prefix("rabbitline-broker-")
            .tempdir()
            .expect("a temporary directory")
            .keep();
        reaper::remove(&dir);
        let (cluster, cookie) = (String::new(), String::new());
        Self { dir, port: free_port(), settings, plugins, cluster, cookie, node: Mutex::new(None) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts the node, again on the same port with the same files, and waits until it answers.
    pub(crate) fn start(&self) {
        let output = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("console.log"))
            .expect("a log");
        let mut node = Command::new(DEV)
            .arg("broker")
            .arg(&self.dir)
            .arg(self.port.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", &self.settings)
            .env("RABBITLINE_BROKER_PLUGINS", self.plugins)
            .env("RABBITLINE_BROKER_CLUSTER", &self.cluster)
            .env("RABBITLINE_BROKER_COOKIE", &self.cookie)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{DEV} does not start: {error}"));
        reaper::watch(node.id());
        within(START, "the private RabbitMQ node answers", || {
            if let Some(status) = node.try_wait().expect("wait") {
                panic!("`./dev broker` ended with {status}:\n{}", self.log());
            }
            greets(self.port).map_err(|error| format!("{error}; it wrote:\n{}", self.log()))
        });
        let before = self.node.lock().expect("no panic under this lock").replace(node);
        assert!(before.is_none(), "the node was running already");
    }

    /// Has the node put on disk what was declared. RabbitMQ confirms a declaration a little earlier than that: a queue or
    /// binding made just before a crash may be gone after it.
    #[track_caller]
    pub(crate) fn sync(&self) {
        self.ctl(&["eval", "mnesia:sync_log()."]);
    }

    /// Whether it was started, and not killed since.
    pub(super) fn is_started(&self) -> bool {
        self.node.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some()
    }

    /// Ends the node at once, as a crash would.
    pub(crate) fn kill(&self) {
        let node = self.node.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(mut node) = node {
            signal::kill_group(node.id());
            node.wait().expect("a killed child ends");
            reaper::forget(node.id());
        }
    }

    /// Sends a signal by name to the node.
    pub(crate) fn signal(&self, signal: &str) {
        let node = self.node.lock().expect("no panic under this lock");
        let id = node.as_ref().expect("the node runs").id();
        signal::send(signal, id);
    }

    /// `rabbitmqctl ARGS` on this node; its output.
    #[track_caller]
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let output =
            Command::new(DEV).arg("ctl").arg(&self.dir).args(args).output().expect("./dev runs");
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rabbitmqctl {args:?} failed: {out}{err}");
        out.into_owned()
    }

    /// What the node has logged.
    pub(crate) fn logged(&self) -> String {
        fs::read_to_string(self.dir.join("broker.log")).expect("the node logs")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("console.log")).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} stays behind: {error}", self.dir.display());
        }
    }
}

/// A port nobody listens on, below the range from which the kernel gives ports to outgoing connections, so that it
/// stays free while whoever is to listen on it starts, or is killed and starts again.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const SPAN: u16 = 18_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16;
    (0..SPAN)
        .map(|_| {
            FIRST + start.wrapping_mul(61).wrapping_add(NEXT.fetch_add(7, Ordering::Relaxed)) % SPAN
        })
        .find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok())
        .expect("a free port")
}

/// Whether an AMQP server speaks at the port.
fn greets(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"AMQP\x00\x00\x09\x01")?;
    stream.read_exact(&mut [0; 8])
}
