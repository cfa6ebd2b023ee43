//! A child process of the real program: started with an environment of nothing but what is given, its output kept.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{eventually, reaper, signal};

/// The binary under test, unless the environment names another one.
const RABBITLINE: &str = env!("CARGO_BIN_EXE_rabbitline");
const ENVIRONMENT: &str = "RABBITLINE_PROGRAM";

/// A running (or ended) child; killed with its process group when dropped.
pub(crate) struct Program {
    name: String,
    child: Child,
    readers: Vec<JoinHandle<()>>,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

/// How a child ended, with all it wrote.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

fn rabbitline() -> OsString {
    std::env::var_os(ENVIRONMENT).unwrap_or_else(|| RABBITLINE.into())
}

impl Program {
    /// Starts `rabbitline ARGS`.
    pub(crate) fn rabbitline(args: &[&str], env: &[(OsString, OsString)]) -> Self {
        let mut command = Command::new(rabbitline());
        command.args(args);
        Self::spawn(&format!("rabbitline {}", args.join(" ")), command, env)
    }

    /// Starts `rabbitline ARGS`, which finds `text` on its standard input.
    pub(crate) fn rabbitline_reading(text: &str, args: &[&str]) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "printf %s \"$0\" | \"$@\"", text]).arg(rabbitline()).args(args);
        Self::spawn(&format!("rabbitline {}", args.join(" ")), command, &[])
    }

    /// Starts `rabbitline ARGS` with at most `files` open descriptors.
    pub(crate) fn rabbitline_with_few_files(
        files: u32,
        args: &[&str],
        env: &[(OsString, OsString)],
    ) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]);
        command.arg(rabbitline()).args(args);
        Self::spawn("rabbitline with few descriptors", command, env)
    }

    /// Starts any command; its standard input is empty.
    pub(crate) fn spawn(name: &str, mut command: Command, env: &[(OsString, OsString)]) -> Self {
        command
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        reaper::watch(child.id());
        let (stdout, stderr) = (Lines::default(), Lines::default());
        let readers = vec![
            stdout.follow(child.stdout.take().expect("piped")),
            stderr.follow(child.stderr.take().expect("piped")),
        ];
        Self { name: name.to_owned(), child, readers, stdout, stderr }
    }

    /// The process id, which is also that of its group.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name (`TERM`, `STOP`, …) to the process itself.
    #[track_caller]
    pub(crate) fn signal(&self, signal: &str) {
        signal::send(signal, self.child.id());
    }

    /// Waits for the end and for the last of its output.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        let code = self.wait().code();
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader of output does not panic");
        }
        Finished { code, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually(&what, || match self.child.try_wait().expect("wait") {
            Some(status) => Ok(status),
            None => Err(format!("it runs; it wrote:\n{}", self.stderr.text())),
        })
    }

    /// The exit status if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    /// Ends the process at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        if self.ended().is_none() {
            signal::kill_group(self.child.id());
            self.child.wait().expect("a killed child ends");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        reaper::forget(self.child.id());
        if std::thread::panicking() {
            eprintln!("--- {} wrote to stdout:\n{}", self.name, self.stdout.tail());
            eprintln!("--- {} wrote to stderr:\n{}---", self.name, self.stderr.tail());
        }
    }
}

/// The lines a process has written so far.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// What was written when a test failed, without the first thousands of lines of a talkative process.
    const TAIL: usize = 200;

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().expect("no reader panics").clone()
    }

    pub(crate) fn text(&self) -> String {
        self.all().concat()
    }

    /// Waits for a line that `pick` takes something from.
    #[track_caller]
    pub(crate) fn find<T>(&self, what: &str, pick: impl Fn(&str) -> Option<T>) -> T {
        eventually(what, || {
            self.all().iter().find_map(|line| pick(line)).ok_or_else(|| self.text())
        })
    }

    fn tail(&self) -> String {
        let all = self.all();
        all[all.len().saturating_sub(Self::TAIL)..].concat()
    }

    fn follow(&self, source: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = self.clone();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            loop {
                let mut line = Vec::new();
                match source.read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {
                        let line = String::from_utf8_lossy(&line).into_owned();
                        lines.0.lock().expect("no reader panics").push(line);
                    }
                }
            }
        })
    }
}

/// Settings as an environment.
pub(crate) fn environment<N: AsRef<OsStr>, V: AsRef<OsStr>>(
    settings: &[(N, V)],
) -> Vec<(OsString, OsString)> {
    settings
        .iter()
        .map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned()))
        .collect()
}
