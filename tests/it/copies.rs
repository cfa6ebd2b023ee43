//! docs/examples/copy_state.py, which keeps a copy of the state, keeps a true one.

use std::collections::BTreeMap;
use std::process::Command;

use crate::harness::{Bridge, Device, Dice, Program, Scene, Setup, eventually, free_port};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/copy_state.py");

/// The program, as somebody sees it who reads what it prints.
struct Client(Program);

#[derive(Debug, Default, PartialEq)]
struct State {
    known: Option<String>,
    devices: BTreeMap<String, u64>,
}

impl Client {
    #[track_caller]
    fn start(scene: &Scene, http: u16) -> Self {
        let amqp = format!("amqp://guest:guest@127.0.0.1:{}/%2f", scene.broker.port());
        let mut command = Command::new("/usr/bin/python3");
        command.args([SCRIPT, &amqp, &scene.events(), &format!("http://127.0.0.1:{http}")]);
        Self(Program::spawn("python3: run `apt-get install python3-pika`", command, &[]))
    }

    /// What it has come to.
    fn state(&self) -> State {
        let mut state = State::default();
        for line in self.0.stdout.all() {
            let mut words = line.split_whitespace();
            let mut word = || words.next().unwrap_or_default().to_owned();
            match word().as_str() {
                "online" => {
                    let (address, epoch) = (word(), word().parse().expect("an epoch"));
                    state.devices.insert(address, epoch);
                }
                "offline" => assert!(state.devices.remove(&word()).is_some(), "{line}"),
                "known" => state.known = Some(word()),
                _ => state.known = None,
            }
        }
        state
    }

    /// Waits until it has come to what the bridge itself says, with so many devices.
    #[track_caller]
    fn until_true(&self, bridge: &Bridge, count: usize) {
        eventually("the copy is what the bridge says", || {
            let (copy, truth) = (self.state(), truth(bridge));
            if copy == truth && truth.devices.len() == count {
                Ok(())
            } else {
                Err(format!(
                    "{count} expected\ncopy {copy:?}\ntruth {truth:?}\n{}",
                    self.0.stderr.text()
                ))
            }
        });
    }
}

#[track_caller]
fn truth(bridge: &Bridge) -> State {
    let snapshot = bridge.devices("?snapshot");
    let listed = snapshot["devices"].as_array().expect("an array");
    let device = |it: &serde_json::Value| {
        (it["address"].as_str().expect("text").to_owned(), it["epoch"].as_u64().expect("a number"))
    };
    let run = snapshot["run"].as_str().map(str::to_owned);
    State { known: run, devices: listed.iter().map(device).collect() }
}

/// A bridge that is at the same ports each time it is started.
fn setup(scene: &Scene) -> (Setup, u16) {
    let (devices, http) = (free_port(), free_port());
    let setup = scene
        .setup()
        .set("DEVICE_LISTEN", format!("127.0.0.1:{devices}"))
        .set("HTTP_LISTEN", format!("127.0.0.1:{http}"))
        .set("BRIDGE_HEARTBEAT", "500ms");
    (setup, http)
}

#[test]
fn a_copy_is_known_while_the_bridge_is_heard_and_follows_it_when_it_returns() {
    let scene = Scene::new("copy");
    let (setup, http) = setup(&scene);
    // It waits for a bridge, and for the exchange, that are not there yet.
    let client = Client::start(&scene, http);
    let mut bridge = setup.start();
    let devices = ["127.0.0.2", "127.0.0.3"].map(|from| bridge.device(from));
    client.until_true(&bridge, 2);

    bridge.program.kill();
    eventually("it knows that it does not know", || {
        let state = client.state();
        if state.known.is_none() { Ok(()) } else { Err(format!("{state:?}")) }
    });
    drop(devices);
    let mut bridge = setup.start();
    client.until_true(&bridge, 0);
    let device = bridge.device("127.0.0.4");
    client.until_true(&bridge, 1);

    // One that returns at once is another all the same.
    bridge.program.kill();
    let bridge = setup.start();
    client.until_true(&bridge, 0);
    drop(device);
    let _device = bridge.device("127.0.0.5");
    client.until_true(&bridge, 1);

    // One that ends in good order says so, and there is nothing unknown about it.
    assert_eq!(bridge.terminate().code, Some(0));
    eventually("its devices are gone", || {
        let state = client.state();
        if state.devices.is_empty() && state.known.is_some() {
            Ok(())
        } else {
            Err(format!("{state:?}"))
        }
    });
}

#[test]
fn whatever_happens_a_copy_ends_in_the_truth() {
    const STEPS: usize = 400;
    const DEVICES: usize = 12;
    let mut dice = Dice::new();
    let mut scene = Scene::alone("copy-schedule");
    let (setup, http) = setup(&scene);
    let mut bridge = setup.start();
    let client = Client::start(&scene, http);
    client.until_true(&bridge, 0);
    let mut connected: BTreeMap<usize, Device> = BTreeMap::new();
    // What costs seconds happens so often, at moments drawn by lot.
    let mut outages = [(); 2].map(|()| dice.below(STEPS));
    let mut ends = [(); 3].map(|()| dice.below(STEPS));
    outages.sort_unstable();
    ends.sort_unstable();
    let mut back = None;
    for step in 0..STEPS {
        if outages.contains(&step) && back.is_none() {
            println!("{step}: the broker is killed");
            scene.broker.kill();
            back = Some(step + 1 + dice.below(60));
        }
        if back.is_some_and(|back| step >= back) {
            back = None;
            println!("{step}: the broker is started");
            scene.restart_broker();
        }
        if ends.contains(&step) {
            let asked = dice.once_in(3) && back.is_none();
            println!("{step}: the bridge is {}", if asked { "stopped" } else { "killed" });
            if asked {
                bridge.terminate();
            } else {
                bridge.program.kill();
            }
            connected.clear();
            bridge = setup.launch();
        }
        let n = dice.below(DEVICES);
        match (connected.remove(&n), dice.below(5)) {
            (Some(device), 0) => device.reset(),
            (Some(device), 1) => drop(device),
            (replaced, _) => {
                let from = format!("127.0.0.{}", n + 2);
                connected.insert(n, Device::connect(&from, bridge.device_port));
                drop(replaced);
            }
        }
        // Now and then the bridge has caught up, and so has the copy if it can.
        if dice.once_in(8) {
            eventually("the bridge knows its devices", || {
                let devices = truth(&bridge).devices.len();
                if devices == connected.len() { Ok(()) } else { Err(devices) }
            });
        }
        if dice.once_in(25) && back.is_none() {
            client.until_true(&bridge, connected.len());
        }
    }
    if back.is_some() {
        scene.restart_broker();
    }
    client.until_true(&bridge, connected.len());
    println!("it printed {} lines", client.0.stdout.all().len());
}
