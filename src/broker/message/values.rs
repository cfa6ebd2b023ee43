//! AMQP values: what they say, and what they take in a frame. Pure.

use lapin::types::{AMQPValue, FieldTable, LongString};

pub(super) fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

pub(super) fn table_size(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| 1 + name.as_str().len() + value_size(value)).sum()
}

/// Bytes that a value takes in a frame, or a few more.
fn value_size(value: &AMQPValue) -> usize {
    const SCALAR: usize = 9;
    if let AMQPValue::LongString(text) = value {
        SCALAR + text.len()
    } else if let AMQPValue::ByteArray(bytes) = value {
        SCALAR + bytes.len()
    } else if let AMQPValue::FieldTable(table) = value {
        SCALAR + table_size(table)
    } else if let AMQPValue::FieldArray(array) = value {
        SCALAR + array.as_slice().iter().map(value_size).sum::<usize>()
    } else {
        SCALAR
    }
}

pub(super) fn whole_number(value: &AMQPValue) -> Option<u64> {
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
