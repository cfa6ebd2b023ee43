//! Runs a schedule against the real bridge, on queues of its own behind a proxy, with devices that are plain sockets.

use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

use super::account::{Account, now_ms};
use super::device::{Device, Manners};
use super::schedule::{DEVICES, Schedule, Spec, Step};
use crate::harness::{
    Amqp, Bridge, Broker, Inbox, Proxy, Scene, Setup, free_port, persistent, table, within,
};

/// For all commands to come to their ends once everything works. What expires while it is parked
/// takes three seconds, a shutdown that is cut short two.
const SETTLE: Duration = Duration::from_secs(40);
/// A stop that is cut short leaves commands parked; the next bridge delivers them.
const ROUNDS_MAX: usize = 4;
const SHUTDOWN_GRACE: &str = "2s";

pub(super) struct World {
    scene: Scene,
    proxy: Proxy,
    setup: Setup,
    port: u16,
    manners: Manners,
    bridges: usize,
    bridge: Option<Bridge>,
    devices: Vec<Device>,
    account: Account,
}

/// Where what the bridge publishes is read.
struct Readers {
    receipts: Inbox,
    undelivered: Inbox,
    presence: Inbox,
}

impl World {
    /// Runs `schedule` to its end; what was seen of it.
    pub(super) fn run(schedule: &Schedule, broker: Arc<Broker>) -> Account {
        let scene = Scene::on(broker, "model");
        let proxy = Proxy::start(scene.broker.port());
        let port = free_port();
        let setup = schedule
            .apply(scene.setup())
            .set("MQ_PORT", proxy.port().to_string())
            .set("MQ_PARKED_PREFIX", scene.parked())
            .set("DEVICE_LISTEN", format!("127.0.0.1:{port}"))
            .set("SHUTDOWN_GRACE", SHUTDOWN_GRACE)
            // An attempt that meets a connection that is deaf would else wait for ten seconds.
            .set("MQ_CONNECT_TIMEOUT", "1s")
            .set("LOG", "debug,lapin=warn");
        let manners = Manners {
            names_what_it_answers: schedule.answers_have_ids(),
            greets: schedule.greets(),
        };
        let devices = (0..DEVICES).map(Device::new).collect();
        let (bridge, account) = (None, Account::default());
        let mut world =
            Self { scene, proxy, setup, port, manners, bridges: 0, bridge, devices, account };
        world.declare();
        if schedule.steps.iter().any(|step| matches!(step, Step::KillBroker)) {
            world.scene.broker.sync();
        }
        world.start_bridge();
        for step in &schedule.steps {
            world.step(step);
            world.pump();
        }
        world.finish();
        world.account
    }

    /// What is there before the bridge is: durable, for the broker may be killed.
    fn declare(&self) {
        let (scene, amqp) = (&self.scene, &self.scene.amqp);
        amqp.declare_exchange(&scene.exchange(), ExchangeKind::Direct);
        amqp.declare_exchange(&scene.events(), ExchangeKind::Topic);
        for queue in [scene.queue(), self.receipts(), self.presence()] {
            amqp.declare_queue(&queue, &[]);
        }
        amqp.bind(&scene.queue(), &scene.exchange(), &scene.queue());
        amqp.bind(&self.presence(), &scene.events(), "presence.#");
    }

    fn receipts(&self) -> String {
        format!("{}.receipts", self.scene.queue())
    }

    fn presence(&self) -> String {
        format!("{}.presence", self.scene.queue())
    }

    fn parked(&self, device: usize) -> String {
        format!("{}.{}", self.scene.parked(), Device::address(device))
    }

    fn step(&mut self, step: &Step) {
        let (manners, account) = (self.manners, &mut self.account);
        match step {
            Step::Publish(specs) => self.publish(specs),
            Step::Connect { device, narrow } => {
                self.devices[*device].connect(self.port, *narrow, manners, account);
            }
            Step::Close(device) => self.devices[*device].close(account),
            Step::Reset { device, frozen } => self.reset(*device, *frozen),
            Step::Read { device, on } => self.devices[*device].set_reads(*on),
            Step::Answer { device, on } => self.devices[*device].set_answers(*on),
            Step::Pass(ms) => std::thread::sleep(Duration::from_millis(*ms)),
            Step::Cut(which) => self.break_links(|proxy| proxy.cut(*which)),
            Step::CutHalf(which) => self.break_links(|proxy| proxy.cut_half(*which)),
            Step::Deafen(which) => self.break_links(|proxy| proxy.deafen(*which)),
            Step::Heal => self.break_links(Proxy::heal),
            Step::KillBridge => self.kill_bridge(),
            Step::StopBridge => self.stop_bridge(),
            Step::StartBridge => self.start_bridge(),
            Step::KillBroker => self.kill_broker(),
        }
    }

    fn publish(&mut self, specs: &[Spec]) {
        let first = self.account.now();
        let messages = specs.iter().enumerate().map(|(index, spec)| {
            let number = first + index;
            let at_ms = now_ms();
            self.account.publish(spec.clone(), at_ms);
            let stamp = AMQPValue::LongLongInt(i64::try_from(at_ms).expect("not that late"));
            let properties = persistent()
                .with_correlation_id(number.to_string().into())
                .with_headers(table(&[("timestamp_in_ms", stamp)]));
            let reply_to = format!("{}.receipts", self.scene.queue());
            let properties =
                if spec.receipt { properties.with_reply_to(reply_to.into()) } else { properties };
            (spec.body(number, &Device::address(spec.device)), properties)
        });
        let messages: Vec<_> = messages.collect();
        self.scene.amqp.publish_all(&self.scene.exchange(), &self.scene.queue(), messages);
    }

    fn reset(&mut self, device: usize, frozen: bool) {
        let running = self.bridge.as_ref().filter(|_| frozen);
        running.iter().for_each(|bridge| bridge.program.signal("STOP"));
        self.devices[device].reset(frozen, self.manners, &mut self.account);
        running.iter().for_each(|bridge| bridge.program.signal("CONT"));
    }

    fn break_links(&mut self, how: impl FnOnce(&Proxy)) {
        how(&self.proxy);
        self.account.links_broke = Some(self.account.now());
    }

    fn start_bridge(&mut self) {
        if self.bridge.is_none() {
            self.bridges += 1;
            let name = format!("bridge-{}", self.bridges);
            self.bridge = Some(self.setup.clone().set("BRIDGE_NAME", name).launch());
        }
    }

    fn kill_bridge(&mut self) {
        let Some(mut bridge) = self.bridge.take() else { return };
        bridge.program.kill();
        self.account.killed.push(self.account.now());
        self.ended(bridge);
    }

    /// SIGTERM; the devices go on reading meanwhile.
    fn stop_bridge(&mut self) {
        let Some(mut bridge) = self.bridge.take() else { return };
        bridge.program.signal("TERM");
        let status = within(SETTLE, "the bridge stops", || {
            self.pump();
            bridge.program.ended().ok_or("it runs")
        });
        match status.code() {
            Some(0) => {}
            // Its time was over, and it says so.
            Some(1) => self.account.killed.push(self.account.now()),
            other => self.account.wrong.push(format!("8: the bridge stopped with {other:?}")),
        }
        self.ended(bridge);
    }

    fn ended(&mut self, bridge: Bridge) {
        self.account.ended.push(self.account.now());
        let log = bridge.program.finish().stderr;
        self.account.logs.extend(log.lines().map(str::to_owned));
    }

    /// What was declared is put on disk first: RabbitMQ confirms a declaration before that. The bridge
    /// stands still, so that it declares no more.
    fn kill_broker(&mut self) {
        let running = self.bridge.as_ref();
        running.iter().for_each(|bridge| bridge.program.signal("STOP"));
        self.scene.broker.sync();
        self.scene.broker.kill();
        running.iter().for_each(|bridge| bridge.program.signal("CONT"));
        self.scene.restart_broker();
        self.account.links_broke = Some(self.account.now());
    }

    fn pump(&mut self) {
        self.devices.iter_mut().for_each(|device| device.pump(self.manners, &mut self.account));
    }

    /// Lets everything work, until every command has come to its end; then stops the bridge and looks
    /// at all it has published.
    fn finish(&mut self) {
        let amqp = Amqp::connect(self.scene.broker.port());
        let mut readers = None;
        for _ in 0..ROUNDS_MAX {
            self.start_bridge();
            self.proxy.heal();
            self.devices.iter_mut().for_each(|device| {
                device.set_reads(true);
                device.set_answers(true);
            });
            if let Some(bridge) = &mut self.bridge {
                bridge.until_ready();
            }
            if self.account.links_broke.is_some() {
                self.account.links_broke = Some(self.account.now());
            }
            let readers = readers.get_or_insert_with(|| Readers {
                receipts: amqp.consume(&self.receipts()),
                undelivered: {
                    amqp.declare_queue(&self.scene.undelivered(), &[]);
                    amqp.consume(&self.scene.undelivered())
                },
                presence: amqp.consume(&self.presence()),
            });
            within(SETTLE, "every command comes to its end", || self.is_over(readers));
            self.check_the_bridge();
            self.stop_bridge();
            self.read_the_rest(readers);
            if (0..self.account.now()).all(|number| self.account.pending(number).is_none()) {
                break;
            }
        }
        self.clean_up();
    }

    fn is_over(&mut self, readers: &Readers) -> Result<(), String> {
        self.pump();
        self.read(readers);
        for device in 0..DEVICES {
            if !self.devices[device].is_connected() {
                self.devices[device].connect(self.port, false, self.manners, &mut self.account);
            }
        }
        let pending: Vec<_> =
            (0..self.account.now()).filter_map(|number| self.account.pending(number)).collect();
        if !pending.is_empty() {
            return Err(pending.join("\n"));
        }
        self.knows_the_devices()?;
        let amqp = &self.scene.amqp;
        let bridge = self.bridge.as_ref().expect("it was started");
        let parked = |device| amqp.queue(&self.parked(device)).map_or(0, |(ready, _)| ready);
        let parked: u32 = (0..DEVICES).map(parked).sum();
        let ready = amqp.depth(&self.scene.queue());
        let unsettled = bridge.metric("rabbitline_unsettled");
        let in_lanes: u64 = bridge.devices("")["devices"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|device| device["lane"].as_u64())
            .sum();
        if parked == 0 && ready == 0 && unsettled == 0.0 && in_lanes == 0 {
            return Ok(());
        }
        Err(format!("{ready} ready, {unsettled} unsettled, {parked} parked, {in_lanes} in lanes"))
    }

    /// Takes up what has been published so far.
    fn read(&mut self, readers: &Readers) -> bool {
        let mut probed = false;
        for letter in readers.receipts.so_far() {
            let Some(id) = letter.correlation_id().map(ToOwned::to_owned) else {
                probed = true;
                continue;
            };
            let receipt = letter.json();
            let word = receipt["outcome"].as_str().expect("an outcome").to_owned();
            let reason = receipt["reason"].as_str().unwrap_or_default();
            let told = self.account.about(Some(&id));
            told.taken_back |= reason.contains("line was written");
            told.had_no_room |= reason.contains("does not read");
            told.words.push(word);
        }
        for letter in readers.undelivered.so_far() {
            let word = letter.header("x-outcome");
            self.account.about(letter.correlation_id()).undelivered.push(word);
        }
        self.account.presence.extend(readers.presence.so_far().iter().map(|event| event.json()));
        probed
    }

    /// Once the bridge has stopped there is nothing behind a message of our own. The receipts' probe is
    /// published last.
    fn read_the_rest(&mut self, readers: &Readers) {
        let amqp = &self.scene.amqp;
        for queue in [self.scene.undelivered(), self.presence()] {
            within(SETTLE, "the queue is read", || match amqp.depth(&queue) {
                0 => Ok(()),
                left => Err(left),
            });
        }
        amqp.publish("", &self.receipts(), b"", persistent());
        within(SETTLE, "the receipts are read", || {
            if self.read(readers) { Ok(()) } else { Err("not all") }
        });
    }

    fn check_the_bridge(&mut self) {
        let bridge = self.bridge.as_ref().expect("it was started");
        let forgotten = bridge.metric("rabbitline_settlements_forgotten_total");
        if forgotten != 0.0 {
            self.account.wrong.push(format!("8: {forgotten} settlements were forgotten"));
        }
    }

    /// Whether the bridge knows who is connected. It learns of a connection, and of an end, a moment after the device.
    fn knows_the_devices(&self) -> Result<(), String> {
        let page = self.bridge.as_ref().expect("it was started").devices("");
        let mut known: Vec<_> = page["devices"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|device: &Value| device["peer"].as_str().map(ToOwned::to_owned))
            .collect();
        let mut truth: Vec<_> = self.devices.iter().map(Device::peer).collect();
        known.sort();
        truth.sort();
        if known == truth {
            Ok(())
        } else {
            Err(format!("7: connected are {truth:?}, known are {known:?}"))
        }
    }

    /// Thousands of schedules leave no queues behind.
    fn clean_up(&self) {
        let (scene, amqp) = (&self.scene, &self.scene.amqp);
        let parked = (0..DEVICES).map(|device| self.parked(device));
        let queues =
            [scene.queue(), scene.undelivered(), scene.parked(), self.receipts(), self.presence()];
        parked.chain(queues).for_each(|queue| amqp.delete_queue(&queue));
        let exchanges = [scene.exchange(), scene.undelivered(), scene.events()];
        exchanges.iter().for_each(|exchange| amqp.delete_exchange(exchange));
    }
}
