//! A private RabbitMQ node for one run of the benchmark, started by `./dev broker` and killed on drop with
//! all its files.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{process::Process, publisher::Publisher};

/// A node that has not answered after this long never will.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// A running node.
#[derive(Debug)]
pub(crate) struct Broker {
    // Dropped in this order: first the process, then its files.
    pub(crate) process: Process,
    files: TempDir,
    pub(crate) port: u16,
    pub(crate) version: String,
}

impl Broker {
    /// Starts a node and waits until it takes commands.
    pub(crate) fn start() -> Result<Self> {
        let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let port = free_port()?;
        let output = File::create(files.path().join("output"))?;
        let mut process = Process::start(
            "broker",
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("dev"))
                .arg("broker")
                .arg(files.path().join("node"))
                .arg(port.to_string())
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output),
        )?;
        let started = Instant::now();
        let version = loop {
            match Publisher::connect(port) {
                Ok(publisher) => break publisher.broker_version().to_owned(),
                Err(error) if started.elapsed() > START_LIMIT => {
                    return Err(error).with_context(|| said(files.path()));
                }
                Err(_) => thread::sleep(POLL),
            }
            process.must_run().with_context(|| said(files.path()))?;
        };
        Ok(Self { process, files, port, version })
    }

    /// What it has in use when its garbage is gone, in KiB. What the system says of it is what it once needed.
    pub(crate) fn memory(&self) -> Result<u64> {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("dev"))
            .arg("ctl")
            .arg(self.files().join("node"))
            .args(["eval", "[garbage_collect(P) || P <- processes()], erlang:memory(total)."])
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let bytes: u64 = said
            .trim()
            .parse()
            .with_context(|| format!("the broker does not say its memory: {output:?}"))?;
        Ok(bytes / 1024)
    }

    /// A folder that lives as long as the node, for the logs of what runs against it.
    pub(crate) fn files(&self) -> &Path {
        self.files.path()
    }
}

/// A port that nothing uses now, at any address: the node listens at another one, too. Not one of those that
/// the kernel gives to outgoing connections, of which a measurement has thousands.
fn free_port() -> Result<u16> {
    let first = u16::try_from(std::process::id() % 10_000)? + 20_000;
    (first..32_000)
        .find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
        .context("no free port for a private broker")
}

fn said(files: &Path) -> String {
    let output = std::fs::read_to_string(files.join("output")).unwrap_or_default();
    format!("the private broker does not start; it said:\n{output}")
}
