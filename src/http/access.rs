//! Who may do what over HTTP: a layer around all routes, which decides by method and path.
//!
//! On loopback and without `HTTP_TOKEN_FILE` whoever can connect is an operator; a page in a browser on
//! the same machine can connect, too, so what it sends must not come from elsewhere. In all other cases
//! a token says who asks. What must be open for probes, scrapers and devices is marked so in the list of
//! routes; everything else is closed, also what is not there.

mod origin;
mod tokens;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use tokens::Tokens;
pub(crate) use tokens::first_token;

use super::problem::Problem;
use crate::access::tokens::Failures;

/// Failures are remembered by peer and by what was tried, which over HTTP is always the same.
const WHAT: &str = "http";

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Look at everything.
    Reader,
    /// Change things, too.
    Operator,
}

impl Role {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "reader" => Some(Self::Reader),
            "operator" => Some(Self::Operator),
            _ => None,
        }
    }
}

/// Who may do what on one listener.
#[derive(Debug)]
pub(crate) struct Access {
    tokens: Option<Tokens>,
    /// Whether only this machine can connect.
    is_local: bool,
    /// Paths that need no token.
    open: HashSet<&'static str>,
    /// Held for a few map operations, never across an await.
    failures: Mutex<Failures>,
}

impl Access {
    /// For the listener at `address`; fails if there is a file of tokens that cannot be used.
    pub(crate) fn new(address: SocketAddr, token_file: Option<PathBuf>) -> Result<Self, String> {
        let tokens = token_file.map(Tokens::open).transpose()?;
        let is_local = address.ip().to_canonical().is_loopback();
        Ok(Self { tokens, is_local, open: HashSet::new(), failures: Mutex::default() })
    }

    /// With these paths open to everybody.
    pub(super) fn with_open(mut self, open: impl Iterator<Item = &'static str>) -> Self {
        self.open.extend(open);
        self
    }

    /// Whether a caller has to say who it is.
    pub(crate) fn needs_token(&self) -> bool {
        self.tokens.is_some() || !self.is_local
    }

    /// The role in which `peer` may do this; None where nobody is asked. Else why not.
    fn admit(
        &self,
        peer: IpAddr,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Role>, Problem> {
        let looks = [Method::GET, Method::HEAD].contains(method);
        if looks && self.open.contains(path) {
            return Ok(None);
        }
        let role = self.role(peer, headers)?;
        if looks {
            return Ok(Some(role));
        }
        if role != Role::Operator {
            let reason = "the token is one of a reader; this needs one of an operator";
            return Err(Problem::forbidden(reason));
        }
        origin::is_same(headers).map_err(Problem::forbidden)?;
        Ok(Some(role))
    }

    fn role(&self, peer: IpAddr, headers: &HeaderMap) -> Result<Role, Problem> {
        let Some(tokens) = &self.tokens else {
            if !self.is_local {
                let reason = "HTTP_TOKEN_FILE is not set: without it only a listener on loopback answers this";
                return Err(Problem::unauthorized(reason));
            }
            origin::is_local_host(headers).map_err(Problem::forbidden)?;
            return Ok(Role::Operator);
        };
        let Some(token) = bearer(headers) else {
            let reason = "expected a token of HTTP_TOKEN_FILE, as in `Authorization: Bearer TOKEN`";
            return Err(Problem::unauthorized(reason));
        };
        let now = Instant::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        // Also the right one is not told meanwhile: else guessing could go on.
        if let Some(left) = failures.wait_left(peer, WHAT, now) {
            return Err(Problem::too_many("a wrong token came from this address of late", left));
        }
        match tokens.role(token) {
            Some(role) => {
                failures.succeeded(peer, WHAT);
                Ok(role)
            }
            None => {
                failures.failed(peer, WHAT, now);
                Err(Problem::unauthorized("the token is not one of HTTP_TOKEN_FILE"))
            }
        }
    }
}

/// The token that was sent.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii())
}

/// The layer.
pub(super) async fn guard(
    State(access): State<Arc<Access>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    match access.admit(peer.ip(), method, path, request.headers()) {
        Ok(role) => {
            if let Some(role) = role {
                request.extensions_mut().insert(role);
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    const READER: &str = "a-reader-of-sixteen";
    const OPERATOR: &str = "an-operator-of-sixteen";

    fn access(address: &str, lines: Option<&str>) -> Access {
        let file = lines.map(|lines| {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), lines).expect("written");
            file
        });
        let path = file.as_ref().map(|file| file.path().to_owned());
        let access = Access::new(address.parse().expect("an address"), path).expect("tokens");
        access.with_open(["/livez"].into_iter())
    }

    fn with_tokens() -> Access {
        access("127.0.0.1:1", Some(&format!("reader {READER}\noperator {OPERATOR}\n")))
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    fn asked(
        access: &Access,
        method: Method,
        path: &str,
        pairs: &[(&'static str, &str)],
    ) -> Result<Option<Role>, StatusCode> {
        let peer = IpAddr::from([10, 0, 0, 1]);
        access.admit(peer, &method, path, &headers(pairs)).map_err(|problem| problem.status())
    }

    #[test]
    fn on_loopback_without_tokens_everybody_is_an_operator() {
        let access = access("127.0.0.1:1", None);
        assert!(!access.needs_token());
        assert_eq!(asked(&access, Method::GET, "/devices", &[]), Ok(Some(Role::Operator)));
        let host = [("host", "127.0.0.1:9123")];
        assert_eq!(asked(&access, Method::POST, "/commands", &host), Ok(Some(Role::Operator)));
        for (method, elsewhere) in [
            (Method::GET, [("host", "rebound.example")]),
            (Method::POST, [("host", "rebound.example")]),
            (Method::POST, [("origin", "http://evil.example")]),
            (Method::DELETE, [("sec-fetch-site", "cross-site")]),
        ] {
            assert_eq!(asked(&access, method, "/devices", &elsewhere), Err(StatusCode::FORBIDDEN));
        }
    }

    #[test]
    fn elsewhere_without_tokens_only_what_is_open_answers() {
        let access = access("0.0.0.0:1", None);
        assert!(access.needs_token());
        assert_eq!(asked(&access, Method::GET, "/livez", &[("host", "any")]), Ok(None));
        for path in ["/devices", "/nothing", "/livez/", "//livez"] {
            assert_eq!(asked(&access, Method::GET, path, &[]), Err(StatusCode::UNAUTHORIZED));
        }
        let token = [("authorization", "Bearer whatever-it-may-be")];
        assert_eq!(asked(&access, Method::POST, "/livez", &token), Err(StatusCode::UNAUTHORIZED));
    }

    #[test]
    fn a_token_says_what_its_bearer_may_do() {
        let access = with_tokens();
        let (reader, operator) = (format!("Bearer {READER}"), format!("bearer {OPERATOR}"));
        let (reader, operator) = ([("authorization", &*reader)], [("authorization", &*operator)]);
        assert_eq!(asked(&access, Method::GET, "/devices", &reader), Ok(Some(Role::Reader)));
        assert_eq!(asked(&access, Method::PUT, "/groups", &reader), Err(StatusCode::FORBIDDEN));
        assert_eq!(asked(&access, Method::PUT, "/groups", &operator), Ok(Some(Role::Operator)));
        assert_eq!(asked(&access, Method::GET, "/devices", &[]), Err(StatusCode::UNAUTHORIZED));
        let basic = [("authorization", "Basic Z3Vlc3Q6Z3Vlc3Q=")];
        assert_eq!(asked(&access, Method::GET, "/devices", &basic), Err(StatusCode::UNAUTHORIZED));
    }

    #[test]
    fn after_a_wrong_token_its_peer_has_to_wait() {
        let access = with_tokens();
        let wrong = [("authorization", "Bearer a-wrong-one-of-sixteen")];
        let right = format!("Bearer {READER}");
        let right = [("authorization", &*right)];
        assert_eq!(asked(&access, Method::GET, "/devices", &wrong), Err(StatusCode::UNAUTHORIZED));
        // So many more that the wait outlasts any test.
        let peer = IpAddr::from([10, 0, 0, 1]);
        let fail = |_| access.failures.lock().expect("held").failed(peer, WHAT, Instant::now());
        (0..9).for_each(fail);
        assert_eq!(
            asked(&access, Method::GET, "/devices", &right),
            Err(StatusCode::TOO_MANY_REQUESTS)
        );
        assert_eq!(asked(&access, Method::GET, "/livez", &[]), Ok(None), "a probe never waits");
        let elsewhere = IpAddr::from([10, 0, 0, 2]);
        let other = access.admit(elsewhere, &Method::GET, "/devices", &headers(&right));
        assert_eq!(other.map_err(|problem| problem.status()), Ok(Some(Role::Reader)));
    }
}
