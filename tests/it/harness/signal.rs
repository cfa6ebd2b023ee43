//! Signals, by the shell's own `kill`: it is there wherever `sh` is.

use std::process::Command;

/// Sends a signal by name (`TERM`, `STOP`, …) to one process.
#[track_caller]
pub(crate) fn send(signal: &str, process: u32) {
    assert!(kill(signal, &process.to_string()), "kill -s {signal} {process}");
}

/// Ends all of a process group at once. It may have ended already.
pub(crate) fn kill_group(group: u32) {
    kill("KILL", &format!("-{group}"));
}

fn kill(signal: &str, target: &str) -> bool {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "kill -s \"$0\" -- \"$1\" 2>/dev/null", signal, target]);
    shell.status().expect("/bin/sh runs").success()
}
