//! Who may ask and act over HTTP, and how it is told that somebody may not.

use serde_json::json;

use crate::harness::{Answer, Bridge, Device, Scene, Setup, command, eventually, free_port, get};

const READER: &str = "reader-0123456789";
const OPERATOR: &str = "operator-0123456789";
const MEMBER: &str = "/groups/pumps/members/127.0.0.2";

/// A bridge without a broker, with these tokens.
fn with_tokens(lines: &str) -> (tempfile::NamedTempFile, Setup, Bridge) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), lines).expect("written");
    let setup = Setup::new(free_port()).set("HTTP_TOKEN_FILE", file.path());
    let bridge = setup.launch();
    (file, setup, bridge)
}

fn both() -> String {
    format!("# who may ask\nreader {READER}\noperator {OPERATOR}\n")
}

#[track_caller]
fn ask(bridge: &Bridge, token: &str, method: &str, path: &str) -> Answer {
    bridge.send(method, path, &[("Authorization", &format!("Bearer {token}"))], "")
}

/// What is wrong, which every error says in the same form.
#[track_caller]
fn problem(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let problem = answer.json();
    assert_eq!((&problem["type"], &problem["status"]), (&json!("about:blank"), &json!(status)));
    assert!(problem["title"].is_string(), "{problem}");
    problem["detail"].as_str().expect("a sentence").to_owned()
}

#[test]
fn on_loopback_without_tokens_whoever_can_connect_is_an_operator() {
    let bridge = Setup::new(free_port()).launch();
    let session = bridge.get("/session");
    assert_eq!(session.json(), json!({"role": "operator", "needs_token": false}));
    assert_eq!(bridge.ask("PUT", MEMBER).status, 204);
    let own = format!("http://{}", bridge.http);
    let from_own_page = [("Origin", &*own), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(bridge.send("DELETE", MEMBER, &from_own_page, "").status, 204);
}

#[test]
fn pages_of_other_sites_cannot_act_and_rebound_names_get_nothing() {
    let bridge = Setup::new(free_port()).launch();
    for elsewhere in [
        [("Origin", "http://evil.example")],
        [("Origin", "null")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
        [("Host", "rebound.example")],
    ] {
        let name = elsewhere[0].0;
        let said = problem(&bridge.send("PUT", MEMBER, &elsewhere, ""), 403);
        assert!(said.starts_with(&format!("{name}: ")), "{said}");
    }
    problem(&bridge.send("GET", "/devices", &[("Host", "rebound.example")], ""), 403);
    assert_eq!(bridge.send("GET", "/livez", &[("Host", "any.example")], "").status, 200);
    assert_eq!(bridge.get("/groups").json(), json!({}), "nothing came of it");
}

#[test]
fn with_tokens_a_reader_looks_and_an_operator_acts_and_probes_need_none() {
    let (_file, _, bridge) = with_tokens(&both());
    for path in ["/livez", "/metrics"] {
        assert_eq!(bridge.get(path).status, 200, "{path}");
    }
    assert_eq!(bridge.get("/readyz").status, 503);
    assert_eq!(bridge.get("/message").status, 426, "devices are asked by their door");
    for (method, path) in
        [("GET", "/session"), ("GET", "/devices"), ("PUT", MEMBER), ("GET", "/no")]
    {
        let answer = bridge.ask(method, path);
        assert!(problem(&answer, 401).contains("HTTP_TOKEN_FILE"), "{answer:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    let session = ask(&bridge, READER, "GET", "/session").json();
    assert_eq!(session, json!({"role": "reader", "needs_token": true}));
    assert!(problem(&ask(&bridge, READER, "PUT", MEMBER), 403).contains("operator"));
    assert_eq!(ask(&bridge, OPERATOR, "PUT", MEMBER).status, 204);
    assert_eq!(ask(&bridge, READER, "GET", "/groups/pumps").json(), json!(["127.0.0.2"]));
    let session = ask(&bridge, OPERATOR, "GET", "/session").json();
    assert_eq!(session["role"], "operator");
    let bearer = format!("Bearer {OPERATOR}");
    let from_elsewhere = [("Authorization", &*bearer), ("Origin", "http://evil.example")];
    problem(&bridge.send("DELETE", MEMBER, &from_elsewhere, ""), 403);
    let by_name = [("Authorization", &*bearer), ("Host", "bridge.example")];
    assert_eq!(bridge.send("GET", "/devices", &by_name, "").status, 200, "tokens are enough");
}

#[test]
fn tokens_are_read_again_when_they_change() {
    let (file, _, bridge) = with_tokens(&both());
    assert_eq!(ask(&bridge, READER, "GET", "/session").status, 200);
    let new = "another-0123456789";
    std::fs::write(file.path(), format!("reader {new}\n")).expect("written");
    eventually("the old token is no longer good", || {
        let answer = ask(&bridge, READER, "GET", "/session");
        if answer.status == 401 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    eventually("the new token is good", || {
        let answer = ask(&bridge, new, "GET", "/session");
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

#[test]
fn who_guesses_has_to_wait_and_is_told_how_long() {
    let (_file, _, bridge) = with_tokens(&both());
    let wrong = "wrong-0123456789ab";
    problem(&ask(&bridge, wrong, "GET", "/devices"), 401);
    let answer = ask(&bridge, wrong, "GET", "/devices");
    problem(&answer, 429);
    assert_eq!(answer.header("retry-after"), Some("1"));
    problem(&ask(&bridge, OPERATOR, "GET", "/devices"), 429);
    assert_eq!(bridge.get("/livez").status, 200);
    eventually("the right one is heard after a while", || {
        let answer = ask(&bridge, OPERATOR, "GET", "/devices");
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

#[test]
fn not_on_loopback_and_without_tokens_only_probes_and_metrics_answer() {
    let bridge = Setup::new(free_port()).set("HTTP_LISTEN", "0.0.0.0:0").launch();
    bridge.until_logged(&["WARN", "HTTP_TOKEN_FILE"]);
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], bridge.http.port()));
    let get = |path: &str| get(at, path).expect("an answer");
    assert_eq!(
        (get("/livez").status, get("/readyz").status, get("/metrics").status),
        (200, 503, 200)
    );
    for path in ["/devices", "/session", "/groups"] {
        let said = problem(&get(path), 401);
        assert!(said.contains("HTTP_TOKEN_FILE"), "{said}");
    }
}

#[test]
fn metrics_can_have_a_listener_of_their_own() {
    let bridge = Setup::new(free_port()).set("HTTP_METRICS_LISTEN", "127.0.0.1:0").launch();
    let get = |path: &str| get(bridge.probes, path).expect("an answer");
    assert_eq!(
        (get("/livez").status, get("/readyz").status, get("/metrics").status),
        (200, 503, 200)
    );
    problem(&get("/devices"), 404);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(bridge.get(path).status, 404, "{path}");
    }
    assert_eq!(bridge.get("/devices").status, 200);
}

#[test]
fn every_error_is_a_problem_and_every_answer_bears_its_headers() {
    let bridge = Setup::new(free_port()).launch();
    for (method, path, status, says) in [
        ("GET", "/nothing", 404, "/nothing"),
        ("POST", "/devices", 405, "POST"),
        ("GET", "/devices?limit=many", 400, "limit"),
        ("GET", "/devices?limit=0", 400, "limit"),
        ("GET", "/devices/10.9.9.9", 404, "10.9.9.9"),
        ("GET", "/commands/nobody", 404, "nobody"),
        ("GET", "/groups/%ff", 400, "UTF-8"),
        ("GET", "/message", 426, "WebSocket"),
    ] {
        let answer = bridge.ask(method, path);
        let said = problem(&answer, status);
        assert!(said.contains(says), "{method} {path}: {said}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
    assert!(bridge.ask("POST", "/devices").header("allow").is_some_and(|it| it.contains("GET")));
    for path in ["/devices", "/metrics", "/nothing"] {
        let answer = bridge.get(path);
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
    }
    assert_eq!(bridge.get("/devices").header("cache-control"), Some("no-store"));
}

#[test]
fn explain_asks_with_the_first_token_and_says_if_that_is_not_enough() {
    let scene = Scene::new("explain-token");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), both()).expect("written");
    let setup = scene.setup().set("HTTP_TOKEN_FILE", file.path());
    let bridge = setup.start();
    let mut device = Device::connect("127.0.0.2", bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");

    let setup = setup.set("HTTP_LISTEN", bridge.http.to_string());
    let told = setup.run(&["explain", "127.0.0.2"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stdout.contains("127.0.0.2: ON"), "{told:?}");
    assert_eq!(setup.run(&["explain", "nobody"]).code, Some(1));
    let without = setup.set("HTTP_TOKEN_FILE", "").run(&["explain", "127.0.0.2"]);
    assert_eq!(without.code, Some(69), "{without:?}");
    assert!(without.stderr.contains("HTTP_TOKEN_FILE"), "{without:?}");
}

#[test]
fn a_token_file_that_cannot_be_used_is_said_at_once() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "operator short\n").expect("written");
    let setup = Setup::new(free_port());
    for path in [file.path(), std::path::Path::new("/no/such/file")] {
        let end = setup.clone().set("HTTP_TOKEN_FILE", path).run(&["serve"]);
        assert!(end.code.is_some_and(|code| code != 0), "{end:?}");
        assert!(end.stderr.contains("HTTP_TOKEN_FILE"), "{end:?}");
        assert!(!end.stderr.contains("short"), "{end:?}");
    }
}
