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
    let mut code = ExitCode::from(EXIT_UNAVAILABLE);
    for (host, looked) in broker::check(&settings).await {
        match looked {
            Ok(missing) => {
                // What is missing on one node of a cluster is so on all.
                if code != ExitCode::SUCCESS {
                    missing.iter().for_each(|sentence| println!("broker: {sentence}"));
                }
                println!("broker: {host} can be used");
                // One is enough for a bridge.
                code = ExitCode::SUCCESS;
            }
            Err(error) => eprintln!("broker: {error}"),
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
