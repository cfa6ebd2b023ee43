//! The examples of docs/api.md do what it says, and are answered as it shows.

use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{Bridge, Device, Scene, command, eventually};

const DOCS: &str = include_str!("../../docs/api.md");
const TOKEN: &str = "operator-0123456789";

/// A block of shell, and the answer shown behind it.
struct Example {
    script: String,
    shown: Option<Value>,
}

/// All examples, in their order.
fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let blocks = DOCS.split("\n```").skip(1).step_by(2);
    for block in blocks {
        let (language, text) = block.split_once('\n').expect("a block has lines");
        match language {
            "sh" => examples.push(Example { script: text.to_owned(), shown: None }),
            "json" => {
                let shown = serde_json::from_str(text);
                let shown = shown.unwrap_or_else(|error| panic!("{error} in docs/api.md: {text}"));
                if let Some(last) = examples.last_mut() {
                    last.shown.get_or_insert(shown);
                }
            }
            other => panic!("a block of {other:?} in docs/api.md"),
        }
    }
    examples
}

/// Everything that is shown is in the answer: the same names, and values of the same kinds.
#[track_caller]
fn looks_like(answer: &Value, shown: &Value, at: &str) {
    match (answer, shown) {
        (Value::Object(answer), Value::Object(shown)) => {
            for (name, shown) in shown {
                let at = format!("{at}.{name}");
                let answer = answer.get(name).unwrap_or_else(|| panic!("{at} is not answered"));
                looks_like(answer, shown, &at);
            }
        }
        (Value::Array(answer), Value::Array(shown)) => {
            for (answer, shown) in answer.iter().zip(shown) {
                looks_like(answer, shown, &format!("{at}[]"));
            }
            assert!(answer.is_empty() == shown.is_empty(), "{at}: {answer:?}");
        }
        (answer, shown) => {
            let same = std::mem::discriminant(answer) == std::mem::discriminant(shown);
            assert!(same || answer.is_null() || shown.is_null(), "{at}: {answer}, shown {shown}");
        }
    }
}

/// The key of the first message that was not delivered.
fn first_key(bridge: &Bridge) -> Option<String> {
    let token = format!("Bearer {TOKEN}");
    let listed = bridge.send("GET", "/undelivered", &[("Authorization", &token)], "").json();
    Some(listed["messages"].get(0)?["key"].as_str()?.to_owned())
}

#[test]
fn every_example_of_the_api_is_answered_as_it_is_shown() {
    let scene = Scene::new("api-docs");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("operator {TOKEN}\n")).expect("written");
    let bridge = scene.setup().set("HTTP_TOKEN_FILE", file.path()).start();
    let _device = Device::connect("127.0.0.2", bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
    let examples = examples();
    assert!(examples.len() >= 12, "they are found");
    let (prelude, examples) = examples.split_first().expect("what defines `api`");
    assert!(prelude.script.contains("api()"), "{}", prelude.script);

    for Example { script, shown } in examples {
        let mut key = String::new();
        if script.contains("$KEY") {
            scene.publish(&command("127.0.0.9", "AWAY"));
            key = eventually("there is a message", || first_key(&bridge).ok_or("none"));
        }
        let here = format!("127.0.0.1:{}", bridge.http.port());
        let script =
            format!("set -e\n{}\n{script}", prelude.script).replace("127.0.0.1:9123", &here);
        let ran =
            Command::new("sh").args(["-c", &script]).env("TOKEN", TOKEN).env("KEY", &key).output();
        let Output { status, stdout, stderr } =
            ran.unwrap_or_else(|error| panic!("{error}: is there a shell?"));
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(
            status.success(),
            "{status}; is Debian's package curl installed?\n{script}\n{out}{err}"
        );
        if let Some(shown) = shown {
            let answer = serde_json::Deserializer::from_str(&out).into_iter::<Value>().next();
            let answer = answer.unwrap_or_else(|| panic!("no answer to {script}"));
            looks_like(&answer.expect("JSON"), shown, "answer");
        }
    }
}
