//! `rabbitline serve`: run the bridge until TERM or INT, then drain.

use std::process::ExitCode;

use tracing::error;

use super::service;
use crate::bridge::Bridge;
use crate::settings::Settings;

pub(super) async fn run(settings: Settings) -> ExitCode {
    let grace = settings.process.shutdown_grace;
    let start = async || {
        Bridge::start(settings).await.map_err(|error| {
            error!("{error}");
            ExitCode::FAILURE
        })
    };
    service::run(grace, start, Bridge::shut_down).await
}
