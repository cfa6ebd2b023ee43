//! `Bridge`: every part, made and joined; and the order in which they end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::access::gate::Total;
use crate::backlog::{self, Backlog};
use crate::broker::{
    Consumer, Intake, Jobs, Nodes, Publisher, Requester, Routes, Tap, Undelivered,
};
use crate::cluster::Cluster;
use crate::device::{Devices, Door, EndReason, Hall, Listener, Options, Registry, Rules, Sweeper};
use crate::feed::{Feed, Outlet};
use crate::groups::{Groups, Listed};
use crate::http::{self, Access, HttpState, Topics};
use crate::last_values::LastValues;
use crate::live::{Live, Mask};
use crate::metrics::Metrics;
use crate::parking::Parking;
use crate::presence::Presence;
use crate::protocol::Wire;
use crate::report::Reporter;
use crate::router::Router;
use crate::run::Run;
use crate::settings::{self, Settings};
use crate::stats::Stats;
use crate::trail::Trail;
use crate::uplink::Uplink;

/// The part of the shutdown grace kept for telling the broker that every device is offline, after
/// the commands in hand have had the rest.
const REPORT_SHARE: u32 = 4;

/// The part of it that is kept for that when the other bridges are to be told first.
const LEAVE_SHARE: u32 = 10;

/// RabbitMQ gives up a connection after two heartbeats without a byte; one more for its timers.
const HEARTBEATS_TO_NOTICE: u32 = 3;

/// The part of the open files that is not for devices: broker connections, HTTP, files that are read.
const FILES_SHARE: u64 = 10;

/// A bridge that runs.
#[derive(Debug)]
pub struct Bridge {
    devices: Arc<Devices>,
    sessions: TaskTracker,
    draining: Arc<AtomicBool>,
    /// Ends the listener and the taking of commands.
    drain: CancellationToken,
    /// Ends the wait for commands in hand.
    give_up: CancellationToken,
    /// Ends the publisher once it has said everything.
    finish: CancellationToken,
    sweeper: JoinHandle<()>,
    consumer: JoinHandle<()>,
    /// Ends the exchange with the other bridges, once no device is connected.
    leave: CancellationToken,
    routes: Option<JoinHandle<bool>>,
    publisher: JoinHandle<bool>,
    tap: JoinHandle<()>,
    requester: JoinHandle<()>,
    http: Vec<JoinHandle<()>>,
}

impl Bridge {
    /// Binds all listeners and starts every part. The broker may be away: it is waited for.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        let bridge: Arc<str> = settings.bridge_name().into();
        let listeners = listeners(&settings, &bridge)?;
        let total = Total::new(connections_max(&settings));
        let fronts = Fronts::bind(&settings.http).await?;
        // There is always a first one: settings are checked.
        let Some(first) = settings.listeners.first() else {
            return Err(io::Error::other("no listener"));
        };
        let door = Arc::new(Door::of_topics(first, &bridge));
        let options = Options::of(&first.device);
        let wires = listeners.iter().map(Listener::wire).collect();
        let Parts { devices, consumer, routes, publisher, tap, requester, feed, http } =
            Parts::new(settings, bridge, wires)?;

        let (drain, give_up, finish) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let leave = CancellationToken::new();
        let routes = routes.map(|routes| tokio::spawn(routes.run(leave.clone())));
        let sessions = TaskTracker::new();
        let draining = Arc::clone(&http.draining);
        let publisher = tokio::spawn(publisher.run(finish.clone()));
        let tap = tokio::spawn(tap.run(finish.clone()));
        let requester = tokio::spawn(requester.run(finish.clone()));
        let sweeper = tokio::spawn(Sweeper::run(Arc::clone(&devices)));
        let hall = Hall {
            devices: Arc::clone(&devices),
            total,
            sessions: sessions.clone(),
            stop: drain.clone(),
        };
        if let Some(feed) = feed {
            sessions.spawn(feed.run(drain.clone()));
        }
        for listener in listeners {
            info!(listener = listener.name(), address = %listener.address()?, "listening for devices");
            sessions.spawn(listener.run(hall.clone()));
        }
        let topics = Topics { door, hall, options };
        let http = fronts.serve(http, topics)?;
        let consumer = tokio::spawn(consumer.run(drain.clone(), give_up.clone()));
        Ok(Self {
            devices,
            sessions,
            draining,
            drain,
            give_up,
            finish,
            sweeper,
            consumer,
            leave,
            routes,
            publisher,
            tap,
            requester,
            http,
        })
    }

    /// Ends everything in order within `grace`: no more commands and connections; what is in hand
    /// finishes; devices are let go and reported offline; the broker confirms. True if nothing was
    /// cut short.
    pub async fn shut_down(mut self, grace: Duration) -> bool {
        let end = Instant::now() + grace;
        self.draining.store(true, Ordering::Relaxed);
        self.drain.cancel();
        let mut clean = true;
        if timeout_at(end - grace / REPORT_SHARE, &mut self.consumer).await.is_err() {
            warn!("some commands in hand were not finished in time; they go back to the queue.");
            clean = false;
        }
        // What is on its way to devices may arrive; else it would be reported as uncertain.
        self.sweeper.abort();
        if !Sweeper::until_clean(&self.devices, end - grace / REPORT_SHARE).await {
            warn!(
                "some devices have not acknowledged all that was written; those commands are told as uncertain."
            );
            clean = false;
        }
        for session in self.devices.registry.close() {
            session.end(EndReason::Shutdown);
        }
        self.sessions.close();
        // Sessions end as soon as they are told to.
        clean &= timeout_at(end, self.sessions.wait()).await.is_ok();
        self.leave.cancel();
        if let Some(routes) = &mut self.routes
            && !matches!(timeout_at(end - grace / LEAVE_SHARE, routes).await, Ok(Ok(true)))
        {
            warn!(
                "not all that came for this bridge's devices was passed on to other bridges in time; one of them takes it over."
            );
            clean = false;
        }
        self.give_up.cancel();
        if !self.consumer.is_finished() {
            clean &= timeout_at(end, &mut self.consumer).await.is_ok();
        }
        self.finish.cancel();
        if !matches!(timeout_at(end, &mut self.publisher).await, Ok(Ok(true))) {
            warn!("the broker did not confirm in time that every device is offline.");
            clean = false;
        }
        // It closes its connection, for which nobody waits longer.
        timeout_at(end, &mut self.tap).await.ok();
        // Receipts may have come until now; what it does not close in time ends with the process.
        timeout_at(end, self.requester).await.ok();
        self.http.iter().for_each(JoinHandle::abort);
        clean
    }
}

/// Where HTTP is served, bound.
struct Fronts {
    listener: TcpListener,
    access: Access,
    /// For probes and metrics alone, if they are not served there.
    probes: Option<TcpListener>,
}

impl Fronts {
    async fn bind(http: &settings::Http) -> io::Result<Self> {
        let bind = async |setting: &str, address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|error| in_use(setting, address, &error))
        };
        let listener = bind("HTTP_LISTEN", http.listen).await?;
        let access = Access::new(listener.local_addr()?, http.token_file.clone())
            .map_err(|error| wrong("HTTP_TOKEN_FILE", error))?;
        if access.needs_token() && http.token_file.is_none() {
            warn!(
                "HTTP_LISTEN is not on loopback and HTTP_TOKEN_FILE is not set: probes, /metrics and /message answer, nothing else."
            );
        }
        let probes = match http.metrics_listen {
            Some(address) => Some(bind("HTTP_METRICS_LISTEN", address).await?),
            None => None,
        };
        Ok(Self { listener, access, probes })
    }

    fn serve(self, state: HttpState, topics: Topics) -> io::Result<Vec<JoinHandle<()>>> {
        let Self { listener, access, probes } = self;
        let mut tasks = vec![tokio::spawn(Arc::clone(&state.stats).sample())];
        if let Some(probes) = &probes {
            info!(address = %probes.local_addr()?, "serving probes and metrics");
        }
        info!(address = %listener.local_addr()?, "serving HTTP");
        let serve = http::serve(listener, access, state.clone(), topics, probes.is_none());
        tasks.push(tokio::spawn(serve));
        if let Some(probes) = probes {
            tasks.push(tokio::spawn(http::serve_probes(probes, state)));
        }
        Ok(tasks)
    }
}

/// The parts, made and joined but not started.
struct Parts {
    devices: Arc<Devices>,
    consumer: Consumer,
    routes: Option<Routes>,
    publisher: Publisher,
    tap: Tap,
    requester: Requester,
    feed: Option<Feed>,
    http: HttpState,
}

impl Parts {
    fn new(settings: Settings, bridge: Arc<str>, wires: Vec<Wire>) -> io::Result<Self> {
        let groups = groups(&settings)?;
        let settings = Arc::new(settings);
        let metrics = Metrics::new();
        let work = Arc::new(Notify::new());
        let stalled_max = usize::from(settings.mq.stalled_max.get());
        let jobs = Arc::new(Jobs::new(Arc::clone(&work), unsettled_max(&settings)));
        let run = Run::begin(Arc::clone(&bridge));
        let live = Arc::new(Live::new(Mask::new(settings.process.live_mask.as_ref())));
        let cluster = || Arc::new(Cluster::new(Arc::clone(&bridge), metrics.clone()));
        let cluster = settings.process.cluster.is_on().then(cluster);
        let presence =
            Presence::new(run.clone(), Arc::clone(&work), Arc::clone(&live), cluster.clone());
        let presence = Arc::new(presence);
        let trail = Arc::new(Trail::default());
        let new = |last| {
            Uplink::new(run.clone(), Arc::clone(&work), metrics.clone(), Arc::clone(&live), last)
        };
        let uplink = last_values(&settings).map(new).map(Arc::new);
        let parking = Arc::new(parking(&settings));
        let reporter = Reporter::new(
            Arc::clone(&jobs),
            Arc::clone(&parking),
            metrics.clone(),
            Arc::clone(&live),
            outcomes(&settings, &work),
            run.clone(),
        );
        let registry = Registry::new(
            Arc::clone(&presence),
            Arc::clone(&trail),
            metrics.clone(),
            cluster.clone(),
        );
        let devices = Arc::new(Devices {
            registry,
            reporter: Arc::new(reporter),
            uplink,
            metrics: metrics.clone(),
            parking,
            sweeper: Sweeper::default(),
            waiting: AtomicUsize::new(0),
            proving: AtomicUsize::new(0),
            groups,
            wires,
            cluster: cluster.clone(),
        });
        let router = Router::new(Arc::clone(&devices), stalled_max);
        let intake = Arc::new(Intake::new(Arc::clone(&settings), router, Arc::clone(&trail)));
        let nodes = Nodes::new(&settings.mq);
        let routes = cluster.map(|cluster| Routes {
            intake: Arc::clone(&intake),
            nodes: Arc::clone(&nodes),
            cluster,
        });
        let consumer = Consumer {
            intake,
            nodes: Arc::clone(&nodes),
            bridge: Arc::clone(&bridge),
            consuming: Arc::new(AtomicBool::new(false)),
        };
        let (of, to) = (Arc::clone(&settings), Arc::clone(&nodes));
        let tap = Tap::new(of, to, run.clone(), Arc::clone(&live));
        let consuming = Arc::clone(&consumer.consuming);
        let (http, requester) = http(&settings, &nodes, &run, &devices, trail, live, consuming);
        let outlet = Arc::new(Outlet::new(Arc::clone(&work)));
        let feed = feed(&settings, &bridge, &outlet, &devices)?;
        let publisher =
            Publisher::new(settings, nodes, run, jobs, presence, Arc::clone(&devices), outlet);
        Ok(Self { devices, consumer, routes, publisher, tap, requester, feed, http })
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

/// What devices connect to, bound.
fn listeners(settings: &Settings, bridge: &Arc<str>) -> io::Result<Vec<Listener>> {
    let bind = |listener: &settings::Listener| {
        let rules = Arc::new(Rules::new(listener, bridge));
        let door = Door::new(listener, rules, &settings.redis.url)
            .map_err(|error| wrong(&listener.variable, error))?;
        Listener::bind(listener, door)
            .map_err(|error| in_use(&listener.variable, listener.address, &error))
    };
    settings.listeners.iter().map(bind).collect()
}

/// The most connections there may be: what is set, or else what the limit on open files leaves when
/// the bridge has its own share.
fn connections_max(settings: &Settings) -> usize {
    let set = settings.listeners.iter().find_map(|listener| listener.access.connections_max);
    let files = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let default = usize::try_from(files - files / FILES_SHARE).unwrap_or(usize::MAX);
    set.map_or(default, |set| set.0)
}

fn wrong(setting: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{setting}: {error}"))
}

fn in_use(setting: &str, address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{setting}: cannot listen on {address}: {error}"))
}
