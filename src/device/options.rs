//! `Options`: how the sockets of devices are set, so that dead links are found.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::settings;

/// Keepalive finds a device that vanished while idle, TCP_USER_TIMEOUT one that vanished while data
/// was on its way; each alone misses the other case.
#[derive(Debug)]
pub(crate) struct Options {
    keepalive: TcpKeepalive,
    idle: Duration,
    /// Connections that were given a moment of their own.
    spread: AtomicU64,
    user_timeout: Duration,
    /// What is in it when the link dies may or may not have arrived: so it is kept small.
    send_buffer: usize,
}

impl Options {
    pub(crate) fn of(device: &settings::Device) -> Self {
        let keepalive = TcpKeepalive::new()
            .with_time(device.keepalive_idle)
            .with_interval(device.keepalive_interval)
            .with_retries(u32::from(device.keepalive_count.get()));
        Self {
            keepalive,
            idle: device.keepalive_idle,
            spread: AtomicU64::new(0),
            user_timeout: device.user_timeout,
            send_buffer: device.send_buffer.0,
        }
    }

    /// Sets them. What is set on a listening socket holds for all it accepts.
    pub(crate) fn set(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_keepalive(&self.keepalive)?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        socket.set_send_buffer_size(self.send_buffer)?;
        socket.set_tcp_nodelay(true)
    }

    /// Sets when a connection that was accepted is probed first. Those that came together must not be probed
    /// together: of 20,000 probes at once the kernel dropped most, and their devices counted as gone.
    pub(crate) fn spread(&self, accepted: &SockRef<'_>) -> io::Result<()> {
        let number = self.spread.fetch_add(1, Ordering::Relaxed);
        let keepalive = TcpKeepalive::new().with_time(first_probe(self.idle, number));
        accepted.set_tcp_keepalive(&keepalive)
    }
}

/// One after the other gets one of the whole seconds from half of `idle` to all of it: Linux counts in seconds.
fn first_probe(idle: Duration, number: u64) -> Duration {
    let (least, most) = (idle.as_secs().div_ceil(2).max(1), idle.as_secs().max(1));
    Duration::from_secs(most - number % (most - least + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_from_half_to_all_of_the_idle_time_gets_as_many_first_probes() {
        let of = |idle, count| {
            let seconds = |number| first_probe(Duration::from_secs(idle), number).as_secs();
            (0..count).map(seconds).collect::<Vec<_>>()
        };
        assert_eq!(of(20, 12), [20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 20]);
        assert_eq!(of(5, 4), [5, 4, 3, 5]);
        assert_eq!(of(2, 3), [2, 1, 2]);
        assert_eq!(of(1, 2), [1, 1]);
    }
}
