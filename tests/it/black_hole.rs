//! A device that is black-holed right after it has connected: whatever is written to it goes nowhere, and nobody can
//! know. No command may be lost by that, however little proof was asked for.

use crate::harness::{Bridge, Inbox, Scene, Site, command, reply_to};

const COMMANDS: usize = 50;

/// Publishes the commands to a device that is gone, and waits until the bridge has found out.
#[track_caller]
fn black_hole(scene: &Scene, bridge: &Bridge, site: &Site) -> Inbox {
    let receipts = scene.receipts();
    let _device = site.device(bridge, 0);
    site.vanish();
    for number in 0..COMMANDS {
        let command = command(&site.address(0), &format!("NUMBER {number}"));
        scene.publish_with(command.to_string().as_bytes(), reply_to(&receipts));
    }
    // The kernel takes them all: a bridge that stops here has lost them.
    for receipt in receipts.take(COMMANDS) {
        assert_eq!(receipt.json()["outcome"], "written");
    }
    bridge.until_metric("rabbitline_connections_ended_total{reason=\"timeout\"}", |n| n == 1.0);
    receipts
}

#[test]
fn commands_that_went_into_a_black_hole_are_delivered_when_the_device_returns() {
    let scene = Scene::new("black-hole-park");
    let site = Site::new();
    let bridge = scene.setup().vigilant().set("COMMAND_IF_OFFLINE", "park").start();
    let receipts = black_hole(&scene, &bridge, &site);
    for receipt in receipts.take(COMMANDS) {
        assert_eq!(receipt.json()["outcome"], "parked");
    }

    site.reappear();
    let mut device = site.device(&bridge, 0);

    for number in 0..COMMANDS {
        assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
        assert_eq!(receipts.next().json()["outcome"], "written");
    }
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    assert_eq!(bridge.metric("rabbitline_undelivered_total"), 0.0);
}

#[test]
fn commands_that_went_into_a_black_hole_are_told_as_uncertain_if_they_may_not_be_parked() {
    let scene = Scene::new("black-hole-reject");
    let site = Site::new();
    let bridge = scene.setup().vigilant().start();
    let undelivered = scene.undelivered_inbox();
    let receipts = black_hole(&scene, &bridge, &site);
    for (number, letter) in undelivered.take(COMMANDS).iter().enumerate() {
        assert_eq!(letter.header("x-outcome"), "uncertain");
        assert_eq!(letter.json()["cmd"], format!("NUMBER {number}"));
    }
    for receipt in receipts.take(COMMANDS) {
        assert_eq!(receipt.json()["outcome"], "uncertain");
    }
}
