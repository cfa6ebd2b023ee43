//! What is drawn by lot where no secret hangs on it: so that many bridges do not all do the same at once.

use ring::rand::{SystemRandom, generate};

/// A number drawn by lot; zero if the system has no random numbers.
pub(crate) fn draw() -> u64 {
    let lot = generate::<[u8; 8]>(&SystemRandom::new());
    lot.map_or(0, |lot| u64::from_le_bytes(lot.expose()))
}
