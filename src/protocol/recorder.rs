//! A `Port` that writes down what is asked of it, and what the tests of protocols share. Fuzzing uses
//! it, too.

use std::collections::BTreeMap;

#[cfg(test)]
use proptest::prelude::*;

use super::*;

/// What a device asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Line(Vec<u8>),
    Reply(Vec<u8>),
    Join(String),
    Leave(String),
    Say(Audience, Payload),
    EndIfSilentFor(Duration),
}

/// What of it is sent back to the device.
pub(crate) fn replies(asked: &[Asked]) -> Vec<&[u8]> {
    let mut replies = Vec::new();
    for asked in asked {
        if let Asked::Reply(frame) = asked {
            replies.push(frame.as_slice());
        }
    }
    replies
}

/// Writes down what a device asks for.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) asked: Vec<Asked>,
    /// How many others are in a group, and whether the device is.
    pub(crate) groups: BTreeMap<String, (usize, bool)>,
    /// Why nothing can be joined.
    pub(crate) refusal: Option<Reason>,
}

impl Port for Recorder {
    fn line(&mut self, line: &[u8]) {
        self.asked.push(Asked::Line(line.to_vec()));
    }

    fn reply(&mut self, frame: &[u8]) {
        self.asked.push(Asked::Reply(frame.to_vec()));
    }

    fn join(&mut self, group: &str) -> Result<usize, Reason> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        self.asked.push(Asked::Join(group.to_owned()));
        let (others, joined) = self.groups.entry(group.to_owned()).or_default();
        *joined = true;
        Ok(*others + 1)
    }

    fn leave(&mut self, group: &str) -> Option<usize> {
        let (others, joined) = self.groups.get_mut(group)?;
        if !std::mem::take(joined) {
            return None;
        }
        self.asked.push(Asked::Leave(group.to_owned()));
        let left = *others;
        if left == 0 {
            self.groups.remove(group);
        }
        Some(left)
    }

    fn members(&self, group: &str) -> Option<usize> {
        self.groups.get(group).map(|(others, joined)| others + usize::from(*joined))
    }

    fn say(&mut self, audience: Audience, payload: Payload) {
        self.asked.push(Asked::Say(audience, payload));
    }

    fn end_if_silent_for(&mut self, limit: Duration) {
        self.asked.push(Asked::EndIfSilentFor(limit));
    }
}

/// What a protocol asks for when it is fed these pieces, and how that ends.
#[cfg(test)]
pub(crate) fn fed(
    mut protocol: impl Protocol,
    pieces: &[&[u8]],
) -> (Vec<Asked>, Result<(), Broken>) {
    let mut port = Recorder::default();
    let end = pieces.iter().try_for_each(|piece| protocol.feed(piece, &mut port));
    (port.asked, end)
}

/// `bytes` in the pieces that `cuts` make of them.
#[cfg(test)]
pub(crate) fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| *cut.min(&bytes.len())).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Several of these, one after the other, cut somewhere.
#[cfg(test)]
pub(crate) fn in_pieces(
    one: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let bytes = prop::collection::vec(one, 0..20).prop_map(|several| several.concat());
    (bytes, prop::collection::vec(0usize..400, 0..10))
}
