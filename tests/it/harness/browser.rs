//! A real browser without a window, driven through WebDriver: what people see of the console.

//!
//! WebDriver (W3C) is JSON over HTTP, and a dozen of its commands are all there is to do here: the client that the
//! program has anyway is enough.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::Agent;

use super::links::Links;
use super::{Program, eventually};

const DRIVER: &str = "/usr/bin/chromedriver";
const CHROMIUM: &str = "/usr/bin/chromium";
/// Marks in the browser's trace.
const BEGIN: &str = "watch begins";
const END: &str = "watch ends";
/// What WebDriver calls an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// A browser that starts beside compilers takes its time.
const ANSWER: Duration = Duration::from_secs(90);
/// The longest answer is a log of all that kept a page busy.
const ANSWER_MAX: u64 = 256 * 1024 * 1024;
/// Runs in each page before its own scripts, so that nothing is missed.
const WATCH: &str = "window.longest = 0;
    new PerformanceObserver((seen) => {
        for (const { duration } of seen.getEntries()) window.longest = Math.max(window.longest, duration);
    }).observe({ type: 'longtask', buffered: true });";

/// One browser with one page; ended when dropped.
pub(crate) struct Browser {
    agent: Agent,
    /// Of the session, which is one page.
    url: String,
    _driver: Program,
    // Behind the driver, whose browser writes here.
    _folder: TempDir,
    _links: Links,
}

/// What kept a page's main thread busy, each in milliseconds.
#[derive(Debug)]
pub(crate) struct Busy {
    /// The longest task by the clock, while others use the processor, too.
    pub(crate) by_clock: f64,
    /// The longest task by the time the processor spent on it.
    pub(crate) by_processor: f64,
}

impl Browser {
    #[track_caller]
    pub(crate) fn start() -> Self {
        for (file, package) in [(DRIVER, "chromium-driver"), (CHROMIUM, "chromium")] {
            assert!(
                Path::new(file).exists(),
                "these tests need a real browser and {file} is not there: run `apt-get install {package}`"
            );
        }
        let links = Links::steady();
        let folder = TempDir::new().expect("a directory");
        let mut command = Command::new(DRIVER);
        command.arg("--port=0");
        let home = ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"];
        let mut env: Vec<_> = home.map(|name| (name.into(), folder.path().into())).to_vec();
        env.push(("PATH".into(), "/usr/bin:/bin".into()));
        let mut driver = Program::spawn("chromedriver", command, &env);
        let output = driver.stdout.clone();
        let port: u16 = eventually("chromedriver says its port", || {
            if let Some(status) = driver.ended() {
                panic!("chromedriver ended with {status}: {}", output.text());
            }
            let said = output.all();
            let port = said.iter().find_map(|line| {
                line.split_once("successfully on port ")?.1.trim().strip_suffix('.')?.parse().ok()
            });
            port.ok_or_else(|| output.text())
        });
        let agent = Agent::config_builder()
            .timeout_global(Some(ANSWER))
            .http_status_as_error(false)
            .build()
            .into();
        let mut browser = Self {
            agent,
            url: format!("http://127.0.0.1:{port}/session"),
            _driver: driver,
            _folder: folder,
            _links: links,
        };
        let session =
            browser.post("", &json!({ "capabilities": { "alwaysMatch": capabilities() } }));
        browser.url += &format!("/{}", session["sessionId"].as_str().expect("a session"));
        browser.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": WATCH }));
        browser
    }

    #[track_caller]
    pub(crate) fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// What a script returns.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until an expression is true, or something that counts as such; its value.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, expression: &str) -> Value {
        let script = format!("return {expression}");
        eventually(what, || {
            let value = self.run(&script);
            if value.is_null() || value == false { Err(self.text("body")) } else { Ok(value) }
        })
    }

    /// Waits until the text of an element contains a part, and returns it.
    #[track_caller]
    pub(crate) fn until_says(&self, selector: &str, part: &str) -> String {
        eventually(&format!("{selector} says {part:?}"), || {
            let text = self.text(selector);
            if text.contains(part) {
                Ok(text)
            } else {
                Err(format!("{text:?}, and the page {:?}", self.text("body")))
            }
        })
    }

    /// The text of an element as it is seen; of one that is not there, nothing.
    #[track_caller]
    pub(crate) fn text(&self, selector: &str) -> String {
        let text = self
            .run(&format!("return document.querySelector({})?.innerText ?? ''", json!(selector)));
        text.as_str().expect("a text").to_owned()
    }

    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.post(&format!("/element/{element}/click"), &json!({}));
    }

    /// Types into an element.
    #[track_caller]
    pub(crate) fn keys(&self, selector: &str, keys: &str) {
        let element = self.find(selector);
        self.post(&format!("/element/{element}/value"), &json!({ "text": keys }));
    }

    /// Types into whatever has the focus.
    #[track_caller]
    pub(crate) fn keys_where_the_focus_is(&self, keys: &str) {
        let press = |key: char| {
            [
                json!({ "type": "keyDown", "value": key.to_string() }),
                json!({ "type": "keyUp", "value": key.to_string() }),
            ]
        };
        let actions: Vec<Value> = keys.chars().flat_map(press).collect();
        self.post(
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] }),
        );
    }

    /// What the page and the browser complained of since this was last asked.
    #[track_caller]
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.log("browser")
            .iter()
            .map(|entry| format!("{} {}", entry["level"], entry["message"]))
            .collect()
    }

    /// From now on it is noted what keeps the page busy.
    #[track_caller]
    pub(crate) fn begin_to_watch(&self) {
        self.run(&format!("window.longest = 0; performance.mark({BEGIN:?})"));
    }

    /// What kept the page busy since then.
    #[track_caller]
    pub(crate) fn busy(&self) -> Busy {
        self.run(&format!("performance.mark({END:?})"));
        // It comes when it comes, and in the order of each thread.
        let mut traced = Vec::new();
        eventually("the browser has told what it did", || {
            traced.append(&mut self.traced());
            if traced.iter().any(|event| event["name"] == END) { Ok(()) } else { Err(traced.len()) }
        });
        let begin = traced.iter().find(|event| event["name"] == BEGIN).expect("the first mark");
        // Marks are made where the page's scripts run.
        let is_task = |event: &&Value| {
            event["name"].as_str().is_some_and(|name| name.ends_with("RunTask"))
                && (&event["pid"], &event["tid"]) == (&begin["pid"], &begin["tid"])
                && event["ts"].as_f64() > begin["ts"].as_f64()
        };
        let micros = traced.iter().filter(is_task).filter_map(|event| event["tdur"].as_f64());
        let by_processor = micros.reduce(f64::max).expect("the page did something") / 1e3;
        let by_clock = self.run("return window.longest").as_f64().expect("a number");
        Busy { by_clock, by_processor }
    }

    /// What the browser noted of its own work since this was last asked.
    #[track_caller]
    fn traced(&self) -> Vec<Value> {
        let told = self.log("performance");
        let events = told
            .iter()
            .filter_map(|entry| serde_json::from_str::<Value>(entry["message"].as_str()?).ok());
        let traced = events.filter(|event| event["message"]["method"] == "Tracing.dataCollected");
        traced.map(|mut event| event["message"]["params"].take()).collect()
    }

    /// A phone with a narrow screen, or the usual window.
    #[track_caller]
    pub(crate) fn be_a_phone(&self, is_phone: bool) {
        let screen = json!({ "width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true });
        if is_phone {
            self.devtools("Emulation.setDeviceMetricsOverride", screen);
        } else {
            self.devtools("Emulation.clearDeviceMetricsOverride", json!({}));
        }
        self.devtools("Emulation.setTouchEmulationEnabled", json!({ "enabled": is_phone }));
    }

    /// What the system prefers: `light` or `dark`.
    #[track_caller]
    pub(crate) fn prefer(&self, colours: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": colours });
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// What is seen now, as PNG.
    #[track_caller]
    pub(crate) fn picture(&self) -> Vec<u8> {
        let text = self.tell("GET", "/screenshot", &Value::Null);
        STANDARD.decode(text.as_str().expect("a text")).expect("base64")
    }

    #[track_caller]
    fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    #[track_caller]
    fn log(&self, kind: &str) -> Vec<Value> {
        let mut told = self.post("/se/log", &json!({ "type": kind }));
        told.as_array_mut().map(std::mem::take).expect("a list")
    }

    #[track_caller]
    fn find(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        self.tell("POST", path, body)
    }

    /// One command; what came of it.
    #[track_caller]
    fn tell(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.url);
        let said = match method {
            "POST" => self.agent.post(url).content_type("application/json").send(body.to_string()),
            "DELETE" => self.agent.delete(url).call(),
            _ => self.agent.get(url).call(),
        };
        let answer = said.and_then(|mut answer| {
            answer.body_mut().with_config().limit(ANSWER_MAX).read_to_string()
        });
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let mut answer: Value =
            serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
        let value = answer["value"].take();
        assert!(
            value["error"].is_null(),
            "{method} {path} {body}: {}: {}",
            value["error"],
            value["message"]
        );
        value
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser is no child of ours, but the driver's. Without a session there is none.
        if !std::thread::panicking() {
            self.tell("DELETE", "", &Value::Null);
        }
    }
}

fn capabilities() -> Value {
    let arguments = [
        "--headless=new",
        "--no-sandbox", // of no use to root, whom links that go dead need
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1440,900",
        "--force-color-profile=srgb",
        "--remote-debugging-pipe", // it ends when the driver is gone, however that ended
    ];
    let tasks = json!({ "enableNetwork": false, "enablePage": false, "traceCategories": "-*,toplevel,blink.user_timing" });
    json!({
        "browserName": "chrome",
        "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        "goog:chromeOptions": { "binary": CHROMIUM, "args": arguments, "perfLoggingPrefs": tasks },
    })
}
