//! What `/openapi.json` says is what is answered.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Value, json};

use crate::harness::{Answer, Api, Bridge, Scene, Setup, free_port};

fn api(bridge: &Bridge) -> Api {
    let answer = bridge.get("/openapi.json");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    Api::new(answer.json())
}

#[track_caller]
fn post(bridge: &Bridge, path: &str, body: &Value) -> Answer {
    bridge.send("POST", path, &[], &body.to_string())
}

#[test]
fn what_is_answered_is_what_is_described() {
    let scene = Scene::new("openapi");
    let bridge = scene.setup().start();
    let api = api(&bridge);
    let mut device = bridge.device("127.0.0.2");
    drop(bridge.device("127.0.0.3"));
    device.send(b"temp=21\n");
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
    let one = json!({"address": "127.0.0.2", "cmd": "ON", "id": "c1"});
    let away = json!({"address": "127.0.0.9", "cmd": "ON"});
    let many = json!({"addresses": ["127.0.0.2", "127.0.0.9"], "cmd": "ALL"});
    let parked = json!({"address": "127.0.0.8", "cmd": "LATER", "if_offline": "park"});
    for (body, query, status) in [
        (&one, "?wait=30s", 200),
        (&away, "?wait=30s", 200),
        (&many, "?wait=30s", 200),
        (&parked, "?wait=1s", 202),
        (&away, "", 202),
        (&json!({"address": 7}), "", 400),
        (&json!({"address": "127.0.0.2", "cmd": "x".repeat(1 << 20)}), "", 413),
    ] {
        let answer = post(&bridge, &format!("/commands{query}"), body);
        assert_eq!(answer.status, status, "{answer:?}");
        api.describes("post", "/commands", &answer);
    }
    assert_eq!(bridge.ask("PUT", "/groups/pumps/members/127.0.0.2").status, 204);
    bridge.until_metric("rabbitline_undelivered_total", |count| count == 3.0);
    scene.publish_with(b"\xff", crate::harness::persistent());
    bridge.until_metric("rabbitline_undelivered_total", |count| count == 4.0);
    for (path, of) in [
        ("/livez", "/livez"),
        ("/readyz", "/readyz"),
        ("/metrics", "/metrics"),
        ("/message", "/message"),
        ("/openapi.json", "/openapi.json"),
        ("/session", "/session"),
        ("/stats", "/stats"),
        ("/stats?history", "/stats"),
        ("/devices", "/devices"),
        ("/devices?limit=0", "/devices"),
        ("/devices/127.0.0.2", "/devices/{address}"),
        ("/devices/127.0.0.3", "/devices/{address}"),
        ("/devices/127.0.0.7", "/devices/{address}"),
        ("/commands", "/commands"),
        ("/commands?limit=many", "/commands"),
        ("/commands/c1", "/commands/{id}"),
        ("/commands/c2", "/commands/{id}"),
        ("/undelivered", "/undelivered"),
        ("/undelivered?limit=1001", "/undelivered"),
        ("/groups", "/groups"),
        ("/groups/pumps", "/groups/{group}"),
        ("/groups/valves", "/groups/{group}"),
    ] {
        api.describes("get", of, &bridge.get(path));
    }
    acting_is_described(&bridge, &api);
}

#[track_caller]
fn acting_is_described(bridge: &Bridge, api: &Api) {
    let keys: Vec<Value> =
        bridge.get("/undelivered").json()["messages"].as_array().expect("some").clone();
    let key = keys[0]["key"].as_str().expect("a key");
    let of = "/undelivered/{key}/retry";
    api.describes("post", of, &bridge.ask("POST", &format!("/undelivered/{key}/retry")));
    api.describes("post", of, &bridge.ask("POST", "/undelivered/nonsense/retry"));
    let key = keys[1]["key"].as_str().expect("a key");
    for _ in ["it is there", "it is gone"] {
        let answer = bridge.ask("DELETE", &format!("/undelivered/{key}"));
        api.describes("delete", "/undelivered/{key}", &answer);
    }
    let member = "/groups/{group}/members/{address}";
    for (method, lower) in [("PUT", "put"), ("DELETE", "delete")] {
        api.describes(lower, member, &bridge.ask(method, "/groups/g/members/127.0.0.2"));
        let long = format!("/groups/g/members/{}", "x".repeat(201));
        api.describes(lower, member, &bridge.ask(method, &long));
    }
}

#[test]
fn refusals_are_described_too() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "reader reader-0123456789\n").expect("written");
    let bridge = Setup::new(free_port()).set("HTTP_TOKEN_FILE", file.path()).launch();
    let api = api(&bridge);
    let with = |token: &str, method: &str, path: &str| {
        bridge.send(method, path, &[("Authorization", &format!("Bearer {token}"))], "{}")
    };
    let right = "reader-0123456789";
    api.describes("get", "/readyz", &bridge.get("/readyz"));
    api.describes("post", "/commands", &bridge.ask("POST", "/commands"));
    api.describes("post", "/commands", &with(right, "POST", "/commands"));
    api.describes("get", "/undelivered", &with(right, "GET", "/undelivered"));
    api.describes("get", "/stats", &with("wrong-0123456789", "GET", "/stats"));
    let too_soon = with("wrong-0123456789", "GET", "/stats");
    assert_eq!(too_soon.status, 429);
    api.describes("get", "/stats", &too_soon);
}

#[test]
fn an_answer_that_is_not_as_described_would_be_noticed() {
    let bridge = Setup::new(free_port()).launch();
    let session = bridge.get("/session");
    let described = bridge.get("/openapi.json").json();
    let fits = |change: fn(&mut Value)| {
        let mut described = described.clone();
        change(&mut described["components"]["schemas"]["Session"]);
        let api = Api::new(described);
        let check = AssertUnwindSafe(|| api.describes("get", "/session", &session));
        catch_unwind(check).is_ok()
    };
    assert!(fits(|_| {}));
    assert!(!fits(|session| session["required"] = json!(["role", "name"])));
    assert!(!fits(|session| session["properties"]["role"] = json!({"enum": ["reader"]})));
    assert!(!fits(|session| session["properties"]["needs_token"] = json!({"type": "string"})));
    assert!(!fits(|session| session["properties"] = json!({"role": {}})));
    assert!(!fits(|session| session["minItems"] = json!(1)), "an unknown word");
}
