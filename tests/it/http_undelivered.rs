//! What was not delivered, looked at, tried again and removed over HTTP.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Bridge, Scene, command, eventually, park};

/// Publishes commands for devices that are away, and waits until all are undelivered.
#[track_caller]
fn fail(scene: &Scene, bridge: &Bridge, commands: &[Value]) {
    let before = bridge.metric("rabbitline_undelivered_total");
    for command in commands {
        scene.publish(command);
    }
    let all = before + commands.len() as f64;
    bridge.until_metric("rabbitline_undelivered_total", |count| count == all);
}

#[track_caller]
fn list(bridge: &Bridge, query: &str) -> Value {
    let answer = bridge.get(&format!("/undelivered{query}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn field(list: &Value, name: &str) -> Vec<String> {
    let messages = list["messages"].as_array().expect("a list");
    messages.iter().map(|it| it[name].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits until so many lie there for others to see.
#[track_caller]
fn until_lying(scene: &Scene, count: u32) {
    eventually("so many are undelivered", || match scene.amqp.depth(&scene.undelivered()) {
        now if now == count => Ok(()),
        now => Err(now),
    });
}

#[test]
fn a_look_shows_what_was_not_delivered_and_takes_nothing() {
    let scene = Scene::new("look");
    let bridge = scene.setup().start();
    assert_eq!(list(&bridge, ""), json!({"total": 0, "messages": []}));
    let numbered =
        |n: usize| json!({"address": format!("127.0.0.{n}"), "cmd": "ON", "id": n.to_string()});
    fail(&scene, &bridge, &(2..9).map(numbered).collect::<Vec<_>>());
    scene.publish_with(b"no JSON", crate::harness::persistent());
    bridge.until_metric("rabbitline_undelivered_total", |count| count == 8.0);

    let first = list(&bridge, "");
    assert_eq!(first["total"], 8);
    assert_eq!(field(&first, "id")[..7], ["2", "3", "4", "5", "6", "7", "8"]);
    let message = &first["messages"][0];
    assert_eq!((&message["address"], &message["cmd"]), (&json!("127.0.0.2"), &json!("ON")));
    assert_eq!(
        (&message["outcome"], &message["reason"]),
        (&json!("offline"), &json!("the device is not connected"))
    );
    assert!(
        message["at"].is_string() && message["body"].as_str().is_some_and(|it| it.contains("ON"))
    );
    assert_eq!(first["messages"][7]["outcome"], "invalid");
    assert_eq!(first["messages"][7]["body"], "no JSON");
    until_lying(&scene, 8);
    assert_eq!(list(&bridge, ""), first, "the same again, in their order, with their keys");
    let page = list(&bridge, "?limit=3");
    assert_eq!((&page["total"], field(&page, "key").len()), (&json!(8), 3));
    for limit in ["0", "1001"] {
        assert_eq!(bridge.get(&format!("/undelivered?limit={limit}")).status, 400);
    }
    // Whoever has them to deal with still gets them all.
    assert_eq!(scene.undelivered_inbox().take(8).len(), 8);
}

#[test]
fn one_is_tried_again_as_new_and_gone_then() {
    let scene = Scene::new("retry");
    let bridge = scene.setup().start();
    let receipts = scene.receipts();
    let published = Instant::now();
    let short = json!({"address": "127.0.0.2", "cmd": "SHORT", "id": "s", "ttl_ms": 1500});
    scene.publish_with(short.to_string().as_bytes(), crate::harness::reply_to(&receipts));
    assert_eq!(receipts.next().json()["outcome"], "offline");
    bridge.until_metric("rabbitline_undelivered_total", |count| count == 1.0);
    fail(&scene, &bridge, &[command("127.0.0.3", "NAMELESS"), command("127.0.0.9", "STAYS")]);
    let mut device = bridge.device("127.0.0.2");
    let mut other = bridge.device("127.0.0.3");
    let keys = field(&list(&bridge, ""), "key");
    // Its time is over by now, and begins anew.
    eventually("its ttl is over", || match published.elapsed() {
        now if now > Duration::from_millis(1600) => Ok(()),
        now => Err(format!("{now:?}")),
    });

    let answer = bridge.ask("POST", &format!("/undelivered/{}/retry", keys[0]));
    assert_eq!((answer.status, answer.json()), (202, json!({"id": "s"})), "{answer:?}");
    assert_eq!(answer.header("location"), Some("/commands/s"));
    assert_eq!(device.line(), "SHORT\r\n");
    assert_eq!(receipts.next().json()["outcome"], "written", "its sender hears of it");
    let answer = bridge.ask("POST", &format!("/undelivered/{}/retry", keys[1]));
    let id = answer.json()["id"].as_str().expect("one was made").to_owned();
    assert_eq!(other.line(), "NAMELESS\r\n");
    assert_eq!(bridge.get(&format!("/commands/{id}")).status, 200);

    until_lying(&scene, 1);
    let left = list(&bridge, "");
    assert_eq!(field(&left, "cmd"), ["STAYS"]);
    assert_eq!(field(&left, "key"), keys[2..], "its key is the same");
    for key in [&*keys[0], "nonsense"] {
        let answer = bridge.ask("POST", &format!("/undelivered/{key}/retry"));
        assert_eq!(answer.status, 404, "{answer:?}");
        assert!(answer.json()["detail"].as_str().is_some_and(|it| it.contains("first 1")));
    }
    // In vain: it comes back as another message.
    assert_eq!(bridge.ask("POST", &format!("/undelivered/{}/retry", keys[2])).status, 202);
    bridge.until_metric("rabbitline_undelivered_total", |count| count == 4.0);
    until_lying(&scene, 1);
    assert_ne!(field(&list(&bridge, ""), "key"), keys[2..]);
    scene.until_drained(&bridge);
}

#[test]
fn what_is_tried_again_of_a_command_for_many_goes_to_the_one_that_did_not_get_it() {
    let scene = Scene::new("retry-member");
    let bridge = scene.setup().start();
    let mut here = bridge.device("127.0.0.2");
    let to = ["127.0.0.2", "127.0.0.3"];
    fail(&scene, &bridge, &[json!({"addresses": to, "cmd": "ALL"})]);
    let parked = json!({"addresses": to, "cmd": "EXPIRED", "if_offline": "park", "ttl_ms": 300});
    scene.publish(&parked);
    assert_eq!([here.line(), here.line()], ["ALL\r\n", "EXPIRED\r\n"]);
    until_lying(&scene, 2);
    let mut away = bridge.device("127.0.0.3");
    let listed = list(&bridge, "");
    assert_eq!(field(&listed, "address"), ["127.0.0.3", "127.0.0.3"]);
    assert_eq!(field(&listed, "outcome"), ["offline", "expired"]);
    for key in field(&listed, "key") {
        assert_eq!(bridge.ask("POST", &format!("/undelivered/{key}/retry")).status, 202);
    }
    assert_eq!([away.line(), away.line()], ["ALL\r\n", "EXPIRED\r\n"]);
    scene.until_drained(&bridge);
    until_lying(&scene, 0);
    scene.publish(&command("127.0.0.2", "END"));
    assert_eq!(here.line(), "END\r\n", "it had it before and not again");
}

#[test]
fn one_is_removed_and_the_others_stay() {
    let scene = Scene::new("remove");
    let bridge = scene.setup().start();
    let commands = ["A", "B", "C"].map(|cmd| command("127.0.0.9", cmd));
    fail(&scene, &bridge, &commands);
    let keys = field(&list(&bridge, ""), "key");
    assert_eq!(bridge.ask("DELETE", &format!("/undelivered/{}", keys[1])).status, 204);
    until_lying(&scene, 2);
    assert_eq!(field(&list(&bridge, ""), "cmd"), ["A", "C"]);
    assert_eq!(bridge.ask("DELETE", &format!("/undelivered/{}", keys[1])).status, 404);
    assert_eq!(bridge.ask("GET", &format!("/undelivered/{}", keys[0])).status, 405);
}

#[test]
fn many_who_look_at_once_see_the_same() {
    let scene = Scene::new("look-at-once");
    let bridge = scene.setup().start();
    let commands: Vec<Value> = (0..50).map(|n| command("127.0.0.9", &n.to_string())).collect();
    fail(&scene, &bridge, &commands);
    thread::scope(|scope| {
        let looks: Vec<_> = (0..6).map(|_| scope.spawn(|| list(&bridge, ""))).collect();
        for look in looks {
            let seen = look.join().expect("a list");
            assert_eq!((&seen["total"], field(&seen, "key").len()), (&json!(50), 50));
        }
    });
}

#[test]
fn a_quorum_queue_that_counts_looks_loses_nothing_by_them() {
    let scene = Scene::new("look-quorum");
    let bridge = scene.setup().set("MQ_QUEUE_TYPE", "quorum").start();
    fail(&scene, &bridge, &[command("127.0.0.9", "A"), command("127.0.0.9", "B")]);
    let mut expected = field(&list(&bridge, ""), "key");
    expected.sort_unstable();
    for _ in 0..30 {
        // What was given back a moment ago may not be there yet.
        let seen = eventually("both are there", || match list(&bridge, "") {
            seen if seen["total"] == 0 || seen["total"] == 1 => Err(seen),
            seen => Ok(seen),
        });
        assert_eq!(seen["total"], 2);
        let mut seen = field(&seen, "key");
        seen.sort_unstable();
        assert_eq!(seen, expected, "each once");
    }
    let letters = scene.undelivered_inbox().take(2);
    for letter in letters {
        let headers = letter.properties.headers().as_ref().expect("headers").inner();
        let count = headers.get("x-delivery-count").cloned();
        let count = count.map_or(0, |count| {
            format!("{count:?}")
                .chars()
                .filter(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .expect("a number")
        });
        assert!(count <= 11, "{count}: they count from nothing now and then");
    }
}

#[test]
fn who_waits_too_long_for_a_look_is_told_so() {
    let scene = Scene::alone("look-turn");
    let bridge = scene.setup().start();
    fail(&scene, &bridge, &[command("127.0.0.9", "A")]);
    // The first look hangs, and the second waits for its turn.
    scene.broker.signal("STOP");
    let mut answers = thread::scope(|scope| {
        let looks = [(); 2].map(|()| scope.spawn(|| bridge.get("/undelivered")));
        looks.map(|look| look.join().expect("an answer"))
    });
    scene.broker.signal("CONT");
    answers.sort_by_key(|answer| answer.body.contains("somebody else"));
    assert_eq!(answers.each_ref().map(|answer| answer.status), [503, 503], "{answers:?}");
    assert!(answers[1].body.contains("somebody else looks"), "{answers:?}");
    eventually("it can be looked at again", || {
        let answer = bridge.get("/undelivered");
        let there = answer.status == 200 && answer.json()["total"] == 1;
        if there { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

#[test]
fn without_a_broker_nobody_can_look() {
    let bridge = crate::harness::Setup::new(crate::harness::free_port()).launch();
    let answer = bridge.get("/undelivered");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    assert!(answer.json()["detail"].as_str().is_some_and(|it| it.contains("MQ_HOST")));
}

#[test]
fn nothing_is_removed_that_could_not_be_sent_again() {
    let scene = Scene::new("retry-unbound");
    let bridge = scene.setup().start();
    fail(&scene, &bridge, &[park("127.0.0.9", "X\nY")]);
    let keys = field(&list(&bridge, ""), "key");
    scene.amqp.delete_exchange(&scene.exchange());
    scene.amqp.declare_exchange(&scene.exchange(), lapin::ExchangeKind::Direct);
    let answer = bridge.ask("POST", &format!("/undelivered/{}/retry", keys[0]));
    assert_eq!(answer.status, 503, "{answer:?}");
    until_lying(&scene, 1);
    assert_eq!(field(&list(&bridge, ""), "key"), keys);
}
