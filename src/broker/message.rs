//! `Message`: one AMQP message as it came, opaque outside this folder, and what may be asked of it.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, LongString, ShortString};

use super::decode::Stamps;
use crate::command::{Outcome, Reason};

/// The header RabbitMQ sets when its timestamp interceptor is on.
const TIMESTAMP_MS_HEADER: &str = "timestamp_in_ms";
/// The longest reason a header carries; the log has it whole.
const REASON_HEADER_MAX: usize = 1024;

/// A message as the broker delivered it.
#[derive(Debug)]
pub struct Message {
    pub(super) body: Vec<u8>,
    pub(super) properties: BasicProperties,
    pub(super) routing_key: ShortString,
}

impl Message {
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(super) fn stamps(&self) -> Stamps<'_> {
        let headers = self.properties.headers().as_ref();
        let header = headers.and_then(|headers| headers.inner().get(TIMESTAMP_MS_HEADER));
        Stamps {
            timestamp_ms: header.and_then(whole_number),
            timestamp_s: *self.properties.timestamp(),
            expiration: self.properties.expiration().as_ref().map(ShortString::as_str),
        }
    }

    /// The AMQP `message_id`.
    pub(crate) fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(ShortString::as_str)
    }

    /// Where the sender wants a receipt.
    pub(crate) fn reply_to(&self) -> Option<&str> {
        let reply_to = self.properties.reply_to().as_ref().map(ShortString::as_str);
        reply_to.filter(|name| !name.is_empty())
    }

    /// The properties of a receipt: what lets the sender recognise its command.
    pub(super) fn receipt_properties(&self) -> BasicProperties {
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_headers(self.properties.headers().clone().unwrap_or_default());
        if let Some(id) = self.properties.correlation_id() {
            properties = properties.with_correlation_id(id.clone());
        }
        properties
    }

    /// The properties of the message on its way to the undelivered exchange: its own, with the
    /// outcome in two headers, and without `expiration`, which would end it there as well.
    pub(super) fn undelivered_properties(
        &self,
        outcome: Outcome,
        reason: &Reason,
    ) -> BasicProperties {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        let cut = reason.char_indices().nth(REASON_HEADER_MAX).map_or(reason.len(), |(at, _)| at);
        headers.insert("x-outcome".into(), long(outcome.label()));
        headers.insert("x-reason".into(), long(reason.get(..cut).unwrap_or_default()));
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

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

fn whole_number(value: &AMQPValue) -> Option<u64> {
    if let AMQPValue::LongLongInt(number) = *value {
        u64::try_from(number).ok()
    } else if let AMQPValue::LongInt(number) = *value {
        u64::try_from(number).ok()
    } else if let AMQPValue::LongUInt(number) = *value {
        Some(u64::from(number))
    } else if let AMQPValue::Timestamp(number) = *value {
        Some(number)
    } else {
        None
    }
}
