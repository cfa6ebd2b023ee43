//! `Bridge`: how its parts start, and the order in which they end.

mod leaving;
mod parts;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::parts::Parts;
use crate::access::gate::Total;
use crate::broker::{Leaving, Parker, Publisher};
use crate::device::{Devices, Door, Hall, Listener, Options, Rules, Sweeper};
use crate::http::{self, Access, HttpState, Topics};
use crate::settings::{self, Settings};

/// The part of the shutdown grace kept for telling the broker that every device is offline, after
/// the commands in hand have had the rest.
const REPORT_SHARE: u32 = 4;

/// The part of it that is kept for that when the other bridges are to be told first.
const LEAVE_SHARE: u32 = 10;

/// The part of it over which the connections of devices are closed at most, if other bridges take them up.
const SPREAD_SHARE: u32 = 2;

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
    /// Takes commands, new and parked.
    taking: JoinHandle<()>,
    /// Ends the exchange with the other bridges, once no device is connected.
    leaving: Leaving,
    /// How long other bridges hold devices, and over what time these are let go.
    moving: Duration,
    spread: Duration,
    routes: Option<JoinHandle<bool>>,
    publisher: JoinHandle<bool>,
    /// What else has a connection to the broker, until the publisher is to end.
    clients: TaskTracker,
    http: Vec<JoinHandle<()>>,
}

impl Bridge {
    /// Binds all listeners and starts every part. The broker may be away: it is waited for.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        let bridge: Arc<str> = settings.bridge_name().into();
        let moving = settings.process.cluster_moving.0;
        let spread = settings.process.cluster_drain_spread.0;
        let listeners = listeners(&settings, &bridge)?;
        let total = Total::new(connections_max(&settings));
        let fronts = Fronts::bind(&settings.http).await?;
        let (door, options) = of_topics(&settings, &bridge)?;
        let wires = listeners.iter().map(Listener::wire).collect();
        let Parts { devices, consumer, drainer, routes, publisher, parker, clients, feed, http } =
            Parts::new(settings, bridge, wires)?;

        let [drain, give_up, finish] = std::array::from_fn(|_| CancellationToken::new());
        let leaving = Leaving::default();
        let routes = routes.map(|routes| tokio::spawn(routes.run(leaving.clone())));
        let sessions = TaskTracker::new();
        let draining = Arc::clone(&http.draining);
        let publisher = tokio::spawn(publish(publisher, parker, finish.clone()));
        let clients = clients.start(&finish);
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
        let consuming = consumer.run(drain.clone(), give_up.clone());
        let fetching = drainer.run(drain.clone(), give_up.clone());
        let taking = tokio::spawn(async { _ = tokio::join!(consuming, fetching) });
        Ok(Self {
            devices,
            sessions,
            draining,
            drain,
            give_up,
            finish,
            sweeper,
            taking,
            leaving,
            moving,
            spread,
            routes,
            publisher,
            clients,
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
        self.devices.registry.close();
        let mut clean = true;
        let is_alone = self.devices.cluster.as_ref().is_none_or(|cluster| cluster.is_alone());
        let spread = if is_alone { Duration::ZERO } else { self.spread.min(grace / SPREAD_SHARE) };
        let is_held = leaving::hand_over(&self.devices, self.moving, spread).await;
        self.has_taken(end - grace / REPORT_SHARE - spread).await;
        if !spread.is_zero() {
            // Others pass commands on to those that are connected still.
            let closing = leaving::close(&self.devices, spread, is_held, &self.leaving.shards);
            timeout_at(end - grace / REPORT_SHARE, closing).await.ok();
        }
        // What is on its way to devices may arrive; else it would be reported as uncertain.
        self.sweeper.abort();
        if !Sweeper::until_clean(&self.devices, end - grace / REPORT_SHARE).await {
            warn!(
                "some devices have not acknowledged all that was written; those commands are told as uncertain."
            );
            clean = false;
        }
        for session in self.devices.registry.all() {
            session.let_go(&self.devices, is_held, true);
        }
        self.sessions.close();
        // Sessions end as soon as they are told to.
        clean &= timeout_at(end, self.sessions.wait()).await.is_ok();
        clean &= self.leave_routes(end - grace / LEAVE_SHARE).await;
        // What waited for a device may have gone on to another bridge with it.
        let by = if spread.is_zero() { Instant::now() } else { end - grace / LEAVE_SHARE };
        if !self.has_taken(by).await {
            warn!("some commands in hand were not finished in time; they go back to the queue.");
            clean = false;
        }
        self.give_up.cancel();
        clean &= self.has_taken(end).await;
        self.finish.cancel();
        if !matches!(timeout_at(end, &mut self.publisher).await, Ok(Ok(true))) {
            warn!(
                "the broker did not confirm in time that every device is offline, or what was to be parked."
            );
            clean = false;
        }
        // Receipts may have come until now. They close their connections; what is not closed in time ends with the process.
        timeout_at(end, self.clients.wait()).await.ok();
        self.http.iter().for_each(JoinHandle::abort);
        clean
    }

    /// Passes on to other bridges what came for this one. After half of the time what is in the inbox stays there. True
    /// if all that was taken up has gone on by then.
    async fn leave_routes(&mut self, by: Instant) -> bool {
        let Some(routes) = &mut self.routes else { return true };
        self.leaving.begin.cancel();
        let half = Instant::now() + by.saturating_duration_since(Instant::now()) / 2;
        let left = match timeout_at(half, &mut *routes).await {
            Ok(left) => Ok(left),
            Err(_) => {
                info!(
                    "what came for this bridge's devices and is not passed on yet is left to the other bridges"
                );
                self.leaving.hurry.cancel();
                timeout_at(by, routes).await
            }
        };
        let is_clean = matches!(left, Ok(Ok(true)));
        if !is_clean {
            warn!(
                "not all that came for this bridge's devices was passed on to other bridges in time; some of it may be written twice."
            );
        }
        is_clean
    }

    /// Whether all commands in hand have their fate by then.
    async fn has_taken(&mut self, by: Instant) -> bool {
        if self.taking.is_finished() {
            return true;
        }
        timeout_at(by, &mut self.taking).await.is_ok()
    }
}

/// Publishes until `finish`, and then until all is confirmed. True if it was.
async fn publish(publisher: Publisher, parker: Parker, finish: CancellationToken) -> bool {
    let parking = tokio::spawn(parker.run(finish.clone()));
    let is_said = publisher.run(finish).await;
    matches!(parking.await, Ok(true)) && is_said
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

/// By what rules topics are reached over HTTP: those of the first listener.
fn of_topics(settings: &Settings, bridge: &Arc<str>) -> io::Result<(Arc<Door>, Arc<Options>)> {
    // There is always a first one: settings are checked.
    let first = settings.listeners.first().ok_or_else(|| io::Error::other("no listener"))?;
    Ok((Arc::new(Door::of_topics(first, bridge)), Arc::new(Options::of(&first.device))))
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
