//! Three nodes, three bridges, a crowd, and who reads what the bridges publish.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use serde_json::Value;

use super::account::{Account, Sent, Told, now_ms, time_ms};
use super::crowd::Crowd;
use super::presence::Presence;
use super::reader::Reader;
use super::sender::Ways;
use super::size::Size;
use crate::harness::{
    Amqp, Bridge, Cluster, Scene, Setup, address, free_port, get, persistent, within,
};

/// The bridges.
pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
/// Commands in hand of each bridge.
pub(super) const PREFETCH: usize = 256;

/// Without a line for each device and each command that was not delivered.
const LOG: &str = "warn,rabbitline::bridge=info,rabbitline::broker=info";
/// Where all that bridges log is to be kept, with a line for each step of each command. The directory is there.
const LOGS: &str = "RABBITLINE_SURVIVAL_LOGS";

pub(super) struct World<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) scene: Scene,
    pub(super) account: Arc<Mutex<Account>>,
    pub(super) presence: Arc<Mutex<Presence>>,
    pub(super) bridges: [Mutex<Option<Bridge>>; 3],
    pub(super) crowd: Crowd,
    size: Size,
    device_ports: Vec<u16>,
    http_ports: Vec<u16>,
    /// How many receipts of no command have come: probes of ours.
    probes: Arc<Mutex<usize>>,
    readers: Vec<Reader>,
}

impl<'a> World<'a> {
    /// Everything runs, and all devices are connected.
    pub(super) fn start(cluster: &'a Cluster, size: Size, seed: u64) -> Self {
        let scene = cluster.scene("survival");
        let account = Arc::new(Mutex::new(Account::default()));
        let device_ports: Vec<u16> = NAMES.iter().map(|_| free_port()).collect();
        let http_ports = NAMES.iter().map(|_| free_port()).collect();
        let ports = device_ports.clone();
        let crowd = Crowd::start(&account, size.devices, ports, size.whim_ms, seed);
        let mut world = Self {
            cluster,
            scene,
            account,
            presence: Arc::default(),
            bridges: Default::default(),
            crowd,
            size,
            device_ports,
            http_ports,
            probes: Arc::default(),
            readers: Vec::new(),
        };
        world.declare();
        for (index, slot) in world.bridges.iter().enumerate() {
            *slot.lock().expect("a bridge") = Some(world.setup(index).launch());
        }
        (0..NAMES.len()).for_each(|index| world.until_ready(index));
        world.read();
        within(size.settle(), "all devices are connected, and everybody is told", || {
            world.crowd.is_complete()?;
            world.presence_is_true()
        });
        world
    }

    /// The settings of one of the bridges.
    pub(super) fn setup(&self, index: usize) -> Setup {
        let local = |port: u16| format!("127.0.0.1:{port}");
        self.cluster
            .setup(&self.scene)
            .set("CLUSTER", "on")
            .set("BRIDGE_NAME", NAMES[index])
            .set("DEVICE_LISTEN", local(self.device_ports[index]))
            .set("HTTP_LISTEN", local(self.http_ports[index]))
            .set("MQ_PREFETCH", PREFETCH.to_string())
            .set("DEVICE_ANSWER_PATTERN", "^OK (?<id>.+)$")
            .set("DEVICE_ANSWER_ID", "id")
            .set("DEVICE_UPLINK", "off")
            .set("LOG", if logs_dir().is_some() { "warn,rabbitline=debug" } else { LOG })
    }

    fn declare(&self) {
        let (scene, amqp) = (&self.scene, &self.scene.amqp);
        amqp.declare_exchange(&scene.exchange(), ExchangeKind::Direct);
        amqp.declare_exchange(&scene.events(), ExchangeKind::Topic);
        let quorum = [("x-queue-type", AMQPValue::LongString("quorum".into()))];
        for queue in [scene.queue(), self.receipts(), self.told()] {
            amqp.declare_queue(&queue, &quorum);
        }
        amqp.bind(&scene.queue(), &scene.exchange(), &scene.queue());
        amqp.bind(&self.told(), &scene.events(), "presence.#");
    }

    fn receipts(&self) -> String {
        format!("{}.receipts", self.scene.queue())
    }

    /// The queue of presence events.
    fn told(&self) -> String {
        format!("{}.presence", self.scene.queue())
    }

    /// Where commands are published.
    pub(super) fn ways(&self) -> Ways {
        Ways {
            ports: self.cluster.ports(),
            exchange: self.scene.exchange(),
            key: self.scene.queue(),
            routes: self.scene.routes(),
            receipts: self.receipts(),
        }
    }

    fn read(&mut self) {
        let ports = self.cluster.ports();
        let (account, probes) = (Arc::clone(&self.account), Arc::clone(&self.probes));
        let receipts = Reader::start(ports.clone(), self.receipts(), move |letter| {
            if letter.body.is_empty() {
                *probes.lock().expect("no panic with a number") += 1;
            } else {
                account.lock().expect("the account").receipt(&letter.json());
            }
        });
        let account = Arc::clone(&self.account);
        let undelivered = Reader::start(ports.clone(), self.scene.undelivered(), move |letter| {
            let outcome = letter.header("x-outcome");
            account.lock().expect("the account").undelivered(&letter.json(), &outcome);
        });
        let presence = Arc::clone(&self.presence);
        let presence = Reader::start(ports, self.told(), move |letter| {
            presence.lock().expect("no panic with presence").hear(letter.json());
        });
        self.readers.extend([receipts, undelivered, presence]);
    }

    pub(super) fn until_ready(&self, index: usize) {
        let at = SocketAddr::from(([127, 0, 0, 1], self.http_ports[index]));
        within(self.recovery(), "the bridge is ready", || match get(at, "/readyz") {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.body),
            Err(error) => Err(error.to_string()),
        });
    }

    /// What a bridge wrote that it should never write, and that its connections broke. One whose end was cut short drops what it
    /// had, which goes back to the queue.
    pub(super) fn note_log(&self, bridge: &Bridge, cut_short: bool) {
        let log = bridge.log().text();
        keep_log(bridge);
        let bad = |line: &&str| {
            let forgot = line.contains("dropped unsettled") && !cut_short;
            forgot || ["panicked", "must not happen"].iter().any(|bad| line.contains(bad))
        };
        let lines = log.lines().filter(bad).map(|line| format!("a bridge wrote {line}"));
        let mut account = self.account.lock().expect("the account");
        account.wrong.extend(lines);
        let broke = log.lines().filter_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let broke = line.get("retry_in_ms").is_some()
                || line["message"].as_str()?.starts_with("cannot take over");
            broke.then(|| line["timestamp"].as_str().map(time_ms)).flatten()
        });
        account.breaks_ms.extend(broke);
    }

    /// Whether presence says where each device is.
    pub(super) fn presence_is_true(&self) -> Result<(), String> {
        let untrue = self.presence.lock().expect("presence").untrue(&self.crowd.here());
        let Some(first) = untrue.first() else { return Ok(()) };
        Err(format!("of {} devices something else is said: {first}", untrue.len()))
    }

    /// How long it may take until all devices are connected again, and a node is one of the cluster's.
    pub(super) fn recovery(&self) -> Duration {
        self.size.settle()
    }

    /// Whether every command has come to its end, and nothing is on its way.
    pub(super) fn is_settled(&self, devices: usize) -> Result<(), String> {
        {
            let account = self.account.lock().expect("the account");
            let pending = account.commands.iter().enumerate().filter_map(|(number, told)| {
                account.pending(told, devices).map(|why| format!("c{number} {told}: {why}"))
            });
            let pending: Vec<String> = pending.collect();
            if let Some(first) = pending.first() {
                return Err(format!("{} commands are not at their end: {first}", pending.len()));
            }
        }
        let unsettled: f64 = self.metrics("rabbitline_unsettled").iter().sum();
        if unsettled == 0.0 { Ok(()) } else { Err(format!("{unsettled} are unsettled")) }
    }

    /// Has the queues of what has expired while it was parked, and is not among the undelivered, elect other leaders. In
    /// RabbitMQ 3.10 a queue's dead letter worker may drop what its queue gives it when its leader has just changed
    /// (`rabbit_fifo_dlx_worker received unhandled info`); the queue keeps it, and gives it to the worker of its next
    /// leader and to no other.
    pub(super) fn elect_again(&self) {
        let account = self.account.lock().expect("the account");
        let is_on_its_way = |told: &Told| told.sent == Sent::Confirmed && told.receipts.is_empty();
        if account.commands.iter().any(is_on_its_way) {
            // It is too soon to tell.
            return;
        }
        let is_kept = |told: &&Told| {
            let expired = told.receipts.iter().any(|receipt| receipt.outcome == "expired");
            expired && told.spec.parks && told.is_to_come()
        };
        let kept = account.commands.iter().filter(is_kept);
        let queues: Vec<String> = kept
            .map(|told| format!("'%2F_{}'", self.scene.parked_for(&address(told.spec.device))))
            .collect();
        drop(account);
        let Some(node) = self.cluster.nodes().first().filter(|_| !queues.is_empty()) else {
            return;
        };
        // Where a member does not run, another look may find one that does.
        let elect = "fun(Queue) -> catch begin {ok, All, Old} = ra:members({Queue, node()}), \
                     Others = All -- [Old], New = lists:nth(rand:uniform(length(Others)), Others), \
                     {Old, New, ra:transfer_leadership(Old, New)} end end";
        let said = node.ctl(&["eval", &format!("lists:map({elect}, [{}]).", queues.join(", "))]);
        println!("what has expired in these queues is passed on by other leaders: {said}");
    }

    /// A series of each bridge.
    pub(super) fn metrics(&self, series: &str) -> Vec<f64> {
        let value = |slot: &Mutex<Option<Bridge>>| {
            slot.lock().expect("a bridge").as_ref().map_or(0.0, |bridge| bridge.metric(series))
        };
        self.bridges.iter().map(value).collect()
    }

    /// Waits until nothing is in the queues, and what was in that of receipts has been read.
    pub(super) fn until_read(&self, size: Size) {
        let amqp = Amqp::connect(self.cluster.ports()[0]);
        let inboxes = NAMES.map(|name| format!("{}.{name}", self.scene.routes()));
        let queues = [self.scene.queue(), self.scene.undelivered(), self.told()];
        for queue in queues.into_iter().chain(inboxes) {
            within(size.settle(), &format!("nothing is in {queue}"), || match amqp.queue(&queue) {
                Ok((0, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
        amqp.publish("", &self.receipts(), b"", persistent());
        within(size.settle(), "all receipts are read", || {
            let probes = *self.probes.lock().expect("no panic with a number");
            if probes > 0 { Ok(()) } else { Err("not all") }
        });
    }
}

impl Drop for World<'_> {
    /// What goes wrong is looked for in the logs of the bridges that run.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let bridges = self.bridges.iter().filter_map(|bridge| bridge.lock().ok());
            bridges.for_each(|bridge| bridge.iter().for_each(keep_log));
        }
    }
}

/// Writes all that a bridge has logged to where that is wanted.
fn keep_log(bridge: &Bridge) {
    if let Some(dir) = logs_dir() {
        let name = format!("{}.{}.log", now_ms(), bridge.program.id());
        fs::write(dir.join(name), bridge.log().text()).expect("a directory that can be written to");
    }
}

fn logs_dir() -> Option<PathBuf> {
    std::env::var_os(LOGS).map(PathBuf::from)
}
