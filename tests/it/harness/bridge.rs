//! The bridge as its operators see it: settings, log lines, HTTP, signals, an exit code.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::SocketAddr;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::Value;
use socket2::Socket;

use super::http::{self, Answer};
use super::program::{Finished, Lines, Program, environment};
use super::{Device, eventually};

/// The settings a bridge will be started with.
#[derive(Clone)]
pub(crate) struct Setup {
    settings: BTreeMap<OsString, OsString>,
    files: Option<u32>,
}

impl Setup {
    /// A bridge at free ports of loopback, with logs that tests can read, on the broker at `broker_port`.
    pub(crate) fn new(broker_port: u16) -> Self {
        Self { settings: BTreeMap::new(), files: None }
            .set("MQ_HOST", "127.0.0.1")
            .set("MQ_PORT", broker_port.to_string())
            .set("DEVICE_LISTEN", "127.0.0.1:0")
            .set("HTTP_LISTEN", "127.0.0.1:0")
            .set("BRIDGE_NAME", "bridge-under-test")
            .set("LOG", "info")
            .set("LOG_FORMAT", "json")
    }

    pub(crate) fn set(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.settings.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// One that devices of a `Site` can reach.
    pub(crate) fn reachable(self) -> Self {
        self.set("DEVICE_LISTEN", "0.0.0.0:0")
    }

    /// The same, and it finds dead links in a few seconds.
    pub(crate) fn vigilant(self) -> Self {
        self.reachable()
            .set("DEVICE_KEEPALIVE_IDLE", "1s")
            .set("DEVICE_KEEPALIVE_INTERVAL", "1s")
            .set("DEVICE_KEEPALIVE_COUNT", "2")
            .set("DEVICE_USER_TIMEOUT", "3s")
    }

    /// At most so many open descriptors.
    pub(crate) fn with_few_files(mut self, files: u32) -> Self {
        self.files = Some(files);
        self
    }

    /// Starts the bridge and waits until it consumes and has seen to what it publishes to.
    #[track_caller]
    pub(crate) fn start(&self) -> Bridge {
        let mut bridge = self.launch();
        bridge.until_ready();
        bridge.until_metric("rabbitline_broker_up{connection=\"publisher\"}", |up| up == 1.0);
        bridge
    }

    /// Starts the bridge and waits until it listens; it may not have reached the broker.
    #[track_caller]
    pub(crate) fn launch(&self) -> Bridge {
        let mut program = match self.files {
            Some(files) => {
                Program::rabbitline_with_few_files(files, &["serve"], &self.environment())
            }
            None => Program::rabbitline(&["serve"], &self.environment()),
        };
        let devices = listening(&mut program, "listening for devices");
        let http = listening(&mut program, "serving HTTP");
        let has_probes = self.settings.contains_key(OsStr::new("HTTP_METRICS_LISTEN"));
        let probes =
            if has_probes { listening(&mut program, "serving probes and metrics") } else { http };
        Bridge { program, device_port: devices.port(), http, probes }
    }

    /// Runs another command of the program to its end.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        self.command(args).finish()
    }

    /// Starts another command of the program.
    pub(crate) fn command(&self, args: &[&str]) -> Program {
        Program::rabbitline(args, &self.environment())
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        environment(&self.settings.iter().collect::<Vec<_>>())
    }
}

/// A bridge that listens.
pub(crate) struct Bridge {
    pub(crate) program: Program,
    pub(crate) device_port: u16,
    pub(crate) http: SocketAddr,
    /// Where probes and metrics are.
    pub(crate) probes: SocketAddr,
}

impl Bridge {
    #[track_caller]
    pub(crate) fn until_ready(&mut self) {
        eventually("/readyz answers 200", || {
            if let Some(status) = self.program.ended() {
                panic!("the bridge ended with {status}");
            }
            let answer = http::get(self.probes, "/readyz").map_err(|error| error.to_string())?;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(format!("{} {}", answer.status, answer.body))
            }
        });
    }

    #[track_caller]
    pub(crate) fn until_not_ready(&self) -> String {
        eventually("/readyz answers 503", || {
            let answer = http::get(self.probes, "/readyz").map_err(|error| error.to_string())?;
            if answer.status == 503 {
                Ok(answer.body)
            } else {
                Err(format!("{} {}", answer.status, answer.body))
            }
        })
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        http::get(self.http, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A request without a body.
    #[track_caller]
    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        http::ask(self.http, method, path)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// A request with headers and a body.
    #[track_caller]
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        http::send(self.http, method, path, headers, body.as_bytes())
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// A page of `/devices`.
    #[track_caller]
    pub(crate) fn devices(&self, query: &str) -> Value {
        let answer = self.get(&format!("/devices{query}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body)
            .unwrap_or_else(|error| panic!("{error}: {}", answer.body))
    }

    /// A device that is connected, and that the bridge knows to be.
    #[track_caller]
    pub(crate) fn device(&self, from: &str) -> Device {
        self.knows(Device::connect(from, self.device_port))
    }

    /// The same, with a receive buffer that takes little.
    #[track_caller]
    pub(crate) fn narrow_device(&self, from: &str) -> Device {
        self.knows(Device::narrow(from, self.device_port))
    }

    /// A device that says who it is, and that the bridge knows.
    #[track_caller]
    pub(crate) fn hello_device(&self, from: &str, hello: &str) -> Device {
        self.knows(self.saying(from, hello))
    }

    /// A connection that begins with this line. Nobody knows what will come of it.
    #[track_caller]
    pub(crate) fn saying(&self, from: &str, hello: &str) -> Device {
        let mut device = Device::connect(from, self.device_port);
        device.send(format!("{hello}\r\n").as_bytes());
        device
    }

    /// The device, once the bridge knows it.
    #[track_caller]
    pub(crate) fn knows(&self, device: Device) -> Device {
        self.until_listed("peer", &device.local().to_string());
        device
    }

    /// Waits until a device with this value in this field is listed; what is listed of it.
    #[track_caller]
    pub(crate) fn until_listed(&self, field: &str, value: &str) -> Value {
        eventually("the bridge has registered the device", || {
            self.listed(field, value).ok_or_else(|| self.devices("?limit=1000").to_string())
        })
    }

    fn listed(&self, field: &str, value: &str) -> Option<Value> {
        let page = self.devices("?limit=1000");
        let devices = page["devices"].as_array().expect("an array of devices");
        devices.iter().find(|known| known[field] == value).cloned()
    }

    /// The device, if the bridge comes to know it; nothing if it closes the connection.
    #[track_caller]
    pub(crate) fn takes(&self, mut device: Device) -> Option<Device> {
        let peer = device.local().to_string();
        let taken = eventually("the bridge has taken the device or closed the connection", || {
            if self.listed("peer", &peer).is_some() {
                Ok(true)
            } else if device.is_closed() {
                Ok(false)
            } else {
                Err("neither")
            }
        });
        taken.then_some(device)
    }

    /// Where devices connect to the listener with this name.
    #[track_caller]
    pub(crate) fn port_of(&self, listener: &str) -> u16 {
        self.log().find(&format!("the log says where {listener} listens"), |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let here = line["message"] == "listening for devices" && line["listener"] == listener;
            let address: SocketAddr =
                here.then(|| line["address"].as_str()?.parse().ok()).flatten()?;
            Some(address.port())
        })
    }

    /// How many connections were refused for this reason.
    pub(crate) fn refused(&self, reason: &str) -> f64 {
        self.metric(&format!("rabbitline_connections_refused_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until so many were, and no more.
    #[track_caller]
    pub(crate) fn until_refused(&self, reason: &str, count: usize) {
        let series = format!("rabbitline_connections_refused_total{{reason=\"{reason}\"}}");
        let refused = self.until_metric(&series, |refused| refused >= count as f64);
        assert_eq!(refused, count as f64, "{reason}");
    }

    /// How many connections of devices ended for this reason.
    pub(crate) fn ended(&self, reason: &str) -> f64 {
        self.metric(&format!("rabbitline_connections_ended_total{{reason=\"{reason}\"}}"))
    }

    /// The bridge's own end of a device's connection, to look at; a second handle to it.
    #[track_caller]
    pub(crate) fn end_of(&self, device: &Device) -> Socket {
        let id = self.program.id();
        let process = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id");
        let process = pidfd_open(process, PidfdFlags::empty()).expect("pidfd_open");
        let names = fs::read_dir(format!("/proc/{id}/fd")).expect("/proc");
        let numbers = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse().ok());
        let mut sockets = numbers.filter_map(|number| {
            pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).map(Socket::from).ok()
        });
        let peer = Some(device.local());
        sockets
            .find(|socket| socket.peer_addr().is_ok_and(|address| address.as_socket() == peer))
            .expect("a socket whose peer is the device")
    }

    /// The value of a series as it is written in `/metrics`, labels included; zero while there is no such series.
    #[track_caller]
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let answer = http::get(self.probes, "/metrics").expect("metrics");
        let value =
            answer.body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |text| {
            text.trim().parse().unwrap_or_else(|error| panic!("{series} is {text}: {error}"))
        })
    }

    /// How many commands have ended so.
    #[track_caller]
    pub(crate) fn outcomes(&self, outcome: &str) -> f64 {
        self.metric(&format!("rabbitline_commands_total{{outcome=\"{outcome}\"}}"))
    }

    /// Waits until a series has a value that fits.
    #[track_caller]
    pub(crate) fn until_metric(&self, series: &str, fits: impl Fn(f64) -> bool) -> f64 {
        eventually(&format!("the series {series} has the value waited for"), || {
            let value = self.metric(series);
            if fits(value) { Ok(value) } else { Err(value) }
        })
    }

    /// What the bridge wrote to its log.
    pub(crate) fn log(&self) -> &Lines {
        &self.program.stderr
    }

    /// Waits for a log line whose text contains all of `words`.
    #[track_caller]
    pub(crate) fn until_logged(&self, words: &[&str]) -> String {
        let says =
            |line: &str| words.iter().all(|word| line.contains(word)).then(|| line.to_owned());
        self.log().find(&format!("a log line with {words:?}"), says)
    }

    /// SIGTERM, and the end it comes to.
    #[track_caller]
    pub(crate) fn terminate(self) -> Finished {
        self.program.signal("TERM");
        self.program.finish()
    }
}

/// The address in the log line with this message.
#[track_caller]
fn listening(program: &mut Program, message: &str) -> SocketAddr {
    let log = program.stderr.clone();
    eventually(&format!("the log says where the bridge is {message}"), || {
        let address = log.all().iter().find_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let here = line["message"] == message;
            here.then(|| line["address"].as_str()?.parse().ok()).flatten()
        });
        if address.is_none()
            && let Some(status) = program.ended()
        {
            panic!("the bridge ended with {status} before it listened:\n{}", log.text());
        }
        address.ok_or_else(|| log.text())
    })
}
