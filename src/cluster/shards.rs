//! Parts of a bridge's devices, each bound to an exchange of its own, which can be cut off in one step.

use crate::command::Address;

/// Exchanges to which a bridge's devices are bound. With 20,000 devices each is deleted in about a second.
pub(crate) const SHARDS: u32 = 16;

/// The number of the shard a device belongs to. A bridge that comes back with the bindings of the one before it has
/// to find each where that one made it, so this is the same in every process and on every machine.
pub(crate) fn shard_of(address: &Address) -> u32 {
    let named = address.to_string();
    let hash =
        named.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    hash % SHARDS
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_device_has_the_same_shard_wherever_it_is_asked_for() {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(shard_of(&address("10.1.2.3")), 11);
        assert_eq!(shard_of(&address("fe80::1")), 10);
    }

    #[test]
    fn the_devices_of_one_network_are_spread_over_all_shards() {
        let device = |last| Address::from(IpAddr::from([10, 0, 0, last]));
        let shards: HashSet<_> = (0..=255).map(|last| shard_of(&device(last))).collect();
        assert_eq!(shards.len(), SHARDS as usize);
    }
}
