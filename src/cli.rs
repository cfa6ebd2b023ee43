//! The command line: one file a subcommand.

mod check;
mod device;
mod explain;
mod record;
mod send;
mod serve;
mod service;
mod signals;
mod tap;
mod token;
mod watch;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use crate::settings::{LogFormat, Settings};

/// Exit code for wrong settings or arguments (EX_USAGE).
const EXIT_USAGE: u8 = 64;
/// Exit code when the broker cannot be used (EX_UNAVAILABLE).
const EXIT_UNAVAILABLE: u8 = 69;
/// Exit code when no answer came in time (EX_TEMPFAIL).
const EXIT_NO_ANSWER: u8 = 75;

/// Carries commands from RabbitMQ to devices on held TCP connections.
///
/// Settings come from the environment; README.md has the table.
#[derive(Debug, Parser)]
#[command(name = "rabbitline", version, about, long_about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge (what `rabbitline` alone does)
    Serve,
    /// Check the settings, the broker, and what the bridge needs on it; changes nothing
    ///
    /// Also the database of the recorder, if RECORD_DATABASE is set. Prints one line for each finding.
    /// Exits with 0 if the bridge could work, 64 if the settings are wrong, 69 if broker or database
    /// cannot be used.
    Check,
    /// Publish one command, wait for its receipt and print it
    ///
    /// Exits with 0 if the command was delivered, 1 if not, 64 if the settings are wrong, 69 if the
    /// broker cannot be used, 75 if no receipt came in time.
    Send(send::Args),
    /// Simulate one device, or thousands: connect, print every line received
    Device(device::Args),
    /// Print every device that comes and goes, live
    Watch(watch::Args),
    /// Print what happens, live: commands, what became of them, lines of devices, presence
    ///
    /// Exits with 1 when events come faster than they are read, and says how many it has missed; 64 if the
    /// settings or arguments are wrong, 69 if the broker cannot be used.
    Tap(tap::Args),
    /// Keep what bridges tell in a database, SQLite or PostgreSQL
    ///
    /// A process of its own: bridges need nothing of it. docs/recorder.md has the tables.
    Record,
    /// Tell what happened to a command, or to a device, lately
    ///
    /// Asks the bridge that runs here, at HTTP_LISTEN. Exits with 0 if it remembers, 1 if not, 69 if it
    /// cannot be asked.
    Explain(explain::Args),
    /// Print the line of the tokens file for a device, whose token is read from standard input
    ///
    /// The token is one line. It is no argument, which others could see in the list of processes. The
    /// line holds its argon2 hash. Exits with 0, or with 64 if the id or the token cannot be used.
    Token(token::Args),
}

/// Runs what the command line says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // These need no settings: the device side is a client like any other, and a token is for a file.
    if let Some(Command::Device(args)) = cli.command {
        start_logging("info", LogFormat::Text);
        return on_runtime(1, device::run(args));
    }
    if let Some(Command::Token(args)) = &cli.command {
        return token::run(args);
    }
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    start_logging(&settings.process.log, settings.process.log_format);
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    let threads = usize::from(settings.process.runtime_threads.get());
    match cli.command {
        None | Some(Command::Serve) => on_runtime(threads, serve::run(settings)),
        Some(Command::Record) => on_runtime(1, record::run(settings)),
        Some(Command::Check) => on_runtime(1, check::run(settings)),
        Some(Command::Send(args)) => on_runtime(1, send::run(settings, args)),
        Some(Command::Watch(args)) => on_runtime(1, watch::run(settings, args)),
        Some(Command::Tap(args)) => on_runtime(1, tap::run(settings, args)),
        Some(Command::Explain(args)) => on_runtime(1, explain::run(settings, args)),
        Some(Command::Device(args)) => on_runtime(1, device::run(args)),
        Some(Command::Token(args)) => token::run(&args),
    }
}

/// Runs `work` on a worker of a runtime of its own. On a worker and not on this thread: what the
/// socket wakes then runs where the wake happens.
fn on_runtime(threads: usize, work: impl Future<Output = ExitCode> + Send + 'static) -> ExitCode {
    // Devices are file descriptors: all the system allows.
    rlimit::increase_nofile_limit(u64::MAX).ok();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async { tokio::spawn(work).await.unwrap_or(ExitCode::FAILURE) });
    // A name lookup may hang in a thread of its own; nobody waits for it any more.
    runtime.shutdown_background();
    code
}

/// Log lines go to standard error; standard output is for what a subcommand prints.
fn start_logging(filter: &str, format: LogFormat) {
    // lapin tells every trouble twice, and the supervisor tells it once and better.
    const QUIET: &str = "lapin=off,async_rs=off";
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{filter}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
