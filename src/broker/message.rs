//! `Message`: one AMQP message as it came, opaque outside this folder, and what may be asked of it.

mod copies;
mod properties;
mod route;
mod values;

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::AMQPValue;

pub(super) use self::copies::{PERSISTENT, stamped};
pub(super) use self::properties::Properties;
pub(super) use self::route::RouteMarks;
use self::values::{table_size, whole_number};
use super::decode::Stamps;

/// The header RabbitMQ sets when its timestamp interceptor is on.
pub(super) const TIMESTAMP_MS_HEADER: &str = "timestamp_in_ms";
/// Headers of a parked message, which are gone once it is fetched: until when it may be written
/// (milliseconds since 1970), and what its bridge knows it by.
const PARKED_UNTIL_HEADER: &str = "x-parked-until";
const PARKED_BY_HEADER: &str = "x-parked-by";
const OUTCOME_HEADER: &str = "x-outcome";
const REASON_HEADER: &str = "x-reason";
/// For whom a command was not delivered that is for others, too.
const ADDRESS_HEADER: &str = "x-address";
/// When a command was not delivered, as text.
const AT_HEADER: &str = "x-at";
/// How often a quorum queue has had the message given back.
const RETURNS_HEADER: &str = "x-delivery-count";

/// What ties a message to a trace.
const TRACE_HEADER: &str = "traceparent";
/// The longest that is taken for one: those of today have 55 bytes, and later ones may be longer.
const TRACE_MAX: usize = 256;

/// What a message is known by while it is parked.
pub(super) fn parked_id(properties: &BasicProperties) -> Option<&str> {
    let AMQPValue::LongString(id) = properties.headers().as_ref()?.inner().get(PARKED_BY_HEADER)?
    else {
        return None;
    };
    std::str::from_utf8(id.as_bytes()).ok()
}

/// A delivery that is to be settled.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) tag: u64,
    /// Whether the broker has handed it to somebody before.
    pub(super) redelivered: bool,
    pub(super) message: Message,
}

impl From<Delivery> for Delivered {
    fn from(delivery: Delivery) -> Self {
        let Delivery { delivery_tag: tag, redelivered, routing_key, properties, data, .. } =
            delivery;
        let (properties, routing_key) = (properties.into(), routing_key.as_str().into());
        Self { tag, redelivered, message: Message { body: data, properties, routing_key } }
    }
}

/// A message as the broker delivered it.
#[derive(Debug)]
pub struct Message {
    pub(super) body: Vec<u8>,
    pub(super) properties: Properties,
    pub(super) routing_key: Arc<str>,
}

impl Message {
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(super) fn stamps(&self) -> Stamps<'_> {
        Stamps {
            timestamp_ms: self.header(TIMESTAMP_MS_HEADER).and_then(whole_number),
            timestamp_s: self.properties.stamped(),
            expiration: self.properties.ends_after(),
            has_id: self.message_id().is_some(),
        }
    }

    /// Bytes it keeps in memory, roughly.
    pub(crate) fn size(&self) -> usize {
        self.body.len() + self.properties.table().map_or(0, table_size)
    }

    /// Tells it from another message that has the same id.
    pub(crate) fn fingerprint(&self, hasher: &mut impl Hasher) {
        self.body.hash(hasher);
        self.properties.stamped().hash(hasher);
        self.properties.correlated().hash(hasher);
    }

    /// The AMQP `message_id`.
    pub(crate) fn message_id(&self) -> Option<&str> {
        self.properties.id()
    }

    /// What ties it to a trace, as W3C Trace Context writes it.
    pub(crate) fn trace(&self) -> Option<&str> {
        let value = self.header(TRACE_HEADER)?;
        let trace = if let AMQPValue::LongString(text) = value {
            std::str::from_utf8(text.as_bytes()).ok()?
        } else if let AMQPValue::ShortString(text) = value {
            text.as_str()
        } else {
            return None;
        };
        let is_one = !trace.is_empty()
            && trace.len() <= TRACE_MAX
            && trace.bytes().all(|byte| byte.is_ascii_graphic());
        is_one.then_some(trace)
    }

    /// Where the sender wants a receipt.
    pub(crate) fn reply_to(&self) -> Option<&str> {
        self.properties.answer_to().filter(|name| !name.is_empty())
    }

    /// What became of it, if it was not delivered.
    pub(super) fn outcome(&self) -> Option<String> {
        self.text(OUTCOME_HEADER)
    }

    /// Why it was not delivered.
    pub(super) fn reason(&self) -> Option<String> {
        self.text(REASON_HEADER)
    }

    /// When it was not delivered.
    pub(super) fn at(&self) -> Option<String> {
        self.text(AT_HEADER)
    }

    /// For whom it was not delivered, if it is for others, too.
    pub(super) fn member(&self) -> Option<String> {
        self.text(ADDRESS_HEADER)
    }

    /// Until when it was parked, milliseconds since 1970.
    pub(super) fn parked_until(&self) -> Option<u64> {
        self.header(PARKED_UNTIL_HEADER).and_then(whole_number)
    }

    /// How often it was given back to its queue, if that counts.
    pub(super) fn returns(&self) -> u64 {
        self.header(RETURNS_HEADER).and_then(whole_number).unwrap_or(0)
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.table()?.inner().get(name)
    }

    fn text(&self, name: &str) -> Option<String> {
        let AMQPValue::LongString(text) = self.header(name)? else { return None };
        Some(text.to_string())
    }
}

#[cfg(test)]
impl Message {
    /// A message that is nothing but its body.
    pub(crate) fn of_body(body: &[u8]) -> Self {
        let (properties, routing_key) = (BasicProperties::default().into(), "".into());
        Self { body: body.to_vec(), properties, routing_key }
    }

    /// Its properties when it has been given back so often.
    pub(crate) fn counted_by_a_quorum_queue(&self, returns: i64) -> BasicProperties {
        let mut headers = self.headers(&[]);
        headers.insert(RETURNS_HEADER.into(), AMQPValue::LongLongInt(returns));
        self.with_headers(headers)
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::values::long;
    use super::*;

    #[test]
    fn a_trace_is_what_its_header_says_if_that_can_be_shown() {
        let of = |value: AMQPValue| {
            let mut table = FieldTable::default();
            table.insert(TRACE_HEADER.into(), value);
            let properties = BasicProperties::default().with_headers(table);
            Message { properties: properties.into(), ..Message::of_body(b"") }
                .trace()
                .map(str::to_owned)
        };
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(of(long(trace)).as_deref(), Some(trace));
        assert_eq!(of(AMQPValue::ShortString(trace.into())).as_deref(), Some(trace));
        for wrong in ["", "a b", "a\nb", &"x".repeat(TRACE_MAX + 1)] {
            assert_eq!(of(long(wrong)), None, "{wrong:?}");
        }
        assert_eq!(of(AMQPValue::LongInt(1)), None);
        assert_eq!(Message::of_body(b"").trace(), None);
    }
}
