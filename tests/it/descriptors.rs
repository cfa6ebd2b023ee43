//! A bridge that has no descriptors left goes on, and takes devices again as soon as some leave.

use std::fs;

use crate::harness::{Bridge, Device, Scene, address, command, eventually};

#[test]
fn without_descriptors_the_bridge_neither_ends_nor_spins_and_accepts_again_when_it_can() {
    const FILES: usize = 64;
    const DEVICES: usize = 100;
    let scene = Scene::new("descriptors");
    let presence = scene.presence();
    let bridge = scene.setup().with_few_files(FILES as u32).start();

    // The kernel completes the handshakes of those that the bridge cannot accept.
    let mut devices: Vec<Device> =
        (0..DEVICES).map(|index| Device::connect(&address(index), bridge.device_port)).collect();
    eventually("the bridge has no descriptor left", || {
        let names = fs::read_dir(format!("/proc/{}/fd", bridge.program.id())).expect("/proc");
        let number = |name: std::io::Result<fs::DirEntry>| {
            name.ok()?.file_name().to_str()?.parse::<usize>().ok()
        };
        // Whatever it has above the limit was handed down to it.
        let files = names.filter_map(number).filter(|number| *number < FILES).count();
        if files == FILES { Ok(()) } else { Err(format!("{files} descriptors")) }
    });
    // The first waits between its attempts are 5, 10, 20, 40 and 80 ms, or longer on a busy machine, never shorter.
    let failures = eventually("some attempts to accept have failed", || {
        let failures = failures(&bridge);
        if failures.len() >= 6 { Ok(failures) } else { Err(format!("{failures:?}")) }
    });
    assert!(failures[5] - failures[0] >= 100, "it waits between attempts: {failures:?} ms");
    let first = presence.next().json()["address"].as_str().expect("an address").to_owned();
    scene.publish(&command(&first, "STILL THERE"));
    let index = (0..DEVICES).find(|index| address(*index) == first).expect("one of ours");
    assert_eq!(devices[index].line(), "STILL THERE\r\n", "those it has are served");

    // Half of all leave, among them every one that was accepted: the waiting ones are accepted now.
    devices.drain(..DEVICES - 30);
    for device in 0..30 {
        let from = address(DEVICES - 30 + device);
        eventually("the devices that waited are registered", || {
            let page = bridge.get("/devices?limit=1000").body;
            if page.contains(&format!("\"{from}\"")) { Ok(()) } else { Err(page) }
        });
    }
    let last = address(DEVICES - 1);
    scene.publish(&command(&last, "WELCOME"));
    assert_eq!(devices[29].line(), "WELCOME\r\n");
    bridge.until_metric("rabbitline_accept_errors_total", |errors| errors >= failures.len() as f64);
}

/// When the log says that a connection could not be accepted, in milliseconds of the day.
fn failures(bridge: &Bridge) -> Vec<u64> {
    let at = |line: &String| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["message"].as_str()?.contains("cannot accept").then_some(())?;
        // 2026-01-31T23:59:58.123456Z
        let time = line["timestamp"].as_str()?;
        let number = |range| time.get(range).and_then(|digits: &str| digits.parse::<u64>().ok());
        Some(
            number(11..13)? * 3_600_000
                + number(14..16)? * 60_000
                + number(17..19)? * 1_000
                + number(20..23)?,
        )
    };
    bridge.log().all().iter().filter_map(at).collect()
}
