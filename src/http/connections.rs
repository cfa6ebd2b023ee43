//! Connections of HTTP: there are only so many, and none is kept for who says nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

/// Connections of one listener; more wait in the kernel's queue. Each is a descriptor less for devices.
const CONNECTIONS_MAX: usize = 512;
/// How long a client may take from the beginning of a connection, or the end of an answer, to the end of
/// the next request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(20);
/// The wait after a connection could not be accepted, for lack of descriptors above all.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Serves until it is aborted.
pub(super) async fn serve(listener: TcpListener, app: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // It is never closed.
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let app = app.clone();
                tokio::spawn(async move {
                    answer(stream, peer, app).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection for HTTP; trying again.");
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}

/// Answers what comes on one connection, until it ends or becomes a device's.
async fn answer(stream: TcpStream, peer: SocketAddr, app: Router) {
    let app = TowerToHyperService::new(app.layer(Extension(ConnectInfo(peer))));
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    let connection = builder.serve_connection(TokioIo::new(stream), app);
    if let Err(error) = connection.with_upgrades().await {
        debug!(%peer, %error, "a connection of HTTP has ended.");
    }
}
