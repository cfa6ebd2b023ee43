//! Three real RabbitMQ nodes on loopback that are one broker. Tests take turns with it, since they kill its nodes: three nodes
//! are as much as a small machine bears, and they take half a minute to start.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;

use super::{Amqp, Bridge, Broker, Scene, Setup, eventually};

/// As many as it takes for a queue that goes on without one of them.
const NODES: usize = 3;
/// A node that hangs is given up by the others after this many seconds, instead of a minute: until then, they wait for it
/// with whatever is declared.
const SETTINGS: &str = "-kernel net_ticktime 5";

/// How long the nodes may take to find each other once all run, in seconds: those of one that was killed and comes again
/// have it back within one.
const WAIT: &str = "300";

/// One cluster.
pub(crate) struct Cluster {
    nodes: Vec<Arc<Broker>>,
}

/// A node that hangs: it is killed when nobody looks any more, because the others have given it up meanwhile, and what
/// RabbitMQ makes of one that comes back from that is not the matter here.
pub(crate) struct Hanging<'a>(&'a Broker);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.kill();
    }
}

impl Cluster {
    /// The cluster, with all its nodes running, for as long as this is held.
    #[track_caller]
    pub(crate) fn turn() -> MutexGuard<'static, Self> {
        static CLUSTER: OnceLock<Mutex<Cluster>> = OnceLock::new();
        let nodes = || Broker::cluster(NODES, SETTINGS).into_iter().map(Arc::new).collect();
        let new = || Mutex::new(Self { nodes: nodes() });
        // What another test has left, failed or not, is mended here.
        let cluster = CLUSTER.get_or_init(new).lock().unwrap_or_else(PoisonError::into_inner);
        cluster.mend();
        cluster
    }

    /// Starts what does not run, all at once.
    fn mend(&self) {
        std::thread::scope(|scope| {
            for node in self.nodes.iter().filter(|node| !node.is_started()) {
                scope.spawn(|| node.start());
            }
        });
        self.nodes.iter().for_each(|node| self.await_all(node));
    }

    /// Where all of it is, for `MQ_HOST`.
    pub(crate) fn hosts(&self) -> String {
        self.nodes.iter().map(|node| host(node.port())).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port()).collect()
    }

    pub(crate) fn nodes(&self) -> &[Arc<Broker>] {
        &self.nodes
    }

    /// Waits until all nodes know each other, as one of them says.
    #[track_caller]
    pub(crate) fn await_all(&self, node: &Broker) {
        node.ctl(&["await_online_nodes", &NODES.to_string(), "--timeout", WAIT]);
    }

    /// A scene whose client is on one of the nodes.
    #[track_caller]
    pub(crate) fn scene(&self, name: &str) -> Scene {
        Scene::on(Arc::clone(self.nodes.first().expect("a node")), name)
    }

    /// The settings of a bridge that knows all nodes, with queues that outlive one of them.
    pub(crate) fn setup(&self, scene: &Scene) -> Setup {
        scene.setup().set("MQ_HOST", self.hosts()).set("MQ_QUEUE_TYPE", "quorum")
    }

    /// Has a node hang: it keeps its connections and says nothing.
    pub(crate) fn hang<'a>(&self, node: &'a Broker) -> Hanging<'a> {
        node.signal("STOP");
        Hanging(node)
    }

    /// A client of a node that runs, and is not `not`.
    #[track_caller]
    pub(crate) fn client(&self, not: &Broker) -> Amqp {
        let fits = |node: &&Arc<Broker>| node.is_started() && node.port() != not.port();
        Amqp::connect(self.nodes.iter().find(fits).expect("a node that runs").port())
    }

    /// The node from which the bridge takes commands, as its log says, once that is not `not`.
    #[track_caller]
    pub(crate) fn node_of(&self, bridge: &Bridge, not: Option<&Broker>) -> &Broker {
        eventually("the bridge consumes from another node", || {
            let mut hosts = bridge.log().all().into_iter().filter_map(|line| {
                let line: Value = serde_json::from_str(&line).ok()?;
                let host =
                    (line["message"] == "consuming commands").then(|| line["host"].as_str())?;
                host.map(str::to_owned)
            });
            let last = hosts.next_back().unwrap_or_default();
            let node = self.nodes.iter().find(|node| host(node.port()) == last);
            let node = node
                .map(Arc::as_ref)
                .filter(|node| not.is_none_or(|not| not.port() != node.port()));
            node.ok_or(last)
        })
    }
}

fn host(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
