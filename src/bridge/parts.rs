//! `Parts`: every part of a bridge, made and joined.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::wrong;
use crate::backlog::{self, Backlog};
use crate::broker::{
    Consumer, Drainer, Intake, Jobs, Knocker, Nodes, Parker, Publisher, Requester, Routes, Talker,
    Tap, Undelivered,
};
use crate::cluster::Cluster;
use crate::device::{Devices, Registry, Sweeper};
use crate::feed::{Feed, Outlet};
use crate::groups::{Groups, Listed};
use crate::http::HttpState;
use crate::job::{Deposit, Job};
use crate::last_values::LastValues;
use crate::live::{Live, Mask};
use crate::metrics::Metrics;
use crate::parking::Parking;
use crate::presence::Presence;
use crate::protocol::Wire;
use crate::report::Reporter;
use crate::router::Router;
use crate::run::Run;
use crate::settings::{QueueType, Settings};
use crate::stats::Stats;
use crate::trail::Trail;
use crate::uplink::Uplink;

/// RabbitMQ gives up a connection after two heartbeats without a byte; one more for its timers.
const HEARTBEATS_TO_NOTICE: u32 = 3;

/// The parts, made and joined but not started.
pub(super) struct Parts {
    pub(super) devices: Arc<Devices>,
    pub(super) consumer: Consumer,
    pub(super) drainer: Drainer,
    pub(super) routes: Option<Routes>,
    pub(super) publisher: Publisher,
    pub(super) parker: Parker,
    pub(super) clients: Clients,
    pub(super) feed: Option<Feed>,
    pub(super) http: HttpState,
}

impl Parts {
    pub(super) fn new(settings: Settings, bridge: Arc<str>, wires: Vec<Wire>) -> io::Result<Self> {
        let groups = groups(&settings)?;
        let settings = Arc::new(settings);
        let metrics = Metrics::new();
        let work = Arc::new(Notify::new());
        let stalled_max = usize::from(settings.mq.stalled_max.get());
        let run = Run::begin(Arc::clone(&bridge));
        let live = Arc::new(Live::new(Mask::new(settings.process.live_mask.as_ref())));
        let cluster = || Arc::new(Cluster::new(run.clone(), metrics.clone(), &settings.process));
        let cluster = settings.process.cluster.is_on().then(cluster);
        let presence =
            Presence::new(run.clone(), Arc::clone(&work), Arc::clone(&live), cluster.clone());
        let presence = Arc::new(presence);
        let trail = Arc::new(Trail::default());
        let new = |last| {
            Uplink::new(run.clone(), Arc::clone(&work), metrics.clone(), Arc::clone(&live), last)
        };
        let uplink = last_values(&settings).map(new).map(Arc::new);
        let Reporting { reporter, parking, jobs, deposits } =
            Reporting::new(&settings, &work, &metrics, &live, &run);
        let knocks = cluster.is_some() && knocks(&settings);
        let registry = Registry::new(
            Arc::clone(&presence),
            Arc::clone(&trail),
            metrics.clone(),
            cluster.clone(),
        );
        let devices = Arc::new(Devices {
            registry,
            reporter,
            uplink,
            metrics: metrics.clone(),
            parking,
            sweeper: Sweeper::default(),
            waiting: AtomicUsize::new(0),
            proving: AtomicUsize::new(0),
            groups,
            wires,
            cluster: cluster.clone(),
            knocks,
        });
        let router = Router::new(Arc::clone(&devices), stalled_max);
        let intake = Arc::new(Intake::new(Arc::clone(&settings), router, Arc::clone(&trail)));
        let nodes = Nodes::new(&settings.mq);
        let talker = |cluster| Talker::new(&settings, &nodes, &devices, cluster);
        let talker = cluster.as_ref().map(talker);
        let knocker = knocks.then(|| Knocker::new(&settings, &nodes, &bridge, &devices));
        let routes = cluster.map(|cluster| Routes::new(&intake, &nodes, cluster));
        let drainer = Drainer::new(&intake, &nodes, &bridge);
        let consumer = Consumer::new(intake, &nodes, &bridge);
        let (of, to) = (Arc::clone(&settings), Arc::clone(&nodes));
        let tap = Tap::new(of, to, run.clone(), Arc::clone(&live));
        let consuming = Arc::clone(&consumer.consuming);
        let (http, requester) = http(&settings, &nodes, &run, &devices, trail, live, consuming);
        let outlet = Arc::new(Outlet::new(Arc::clone(&work)));
        let feed = feed(&settings, &bridge, &outlet, &devices)?;
        let (of, to) = (Arc::clone(&settings), Arc::clone(&nodes));
        let parker = Parker::new(of, to, bridge, deposits, Arc::clone(&devices));
        let publisher =
            Publisher::new(settings, nodes, run, jobs, presence, Arc::clone(&devices), outlet);
        let clients = Clients { tap, requester, talker, knocker };
        Ok(Self { devices, consumer, drainer, routes, publisher, parker, clients, feed, http })
    }
}

/// Parts that run by themselves, each on a connection of its own.
pub(super) struct Clients {
    tap: Tap,
    requester: Requester,
    talker: Option<Talker>,
    knocker: Option<Knocker>,
}

impl Clients {
    /// Starts them; they run until `finish`.
    pub(super) fn start(self, finish: &CancellationToken) -> TaskTracker {
        let tasks = TaskTracker::new();
        tasks.spawn(self.tap.run(finish.clone()));
        tasks.spawn(self.requester.run(finish.clone()));
        self.talker.map(|talker| tasks.spawn(talker.run(finish.clone())));
        self.knocker.map(|knocker| tasks.spawn(knocker.run(finish.clone())));
        tasks.close();
        tasks
    }
}

/// What tells the fate of commands, and what it hands on.
struct Reporting {
    reporter: Arc<Reporter>,
    parking: Arc<Parking>,
    jobs: Arc<Jobs<Job>>,
    deposits: Arc<Jobs<Deposit>>,
}

impl Reporting {
    fn new(
        settings: &Settings,
        work: &Arc<Notify>,
        metrics: &Metrics,
        live: &Arc<Live>,
        run: &Run,
    ) -> Self {
        let jobs = Arc::new(Jobs::new(Arc::clone(work), unsettled_max(settings)));
        let deposits = Arc::new(Jobs::new(Arc::default(), unsettled_max(settings)));
        let parking = Arc::new(parking(settings));
        let reporter = Reporter::new(
            Arc::clone(&jobs),
            Arc::clone(&deposits),
            Arc::clone(&parking),
            metrics.clone(),
            Arc::clone(live),
            outcomes(settings, work),
            run.clone(),
        );
        Self { reporter: Arc::new(reporter), parking, jobs, deposits }
    }
}

fn groups(settings: &Settings) -> io::Result<Groups> {
    let listed = settings.groups.file.clone().map(Listed::open).transpose();
    Ok(Groups::new(listed.map_err(|error| wrong("GROUPS_FILE", error))?.unwrap_or_default()))
}

fn feed(
    settings: &Settings,
    bridge: &str,
    outlet: &Arc<Outlet>,
    devices: &Arc<Devices>,
) -> io::Result<Option<Feed>> {
    let (source, url) = (&settings.source, &settings.redis.url);
    let feed = Feed::new(source, url, bridge, Arc::clone(outlet), Arc::clone(devices));
    feed.map_err(|error| wrong("REDIS_URL", error))
}

/// Where last lines are kept, if any device's lines are wanted.
fn last_values(settings: &Settings) -> Option<LastValues> {
    let process = &settings.process;
    let wants_lines = settings.listeners.iter().any(|it| it.device.uplink.is_on());
    wants_lines.then(|| LastValues::new(process.last_value_max.0, process.last_value_ttl))
}

/// Where what became of commands waits for the broker, if it is to be published.
fn outcomes(settings: &Settings, work: &Arc<Notify>) -> Option<Arc<Backlog>> {
    let backlog = || Backlog::new("outcomes", Arc::clone(work), backlog::BYTES_MAX);
    settings.mq.outcome_events.is_on().then(backlog).map(Arc::new)
}

/// How many deliveries can be unsettled. Commands come by the command queue and, in a cluster, by the inbox.
fn unsettled_max(settings: &Settings) -> usize {
    let queues = if settings.process.cluster.is_on() { 2 } else { 1 };
    let mq = &settings.mq;
    queues * (usize::from(mq.prefetch.get()) + usize::from(mq.stalled_max.get()))
}

/// Whether what comes back from a queue's name says that there is no such queue. A classic queue whose node is away
/// is not there for who publishes to it, and comes again with all that is in it: where there are several nodes
/// each is looked at.
fn knocks(settings: &Settings) -> bool {
    settings.mq.queue_type == QueueType::Quorum || settings.mq.endpoints().len() == 1
}

fn parking(settings: &Settings) -> Parking {
    Parking::new(
        settings.command.parked_max.0,
        settings.command.parked_total_max.0,
        settings.mq.heartbeat * HEARTBEATS_TO_NOTICE,
        settings.process.cluster.is_on(),
    )
}

/// What HTTP reads and hands on to; and the task that publishes for it.
fn http(
    settings: &Arc<Settings>,
    nodes: &Arc<Nodes>,
    run: &Run,
    devices: &Arc<Devices>,
    trail: Arc<Trail>,
    live: Arc<Live>,
    consuming: Arc<AtomicBool>,
) -> (HttpState, Requester) {
    let (settings, bridge) = (Arc::clone(settings), &run.bridge);
    let expires_ms = settings.process.expires_ms();
    let wires = devices.wires.clone();
    let nodes = Arc::clone(nodes);
    let (requests, requester) =
        Requester::new(Arc::clone(&settings), Arc::clone(&nodes), Arc::clone(bridge), wires);
    let stats = Stats::new(devices.metrics.clone(), run.clone());
    let state = HttpState {
        devices: Arc::clone(devices),
        trail,
        live,
        run: run.clone(),
        expires_ms,
        requests: Arc::new(requests),
        undelivered: Arc::new(Undelivered::new(settings, nodes, Arc::clone(bridge))),
        stats: Arc::new(stats),
        consuming,
        draining: Arc::new(AtomicBool::new(false)),
        needs_token: false,
    };
    (state, requester)
}
