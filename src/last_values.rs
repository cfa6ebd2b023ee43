//! `LastValues`: the last line of each device, also of one that is gone.
//!
//! Bounded in bytes: the value that is oldest goes first. A device that has never sent a line costs nothing. With a
//! time to live, a value that has come to its end is removed, and whoever keeps a copy is told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::clock::{self, Moment};
use crate::command::Address;
use crate::uplink::text_or_base64;

/// Bytes that a value takes besides its line, roughly: its entries in both maps, and itself.
const OVERHEAD: usize = 256;

/// The last line of a device.
#[derive(Debug)]
pub(crate) struct LastValue {
    pub(crate) address: Address,
    /// That of the connection it came over.
    pub(crate) epoch: u64,
    pub(crate) at: Moment,
    pub(crate) line: Box<[u8]>,
}

/// The same for a reader.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line_base64: Option<String>,
    pub(crate) at: String,
    pub(crate) age_ms: u64,
}

impl LastValue {
    /// How long ago it came, in milliseconds.
    pub(crate) fn age_ms(&self) -> u64 {
        u64::try_from(self.at.mono.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// For a reader.
    pub(crate) fn shown(&self) -> Shown {
        let (line, line_base64) = text_or_base64(&self.line);
        let (line, at) = (line.map(str::to_owned), clock::rfc3339(self.at.wall_ms));
        Shown { line, line_base64, at, age_ms: self.age_ms() }
    }

    fn size(&self) -> usize {
        self.line.len() + OVERHEAD
    }
}

/// The last lines of all devices.
#[derive(Debug)]
pub(crate) struct LastValues {
    bytes_max: usize,
    ttl: Option<Duration>,
    /// Held for some map operations, or while the values are counted out, never across an await.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Each with its number in `order`.
    of: HashMap<Address, (u64, Arc<LastValue>)>,
    /// Whose value came when, oldest first.
    order: BTreeMap<u64, Address>,
    bytes: usize,
    /// How many came.
    count: u64,
}

impl LastValues {
    /// None yet, of which at most `bytes_max` bytes are kept, each for `ttl`.
    pub(crate) fn new(bytes_max: usize, ttl: Option<Duration>) -> Self {
        Self { bytes_max, ttl, kept: Mutex::default() }
    }

    /// Takes up a line that a device sent.
    pub(crate) fn keep(&self, address: &Address, epoch: u64, line: &[u8], at: Moment) {
        if self.bytes_max == 0 {
            return;
        }
        let value = LastValue { address: address.clone(), epoch, at, line: line.into() };
        let mut kept = self.lock();
        // Also if there is no room for the new one: it is the last no more.
        kept.remove(address);
        kept.bytes += value.size();
        kept.count += 1;
        let number = kept.count;
        kept.order.insert(number, address.clone());
        kept.of.insert(address.clone(), (number, Arc::new(value)));
        while kept.bytes > self.bytes_max && kept.remove_oldest().is_some() {}
    }

    /// The last line of a device, if it is known.
    pub(crate) fn get(&self, address: &Address) -> Option<Arc<LastValue>> {
        self.lock().of.get(address).map(|(_, value)| Arc::clone(value))
    }

    /// All that are known, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<LastValue>> {
        let kept = self.lock();
        let values = kept.order.values().filter_map(|address| kept.of.get(address));
        values.map(|(_, value)| Arc::clone(value)).collect()
    }

    /// Removes those whose time has come; whose they were.
    pub(crate) fn expire(&self, now: Instant) -> Vec<Address> {
        let Some(ttl) = self.ttl else { return Vec::new() };
        let mut kept = self.lock();
        let mut expired = Vec::new();
        while let Some(oldest) = kept.oldest()
            && oldest.at.mono + ttl <= now
        {
            expired.extend(kept.remove_oldest());
        }
        expired
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn oldest(&self) -> Option<&LastValue> {
        let (_, address) = self.order.first_key_value()?;
        self.of.get(address).map(|(_, value)| &**value)
    }

    fn remove(&mut self, address: &Address) {
        if let Some((number, value)) = self.of.remove(address) {
            self.order.remove(&number);
            self.bytes -= value.size();
        }
    }

    fn remove_oldest(&mut self) -> Option<Address> {
        let address = self.order.first_key_value()?.1.clone();
        self.remove(&address);
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(n: u8) -> Address {
        std::net::IpAddr::from([10, 0, 0, n]).into()
    }

    fn known(values: &LastValues) -> Vec<(String, Vec<u8>)> {
        values.all().iter().map(|it| (it.address.to_string(), it.line.to_vec())).collect()
    }

    #[test]
    fn the_last_line_of_each_is_kept_and_the_oldest_goes_when_there_is_no_room() {
        let values = LastValues::new(2 * (OVERHEAD + 10), None);
        for (n, line) in [(1, &b"a"[..]), (2, b"b"), (1, b"c")] {
            values.keep(&device(n), 7, line, Moment::now());
        }
        assert_eq!(
            known(&values),
            [("10.0.0.2".to_owned(), b"b".to_vec()), ("10.0.0.1".to_owned(), b"c".to_vec())]
        );
        values.keep(&device(3), 7, b"d", Moment::now());
        assert!(values.get(&device(2)).is_none(), "the oldest");
        assert_eq!(values.get(&device(1)).map(|it| it.epoch), Some(7));
        // One that has no room takes nothing with it that could be taken for the last.
        values.keep(&device(3), 7, &[b'x'; 1000], Moment::now());
        assert!(values.get(&device(3)).is_none());
        let kept = values.lock();
        assert_eq!((kept.of.len(), kept.order.len()), (kept.order.len(), kept.of.len()));
        assert_eq!(kept.bytes, kept.of.values().map(|(_, value)| value.size()).sum::<usize>());
    }

    #[test]
    fn a_value_ends_with_its_time_and_a_newer_one_has_a_time_of_its_own() {
        let values = LastValues::new(10_000, Some(Duration::from_secs(10)));
        let start = Moment::now();
        let at = |seconds| start.mono + Duration::from_secs(seconds);
        let moment = |seconds| Moment { mono: at(seconds), ..start };
        values.keep(&device(1), 7, b"a", start);
        values.keep(&device(2), 7, b"b", moment(1));
        values.keep(&device(1), 7, b"c", moment(5));
        assert_eq!(values.expire(at(10)), []);
        assert_eq!(values.expire(at(12)), [device(2)]);
        assert_eq!(values.expire(at(15)), [device(1)]);
        assert!(values.all().is_empty() && values.lock().bytes == 0);
    }

    #[test]
    fn nothing_is_kept_if_nothing_may_be() {
        let values = LastValues::new(0, Some(Duration::from_secs(10)));
        values.keep(&device(1), 7, b"a", Moment::now());
        assert!(values.all().is_empty());
    }
}
