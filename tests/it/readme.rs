//! The examples in README.md that publish a command do publish it.

use std::process::{Command, Output};
use std::sync::Arc;

use crate::harness::{Broker, Scene};

const README: &str = include_str!("../../README.md");

/// The first block of `language` in README.md that speaks of `what`.
#[track_caller]
fn example(language: &str, what: &str) -> String {
    let fence = format!("```{language}\n");
    let blocks = README.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next());
    let block = blocks.into_iter().find(|block| block.contains(what));
    block.unwrap_or_else(|| panic!("README.md has no {language} example with {what:?}")).to_owned()
}

/// Runs a program that Debian's `package` brings.
#[track_caller]
fn run(command: &mut Command, package: &str) {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{error}: run `apt-get install {package}`"));
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}; is Debian's package {package} installed?\n{out}{err}");
}

/// Changes what an example cannot know: where this test's broker is and what its exchange is called.
#[track_caller]
fn adapted(example: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(example.to_owned(), |example, (from, to)| {
        assert!(example.contains(from), "the example does not mention {from:?}:\n{example}");
        example.replace(from, to)
    })
}

#[test]
fn the_python_example_delivers_its_command() {
    let scene = Scene::new("readme-python");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let program = adapted(
        &example("python", "pika"),
        &[
            ("localhost:5672", &format!("127.0.0.1:{}", scene.broker.port())),
            ("exchange=\"device-commands\"", &format!("exchange=\"{}\"", scene.exchange())),
            ("routing_key=\"device-commands\"", &format!("routing_key=\"{}\"", scene.queue())),
        ],
    );
    // Debian's own Python, which has Debian's pika.
    run(Command::new("/usr/bin/python3").args(["-c", &program]), "python3-pika");
    assert_eq!(device.line(), "SET OUT1 ON\r\n");
}

#[test]
fn the_curl_example_delivers_its_command() {
    let (broker, http) = Broker::managed();
    let scene = Scene::on(Arc::new(broker), "readme-curl");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let program = adapted(
        &example("sh", "curl"),
        &[
            ("localhost:15672", &format!("127.0.0.1:{http}")),
            ("/device-commands/publish", &format!("/{}/publish", scene.exchange())),
            (
                "\"routing_key\": \"device-commands\"",
                &format!("\"routing_key\": \"{}\"", scene.queue()),
            ),
            ("curl ", "curl --fail --silent --show-error "),
        ],
    );
    run(Command::new("sh").args(["-c", &program]), "curl");
    assert_eq!(device.line(), "SET OUT1 ON\r\n");
}
