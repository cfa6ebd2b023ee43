//! What is made of a message when it goes somewhere else: a receipt, a copy that is parked, that was not delivered, that is
//! tried again. Headers are left behind that would have the broker route, end or refuse it there.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::values::{long, table_size};
use super::{
    ADDRESS_HEADER, AT_HEADER, Message, OUTCOME_HEADER, PARKED_BY_HEADER, PARKED_UNTIL_HEADER,
    REASON_HEADER, RETURNS_HEADER, TIMESTAMP_MS_HEADER,
};
use crate::clock::{self, Moment};
use crate::command::{Address, Outcome, Reason};

/// `delivery_mode` of a message that survives a restart of the broker in a durable queue.
pub(in super::super) const PERSISTENT: u8 = 2;

/// `headers` with the time of publication to the millisecond, which `timestamp` cannot say.
pub(in super::super) fn stamped(mut headers: FieldTable, now_ms: u64) -> FieldTable {
    let stamp = i64::try_from(now_ms).unwrap_or(i64::MAX);
    headers.insert(TIMESTAMP_MS_HEADER.into(), AMQPValue::LongLongInt(stamp));
    headers
}

/// What a quorum queue puts on a message each time it delivers it, which is not of the message.
const OF_THE_QUEUE: [&str; 2] = [RETURNS_HEADER, "x-acquired-count"];
/// What must not come with a command that is tried again: what was said of the first try, what would say
/// that it is older than that, what the broker adds, and what would route it to further queues.
const NOT_AGAIN: [&str; 15] = [
    OUTCOME_HEADER,
    REASON_HEADER,
    ADDRESS_HEADER,
    AT_HEADER,
    PARKED_UNTIL_HEADER,
    PARKED_BY_HEADER,
    TIMESTAMP_MS_HEADER,
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "CC",
    "BCC",
];

/// The longest reason a header carries; the log has it whole.
const REASON_HEADER_MAX: usize = 1024;
/// Headers travel in one frame, which is 128 KiB unless the broker is set otherwise. A message whose
/// headers fill it could not be published again with more of them: the broker would close the
/// connection, each time anew.
const HEADERS_BYTES_MAX: usize = 100 * 1024;

/// What a parked message says about itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct ParkedMarks {
    pub(in super::super) until_ms: Option<u64>,
    pub(in super::super) by: Option<String>,
}

impl Message {
    /// The properties of a receipt: what lets the sender recognise its command. `CC` and `BCC` would
    /// have the broker route it to further queues. It is persistent: the command is acknowledged once
    /// it is confirmed, so in a durable queue it has to outlive the broker as the command would have.
    pub(in super::super) fn receipt_properties(&self) -> BasicProperties {
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT)
            .with_headers(self.headers(&["CC", "BCC"]));
        if let Some(id) = self.properties.correlation_id() {
            properties = properties.with_correlation_id(id.clone());
        }
        properties
    }

    /// The properties of the message on its way to the undelivered exchange: its own, with the
    /// outcome in two headers, and without `expiration`, which would end it there as well.
    pub(in super::super) fn undelivered_properties(
        &self,
        outcome: Outcome,
        reason: &Reason,
        member: Option<&Address>,
    ) -> BasicProperties {
        let mut headers = self.headers(&[]);
        if let Some(address) = member {
            headers.insert(ADDRESS_HEADER.into(), long(&address.to_string()));
        }
        let cut = reason.char_indices().nth(REASON_HEADER_MAX).map_or(reason.len(), |(at, _)| at);
        headers.insert(OUTCOME_HEADER.into(), long(outcome.label()));
        headers.insert(REASON_HEADER.into(), long(reason.get(..cut).unwrap_or_default()));
        headers.insert(AT_HEADER.into(), long(&clock::rfc3339(Moment::now().wall_ms)));
        self.with_headers(headers)
    }

    /// The properties of the message on its way to its device's own queue, where it ends after
    /// `left_ms`: the broker then passes it on as it is, so it carries the outcome already.
    pub(in super::super) fn parked_properties(
        &self,
        until_ms: u64,
        left_ms: u64,
        by: &str,
        id: &str,
        member: Option<&Address>,
    ) -> BasicProperties {
        let mut headers = self.headers(&[AT_HEADER]);
        if let Some(address) = member {
            headers.insert(ADDRESS_HEADER.into(), long(&address.to_string()));
        }
        headers.insert(OUTCOME_HEADER.into(), long(Outcome::Expired.label()));
        headers.insert(REASON_HEADER.into(), long("its ttl ended while it was parked"));
        let until_ms = i64::try_from(until_ms).unwrap_or(i64::MAX);
        headers.insert(PARKED_UNTIL_HEADER.into(), AMQPValue::LongLongInt(until_ms));
        headers.insert(PARKED_BY_HEADER.into(), long(by));
        let properties = self
            .with_headers(headers)
            .with_expiration(left_ms.to_string().into())
            .with_delivery_mode(PERSISTENT);
        // One made here has to be the same in every receipt.
        self.named(properties, id)
    }

    /// Takes off what it was given when it was parked.
    pub(in super::super) fn unpark(&mut self) -> ParkedMarks {
        let marks = ParkedMarks { until_ms: self.parked_until(), by: self.text(PARKED_BY_HEADER) };
        let ours =
            [OUTCOME_HEADER, REASON_HEADER, ADDRESS_HEADER, PARKED_UNTIL_HEADER, PARKED_BY_HEADER];
        self.properties = self.with_headers(self.headers(&ours)).into();
        marks
    }

    /// The properties of the message when it is tried again: as a new one's.
    pub(in super::super) fn properties_again(&self, id: &str, now_ms: u64) -> BasicProperties {
        let headers = stamped(self.headers(&NOT_AGAIN), now_ms);
        let properties = self.with_headers(headers).with_timestamp(now_ms / 1000);
        let properties = properties.with_delivery_mode(PERSISTENT);
        self.named(properties, id)
    }

    /// The properties of a copy that takes the message's place.
    pub(in super::super) fn renewed_properties(&self) -> BasicProperties {
        self.with_headers(self.headers(&["CC", "BCC"]))
    }

    /// The message's headers without those in `without` and those of the queue it came from; none at all if they are so large that the
    /// broker would refuse a frame with one header more.
    pub(super) fn headers(&self, without: &[&str]) -> FieldTable {
        let mut headers = FieldTable::default();
        let all = self.properties.table().filter(|all| table_size(all) <= HEADERS_BYTES_MAX);
        for (name, value) in all.into_iter().flat_map(|all| all.inner()) {
            if !without.contains(&name.as_str()) && !OF_THE_QUEUE.contains(&name.as_str()) {
                headers.insert(name.clone(), value.clone());
            }
        }
        headers
    }

    /// `properties`, with this id if it has none of its own.
    pub(super) fn named(&self, properties: BasicProperties, id: &str) -> BasicProperties {
        match self.message_id() {
            Some(_) => properties,
            None => properties.with_message_id(id.into()),
        }
    }

    /// Its properties with other headers, and without `expiration` and `user_id`.
    pub(super) fn with_headers(&self, headers: FieldTable) -> BasicProperties {
        let from = &self.properties;
        let mut to = BasicProperties::default().with_headers(headers);
        macro_rules! keep {
            ( $( $get:ident => $with:ident ),* $(,)? ) => {
                $( if let Some(value) = from.$get() { to = to.$with(value.clone()); } )*
            };
        }
        keep! {
            content_type => with_content_type,
            content_encoding => with_content_encoding,
            delivery_mode => with_delivery_mode,
            priority => with_priority,
            correlation_id => with_correlation_id,
            reply_to => with_reply_to,
            message_id => with_message_id,
            timestamp => with_timestamp,
            kind => with_type,
            app_id => with_app_id,
            cluster_id => with_cluster_id,
        }
        // `user_id` is left out: the broker refuses one that is not the publishing user's own.
        to
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::ShortString;

    use super::*;

    #[test]
    fn a_parked_copy_says_how_it_may_end_and_loses_that_when_it_is_fetched() {
        let original = message(&[("trace", 5)]);
        let properties = original.parked_properties(9_000, 500, "b1-7", "id7", None);
        assert_eq!(properties.expiration().as_ref().map(ShortString::as_str), Some("500"));
        let mut parked = Message { properties: properties.into(), ..message(&[]) };
        assert_eq!(
            names(&parked.properties),
            ["trace", "x-outcome", "x-parked-by", "x-parked-until", "x-reason"]
        );
        let marks = parked.unpark();
        assert_eq!(marks, ParkedMarks { until_ms: Some(9_000), by: Some("b1-7".to_owned()) });
        assert_eq!(names(&parked.properties), ["trace"]);
        assert_eq!(parked.message_id(), Some("m7"), "its own id");
        assert!(parked.properties.expiration().is_none());
        let nameless = Message::of_body(b"x").parked_properties(1, 1, "b1-7", "id7", None);
        assert_eq!(nameless.message_id().as_ref().map(ShortString::as_str), Some("id7"));
    }

    fn message(headers: &[(&str, usize)]) -> Message {
        let mut table = FieldTable::default();
        for (name, length) in headers {
            table.insert((*name).into(), long(&"x".repeat(*length)));
        }
        let properties = BasicProperties::default()
            .with_headers(table)
            .with_message_id("m7".into())
            .with_correlation_id("c7".into())
            .with_expiration("500".into())
            .with_user_id("guest".into());
        Message { body: Vec::new(), properties: properties.into(), routing_key: "".into() }
    }

    fn names(properties: &BasicProperties) -> Vec<&str> {
        let headers = properties.headers().as_ref().expect("headers");
        headers.inner().keys().map(ShortString::as_str).collect()
    }

    #[test]
    fn an_undelivered_copy_keeps_everything_but_what_would_end_or_refuse_it() {
        let copy =
            message(&[("trace", 5)]).undelivered_properties(Outcome::Offline, &"gone".into(), None);
        assert_eq!(names(&copy), ["trace", "x-at", "x-outcome", "x-reason"]);
        assert_eq!(copy.message_id().as_ref().map(ShortString::as_str), Some("m7"));
        assert!(copy.expiration().is_none() && copy.user_id().is_none());
    }

    #[test]
    fn what_is_tried_again_is_as_new_and_goes_nowhere_else() {
        let member = Address::parse("p1").expect("an address");
        let first = message(&[("trace", 5), ("CC", 5)]);
        let parked = first.parked_properties(9_000, 500, "b1-7", "id7", Some(&member));
        let mut expired = Message { properties: parked.into(), ..message(&[]) };
        assert_eq!(expired.member().as_deref(), Some("p1"), "the broker passes it on as it is");
        let again = expired.properties_again("made", 5_432);
        assert_eq!(names(&again), ["timestamp_in_ms", "trace"]);
        assert_eq!(*again.timestamp(), Some(5));
        assert_eq!(again.message_id().as_ref().map(ShortString::as_str), Some("m7"));
        let nameless = Message::of_body(b"x").properties_again("made", 5_432);
        assert_eq!(nameless.message_id().as_ref().map(ShortString::as_str), Some("made"));
        expired.unpark();
        assert_eq!(expired.member(), None, "fetched, it is said anew for whom it is");
    }

    #[test]
    fn a_receipt_is_recognised_and_goes_nowhere_else() {
        let receipt = message(&[("trace", 5), ("CC", 5), ("BCC", 5)]).receipt_properties();
        assert_eq!(names(&receipt), ["trace"]);
        assert_eq!(receipt.correlation_id().as_ref().map(ShortString::as_str), Some("c7"));
    }

    #[test]
    fn headers_that_fill_a_frame_are_left_behind() {
        let large = message(&[("huge", HEADERS_BYTES_MAX)]);
        let reason = "x".repeat(9_999).into();
        let copy = large.undelivered_properties(Outcome::Invalid, &reason, None);
        assert_eq!(names(&copy), ["x-at", "x-outcome", "x-reason"]);
        let size = table_size(copy.headers().as_ref().expect("headers"));
        assert!(size < REASON_HEADER_MAX + 100, "{size}");
    }
}
