//! `Arguments`: what durable queues are declared with.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};

use crate::settings::QueueType;

/// The arguments of a queue of one type.
pub(in super::super) struct Arguments {
    kind: QueueType,
    table: FieldTable,
}

impl Arguments {
    /// No more than its type.
    pub(in super::super) fn of(kind: QueueType) -> Self {
        Self { kind, table: FieldTable::default() }.with("x-queue-type", text(kind.word()))
    }

    /// It vanishes when nobody has used it for so long, with what is in it.
    pub(in super::super) fn expires(self, after: Duration) -> Self {
        self.with("x-expires", milliseconds(after))
    }

    /// What is in it for so long leaves it.
    pub(super) fn message_ttl(self, ttl: Duration) -> Self {
        self.with("x-message-ttl", milliseconds(ttl))
    }

    /// What leaves it without having been taken goes to `exchange` under `key`. A quorum queue keeps it until the queue
    /// it is passed on to has it, which needs this overflow.
    pub(in super::super) fn dead_letters(self, exchange: &str, key: &str) -> Self {
        let passes_on = self
            .with("x-dead-letter-exchange", text(exchange))
            .with("x-dead-letter-routing-key", text(key));
        match passes_on.kind {
            QueueType::Classic => passes_on,
            QueueType::Quorum => passes_on
                .with("x-dead-letter-strategy", text("at-least-once"))
                .with("x-overflow", text("reject-publish")),
        }
    }

    /// It takes a message back so often. Only quorum queues count.
    pub(in super::super) fn returns_max(self, max: i32) -> Self {
        match self.kind {
            QueueType::Classic => self,
            QueueType::Quorum => self.with("x-delivery-limit", AMQPValue::LongInt(max)),
        }
    }

    pub(in super::super) fn table(self) -> FieldTable {
        self.table
    }

    fn with(mut self, name: &str, value: AMQPValue) -> Self {
        self.table.insert(name.into(), value);
        self
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn milliseconds(time: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}
