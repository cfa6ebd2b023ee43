//! `rabbitline check`: would the bridge work with these settings?

use std::process::ExitCode;

use super::EXIT_UNAVAILABLE;
use crate::broker;
use crate::device::receipts_supported;
use crate::record;
use crate::settings::Settings;

pub(super) async fn run(settings: Settings) -> ExitCode {
    println!("settings: fine");
    match receipts_supported() {
        Ok(()) => println!("devices: this system tells what a device's TCP stack has acknowledged"),
        Err(error) => println!(
            "devices: this system does not tell what a device's TCP stack has acknowledged ({error}); a command with confirm `received` is invalid here"
        ),
    }
    let mut code = ExitCode::SUCCESS;
    match broker::check(&settings).await {
        Ok(missing) => {
            missing.iter().for_each(|sentence| println!("broker: {sentence}"));
            println!("broker: {}:{} can be used", settings.mq.host, settings.mq.port);
        }
        Err(error) => {
            eprintln!("broker: {error}");
            code = ExitCode::from(EXIT_UNAVAILABLE);
        }
    }
    if settings.database_is_set {
        match record::check(&settings).await {
            Ok(sentence) => println!("database: {sentence}"),
            Err(error) => {
                eprintln!("database: {error}");
                code = ExitCode::from(EXIT_UNAVAILABLE);
            }
        }
    }
    code
}
