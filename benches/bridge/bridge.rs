//! A bridge under measurement: the release build of `rabbitline`, or the limit, the bridge in C. Both are
//! started, paused, resumed and watched in the same way.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    broker::Broker,
    clock::wait_until,
    load::QUEUE,
    process::{Lines, Process, piped},
};

/// A bridge that is not ready after this long never will be.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A bridge that takes no more of a processor than this for so long is idle; the kernel counts in 10 ms.
const IDLE: Duration = Duration::from_millis(300);
const IDLE_CPU: Duration = Duration::from_millis(10);
/// What is logged of a listener that is bound.
const LISTENING: &str = "listening for devices";
const POLL: Duration = Duration::from_millis(2);

const LIMIT_PROGRAM: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/limit_bridge");

/// Which bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Rabbitline,
    /// The same with `COMMAND_CONFIRM=received`.
    Received,
    LimitInC,
}

impl Kind {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Rabbitline => "rabbitline",
            Self::Received => "rabbitline (received)",
            Self::LimitInC => "limit in C",
        }
    }
}

/// A running bridge.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) process: Process,
    pub(crate) device_port: u16,
    readiness: Readiness,
}

/// How to learn that it consumes and knows its devices.
#[derive(Debug)]
enum Readiness {
    /// It answers over HTTP; on an error its log is worth reading.
    Http { address: SocketAddr, log: PathBuf },
    /// It waits for its devices, consumes and says so.
    Line(Lines),
}

impl Bridge {
    /// Starts a bridge of this kind that will have `devices` devices and waits until it listens for them.
    pub(crate) fn start(
        kind: Kind,
        broker: &Broker,
        prefetch: u16,
        devices: usize,
    ) -> Result<Self> {
        match kind {
            Kind::Rabbitline => Self::start_with(broker, prefetch, &[]),
            Kind::Received => {
                Self::start_with(broker, prefetch, &[("COMMAND_CONFIRM", "received")])
            }
            Kind::LimitInC => Self::start_limit(broker, prefetch, devices),
        }
        .with_context(|| format!("{}, prefetch {prefetch}, {devices} devices", kind.label()))
    }

    /// Starts `rabbitline` with these settings beside those that all have.
    pub(crate) fn start_with(
        broker: &Broker,
        prefetch: u16,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let name = settings.iter().find(|(variable, _)| *variable == "BRIDGE_NAME");
        let log = broker.files().join(format!("{}.log", name.map_or("bench", |(_, name)| name)));
        let mut process = Process::start(
            "bridge",
            Command::new(env!("CARGO_BIN_EXE_rabbitline"))
                .env_clear()
                .envs([("MQ_HOST", "127.0.0.1"), ("MQ_QUEUE", QUEUE), ("MQ_EXCHANGE", QUEUE)])
                // It is paused while the queue is filled: its heartbeats must outlast that.
                .envs([
                    ("MQ_HEARTBEAT", "60s"),
                    ("LOG", "info"),
                    ("LOG_FORMAT", "json"),
                    ("BRIDGE_NAME", "bench"),
                ])
                .envs([("DEVICE_LISTEN", "127.0.0.1:0"), ("HTTP_LISTEN", "127.0.0.1:0")])
                .env("MQ_PORT", broker.port.to_string())
                .env("MQ_PREFETCH", prefetch.to_string())
                // The limit waits for a device that does not read for a moment; so does ours, instead of refusing what
                // is more than a lane holds.
                .envs([("DEVICE_LANE_MAX", "60000"), ("MQ_STALLED_MAX", "60000")])
                .envs(settings.iter().copied())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(&log)?),
        )?;
        let (mut devices, mut http) = (None, None);
        wait_until("the bridge listens", POLL, START_LIMIT, || {
            process.must_run().with_context(|| said(&log))?;
            devices = logged_address(&log, LISTENING, Some("device"))?;
            http = logged_address(&log, "serving HTTP", None)?;
            Ok(devices.is_some() && http.is_some())
        })
        .with_context(|| said(&log))?;
        let (Some(devices), Some(address)) = (devices, http) else {
            bail!("the bridge does not say its ports")
        };
        Ok(Self {
            process,
            device_port: devices.port(),
            readiness: Readiness::Http { address, log },
        })
    }

    fn start_limit(broker: &Broker, prefetch: u16, devices: usize) -> Result<Self> {
        let arguments =
            [broker.port.to_string(), QUEUE.to_owned(), prefetch.to_string(), devices.to_string()];
        let mut process = Process::start("bridge in C", piped(LIMIT_PROGRAM).args(arguments))?;
        let lines = process.lines()?;
        let line = lines.next(START_LIMIT)?;
        let port =
            line.strip_prefix("listening ").context("the bridge in C does not say its port")?;
        Ok(Self { process, device_port: port.parse()?, readiness: Readiness::Line(lines) })
    }

    /// Waits until it consumes and knows `devices` devices.
    pub(crate) fn wait_ready(&mut self, devices: usize) -> Result<()> {
        match &self.readiness {
            Readiness::Line(lines) => {
                let line = lines.next(START_LIMIT)?;
                ensure!(line == "ready", "the bridge in C said {line:?} where it should be ready");
                Ok(())
            }
            Readiness::Http { log, .. } => {
                let log = log.clone();
                wait_until("the bridge is ready and knows its devices", POLL, START_LIMIT, || {
                    self.process.must_run()?;
                    Ok(self.registered()? >= devices && self.get("/readyz")?.0 == 200)
                })
                .with_context(|| said(&log))
            }
        }
    }

    /// Waits until it has nothing more to do: those who connected are also reported.
    pub(crate) fn wait_idle(&self) -> Result<()> {
        let mut before = None;
        wait_until("the bridge is idle", IDLE, START_LIMIT, || {
            let cpu = self.process.cpu()?;
            let used = before.replace(cpu).map(|before| cpu.saturating_sub(before));
            Ok(used.is_some_and(|used| used <= IDLE_CPU))
        })
    }

    /// The port of the listener with this name.
    pub(crate) fn port_of(&self, listener: &str) -> Result<u16> {
        let Readiness::Http { log, .. } = &self.readiness else {
            bail!("the bridge in C has one listener")
        };
        let mut address = None;
        wait_until("the bridge says all its ports", POLL, START_LIMIT, || {
            address = logged_address(log, LISTENING, Some(listener))?;
            Ok(address.is_some())
        })
        .with_context(|| said(log))?;
        Ok(address.context("no address")?.port())
    }

    /// What it logged last, to say with an error.
    pub(crate) fn said(&self) -> String {
        match &self.readiness {
            Readiness::Http { log, .. } => said(log),
            Readiness::Line(_) => "the bridge in C says no more".to_owned(),
        }
    }

    /// How many devices it has registered.
    pub(crate) fn registered(&self) -> Result<usize> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
        }
        let (status, body) = self.get("/devices?limit=1")?;
        ensure!(status == 200, "/devices answers {status}: {body}");
        let page: Page =
            serde_json::from_str(&body).with_context(|| format!("/devices answers {body:?}"))?;
        Ok(page.total)
    }

    /// What it says of this metric, which has no labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answers {status}");
        let value = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.with_context(|| format!("no metric {name}"))?.parse().context("not a number")
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        let Readiness::Http { address, .. } = &self.readiness else {
            bail!("the bridge in C has no HTTP")
        };
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(START_LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status =
            answer.get(9..12).and_then(|code| code.parse().ok()).context("no HTTP status")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP body")?;
        Ok((status, body.to_owned()))
    }
}

/// Compiles the bridge in C, once for a run of the benchmark.
pub(crate) fn compile_limit() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/limit_bridge.c");
    let output = Command::new("cc")
        .args(["-O2", "-Wall", "-o", LIMIT_PROGRAM])
        .arg(&source)
        .arg("-lrabbitmq")
        .output()
        .context("no C compiler `cc` to build the limit with: install the packages gcc and librabbitmq-dev")?;
    ensure!(
        output.status.success(),
        "cannot compile {}; it needs the package librabbitmq-dev (apt-get install gcc librabbitmq-dev):\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The field `address` of the log line with this message, of this listener if it is about one.
fn logged_address(log: &Path, message: &str, listener: Option<&str>) -> Result<Option<SocketAddr>> {
    #[derive(Deserialize)]
    struct Line {
        message: String,
        listener: Option<String>,
        address: Option<SocketAddr>,
    }
    let text = fs::read_to_string(log)?;
    let lines = text.lines().filter(|line| line.contains(message));
    Ok(lines
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .find(|line| line.message == message && line.listener.as_deref() == listener)
        .and_then(|line| line.address))
}

/// The end of the bridge's log.
fn said(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(10).collect();
    format!("the bridge's log ends (newest first):\n{}", lines.join("\n"))
}
