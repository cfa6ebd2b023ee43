//! A bridge that has no descriptors left goes on, and takes devices again as soon as some leave.

use std::fs;

use crate::harness::{Device, Scene, address, command, eventually};

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
    bridge.until_logged(&["cannot accept"]);
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
    let errors = bridge.metric("rabbitline_accept_errors_total");
    assert!((1.0..500.0).contains(&errors), "it waits between attempts: {errors} errors");
}
