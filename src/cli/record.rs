//! `rabbitline record`: keep what bridges tell in a database until TERM or INT, then finish.

use std::process::ExitCode;

use super::service;
use crate::record::Recorder;
use crate::settings::Settings;

pub(super) async fn run(settings: Settings) -> ExitCode {
    let grace = settings.process.shutdown_grace;
    service::run(grace, async || Ok(Recorder::start(settings)), Recorder::shut_down).await
}
