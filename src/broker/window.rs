//! `Window`: what is published on one channel and not confirmed.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::Channel;

use super::publication::{Answered, Answering, Publication, begin};

/// How often something is published that the broker refuses, before the connection is given up for another: the
/// next node may do better. With the waits between, that is some ten seconds.
pub(super) const TRIES_MAX: u32 = 10;

/// What is published and not confirmed, in the order of its publication.
pub(super) struct Window<T> {
    open: BTreeMap<u64, T>,
    answers: FuturesUnordered<Answering>,
    last: u64,
}

impl<T> Window<T> {
    pub(super) fn new() -> Self {
        Self { open: BTreeMap::new(), answers: FuturesUnordered::new(), last: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing waits for the broker's word.
    pub(super) fn is_answered(&self) -> bool {
        self.answers.is_empty()
    }

    /// Publishes what belongs to `item`, behind all that was published before.
    pub(super) async fn begin(
        &mut self,
        channel: &Channel,
        publications: Vec<Publication>,
        item: T,
    ) {
        self.last += 1;
        let answering = begin(channel, self.last, publications).await;
        self.answers.push(answering);
        self.open.insert(self.last, item);
    }

    /// What the broker says next, of whatever: it need not keep to the order. Waits for ever if nothing is open.
    pub(super) async fn answered(&mut self) -> Answered {
        match self.answers.next().await {
            Some(answered) => answered,
            None => std::future::pending().await,
        }
    }

    /// The oldest.
    pub(super) fn first(&self) -> Option<(u64, &T)> {
        self.open.first_key_value().map(|(number, item)| (*number, item))
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        self.open.get_mut(&number)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        self.open.remove(&number)
    }

    /// All that was not removed, oldest first. What the broker has not said of it is not heard any more.
    pub(super) fn take(&mut self) -> impl DoubleEndedIterator<Item = T> + use<T> {
        self.answers.clear();
        std::mem::take(&mut self.open).into_values()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.open.values()
    }
}
