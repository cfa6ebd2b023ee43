//! A broker, names of the test's own on it, and a client: what nearly every test begins with.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::types::AMQPValue;
use lapin::{BasicProperties, ExchangeKind};
use serde_json::{Value, json};

use super::{Amqp, Bridge, Broker, Inbox, Setup, eventually, persistent};

pub(crate) struct Scene {
    // Before the broker, so that it is closed while there is somebody to answer.
    pub(crate) amqp: Amqp,
    pub(crate) broker: Arc<Broker>,
    name: String,
}

impl Scene {
    /// On the broker that all tests share.
    #[track_caller]
    pub(crate) fn new(name: &str) -> Self {
        Self::on(Broker::shared(), name)
    }

    /// On a broker for this test alone, which it may kill, block or cut off.
    #[track_caller]
    pub(crate) fn alone(name: &str) -> Self {
        Self::on(Arc::new(Broker::alone()), name)
    }

    #[track_caller]
    pub(crate) fn on(broker: Arc<Broker>, name: &str) -> Self {
        static SCENES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{name}-{}", SCENES.fetch_add(1, Ordering::Relaxed));
        Self { amqp: Amqp::connect(broker.port()), broker, name }
    }

    /// Starts the broker again after it was killed, and connects to it again.
    #[track_caller]
    pub(crate) fn restart_broker(&mut self) {
        self.broker.start();
        self.amqp = Amqp::connect(self.broker.port());
    }

    /// The settings of a bridge on this scene's names.
    pub(crate) fn setup(&self) -> Setup {
        Setup::new(self.broker.port())
            .set("MQ_QUEUE", self.queue())
            .set("MQ_EXCHANGE", self.exchange())
            .set("MQ_EVENTS_EXCHANGE", self.events())
            .set("MQ_TAP_EXCHANGE", self.tap())
            .set("MQ_UNDELIVERED_EXCHANGE", self.undelivered())
            .set("MQ_PARKED_PREFIX", self.parked())
            .set("MQ_ROUTE_EXCHANGE", self.routes())
    }

    pub(crate) fn queue(&self) -> String {
        format!("{}.commands", self.name)
    }

    pub(crate) fn exchange(&self) -> String {
        format!("{}.exchange", self.name)
    }

    pub(crate) fn events(&self) -> String {
        format!("{}.events", self.name)
    }

    pub(crate) fn tap(&self) -> String {
        format!("{}.tap", self.name)
    }

    /// The exchange that bridges share, and what the names of their inboxes begin with.
    pub(crate) fn routes(&self) -> String {
        format!("{}.routes", self.name)
    }

    pub(crate) fn undelivered(&self) -> String {
        format!("{}.undelivered", self.name)
    }

    /// What the names of the queues for parked commands begin with; the name of the one that marks that there may be such.
    pub(crate) fn parked(&self) -> String {
        format!("{}.parked", self.name)
    }

    /// The queue in which commands wait for one device.
    pub(crate) fn parked_for(&self, address: &str) -> String {
        format!("{}.{address}", self.parked())
    }

    /// Declares the command queue as a backend that starts before the bridge would.
    #[track_caller]
    pub(crate) fn declare(&self) {
        self.declare_with(&[]);
    }

    /// The same, with arguments for the queue.
    #[track_caller]
    pub(crate) fn declare_with(&self, arguments: &[(&str, AMQPValue)]) {
        self.amqp.declare_exchange(&self.exchange(), ExchangeKind::Direct);
        self.amqp.declare_queue(&self.queue(), arguments);
        self.amqp.bind(&self.queue(), &self.exchange(), &self.queue());
        self.broker.sync();
    }

    /// Publishes a command as any backend would: persistent, through the exchange.
    #[track_caller]
    pub(crate) fn publish(&self, command: &Value) {
        self.publish_with(command.to_string().as_bytes(), persistent());
    }

    #[track_caller]
    pub(crate) fn publish_with(&self, body: &[u8], properties: BasicProperties) {
        self.amqp.publish(&self.exchange(), &self.queue(), body, properties);
    }

    /// Publishes a command with a reply queue and returns the receipt.
    #[track_caller]
    pub(crate) fn receipt_of(&self, command: &Value) -> Value {
        let receipts = self.receipts();
        self.publish_with(command.to_string().as_bytes(), reply_to(&receipts));
        receipts.next().json()
    }

    /// Publishes commands that may be parked, named by the numbers in `numbers`.
    #[track_caller]
    pub(crate) fn park_numbers(&self, address: &str, numbers: Range<usize>) {
        let messages = numbers.map(|number| {
            (park(address, &number.to_string()).to_string().into_bytes(), persistent())
        });
        self.amqp.publish_all(&self.exchange(), &self.queue(), messages);
    }

    /// Publishes commands of which every other one may be parked; `cmd` makes each of its number.
    #[track_caller]
    pub(crate) fn publish_mixed(
        &self,
        address: &str,
        numbers: Range<usize>,
        cmd: impl Fn(usize) -> String,
    ) {
        let messages = numbers.map(|number| {
            let if_offline = if number % 2 == 0 { "reject" } else { "park" };
            let body = json!({"address": address, "cmd": cmd(number), "if_offline": if_offline});
            (body.to_string().into_bytes(), persistent())
        });
        self.amqp.publish_all(&self.exchange(), &self.queue(), messages);
    }

    /// Waits until so many commands are parked for a device. Before a bridge is killed `until_drained` does not say so:
    /// what the broker has sent and the bridge has not taken up is neither here nor there.
    #[track_caller]
    pub(crate) fn until_parked(&self, address: &str, count: usize) {
        let queue = self.parked_for(address);
        eventually("all are parked", || match self.amqp.queue(&queue) {
            Ok((parked, _)) if parked as usize == count => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// Waits until no command is in the queue and none in the bridge's hands.
    #[track_caller]
    pub(crate) fn until_drained(&self, bridge: &Bridge) {
        eventually("the queue is empty and nothing is unsettled", || {
            let (ready, unsettled) =
                (self.amqp.depth(&self.queue()), bridge.metric("rabbitline_unsettled"));
            // Between a look at one and a look at the other a command may pass from there to here, not back.
            if ready == 0 && unsettled == 0.0 {
                Ok(())
            } else {
                Err(format!("{ready} ready, {unsettled} unsettled"))
            }
        });
    }

    /// A reply queue.
    #[track_caller]
    pub(crate) fn receipts(&self) -> Inbox {
        let queue = self.amqp.private_queue();
        self.amqp.consume(&queue)
    }

    /// What comes to the queue of undelivered commands, which the bridge declares.
    #[track_caller]
    pub(crate) fn undelivered_inbox(&self) -> Inbox {
        self.amqp.consume(&self.undelivered())
    }

    /// All presence events from now on; the exchange is declared if the bridge was not started yet.
    #[track_caller]
    pub(crate) fn presence(&self) -> Inbox {
        self.event_inbox("presence.#")
    }

    /// All uplink events from now on.
    #[track_caller]
    pub(crate) fn uplink(&self) -> Inbox {
        self.event_inbox("uplink.#")
    }

    #[track_caller]
    fn event_inbox(&self, key: &str) -> Inbox {
        self.amqp.declare_exchange(&self.events(), ExchangeKind::Topic);
        self.amqp.subscribe(&self.events(), key)
    }
}

/// A command to one device.
pub(crate) fn command(address: &str, cmd: &str) -> Value {
    json!({"address": address, "cmd": cmd})
}

/// A command that waits in the broker if its device is not connected.
pub(crate) fn park(address: &str, cmd: &str) -> Value {
    json!({"address": address, "cmd": cmd, "if_offline": "park"})
}

/// Properties that ask for a receipt.
pub(crate) fn reply_to(receipts: &Inbox) -> BasicProperties {
    persistent().with_reply_to(receipts.queue.as_str().into())
}
