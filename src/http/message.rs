//! `/message`: a WebSocket, on which the client is a device that speaks `topic`.
//!
//! After the upgrade the socket leaves HTTP and becomes a session like any other.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpStream;
use tracing::debug;

use crate::device::{Door, Hall, Options};
use crate::protocol::topic;

/// Open to everybody: the door asks who a device is.
pub(super) const PATH: &str = "/message";

/// Who comes to `/message`.
#[derive(Debug, Clone)]
pub(crate) struct Topics {
    pub(crate) door: Arc<Door>,
    pub(crate) hall: Hall,
    pub(crate) options: Arc<Options>,
}

pub(super) fn router(topics: Topics) -> Router {
    Router::new().route(PATH, get(message)).with_state(topics)
}

async fn message(State(topics): State<Topics>, mut request: Request) -> Response {
    let key = match key(request.headers()) {
        Ok(key) => key,
        Err(reason) => {
            let version = [(header::SEC_WEBSOCKET_VERSION, "13")];
            return (StatusCode::UPGRADE_REQUIRED, version, reason).into_response();
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    topics.hall.sessions.clone().spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => take(&topics, parts.io.into_inner(), parts.read_buf.to_vec()),
            Err(_) => debug!("a WebSocket came on something that is no TCP socket."),
        }
    });
    let headers = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, topic::accept_key(&key)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

fn take(topics: &Topics, stream: TcpStream, rest: Vec<u8>) {
    let peer: SocketAddr = match stream.peer_addr() {
        Ok(peer) => peer,
        Err(error) => {
            debug!(%error, "a WebSocket ended at once.");
            return;
        }
    };
    let socket = SockRef::from(&stream);
    if let Err(error) = topics.options.set(&socket).and_then(|()| topics.options.spread(&socket)) {
        debug!(%peer, %error, "cannot set the options of a socket.");
    }
    topics.door.take_known(stream, peer, rest, &topics.hall);
}

/// The key of the handshake (RFC 6455, 4.2.1); else what is missing.
fn key(headers: &HeaderMap) -> Result<String, &'static str> {
    let words = |name| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(',').map(|word| word.trim().to_ascii_lowercase()).collect::<Vec<_>>()
    };
    let has = |name, word: &str| words(name).iter().any(|it| it == word);
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err("expected a WebSocket handshake\n");
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err("expected Sec-WebSocket-Version: 13\n");
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    key.map(str::to_owned).ok_or("expected a Sec-WebSocket-Key\n")
}
