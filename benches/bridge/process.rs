//! Child processes and what the kernel knows of them.
//!
//! Each child leads a process group of its own, which is killed when its handle is dropped, on a panic
//! too; `end_with_signals` does the same for all of them when the benchmark is told to stop.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};
use tokio::signal::unix::{SignalKind, signal};

/// The lock is held only to add, remove or kill.
static GROUPS: Mutex<Groups> = Mutex::new(Groups { running: Vec::new(), ended: false });

/// The groups to kill when a signal ends the benchmark; after that none is started.
struct Groups {
    running: Vec<Pid>,
    ended: bool,
}

/// How many lines of a child may wait to be read; children say a handful.
const LINES_WAITING: usize = 64;
/// A benchmark whose processes are dead ends within this.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A child process and its group.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    pid: Pid,
}

impl Process {
    /// Starts `command` as the leader of a new process group.
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        with_groups(|groups| {
            ensure!(!groups.ended, "interrupted");
            let child = command.process_group(0).spawn();
            let child = child.with_context(|| format!("cannot start the {name}"))?;
            let pid = Pid::from_child(&child);
            groups.running.push(pid);
            Ok(Self { name, child, pid })
        })
    }

    /// What it says on its standard output, which must be a pipe.
    pub(crate) fn lines(&mut self) -> Result<Lines> {
        let output = self
            .child
            .stdout
            .take()
            .with_context(|| format!("the {} has no output to read", self.name))?;
        Ok(Lines::of(self.name, output))
    }

    /// Its standard input, which must be a pipe.
    pub(crate) fn input(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().with_context(|| format!("the {} has no input to write", self.name))
    }

    /// An error if it has ended.
    pub(crate) fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("the {} has ended: {status}", self.name)),
        }
    }

    /// Stops it from running, as if it were never scheduled, and waits until the last of its threads has stopped.
    pub(crate) fn pause(&self) -> Result<()> {
        let pause = || {
            kill_process_group(self.pid, Signal::STOP)?;
            let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(self.pid), options)
        };
        let status = pause().with_context(|| format!("cannot pause the {}", self.name))?;
        ensure!(status.is_some_and(|status| status.stopped()), "the {} has ended", self.name);
        Ok(())
    }

    /// Lets it run again.
    pub(crate) fn resume(&self) -> Result<()> {
        kill_process_group(self.pid, Signal::CONT)
            .with_context(|| format!("cannot resume the {}", self.name))
    }

    /// The processor time it has used, all threads, in user and kernel mode.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(&self.pid.as_raw_nonzero().to_string())
    }

    /// Its resident anonymous memory in KiB: heap and stacks, without what it maps of files.
    pub(crate) fn memory(&self) -> Result<u64> {
        kib_of(&format!("/proc/{}/status", self.pid.as_raw_nonzero()), "RssAnon:")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a group that is gone; then there is nothing to do.
        kill_process_group(self.pid, Signal::KILL).ok();
        self.child.wait().ok();
        with_groups(|groups| groups.running.retain(|pid| *pid != self.pid));
    }
}

/// The lines a child prints, read by a thread so that waiting for one can have a deadline.
#[derive(Debug)]
pub(crate) struct Lines {
    name: &'static str,
    received: mpsc::Receiver<String>,
}

impl Lines {
    fn of(name: &'static str, output: ChildStdout) -> Self {
        let (sender, received) = mpsc::sync_channel(LINES_WAITING);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { name, received }
    }

    /// The next line.
    pub(crate) fn next(&self, within: Duration) -> Result<String> {
        match self.received.recv_timeout(within) {
            Ok(line) => Ok(line),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the {} said nothing for {within:?}", self.name)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the {} has ended", self.name),
        }
    }
}

/// What a file of the kernel says behind `name`, in KiB.
pub(crate) fn kib_of(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.with_context(|| format!("no {name} in {file}"))?;
    let number = value.trim().trim_end_matches(" kB").parse();
    number.with_context(|| format!("{name} in {file} is not a number"))
}

/// The processor time of `/proc/PROCESS`, all threads, in user and kernel mode.
pub(crate) fn cpu_of(process: &str) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name of the process is in parentheses and may hold anything; `state` follows it, `utime` and `stime` are
    // the 12th and 13th from there.
    let (_, fields) = stat.rsplit_once(") ").context("no process name in /proc")?;
    let ticks =
        fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_secs(ticks) / u32::try_from(clock_ticks_per_second())?)
}

/// From now on Ctrl-C and a request to terminate end every process the benchmark started. Whatever it then
/// waits for fails, so that it ends by itself and leaves no files; if it does not, it is ended.
pub(crate) fn end_with_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        if runtime.block_on(told_to_end()).is_ok() {
            with_groups(|groups| {
                groups.ended = true;
                for pid in &groups.running {
                    kill_process_group(*pid, Signal::KILL).ok();
                }
            });
            thread::sleep(END_LIMIT);
            std::process::exit(130);
        }
    });
    Ok(())
}

/// Whether that has happened.
pub(crate) fn interrupted() -> bool {
    with_groups(|groups| groups.ended)
}

async fn told_to_end() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// A command whose input and output are pipes and that sees nothing of the caller's settings.
pub(crate) fn piped(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn with_groups<T>(f: impl FnOnce(&mut Groups) -> T) -> T {
    f(&mut GROUPS.lock().unwrap_or_else(PoisonError::into_inner))
}
