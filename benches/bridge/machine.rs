//! What the figures were taken on.

use std::{fmt, fs, thread, time::SystemTime};

use anyhow::Result;
use serde::Serialize;

/// The machine, the broker and the time.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    rabbitmq: String,
    date: String,
}

impl Machine {
    pub(crate) fn with_broker(version: &str) -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .unwrap_or("unknown processor");
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processor: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: thread::available_parallelism()?.get(),
            rabbitmq: version.to_owned(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, processor, cores, rabbitmq, date } = self;
        write!(f, "{date}, Linux {kernel}, {cores} cores ({processor}), RabbitMQ {rabbitmq}")
    }
}
