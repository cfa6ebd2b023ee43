//! `Groups`: which devices are addressed together.
//!
//! People list members, in a file or over HTTP; they need not be connected. And devices join where their
//! wire format lets them; such a membership ends with the connection. What devices say to a group
//! reaches only those who have joined it; commands reach all members.

mod listed;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use listed::{Listed, Members};

use crate::command::{ADDRESS_MAX, Address, Reason};

/// Groups there may be; at about 200 bytes each, and 100 a member.
const GROUPS_MAX: usize = 10_000;

/// All groups.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    listed: Listed,
    /// Held for a few map operations, never across an await. Taken while no other lock is held.
    groups: Mutex<HashMap<Arc<str>, Group>>,
}

#[derive(Debug, Default)]
struct Group {
    /// Devices that have joined, each with the epoch of the connection that has.
    joined: HashMap<Address, u64>,
}

impl Groups {
    /// Groups with these members.
    pub(crate) fn new(listed: Listed) -> Self {
        Self { listed, groups: Mutex::default() }
    }

    /// What people have listed.
    pub(crate) fn listed(&self) -> &Listed {
        &self.listed
    }

    /// Makes a connection a member; how many there are then, and the group's name.
    pub(crate) fn join(
        &self,
        group: &str,
        address: &Address,
        epoch: u64,
    ) -> Result<(usize, Arc<str>), Reason> {
        if group.is_empty() || group.len() > ADDRESS_MAX {
            return Err(format!("expected a name of 1 to {ADDRESS_MAX} bytes").into());
        }
        let mut groups = self.lock();
        if !groups.contains_key(group) && groups.len() >= GROUPS_MAX {
            return Err(format!("there are {GROUPS_MAX} already, which is the limit").into());
        }
        let name = match groups.get_key_value(group) {
            Some((name, _)) => Arc::clone(name),
            None => group.into(),
        };
        let members = groups.entry(Arc::clone(&name)).or_default();
        members.joined.insert(address.clone(), epoch);
        Ok((members.joined.len(), name))
    }

    /// Ends the membership of a connection; how many members are left, or None if it was none.
    pub(crate) fn leave(&self, group: &str, address: &Address, epoch: u64) -> Option<usize> {
        let mut groups = self.lock();
        let members = groups.get_mut(group)?;
        if members.joined.get(address) != Some(&epoch) {
            return None;
        }
        members.joined.remove(address);
        let left = members.joined.len();
        if left == 0 {
            groups.remove(group);
        }
        Some(left)
    }

    /// How many have joined a group, if somebody has.
    pub(crate) fn count(&self, group: &str) -> Option<usize> {
        self.lock().get(group).map(|members| members.joined.len())
    }

    /// Who has joined a group.
    pub(crate) fn joined(&self, group: &str) -> Vec<Address> {
        let groups = self.lock();
        groups.get(group).into_iter().flat_map(|group| group.joined.keys().cloned()).collect()
    }

    /// Who is in a group, listed or joined, each once.
    pub(crate) fn members(&self, group: &str) -> BTreeSet<Address> {
        let listed = self.listed.get().get(group).cloned().unwrap_or_default();
        listed.into_iter().chain(self.joined(group)).collect()
    }

    /// All groups with their members.
    pub(crate) fn all(&self) -> Members {
        let mut all = Members::clone(&self.listed.get());
        for (name, group) in self.lock().iter() {
            all.entry(Arc::clone(name)).or_default().extend(group.joined.keys().cloned());
        }
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(last: u8) -> Address {
        Address::from(std::net::IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn a_group_begins_with_its_first_member_and_ends_with_its_last() {
        let groups = Groups::default();
        assert_eq!(groups.count("pumps"), None);
        let join = |last, epoch| groups.join("pumps", &device(last), epoch).map(|(count, _)| count);
        assert_eq!([join(1, 1), join(1, 1), join(2, 2)], [Ok(1), Ok(1), Ok(2)]);
        assert_eq!(groups.count("pumps"), Some(2));
        assert_eq!(groups.leave("pumps", &device(1), 1), Some(1));
        assert_eq!(groups.leave("pumps", &device(1), 1), None, "no member any more");
        assert_eq!(groups.leave("pumps", &device(2), 2), Some(0));
        assert_eq!(groups.count("pumps"), None);
    }

    #[test]
    fn the_end_of_an_old_connection_does_not_end_the_membership_of_the_new() {
        let groups = Groups::default();
        groups.join("pumps", &device(1), 1).expect("joined");
        groups.join("pumps", &device(1), 2).expect("joined again");
        assert_eq!(groups.leave("pumps", &device(1), 1), None);
        assert_eq!(groups.members("pumps"), BTreeSet::from([device(1)]));
    }

    #[test]
    fn a_group_needs_a_name_and_there_are_only_so_many() {
        let groups = Groups::default();
        assert!(groups.join("", &device(1), 1).is_err());
        assert!(groups.join(&"x".repeat(ADDRESS_MAX + 1), &device(1), 1).is_err());
        for number in 0..GROUPS_MAX {
            groups.join(&number.to_string(), &device(1), 1).expect("room");
        }
        assert!(groups.join("one more", &device(1), 1).is_err());
        groups.join("7", &device(2), 2).expect("it is there already");
    }
}
