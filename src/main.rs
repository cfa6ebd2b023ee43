//! The process: read the command line, do what it says, exit with what came of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    rabbitline::cli::run()
}
