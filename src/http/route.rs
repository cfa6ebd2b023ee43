//! `Route`: one path, the methods it takes, and whether it is open to everybody.

use axum::handler::Handler;
use axum::routing::{self, MethodRouter};

use super::HttpState;

/// One path.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) path: &'static str,
    /// Whether it needs no token.
    pub(super) is_open: bool,
    /// In lower case, as OpenAPI has them.
    pub(super) methods: Vec<&'static str>,
    pub(super) handlers: MethodRouter<HttpState>,
}

impl Route {
    /// For probes, scrapers, devices, and for what says nothing of this bridge.
    pub(super) fn open(path: &'static str) -> Self {
        Self { path, is_open: true, methods: Vec::new(), handlers: MethodRouter::new() }
    }

    /// For readers; what is not GET is for operators.
    pub(super) fn closed(path: &'static str) -> Self {
        Self { is_open: false, ..Self::open(path) }
    }

    pub(super) fn get<T: 'static>(self, handler: impl Handler<T, HttpState>) -> Self {
        self.with("get", routing::get(handler))
    }

    pub(super) fn post<T: 'static>(self, handler: impl Handler<T, HttpState>) -> Self {
        self.with("post", routing::post(handler))
    }

    pub(super) fn put<T: 'static>(self, handler: impl Handler<T, HttpState>) -> Self {
        self.with("put", routing::put(handler))
    }

    pub(super) fn delete<T: 'static>(self, handler: impl Handler<T, HttpState>) -> Self {
        self.with("delete", routing::delete(handler))
    }

    fn with(mut self, method: &'static str, handlers: MethodRouter<HttpState>) -> Self {
        self.methods.push(method);
        self.handlers = self.handlers.merge(handlers);
        self
    }
}
