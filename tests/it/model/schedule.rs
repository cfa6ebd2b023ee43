//! A schedule: what happens, drawn by lot from a seed. It says what is done and not what comes of it.

use std::fmt;

use serde_json::json;

use crate::harness::{Dice, Setup};

pub(super) const DEVICES: usize = 3;

/// What is done to a bridge with these settings.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    pub(super) settings: Vec<(&'static str, &'static str)>,
    pub(super) steps: Vec<Step>,
}

/// What may break besides devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Faults {
    None,
    Links,
    Bridge,
    Stop,
    Broker,
    All,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Publish(Vec<Spec>),
    /// A new connection, whether there is one or not.
    Connect {
        device: usize,
        narrow: bool,
    },
    /// In good order: it reads to the end.
    Close(usize),
    /// Unread bytes are lost. `frozen`: while the bridge stands still, so that it is known which.
    Reset {
        device: usize,
        frozen: bool,
    },
    Read {
        device: usize,
        on: bool,
    },
    Answer {
        device: usize,
        on: bool,
    },
    /// Lets time pass, milliseconds.
    Pass(u64),
    Cut(usize),
    CutHalf(usize),
    Deafen(usize),
    Heal,
    KillBridge,
    StopBridge,
    StartBridge,
    KillBroker,
}

/// One command.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) device: usize,
    pub(super) if_offline: &'static str,
    pub(super) confirm: &'static str,
    pub(super) once: bool,
    pub(super) ttl_ms: Option<u64>,
    pub(super) timeout_ms: u64,
    pub(super) padding: usize,
    pub(super) named: bool,
    pub(super) receipt: bool,
}

impl Spec {
    fn draw(dice: &mut Dice) -> Self {
        let confirm = dice.one_of(&["written", "written", "written", "received", "answered"]);
        let if_offline = dice.one_of(&["reject", "reject", "park", "park", "drop"]);
        // What expires while it is parked is told two seconds later: so few of those.
        let short = dice.once_in(if if_offline == "park" { 30 } else { 8 });
        Self {
            device: dice.below(DEVICES),
            if_offline,
            confirm,
            once: dice.once_in(4),
            ttl_ms: short.then(|| dice.one_of(&[1, 20, 100])),
            timeout_ms: dice.one_of(&[100, 400, 5000]),
            padding: if dice.once_in(3) { 300 + dice.below(1500) } else { dice.below(20) },
            named: confirm == "answered" || !dice.once_in(8),
            receipt: !dice.once_in(6),
        }
    }

    /// The line that the device is to read, without its ending. A question mark asks for an answer.
    pub(super) fn line(&self, number: usize) -> String {
        let asks = if self.confirm == "answered" { "?" } else { "" };
        format!("{}{asks} {}", name(number), "x".repeat(self.padding))
    }

    pub(super) fn body(&self, number: usize, address: &str) -> Vec<u8> {
        let mut body = json!({
            "address": address, "cmd": self.line(number), "if_offline": self.if_offline,
            "confirm": self.confirm, "once": self.once, "timeout_ms": self.timeout_ms,
        });
        if let Some(ttl_ms) = self.ttl_ms {
            body["ttl_ms"] = ttl_ms.into();
        }
        if self.named {
            body["id"] = name(number).into();
        }
        body.to_string().into_bytes()
    }
}

/// What the command with this number is called.
pub(super) fn name(number: usize) -> String {
    format!("c{number}")
}

impl Schedule {
    pub(super) fn draw(seed: u64, faults: Option<Faults>) -> Self {
        let dice = &mut Dice::of(seed);
        let faults = faults.unwrap_or_else(|| {
            use Faults::{All, Bridge, Links, None, Stop};
            dice.one_of(&[None, None, None, Links, Links, Links, Bridge, Stop, All, All])
        });
        let settings = settings(dice);
        let count = 15 + dice.below(50);
        let mut steps = Vec::new();
        for device in 0..DEVICES {
            if dice.once_in(2) {
                steps.push(connect(dice, device));
            }
        }
        let broker_dies_at = (faults == Faults::Broker).then(|| count / 3 + dice.below(count / 3));
        let mut down_for = None;
        for index in 0..count {
            if broker_dies_at == Some(index) {
                steps.push(Step::KillBroker);
            }
            steps.push(step(dice, faults));
            match (steps.last(), down_for) {
                (Some(Step::KillBridge | Step::StopBridge), _) => down_for = Some(dice.below(4)),
                (_, Some(0)) => {
                    steps.push(Step::StartBridge);
                    down_for = None;
                }
                (_, Some(left)) => down_for = Some(left - 1),
                (_, None) => {}
            }
        }
        Self { settings, steps }
    }

    pub(super) fn apply(&self, setup: Setup) -> Setup {
        self.settings.iter().fold(setup, |setup, (name, value)| setup.set(name, value))
    }

    /// Whether answers say which command they answer.
    pub(super) fn answers_have_ids(&self) -> bool {
        self.settings.iter().any(|(name, _)| *name == "DEVICE_ANSWER_ID")
    }

    pub(super) fn greets(&self) -> bool {
        self.settings.iter().any(|(name, _)| *name == "DEVICE_GREETING")
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.settings)?;
        for step in &self.steps {
            if let Step::Publish(specs) = step {
                specs.iter().try_for_each(|spec| writeln!(f, "  Publish {spec}"))?;
            } else {
                writeln!(f, "  {step:?}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for {}: {} {}", self.device, self.if_offline, self.confirm)?;
        let Self { timeout_ms, padding, .. } = self;
        write!(f, ", timeout {timeout_ms}, {padding} long")?;
        if let Some(ttl) = self.ttl_ms {
            write!(f, ", ttl {ttl}")?;
        }
        let marks = [(self.once, "once"), (!self.named, "no id"), (!self.receipt, "no receipt")];
        marks.iter().filter(|(is, _)| *is).try_for_each(|(_, mark)| write!(f, ", {mark}"))
    }
}

fn settings(dice: &mut Dice) -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![
        ("MQ_PREFETCH", dice.one_of(&["1", "4", "32"])),
        ("MQ_STALLED_MAX", dice.one_of(&["8", "64"])),
        ("DEVICE_LANE_MAX", dice.one_of(&["4", "64"])),
        ("DEVICE_WRITE_TIMEOUT", dice.one_of(&["250ms", "10s", "10s"])),
        ("DEVICE_TAIL_MAX", dice.one_of(&["4096", "262144"])),
        ("COMMAND_PARKED_MAX", dice.one_of(&["5", "1000", "1000"])),
    ];
    if !dice.once_in(3) {
        settings.push(("DEVICE_ANSWER_PATTERN", "^OK (?<id>.+)$"));
        settings.push(("DEVICE_ANSWER_ID", "id"));
    }
    if dice.once_in(8) {
        settings.push(("DEVICE_GREETING", "on"));
    }
    settings
}

fn connect(dice: &mut Dice, device: usize) -> Step {
    Step::Connect { device, narrow: dice.once_in(2) }
}

fn step(dice: &mut Dice, faults: Faults) -> Step {
    let device = dice.below(DEVICES);
    if dice.once_in(8)
        && let Some(fault) = fault(dice, faults)
    {
        return fault;
    }
    match dice.below(20) {
        0..=9 => Step::Publish((0..1 + dice.below(5)).map(|_| Spec::draw(dice)).collect()),
        10..=12 => connect(dice, device),
        13 => Step::Close(device),
        14 => Step::Reset { device, frozen: !dice.once_in(3) },
        15 | 16 => Step::Read { device, on: dice.once_in(3) },
        17 => Step::Answer { device, on: dice.once_in(2) },
        _ => Step::Pass(dice.below(15) as u64),
    }
}

fn fault(dice: &mut Dice, faults: Faults) -> Option<Step> {
    let links = |dice: &mut Dice| match (dice.below(6), dice.one_of(&[1, 2, 3, 3])) {
        (0 | 1, which) => Step::Cut(which),
        (2, which) => Step::CutHalf(which),
        (3 | 4, which) => Step::Deafen(which),
        _ => Step::Heal,
    };
    match faults {
        Faults::None | Faults::Broker => None,
        Faults::Links => Some(links(dice)),
        Faults::Bridge => Some(Step::KillBridge),
        Faults::Stop => Some(Step::StopBridge),
        Faults::All if dice.once_in(3) => Some(Step::KillBridge),
        Faults::All if dice.once_in(4) => Some(Step::StopBridge),
        Faults::All => Some(links(dice)),
    }
}
