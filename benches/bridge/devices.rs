//! The devices of a measurement: a child process, this same program started as `devices`, that holds any
//! number of connections and does as it is told over its standard input. See `simulator` for its inside.

use std::{io::Write, process::ChildStdin, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::{Lines, Process, piped};

/// The simulator itself gives up on silent sockets before this.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);

/// What the simulator is asked to do, one JSON line each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Connect so many more devices, all at once.
    Connect { port: u16, count: usize },
    /// Receive so many commands, numbered from 0 since the last connect, then report.
    Receive { count: u64 },
}

/// What it says, one JSON line each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Connected(Connected),
    /// About to receive.
    Receiving,
    Received(Received),
    Failed(String),
}

/// All have a connection; when the first began.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Connected {
    pub(crate) started_us: u64,
}

/// When the first and the last line came, and the latencies of the commands that carried a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Received {
    pub(crate) first_us: u64,
    pub(crate) last_us: u64,
    pub(crate) cpu: Duration,
    pub(crate) latency: Option<Percentiles>,
}

/// A distribution of times, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// The simulator, seen from the benchmark.
#[derive(Debug)]
pub(crate) struct Devices {
    input: ChildStdin,
    answers: Lines,
    _process: Process,
}

impl Devices {
    /// Starts a simulator without devices.
    pub(crate) fn start() -> Result<Self> {
        Self::start_from(0)
    }

    /// The same for devices of which the first has this place among those of all simulators.
    pub(crate) fn start_from(first: usize) -> Result<Self> {
        let program = std::env::current_exe()?;
        let program = program.to_str().context("the benchmark's own path is not UTF-8")?;
        let mut process = Process::start(
            "simulated devices",
            piped(program).args(["devices", &first.to_string()]),
        )?;
        Ok(Self { input: process.input()?, answers: process.lines()?, _process: process })
    }

    /// Begins to connect `count` more devices and does not wait for it.
    pub(crate) fn begin_connect(&mut self, port: u16, count: usize) -> Result<()> {
        self.ask(&Request::Connect { port, count })
    }

    /// Waits for the end of what `begin_connect` began.
    pub(crate) fn connected(&self) -> Result<Connected> {
        let answer = self.answer()?;
        let Answer::Connected(connected) = answer else {
            return unexpected(&answer);
        };
        Ok(connected)
    }

    /// Makes the devices ready to receive `count` commands.
    pub(crate) fn begin_receive(&mut self, count: u64) -> Result<()> {
        self.ask(&Request::Receive { count })?;
        let answer = self.answer()?;
        let Answer::Receiving = answer else {
            return unexpected(&answer);
        };
        Ok(())
    }

    /// Waits until all of them have come.
    pub(crate) fn received(&self) -> Result<Received> {
        let answer = self.answer()?;
        let Answer::Received(received) = answer else {
            return unexpected(&answer);
        };
        Ok(received)
    }

    fn ask(&mut self, request: &Request) -> Result<()> {
        writeln!(self.input, "{}", serde_json::to_string(request)?)
            .context("the simulated devices are gone")
    }

    fn answer(&self) -> Result<Answer> {
        let line = self.answers.next(ANSWER_LIMIT)?;
        serde_json::from_str(&line).with_context(|| format!("the simulated devices said {line:?}"))
    }
}

fn unexpected<T>(answer: &Answer) -> Result<T> {
    match answer {
        Answer::Failed(reason) => bail!("simulated devices: {reason}"),
        Answer::Connected(_) | Answer::Receiving | Answer::Received(_) => {
            bail!("the simulated devices answered {answer:?} to something else")
        }
    }
}
