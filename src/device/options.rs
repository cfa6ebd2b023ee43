//! `Options`: how the sockets of devices are set, so that dead links are found.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::settings;

/// Keepalive finds a device that vanished while idle, TCP_USER_TIMEOUT one that vanished while data
/// was on its way; each alone misses the other case.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    keepalive: TcpKeepalive,
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
        Self { keepalive, user_timeout: device.user_timeout, send_buffer: device.send_buffer.0 }
    }

    /// Sets them. What is set on a listening socket holds for all it accepts.
    pub(crate) fn set(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_keepalive(&self.keepalive)?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        socket.set_send_buffer_size(self.send_buffer)?;
        socket.set_tcp_nodelay(true)
    }
}
