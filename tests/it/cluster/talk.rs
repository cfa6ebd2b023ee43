//! What devices say to each other reaches those of other bridges.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::{setup, until_acquainted};
use crate::harness::{Bridge, Device, Scene, TokensFile};

const END: &[u8] = b"##END##";

/// What a chat client sends and gets.
const VERIFY: u32 = 1;
const TO_ONE: u32 = 2;
const TO_SEVERAL: u32 = 3;
const TO_ALL: u32 = 4;
const ANSWERS: u32 = 100;

/// A device that speaks in frames.
struct Talker {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Talker {
    fn at(bridge: &Bridge, from: &str) -> Self {
        let stream = Device::connect(from, bridge.device_port).into_stream();
        Self { stream, bytes: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the bridge reads");
    }

    /// The next bytes, as many as `length` finds to be a frame.
    #[track_caller]
    fn next(&mut self, length: impl Fn(&[u8]) -> Option<usize>) -> Vec<u8> {
        loop {
            if let Some(length) = length(&self.bytes).filter(|length| *length <= self.bytes.len()) {
                return self.bytes.drain(..length).collect();
            }
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece).expect("the bridge speaks");
            assert!(count > 0, "the bridge closed the connection");
            self.bytes.extend_from_slice(&piece[..count]);
        }
    }

    /// Asks in the format `channel`, and gives the answer.
    #[track_caller]
    fn ask(&mut self, question: &Value) -> Value {
        self.send(&[question.to_string().as_bytes(), END].concat());
        self.heard()
    }

    #[track_caller]
    fn heard(&mut self) -> Value {
        let length = |bytes: &[u8]| {
            Some(bytes.windows(END.len()).position(|window| window == END)? + END.len())
        };
        let frame = self.next(length);
        serde_json::from_slice(&frame[..frame.len() - END.len()]).expect("JSON")
    }

    /// Says something in the format `chat`.
    fn chat(&mut self, about: u32, body: &Value) {
        let body = body.to_string();
        let length = u32::try_from(12 + body.len()).expect("a short body");
        let header = [length, 1, about].map(u32::to_be_bytes).concat();
        self.send(&[&header, body.as_bytes()].concat());
    }

    #[track_caller]
    fn chatted(&mut self) -> (u32, Value) {
        let number = |bytes: &[u8]| bytes.first_chunk::<4>().map(|four| u32::from_be_bytes(*four));
        let frame = self.next(|bytes| number(bytes).map(|length| length as usize));
        let about = number(&frame[8..]).expect("a header");
        (about, serde_json::from_slice(&frame[12..]).expect("JSON"))
    }
}

fn until_they_hear_each_other(bridges: &[&Bridge]) {
    until_acquainted(bridges);
    for bridge in bridges {
        bridge.until_logged(&["devices of this bridge and of the others hear each other"]);
    }
}

fn question(command: &str) -> Value {
    json!({"TYPE": "Q", "COMMAND": command, "CHANNEL": "pumps", "MSG": {"to": command}})
}

#[test]
fn what_is_said_to_a_group_reaches_its_members_at_all_bridges_once() {
    let scene = Scene::new("cluster-talk");
    let speaks = |name| {
        let setup = setup(&scene, name).set("LOG", "info");
        setup.set("DEVICE_PROTOCOL", "channel").set("DEVICE_IDENTITY", "peer").start()
    };
    let [a, b] = ["a", "b"].map(speaks);
    let (mut at_a, mut at_b) = (Talker::at(&a, "127.0.0.2"), Talker::at(&b, "127.0.0.3"));
    assert_eq!(at_b.ask(&question("JC"))["CNUM"], 1);
    let mut stranger = Talker::at(&b, "127.0.0.4");
    let other = json!({"TYPE": "Q", "COMMAND": "JC", "CHANNEL": "others"});
    assert_eq!(stranger.ask(&other)["CNUM"], 1);
    assert_eq!(at_a.ask(&question("LC"))["TYPE"], "E", "it is no member");
    until_they_hear_each_other(&[&a, &b]);

    // One who is no member speaks, and gets an answer, for those of other bridges are not counted.
    assert_eq!(at_a.ask(&question("PUB"))["CNUM"], 0);
    let said = json!({"TYPE": "PUB", "CHANNEL": "pumps", "MSG": {"to": "PUB"}});
    assert_eq!(at_b.heard(), said);
    // Each hears it once, the one who says it as well, and in its order.
    assert_eq!(at_a.ask(&question("JC"))["CNUM"], 1);
    for number in 0..100 {
        let mut publication = question("PUB");
        publication["MSG"] = json!(number);
        assert_eq!(at_b.ask(&publication)["CNUM"], 1);
        assert_eq!(at_b.heard()["MSG"], number);
    }
    for number in 0..100 {
        assert_eq!(at_a.heard()["MSG"], number);
    }
    for talker in [&mut at_a, &mut at_b, &mut stranger] {
        assert_eq!(talker.ask(&json!({"TYPE": "Q"}))["TYPE"], "E", "nothing else came");
    }
}

#[test]
fn chat_reaches_who_it_is_for_wherever_that_is() {
    let scene = Scene::new("cluster-chat");
    let tokens = TokensFile::new(&[("5551", "one"), ("5552", "two"), ("5553", "three")]);
    let speaks = |name| {
        let setup = setup(&scene, name).set("LOG", "info").set("DEVICE_PROTOCOL", "chat");
        setup.set("DEVICE_TOKENS_FILE", tokens.path()).start()
    };
    let [a, b] = ["a", "b"].map(speaks);
    let at = |bridge: &Bridge, number: &str, token: &str| {
        let mut talker = Talker::at(bridge, "127.0.0.2");
        talker.chat(VERIFY, &json!({"phone_number": number, "token": token}));
        assert_eq!(talker.chatted(), (ANSWERS + VERIFY, json!({"code": 1})));
        talker
    };
    let mut one = at(&a, "5551", "one");
    let (mut two, mut three) = (at(&b, "5552", "two"), at(&b, "5553", "three"));
    until_they_hear_each_other(&[&a, &b]);

    let says = |to: Value, content: &str| json!({"chat_from": "5551", "chat_to": to, "chat_content": content});
    one.chat(TO_ONE, &says(json!("5552"), "HI"));
    one.chat(TO_SEVERAL, &says(json!(["5551", "5552", "5553"]), "YOU"));
    one.chat(TO_ALL, &says(Value::Null, "ALL"));
    let heard = |content: &str| json!({"chat_from": "5551", "chat_content": content});
    assert_eq!(two.chatted(), (ANSWERS + TO_ONE, heard("HI")));
    for talker in [&mut one, &mut two, &mut three] {
        assert_eq!(talker.chatted(), (ANSWERS + TO_SEVERAL, heard("YOU")));
        assert_eq!(talker.chatted(), (ANSWERS + TO_ALL, heard("ALL")));
    }
    assert_eq!(a.metric("rabbitline_messages_dropped_total"), 0.0);
}
