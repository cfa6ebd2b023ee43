//! The console as people have it before them, in a real browser.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::BasicProperties;
use serde_json::json;

use crate::harness::{
    Amqp, Bridge, Browser, Device, Fleet, Scene, address, command, eventually, free_port,
    persistent,
};

const READER: &str = "reader-of-sixteen-characters";
const OPERATOR: &str = "operator-of-sixteen-characters";
/// Above it a task is felt.
const TASK_MS: f64 = 100.0;
/// What a first look may cost on a slow link.
const FIRST_LOAD: f64 = 200_000.0;

fn url(bridge: &Bridge, view: &str) -> String {
    format!("http://{}/{view}", bridge.http)
}

/// Fills in the form for one device and sends.
#[track_caller]
fn send(browser: &Browser, address: &str, cmd: &str) {
    for (field, text) in [("#address", address), ("#cmd", cmd)] {
        browser.run(&format!("document.querySelector('{field}').value = ''"));
        browser.keys(field, text);
    }
    browser.click("form.panel button.main");
}

#[test]
fn the_console_shows_and_searches_five_thousand_devices_without_holding_up_the_page() {
    const DEVICES: usize = 5_000;
    let scene = Scene::new("console-many");
    let bridge = scene.setup().start();
    let fleet = Fleet::start(DEVICES, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    let browser = Browser::start();

    browser.open(&url(&bridge, "#/devices"));
    browser.until_says(".found", "5,000 devices shown");
    // They are counted before they are drawn.
    browser.until("some are drawn", "document.querySelector('.item')");
    let rows = browser.run("return document.querySelectorAll('.item').length");
    assert!(
        rows.as_u64().is_some_and(|rows| (1..100).contains(&rows)),
        "only those in sight: {rows}"
    );
    let first = browser.run("return performance.getEntriesByType('navigation')[0].transferSize + performance.getEntriesByType('resource').filter(({ name }) => /console/.test(name)).reduce((sum, it) => sum + it.transferSize, 0)");
    let first = first.as_f64().expect("a number");
    assert!((10_000.0..FIRST_LOAD).contains(&first), "{first} bytes");

    browser.begin_to_watch();
    // The last of them is as easily found as the first.
    for (text, found) in [
        ("127.1.19", "250 devices"),
        ("127.1.19.25", "2 devices"),
        ("127.1.19.250", "1 device"),
        ("nobody", "No device"),
        ("", "5,000 devices"),
    ] {
        browser.run("const field = document.querySelector('#search'); field.value = ''; field.dispatchEvent(new Event('input'))");
        browser.until_says(".found", "5,000 devices");
        // One key after the other, as people type: at one go they would be one task.
        for key in text.chars() {
            browser.keys("#search", key.encode_utf8(&mut [0; 4]));
        }
        browser.until_says(".found", found);
    }
    browser.run("document.querySelector('.list').scrollTop = 1e9");
    browser.until_says(".list", "127.1.19.250");
    let busy = browser.busy();
    // By the clock it says how busy the machine is with other tests.
    let (clock, processor) = (busy.by_clock, busy.by_processor);
    println!("first load {first} bytes; longest task {processor} ms, by the clock {clock} ms");
    assert!(processor < TASK_MS, "{processor} ms");

    // A device that goes and one that comes show by themselves.
    drop(fleet);
    browser.until_says(".chips", "Online\n0");
    let _device = bridge.device("127.9.9.9");
    browser.until_says(".chips", "Online\n1");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_command_is_sent_from_the_console_and_its_outcome_and_steps_are_shown() {
    let scene = Scene::new("console-send");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let browser = Browser::start();

    browser.open(&url(&bridge, "#/send/127.0.0.2"));
    browser.until("the form is there", "document.querySelector('#cmd')");
    send(&browser, "127.0.0.2", "SET OUT1 ON");
    assert_eq!(device.line(), "SET OUT1 ON\r\n");
    browser.until_says(".sendings > li", "written");
    browser.until_says(".sendings .steps", "settled");
    browser.until_says("#said", "Command to 127.0.0.2: written.");

    send(&browser, "127.0.0.9", "SET OUT1 ON");
    browser.until_says(".sendings > li", "offline");
    browser.until_says(".sendings > li", "not connected");

    // An answer, and a device's own view.
    browser.run("document.querySelector('#confirm').value = 'answered'");
    send(&browser, "127.0.0.2", "STATE?");
    assert_eq!(device.line(), "STATE?\r\n");
    device.send(b"OPEN\r\n");
    browser.until_says(".sendings > li", "Answer: OPEN");
    browser.open(&url(&bridge, "#/devices/127.0.0.2"));
    browser.until_says(".device .commands", "STATE?");
    device.send(b"temp=21.5\r\n");
    browser.until_says(".device .last", "temp=21.5");
    drop(device);
    browser.until_says(".device .row", "away");
    browser.until_says(".device table", "closed");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn all_are_sent_to_only_after_a_question_and_each_outcome_is_counted() {
    const DEVICES: usize = 50;
    let scene = Scene::new("console-all");
    let bridge = scene.setup().start();
    let fleet = Fleet::start(DEVICES, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    let browser = Browser::start();
    browser.open(&url(&bridge, "#/send"));
    browser.until("the form is there", "document.querySelector('#cmd')");
    browser.click(".chip:has([value=all])");
    browser.keys("#cmd", "ON");
    browser.click("form.panel button.main");
    browser.until_says("dialog", "Send to all 50 connected devices?");
    browser.click("dialog button:first-of-type");
    browser.until("the question is gone", "!document.querySelector('dialog')");
    browser.click("form.panel button.main");
    browser.click("dialog .danger");
    browser.until_says(".sendings > li", "written 50");
    eventually("all have the line", || fleet.has(1));
    assert_eq!(fleet.lines(0), ["ON"], "once, and not when it was cancelled");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn what_was_not_delivered_is_tried_again_or_deleted_after_a_question() {
    let scene = Scene::new("console-undelivered");
    let bridge = scene.setup().start();
    for (address, cmd) in [("127.0.0.2", "FIRST"), ("127.0.0.3", "SECOND")] {
        assert_eq!(scene.receipt_of(&command(address, cmd))["outcome"], "offline");
    }
    let browser = Browser::start();
    browser.open(&url(&bridge, "#/undelivered"));
    let list = browser.until_says(".undelivered", "SECOND");
    assert!(list.contains("FIRST") && list.contains("not connected"), "{list}");

    let mut device = bridge.device("127.0.0.2");
    browser.click(".undelivered li:first-child .actions button");
    assert_eq!(device.line(), "FIRST\r\n");
    browser.until("one is left", "document.querySelectorAll('.undelivered > li').length === 1");
    browser.click(".undelivered .danger");
    browser.until_says("dialog", "SECOND");
    browser.click("dialog .danger");
    browser.until("none is left", "document.querySelectorAll('.undelivered > li').length === 0");
    eventually("the queue is empty", || match scene.amqp.depth(&scene.undelivered()) {
        0 => Ok(()),
        depth => Err(depth),
    });
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_console_says_when_the_broker_or_the_bridge_is_away_and_recovers() {
    let mut scene = Scene::alone("console-away");
    let setup = scene
        .setup()
        .set("HTTP_LISTEN", format!("127.0.0.1:{}", free_port()))
        .set("COMMAND_TIMEOUT", "1m")
        .set("SHUTDOWN_GRACE", "1m");
    let bridge = setup.start();
    let _device = bridge.device("127.0.0.2");
    let browser = Browser::start();
    browser.open(&url(&bridge, "#/devices"));
    browser.until_says(".found", "1 device shown");
    assert_eq!(browser.text("#state [role=status]"), "");

    scene.broker.kill();
    browser.until_says("#state", "The broker is away.");
    scene.restart_broker();
    browser
        .until("all is well", "document.querySelector('#state [role=status]').textContent === ''");
    assert_eq!(browser.complaints(), Vec::<String>::new());

    let http = bridge.http;
    bridge.program.signal("STOP");
    browser.until_says("#state", "The bridge has not answered since");
    assert_eq!(browser.run("return document.body.dataset.link"), "lost");
    assert!(browser.text(".found").contains("1 device"), "what was known is shown still");
    bridge.program.signal("CONT");
    browser.until("the bridge is found again", "document.body.dataset.link === 'live'");

    // It cannot end before this is answered.
    let mut device = bridge.device("127.0.0.4");
    let asked = json!({"address": "127.0.0.4", "cmd": "STATE?", "confirm": "answered"});
    scene.publish(&asked);
    assert_eq!(device.line(), "STATE?\r\n");
    bridge.program.signal("TERM");
    browser.until_says("#state", "The bridge drains");
    device.send(b"OPEN\r\n");
    assert_eq!(bridge.program.finish().code, Some(0));
    browser.until_says("#state", "cannot be reached");
    let bridge = setup.start();
    assert_eq!(bridge.http, http);
    let _other = bridge.device("127.0.0.3");
    browser.until_says(".list", "127.0.0.3");
}

#[test]
fn the_console_asks_for_a_token_and_a_reader_cannot_act() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("tokens");
    fs::write(&file, format!("reader {READER}\noperator {OPERATOR}\n")).expect("written");
    let scene = Scene::new("console-token");
    let bridge = scene.setup().set("HTTP_TOKEN_FILE", &file).start();
    let _device = Device::connect("127.0.0.2", bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
    assert_eq!(scene.receipt_of(&command("127.0.0.3", "LOST"))["outcome"], "offline");
    let browser = Browser::start();

    browser.open(&url(&bridge, "#/undelivered"));
    browser.until_says("#sign-in", "asks for a token");
    browser.keys("#token", "no-token-of-this-bridge\n");
    browser.until_says("#sign-in-problem", "does not know this token");
    // Who has just been wrong has to wait a moment, and is told so.
    eventually("the reader is let in", || {
        // What was said before is no answer, and who is let in has no form any more to type into.
        browser.run("document.querySelector('#token').value = ''; document.querySelector('#sign-in-problem').textContent = ''");
        browser.keys("#token", &format!("{READER}\n"));
        let seen = browser.until("an answer", "document.querySelector('.undelivered > li') ? 'in' : document.querySelector('#sign-in-problem').innerText || null");
        if seen == "in" { Ok(()) } else { Err(seen) }
    });
    browser.until_says(".undelivered", "LOST");
    let acts = "return [document.querySelectorAll('.actions').length, document.querySelector(\"#views [href='#/send']\").hidden]";
    assert_eq!(browser.run(acts), json!([0, true]));
    let kept = "return [Object.values(sessionStorage).length, Object.values(localStorage).length, document.cookie]";
    assert_eq!(browser.run(kept), json!([1, 0, ""]));

    browser.click("#sign-out");
    browser.until_says("#sign-in", "asks for a token");
    browser.keys("#token", &format!("{OPERATOR}\n"));
    browser.until("the operator may act", "document.querySelectorAll('.actions').length === 1");
    browser.open(&url(&bridge, "#/devices/127.0.0.2"));
    browser.until_says(".device .row", "Send a command");
}

#[test]
fn everything_is_reached_by_keys_and_has_a_name() {
    const ENTER: &str = "\u{e007}";
    const DOWN: &str = "\u{e015}";
    const TAB: &str = "\u{e004}";
    let scene = Scene::new("console-keys");
    let bridge = scene.setup().start();
    let _devices = ["127.0.0.2", "127.0.0.3"].map(|from| bridge.device(from));
    let browser = Browser::start();
    browser.open(&url(&bridge, "#/devices"));
    browser.until_says(".found", "2 devices");
    browser.keys("#search", &format!("{DOWN}{DOWN}"));
    browser.keys_where_the_focus_is(ENTER);
    browser.until_says(".device h1", "127.0.0.3");

    for view in ["", "#/undelivered", "#/devices/127.0.0.2", "#/send"] {
        browser.open(&url(&bridge, view));
        browser.until("it is shown", "document.querySelector('#view h1, #view h2')");
        let nameless = browser.run(
            "return [...document.querySelectorAll('#view button, #view a, #view input, #view select, #view textarea, #view [tabindex=\"0\"]')]
                .filter((it) => it.checkVisibility() && !(it.innerText || it.getAttribute('aria-label') || it.labels?.length))
                .map((it) => it.outerHTML)",
        );
        assert_eq!(nameless, json!([]), "in {view:?}");
    }
    // From the top, each step of the tabulator goes to something that shows that it has the focus.
    browser.run("document.activeElement.blur()");
    for step in 0..8 {
        browser.keys_where_the_focus_is(TAB);
        let shown = browser.run("const it = document.activeElement; return it === document.body ? null : getComputedStyle(it.matches('.chip input') ? it.parentElement : it).outlineStyle");
        assert_eq!(
            shown,
            "solid",
            "step {step}: {}",
            browser.run("return document.activeElement.outerHTML")
        );
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Also makes the pictures of README.md: `./dev screenshots` says where to.
#[test]
fn the_console_fits_a_phone_and_a_desk_in_light_and_in_dark() {
    let folder = std::env::var_os("RABBITLINE_PICTURES");
    let mut scene = Scene::alone("console-pictures");
    let bridge = scene.setup().set("BRIDGE_NAME", "bridge-1").start();
    let fleet = Fleet::start(500, bridge.device_port);
    bridge.device("127.0.0.2").reset();
    bridge.until_metric("rabbitline_devices_connected", |count| count == 500.0);
    let mut device = bridge.device("127.0.0.2");
    for (address, confirm) in
        [("127.0.0.2", "written"), ("127.0.0.2", "received"), ("127.0.0.9", "written")]
    {
        scene.receipt_of(&json!({"address": address, "cmd": "SET OUT1 ON", "confirm": confirm}));
    }
    scene.publish(&json!({"address": "127.0.0.2", "cmd": "STATE?", "confirm": "answered"}));
    while device.line() != "STATE?\r\n" {}
    device.send(b"OUT1=ON\r\ntemp=21.5\r\n");
    let browser = Browser::start();
    let traffic = folder.is_some().then(|| Traffic::with_an_outage(&mut scene));
    let mut grounds = Vec::new();
    for (colours, is_phone) in [("light", false), ("dark", false), ("light", true), ("dark", true)]
    {
        browser.prefer(colours);
        browser.be_a_phone(is_phone);
        for (name, view) in [
            ("overview", "#/"),
            ("device", "#/devices/127.0.0.2"),
            ("send", "#/send/127.0.0.2"),
            ("undelivered", "#/undelivered"),
        ] {
            browser.open(&url(&bridge, view));
            let shown = match name {
                "overview" => {
                    "document.querySelector('.charts path') && document.querySelector('.commands code')"
                }
                "device" => "document.querySelector('.device .steps')",
                "send" => "document.querySelector('#cmd')",
                _ => "document.querySelector('.undelivered li')",
            };
            browser.until(&format!("{name} is shown"), shown);
            let widths = browser.run("return [document.documentElement.scrollWidth, innerWidth]");
            assert!(
                widths[0].as_f64() <= widths[1].as_f64(),
                "{name} is too wide for a phone ({is_phone}): {widths}"
            );
            if let Some(folder) = &folder {
                let screen = if is_phone { "phone" } else { "desk" };
                let file = Path::new(folder).join(format!("console-{name}-{screen}-{colours}.png"));
                fs::write(file, browser.picture()).expect("the picture is kept");
            }
        }
        grounds
            .push(browser.run("return getComputedStyle(document.documentElement).backgroundColor"));
    }
    assert_ne!(grounds[0], grounds[1], "dark is not light");
    // Who chooses is asked before the system, also after a reload.
    browser.run("const choice = document.querySelector('#theme'); choice.value = 'light'; choice.dispatchEvent(new Event('change')); location.reload()");
    browser.until("it is light", &format!("document.readyState === 'complete' && getComputedStyle(document.documentElement).backgroundColor === {}", grounds[0]));
    assert_eq!(browser.complaints(), Vec::<String>::new());
    if let Some(traffic) = traffic {
        traffic.store(false, Ordering::Relaxed);
    }
    drop(fleet);
}

/// Commands for a fleet, so that a picture has something to show. No test waits for it.
struct Traffic {
    amqp: Amqp,
    exchange: String,
    queue: String,
}

impl Traffic {
    /// Two minutes of commands, in the midst of which the broker was away for a while.
    fn with_an_outage(scene: &mut Scene) -> Arc<AtomicBool> {
        const OUTAGE: Duration = Duration::from_secs(8);
        Self::on(scene).seconds(0..60, &AtomicBool::new(true));
        scene.broker.kill();
        std::thread::sleep(OUTAGE);
        scene.restart_broker();
        Self::on(scene).seconds(60..110, &AtomicBool::new(true));
        // And on, while the pictures are taken.
        let (goes_on, more) = (Arc::new(AtomicBool::new(true)), Self::on(scene));
        let until = Arc::clone(&goes_on);
        std::thread::spawn(move || more.seconds(110..1000, &until));
        goes_on
    }

    fn on(scene: &Scene) -> Self {
        let amqp = Amqp::connect(scene.broker.port());
        Self { amqp, exchange: scene.exchange(), queue: scene.queue() }
    }

    fn seconds(&self, seconds: Range<usize>, goes_on: &AtomicBool) {
        for second in seconds {
            if !goes_on.load(Ordering::Relaxed) {
                return;
            }
            let count = (60.0 + 40.0 * (second as f64 / 9.0).sin()) as usize;
            let commands = (0..count).map(|number| Self::command(second * 31 + number * 7));
            self.amqp.publish_all(&self.exchange, &self.queue, commands);
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn command(number: usize) -> (Vec<u8>, BasicProperties) {
        let is_each = |count| number.is_multiple_of(count);
        let to = if is_each(40) { "127.0.0.9".to_owned() } else { address(number % 500) };
        let confirm = if is_each(3) { "received" } else { "written" };
        let if_offline = if is_each(80) { "park" } else { "reject" };
        let body = json!({"address": to, "cmd": "SET OUT1 ON", "confirm": confirm, "if_offline": if_offline});
        (body.to_string().into_bytes(), persistent())
    }
}
