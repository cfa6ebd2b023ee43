//! `rabbitline device`: simulated devices, one or thousands, each from an address of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::EXIT_USAGE;
use super::signals::Signals;

/// Lines that may wait to be printed, all devices together; then the devices read no further.
const PRINT_QUEUE: usize = 10_000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bridge's device address
    #[arg(long, default_value = "127.0.0.1:8123", value_name = "HOST:PORT")]
    connect: String,
    /// The address to connect from, or a range of them, as in 127.1.0.1-127.1.39.16
    #[arg(long, value_name = "ADDRESS[-ADDRESS]")]
    bind: Option<Range>,
    /// How many devices; each takes the next address of the range [default: all of the range]
    #[arg(long)]
    count: Option<u32>,
    /// Answer every line with this one
    #[arg(long, value_name = "TEXT")]
    answer: Option<String>,
}

/// Addresses from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let address =
            |text: &str| text.parse().map_err(|_| format!("expected an IP address, got {text:?}"));
        let range = Self { first: address(first)?, last: address(last)? };
        if range.last < range.first || range.first.is_ipv4() != range.last.is_ipv4() {
            return Err(format!("expected a range from a lower to a higher address, got {text:?}"));
        }
        Ok(range)
    }
}

impl Range {
    /// How many addresses it has; of IPv6 only a single one is taken.
    fn len(self) -> u32 {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                (last.to_bits() - first.to_bits()).saturating_add(1)
            }
            (IpAddr::V6(_), _) | (_, IpAddr::V6(_)) => 1,
        }
    }

    fn nth(self, index: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + index).into(),
            IpAddr::V6(first) => first.into(),
        }
    }
}

pub(super) async fn run(args: Args) -> ExitCode {
    let available = args.bind.map_or(1, Range::len);
    let count = args.count.unwrap_or(available);
    if count == 0
        || (args.bind.is_some() && count > available)
        || (args.bind.is_none() && count > 1)
    {
        eprintln!(
            "--count: expected 1 to {available}, the number of addresses to connect from, got {count}; --bind gives more"
        );
        return ExitCode::from(EXIT_USAGE);
    }
    let mut signals = match Signals::take_up() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("cannot take up signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (print, mut printed) = mpsc::channel::<String>(PRINT_QUEUE);
    let args = Arc::new(args);
    let mut devices = JoinSet::new();
    for index in 0..count {
        let bind = args.bind.map(|range| range.nth(index));
        devices.spawn(live(bind, Arc::clone(&args), print.clone()));
    }
    // One block at a time: thousands of devices may print at once.
    let printer = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        while let Some(line) = printed.blocking_recv() {
            if writeln!(out, "{line}").is_err() {
                return;
            }
        }
    });
    tokio::select! {
        _ = signals.next() => {}
        _ = printer => {}
    }
    devices.shutdown().await;
    ExitCode::SUCCESS
}

/// One device: connects, serves, connects again.
async fn live(bind: Option<IpAddr>, args: Arc<Args>, print: mpsc::Sender<String>) {
    let builder = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times();
    let mut waits = builder.build();
    loop {
        match serve(bind, &args, &print).await {
            Ok(()) => {
                waits = builder.build();
                info!(bind = ?bind, "the bridge closed the connection; connecting again");
            }
            Err(error) => {
                warn!(bind = ?bind, connect = args.connect, %error, "cannot connect, or lost the connection; trying again.")
            }
        }
        tokio::time::sleep(waits.next().unwrap_or_default()).await;
    }
}

async fn serve(
    bind: Option<IpAddr>,
    args: &Args,
    print: &mpsc::Sender<String>,
) -> std::io::Result<()> {
    let to = tokio::net::lookup_host(&args.connect).await?;
    let to = to.into_iter().find(|to| bind.is_none_or(|bind| bind.is_ipv4() == to.is_ipv4()));
    let to: SocketAddr =
        to.ok_or_else(|| std::io::Error::other("no address of that kind to connect to"))?;
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(bind) = bind {
        socket.bind(SocketAddr::new(bind, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    let address = stream.local_addr()?.ip();
    info!(%address, connect = %to, "connected");
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::with_capacity(512, read);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).await? > 0 {
        let text = String::from_utf8_lossy(&line);
        if print.send(format!("{address} {}", text.trim_end_matches(['\r', '\n']))).await.is_err() {
            return Ok(());
        }
        if let Some(answer) = &args.answer {
            write.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_counts_and_names_its_addresses() {
        let range: Range = "127.1.0.254-127.1.1.1".parse().expect("a range");
        let all: Vec<String> = (0..range.len()).map(|index| range.nth(index).to_string()).collect();
        assert_eq!(all, ["127.1.0.254", "127.1.0.255", "127.1.1.0", "127.1.1.1"]);
        assert_eq!("127.0.0.2".parse::<Range>().map(Range::len), Ok(1));
        for wrong in ["127.0.0.3-127.0.0.2", "::1-127.0.0.1", "host"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }
}
