//! What a message says about its way from bridge to bridge.

use lapin::BasicProperties;
use lapin::types::AMQPValue;

use super::super::stream::NUMBER_HEADER;
use super::values::{long, whole_number};
use super::{Message, PERSISTENT};
use crate::cluster::control;
use crate::order::Route;

/// What RabbitMQ says of a message that has waited in vain elsewhere.
const DIED_IN_HEADER: &str = "x-first-death-queue";

/// Headers of a command on its way from bridge to bridge, which are gone once it has arrived: for whom it
/// is, until when it may be written (milliseconds since 1970), how many bridges have passed it on,
/// whether the broker has handed it to somebody before, and whether its device was connected to the
/// bridge that hands it over.
const ROUTE_ADDRESS_HEADER: &str = "x-route-address";
const ROUTE_UNTIL_HEADER: &str = "x-route-until";
const ROUTE_HOPS_HEADER: &str = "x-route-hops";
const ROUTE_REDELIVERED_HEADER: &str = "x-route-redelivered";
const ROUTE_HANDED_HEADER: &str = "x-route-handed";
const ROUTE_HEADERS: [&str; 6] = [
    ROUTE_ADDRESS_HEADER,
    ROUTE_UNTIL_HEADER,
    ROUTE_HOPS_HEADER,
    ROUTE_REDELIVERED_HEADER,
    ROUTE_HANDED_HEADER,
    NUMBER_HEADER,
];

/// What a message says about its way from bridge to bridge.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in super::super) struct RouteMarks {
    /// Whom it is for, whomever its body names.
    pub(in super::super) address: Option<String>,
    pub(in super::super) until_ms: Option<u64>,
    pub(in super::super) redelivered: bool,
    pub(in super::super) route: Route,
}

impl Message {
    /// The properties of the message on its way to another bridge: its own, and what that is to know.
    pub(in super::super) fn routed_properties(
        &self,
        marks: &RouteMarks,
        id: &str,
    ) -> BasicProperties {
        let mut headers = self.headers(&ROUTE_HEADERS);
        let RouteMarks { address, until_ms, redelivered, route } = marks;
        if let Some(address) = address {
            headers.insert(ROUTE_ADDRESS_HEADER.into(), long(address));
        }
        if let Some(until_ms) = until_ms {
            let until_ms = i64::try_from(*until_ms).unwrap_or(i64::MAX);
            headers.insert(ROUTE_UNTIL_HEADER.into(), AMQPValue::LongLongInt(until_ms));
        }
        headers.insert(ROUTE_HOPS_HEADER.into(), AMQPValue::LongInt(route.hops.into()));
        for (name, is_so) in
            [(ROUTE_REDELIVERED_HEADER, *redelivered), (ROUTE_HANDED_HEADER, route.handed)]
        {
            if is_so {
                headers.insert(name.into(), AMQPValue::Boolean(true));
            }
        }
        let mut properties = self.with_headers(headers).with_delivery_mode(PERSISTENT);
        if let Some(expiration) = self.properties.expiration() {
            properties = properties.with_expiration(expiration.clone());
        }
        self.named(properties, id)
    }

    /// Takes off what it was given on its way from bridge to bridge.
    pub(in super::super) fn unroute(&mut self) -> RouteMarks {
        let has_some = self.header(ROUTE_HOPS_HEADER).is_some();
        if !has_some {
            return RouteMarks::default();
        }
        let is_so = |name| matches!(self.header(name), Some(AMQPValue::Boolean(true)));
        let hops = self.header(ROUTE_HOPS_HEADER).and_then(whole_number);
        let hops = hops.and_then(|hops| u8::try_from(hops).ok()).unwrap_or(u8::MAX);
        let marks = RouteMarks {
            address: self.text(ROUTE_ADDRESS_HEADER),
            until_ms: self.header(ROUTE_UNTIL_HEADER).and_then(whole_number),
            redelivered: is_so(ROUTE_REDELIVERED_HEADER),
            route: Route { hops, handed: is_so(ROUTE_HANDED_HEADER), ..Route::default() },
        };
        let expiration = self.properties.expiration().clone();
        let mut properties = self.with_headers(self.headers(&ROUTE_HEADERS));
        if let Some(expiration) = expiration {
            properties = properties.with_expiration(expiration);
        }
        self.properties = properties.into();
        marks
    }

    /// The queue in which it waited in vain before it came here, if it did.
    pub(in super::super) fn died_in(&self) -> Option<String> {
        self.text(DIED_IN_HEADER)
    }

    /// The `expiration` it had when it died: the broker takes it off.
    pub(in super::super) fn expiration_at_death(&self) -> Option<u64> {
        let AMQPValue::FieldArray(deaths) = self.header("x-death")? else { return None };
        let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
        let AMQPValue::LongString(text) = last.inner().get("original-expiration")? else {
            return None;
        };
        std::str::from_utf8(text.as_bytes()).ok()?.parse().ok()
    }

    /// Whether bridges say something to each other with it, and it is no command.
    pub(in super::super) fn is_control(&self) -> bool {
        self.properties.kind().as_ref().is_some_and(|kind| kind.as_str() == control::TYPE)
    }
}
