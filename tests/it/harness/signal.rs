//! Signals, by the shell's own `kill`: it is there wherever `sh` is.

use std::fs;
use std::process::Command;

use super::eventually;

/// Sends a signal by name (`TERM`, `STOP`, …) to one process. Once it was told to stop it does nothing more: on a busy
/// machine some of its threads run on for a moment.
#[track_caller]
pub(crate) fn send(signal: &str, process: u32) {
    assert!(kill(signal, &process.to_string()), "kill -s {signal} {process}");
    if signal == "STOP" {
        eventually("all its threads stand still", || stands_still(process));
    }
}

fn stands_still(process: u32) -> Result<(), String> {
    for thread in fs::read_dir(format!("/proc/{process}/task")).expect("it runs") {
        let status = thread.expect("a thread").path().join("status");
        // A thread may have ended since.
        let status = fs::read_to_string(status).unwrap_or_default();
        let state = status.lines().find(|line| line.starts_with("State:"));
        if state.is_some_and(|state| !state.contains("stopped")) {
            return Err(state.unwrap_or_default().to_owned());
        }
    }
    Ok(())
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
