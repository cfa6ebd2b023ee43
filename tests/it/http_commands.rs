//! Commands that come over HTTP, and what is answered.

use std::thread;

use lapin::ExchangeKind;
use serde_json::{Value, json};

use crate::harness::{Answer, Bridge, Scene, eventually};

#[track_caller]
fn post(bridge: &Bridge, query: &str, command: &Value) -> Answer {
    bridge.send("POST", &format!("/commands{query}"), &[], &command.to_string())
}

#[track_caller]
fn detail(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    answer.json()["detail"].as_str().expect("a problem").to_owned()
}

#[test]
fn a_command_is_published_and_told_by_its_id() {
    let scene = Scene::new("post");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let named = post(&bridge, "", &json!({"address": "127.0.0.2", "cmd": "ON", "id": "a/b"}));
    assert_eq!((named.status, named.json()), (202, json!({"id": "a/b"})));
    assert_eq!(named.header("location"), Some("/commands/a%2Fb"));
    assert_eq!(device.line(), "ON\r\n");
    let nameless = post(&bridge, "", &json!({"address": "127.0.0.2", "cmd": "OFF"}));
    let id = nameless.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(device.line(), "OFF\r\n");
    for (id, line) in [("a%2Fb", "ON"), (&*id, "OFF")] {
        let told = bridge.get(&format!("/commands/{id}")).json();
        assert_eq!(told["commands"][0]["line"], line, "{told}");
    }
    scene.until_drained(&bridge);
}

#[test]
fn who_waits_is_told_the_receipt() {
    let scene = Scene::new("post-wait");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let written =
        post(&bridge, "?wait=30s", &json!({"address": "127.0.0.2", "cmd": "ON", "id": "1"}));
    assert_eq!(written.status, 200, "{written:?}");
    let receipt = written.json();
    assert_eq!((&receipt["id"], &receipt["outcome"]), (&json!("1"), &json!("written")));
    assert_eq!(receipt["bridge"], "bridge-under-test");
    assert_eq!(device.line(), "ON\r\n");

    let asked = json!({"address": "127.0.0.2", "cmd": "STATE?", "confirm": "answered"});
    let answered = thread::scope(|scope| {
        let asking = scope.spawn(|| post(&bridge, "?wait=30s", &asked));
        assert_eq!(device.line(), "STATE?\r\n");
        device.send(b"OPEN\r\n");
        asking.join().expect("an answer")
    });
    assert_eq!(answered.json()["answer"], "OPEN", "{answered:?}");
    let offline = post(&bridge, "?wait=30s", &json!({"address": "127.0.0.9", "cmd": "ON"}));
    assert_eq!((offline.status, &offline.json()["outcome"]), (200, &json!("offline")));
}

#[test]
fn parked_is_waited_through_and_told_when_the_time_is_over() {
    let scene = Scene::new("post-parked");
    let bridge = scene.setup().start();
    let command = json!({"address": "127.0.0.2", "cmd": "LATER", "if_offline": "park", "id": "p"});
    let late = post(&bridge, "?wait=1ms", &command);
    assert_eq!((late.status, &late.json()["id"]), (202, &json!("p")), "{late:?}");
    eventually("the receipt comes while it is parked", || {
        let late = post(&bridge, "?wait=300ms", &command);
        let known = late.json();
        if late.status == 202 && known["receipts"][0]["outcome"] == "parked" {
            Ok(())
        } else {
            Err(format!("{late:?}"))
        }
    });
    let (answer, mut device) = thread::scope(|scope| {
        let asking = scope.spawn(|| post(&bridge, "?wait=60s", &command));
        bridge.until_metric("rabbitline_commands_total{outcome=\"parked\"}", |count| count >= 3.0);
        let device = bridge.device("127.0.0.2");
        (asking.join().expect("an answer"), device)
    });
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("written")), "{answer:?}");
    assert_eq!(device.line(), "LATER\r\n");
}

#[test]
fn a_command_for_many_has_all_their_receipts_and_a_summary() {
    let scene = Scene::new("post-many");
    let bridge = scene.setup().start();
    let _devices = ["127.0.0.2", "127.0.0.3"].map(|address| bridge.device(address));
    let to = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];
    let answer = post(&bridge, "?wait=30s", &json!({"addresses": to, "cmd": "ALL", "id": "m"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = answer.json();
    let mut receipts: Vec<(&str, &str)> = told["receipts"]
        .as_array()
        .expect("receipts")
        .iter()
        .map(|it| (it["address"].as_str().expect("whose"), it["outcome"].as_str().expect("what")))
        .collect();
    receipts.sort_unstable();
    assert_eq!(
        receipts,
        [("127.0.0.2", "written"), ("127.0.0.3", "written"), ("127.0.0.4", "offline")]
    );
    assert_eq!(told["summary"]["outcomes"], json!({"written": 2, "offline": 1}));
    let nobody = post(&bridge, "?wait=30s", &json!({"group": "none", "cmd": "ALL"})).json();
    assert_eq!(nobody["receipts"][0]["outcome"], "offline", "{nobody}");
}

#[test]
fn what_is_no_command_is_refused_and_not_published() {
    let scene = Scene::new("post-invalid");
    let bridge = scene.setup().start();
    for (body, says) in [
        (json!({"address": "127.0.0.2"}), "cmd: missing"),
        (json!({"address": "127.0.0.2", "cmd": "A\nB"}), "cmd"),
        (json!({"address": "127.0.0.2", "cmd": "ON", "confirm": "maybe"}), "confirm"),
        (json!(["ON"]), "body: expected a JSON object"),
    ] {
        let said = detail(&post(&bridge, "", &body), 400);
        assert!(said.contains(says), "{said}");
    }
    let said = detail(&bridge.send("POST", "/commands", &[], "no JSON"), 400);
    assert!(said.starts_with("body: "), "{said}");
    let large = json!({"address": "127.0.0.2", "cmd": "x".repeat(1024 * 1024)});
    assert!(detail(&post(&bridge, "", &large), 413).contains("1048576"));
    for wait in ["0s", "61s", "soon", ""] {
        let said = detail(&post(&bridge, &format!("?wait={wait}"), &json!({})), 400);
        assert!(said.starts_with("wait: "), "{said}");
    }
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
    for outcome in ["invalid", "written", "offline"] {
        assert_eq!(bridge.outcomes(outcome), 0.0, "{outcome}");
    }
}

#[test]
fn without_a_broker_it_says_so_and_with_one_again_it_goes_on() {
    let mut scene = Scene::alone("post-broker");
    scene.declare();
    let mut bridge = scene.setup().set("MQ_HEARTBEAT", "2s").start();
    let mut device = bridge.device("127.0.0.2");
    let command = |id: &str| json!({"address": "127.0.0.2", "cmd": "ON", "id": id});
    assert_eq!(post(&bridge, "?wait=30s", &command("1")).status, 200);
    let parked = json!({"address": "127.0.0.9", "cmd": "ON", "if_offline": "park", "id": "p"});
    thread::scope(|scope| {
        let waiting = scope.spawn(|| post(&bridge, "?wait=60s", &parked));
        bridge.until_metric("rabbitline_commands_total{outcome=\"parked\"}", |count| count == 1.0);
        // The broker has confirmed the command by then.
        scene.until_drained(&bridge);
        scene.broker.kill();
        let told = waiting.join().expect("an answer");
        assert_eq!(told.status, 202, "{told:?}");
        assert!(told.json()["detail"].is_string(), "it says why no receipt can come: {told:?}");
    });
    eventually("the loss is known", || {
        let answer = post(&bridge, "", &command("2"));
        if answer.status == 503 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    let away = post(&bridge, "", &command("3"));
    assert!(away.header("retry-after").is_some());
    assert!(detail(&away, 503).contains("broker"));
    scene.restart_broker();
    bridge.until_ready();
    eventually("it is published again", || {
        let answer = post(&bridge, "?wait=30s", &command("4"));
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert_eq!([device.line(), device.line()], ["ON\r\n"; 2]);
}

#[test]
fn a_command_no_queue_takes_is_refused_and_others_are_not() {
    let scene = Scene::new("post-unbound");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let command = json!({"address": "127.0.0.2", "cmd": "ON"});
    // The exchange loses its binding.
    scene.amqp.delete_exchange(&scene.exchange());
    scene.amqp.declare_exchange(&scene.exchange(), ExchangeKind::Direct);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| post(&bridge, "", &command))).collect();
        for asking in asking {
            let said = detail(&asking.join().expect("an answer"), 503);
            assert!(said.contains("no queue takes the command"), "{said}");
        }
    });
    scene.amqp.bind(&scene.queue(), &scene.exchange(), &scene.queue());
    assert_eq!(post(&bridge, "?wait=30s", &command).status, 200);
    assert_eq!(device.line(), "ON\r\n");
    scene.until_drained(&bridge);
}

#[test]
fn many_ask_at_once_and_each_is_told_its_own() {
    let scene = Scene::new("post-at-once");
    let bridge = scene.setup().set("MQ_PREFETCH", "50").start();
    let _device = bridge.device("127.0.0.2");
    thread::scope(|scope| {
        let ask = |number: usize| {
            let id = format!("n{number}");
            let is_here = number.is_multiple_of(2);
            let address = if is_here { "127.0.0.2" } else { "127.0.0.3" };
            let command = json!({"address": address, "cmd": "ON", "id": id});
            let receipt = post(&bridge, "?wait=30s", &command).json();
            assert_eq!(receipt["id"], json!(id));
            let expected = if is_here { "written" } else { "offline" };
            assert_eq!(receipt["outcome"], json!(expected), "{receipt}");
        };
        let asking: Vec<_> = (0..64).map(|number| scope.spawn(move || ask(number))).collect();
        asking.into_iter().for_each(|asking| asking.join().expect("told"));
    });
}

#[test]
fn more_than_may_be_in_flight_are_refused() {
    let scene = Scene::new("post-full");
    let bridge = scene.setup().start();
    let _device = bridge.device("127.0.0.2");
    // None of them is answered before its device comes.
    let command =
        json!({"address": "127.0.0.9", "cmd": "ON", "if_offline": "park", "ttl_ms": 600_000});
    thread::scope(|scope| {
        let waiting: Vec<_> =
            (0..256).map(|_| scope.spawn(|| post(&bridge, "?wait=60s", &command))).collect();
        bridge
            .until_metric("rabbitline_commands_total{outcome=\"parked\"}", |count| count == 256.0);
        assert_eq!(post(&bridge, "", &command).status, 503);
        let device = bridge.device("127.0.0.9");
        for waiting in waiting {
            assert_eq!(waiting.join().expect("an answer").status, 200);
        }
        assert_eq!(post(&bridge, "", &command).status, 202);
        drop(device);
    });
}

#[test]
fn the_last_commands_of_all_devices_are_listed_newest_first() {
    let scene = Scene::new("commands-last");
    let bridge = scene.setup().start();
    assert_eq!(bridge.get("/commands").json(), json!({"commands": []}));
    for number in 1..=5 {
        let command =
            json!({"address": format!("127.0.0.{number}"), "cmd": "ON", "id": number.to_string()});
        assert_eq!(post(&bridge, "?wait=30s", &command).status, 200);
    }
    let ids = |path: &str| -> Vec<Value> {
        let told = bridge.get(path).json();
        told["commands"].as_array().expect("a list").iter().map(|it| it["id"].clone()).collect()
    };
    assert_eq!(ids("/commands"), ["5", "4", "3", "2", "1"]);
    assert_eq!(ids("/commands?limit=2"), ["5", "4"]);
    for limit in ["0", "1001", "many"] {
        assert_eq!(bridge.get(&format!("/commands?limit={limit}")).status, 400, "{limit}");
    }
}
