//! A client in Python, which says `ready` when it waits for what the test does, and `done` at its end.

use std::process::Command;

use super::Program;

pub(crate) struct ScriptedClient(Program);

impl ScriptedClient {
    /// Runs a script from `clients/` until it is ready.
    #[track_caller]
    pub(crate) fn start(script: &str, port: u16) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script, &port.to_string()]);
        let program = Program::spawn("python3: run `apt-get install python3`", command, &[]);
        program.stdout.find("`ready`", |line| (line == "ready\n").then_some(()));
        Self(program)
    }

    /// Waits until it has seen all that it waited for.
    #[track_caller]
    pub(crate) fn until_done(self) {
        let end = self.0.finish();
        assert_eq!((end.code, end.stdout.as_str()), (Some(0), "ready\ndone\n"), "{}", end.stderr);
    }
}
