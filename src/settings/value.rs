//! The kinds of value a setting can have, and how each is read from text.
//!
//! `Field` is what `envy` fills: it keeps the error instead of failing, so that one bad variable
//! does not hide the next.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

/// A value read from text, or what was expected instead.
pub(super) struct Field<T>(Result<T, String>);

impl<'de, T: Value> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let shown = || {
            if T::SECRET { "something else" } else { T::wrong_part(&text) }
        };
        Ok(Self(
            T::read(&text).ok_or_else(|| format!("expected {}, got {}", T::expected(), shown())),
        ))
    }
}

impl<T> Field<T> {
    /// The value; or a sentence in `errors` that names the variable.
    pub(super) fn or_report(self, name: &str, errors: &mut Vec<String>) -> Option<T> {
        match self.0 {
            Ok(value) => Some(value),
            Err(error) => {
                errors.push(format!("{name}: {error}"));
                None
            }
        }
    }
}

/// Something a setting can be.
pub(super) trait Value: Sized {
    /// Whether an error may not show what was given.
    const SECRET: bool = false;
    /// What an error says was expected.
    fn expected() -> &'static str;
    /// The value of `text`, if it is one.
    fn read(text: &str) -> Option<Self>;
    /// What of a `text` that is none an error shows.
    fn wrong_part(text: &str) -> &str {
        text
    }
}

impl Value for String {
    fn expected() -> &'static str {
        "text"
    }
    fn read(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Value for PathBuf {
    fn expected() -> &'static str {
        "a path"
    }
    fn read(text: &str) -> Option<Self> {
        Some(Self::from(text))
    }
}

impl Value for u16 {
    fn expected() -> &'static str {
        "a whole number from 0 to 65535"
    }
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for NonZeroU16 {
    fn expected() -> &'static str {
        "a whole number from 1 to 65535"
    }
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// How many, or how many bytes: never none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

/// The same on every system, whatever a `usize` is there.
const SIZE_LIMIT: usize = u32::MAX as usize;

impl Value for Size {
    fn expected() -> &'static str {
        "a whole number from 1 to 4294967295"
    }
    fn read(text: &str) -> Option<Self> {
        let size = text.parse().ok()?;
        (1..=SIZE_LIMIT).contains(&size).then_some(Self(size))
    }
}

/// How many bytes; none of them if it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room(pub usize);

impl Value for Room {
    fn expected() -> &'static str {
        "a whole number from 0 to 4294967295"
    }
    fn read(text: &str) -> Option<Self> {
        text.parse().ok().filter(|size| *size <= SIZE_LIMIT).map(Self)
    }
}

/// A regular expression for the lines of a device.
#[derive(Debug, Clone)]
pub struct Pattern(pub regex::bytes::Regex);

impl Pattern {
    /// The names of its groups.
    pub fn group_names(&self) -> Vec<String> {
        self.0.capture_names().flatten().map(str::to_owned).collect()
    }
}

impl Value for Pattern {
    fn expected() -> &'static str {
        "a regular expression, as in ^(OK|ERR)"
    }
    fn read(text: &str) -> Option<Self> {
        regex::bytes::Regex::new(text).ok().map(Self)
    }
}

impl Value for SocketAddr {
    fn expected() -> &'static str {
        "an IP address and a port, as in 0.0.0.0:8123 or [::]:8123"
    }
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// Where a listener listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At an address and port.
    At(SocketAddr),
}

impl Value for Listen {
    fn expected() -> &'static str {
        "an IP address and a port, as in 0.0.0.0:8123 or [::]:8123, or `off`"
    }
    fn read(text: &str) -> Option<Self> {
        if text == "off" { Some(Self::Off) } else { text.parse().ok().map(Self::At) }
    }
}

/// Networks by their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether an address is in one of them.
    pub fn contain(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&ip.to_canonical()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Value for Networks {
    fn expected() -> &'static str {
        "networks with commas between, as in 10.0.0.0/8,fd00::/8"
    }
    fn read(text: &str) -> Option<Self> {
        let network = |text: &str| {
            let text = text.trim();
            text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?)))
        };
        text.split(',')
            .filter(|part| !part.trim().is_empty())
            .map(network)
            .collect::<Option<_>>()
            .map(Self)
    }
}

/// The longest a duration may be: a year, so that adding one to the clock cannot overflow.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

impl Value for Duration {
    fn expected() -> &'static str {
        "a duration above zero and up to a year, with a unit, as in 10s or 500ms"
    }
    fn read(text: &str) -> Option<Self> {
        Time::read(text).map(|Time(duration)| duration).filter(|duration| !duration.is_zero())
    }
}

/// A duration that may be none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

impl Value for Time {
    fn expected() -> &'static str {
        "a duration of up to a year, with a unit, as in 10s, 500ms or 0s"
    }
    fn read(text: &str) -> Option<Self> {
        let duration = humantime::parse_duration(text).ok()?;
        (duration <= DURATION_MAX).then_some(Self(duration))
    }
}

impl<T: Value> Value for Option<T> {
    const SECRET: bool = T::SECRET;
    fn expected() -> &'static str {
        T::expected()
    }
    fn read(text: &str) -> Option<Self> {
        if text.is_empty() { Some(None) } else { T::read(text).map(Some) }
    }
}

/// Text that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Value for Secret {
    const SECRET: bool = true;
    fn expected() -> &'static str {
        "text"
    }
    fn read(text: &str) -> Option<Self> {
        Some(Self::from(text))
    }
}

/// The longest line, in bytes, without its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineMax(pub usize);

/// A line is kept whole in memory once per device, so a setting cannot ask for more than this.
const LINE_MAX_LIMIT: usize = 1024 * 1024;

impl Value for LineMax {
    fn expected() -> &'static str {
        "a number of bytes from 1 to 1048576"
    }
    fn read(text: &str) -> Option<Self> {
        let bytes = text.parse().ok()?;
        (1..=LINE_MAX_LIMIT).contains(&bytes).then_some(Self(bytes))
    }
}
