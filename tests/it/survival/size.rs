//! How much of everything: what every run of all tests can bear, or what the environment says.

use std::time::Duration;

/// `DEVICES RATE SECONDS`.
const ENVIRONMENT: &str = "RABBITLINE_SURVIVAL";

#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) devices: usize,
    /// Devices that are sent commands and never come.
    pub(super) never: usize,
    /// Commands in a second.
    pub(super) rate: usize,
    pub(super) seconds: u64,
    /// Of so many commands one may be parked. RabbitMQ has a queue for each device for which something is, and a quorum
    /// queue is dear.
    pub(super) park_one_in: usize,
    /// Whether nodes are killed, too, and not only bridges.
    pub(super) nodes: bool,
    /// From one whim of a device to its next, on average.
    pub(super) whim_ms: usize,
}

impl Size {
    const SMALL: Self = Self {
        devices: 600,
        never: 12,
        rate: 200,
        seconds: 20,
        park_one_in: 50,
        nodes: false,
        whim_ms: 30_000,
    };

    /// For everything to come to its end when all is there again: with 30,000 devices on two cores minutes are needed. And
    /// RabbitMQ waits three minutes before it tries once more to pass on what has expired in a quorum queue.
    pub(super) fn settle(self) -> Duration {
        Duration::from_secs(210 + self.devices as u64 / 100)
    }

    /// What the environment says, or a small one.
    pub(super) fn wanted() -> Self {
        let Some(text) = std::env::var_os(ENVIRONMENT) else { return Self::SMALL };
        let text = text.into_string().expect("UTF-8");
        let numbers: Vec<usize> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [devices, rate, seconds] = numbers.try_into().unwrap_or_else(|_| {
            panic!("{ENVIRONMENT}: expected DEVICES RATE SECONDS, got {text:?}")
        });
        Self {
            devices,
            // At 300 KiB and an election each.
            never: (devices / 50).min(100),
            rate,
            seconds: seconds as u64,
            park_one_in: 50,
            nodes: true,
            // Some twenty whims a second, however many devices: each costs the broker a binding and an unbinding, of which
            // three nodes on two cores do some hundred a second beside everything else.
            whim_ms: 30_000.max(devices * 50),
        }
    }
}
