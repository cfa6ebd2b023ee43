//! A device whose connection stands and that sends nothing is told apart from one that is well.

use crate::harness::Scene;

#[test]
fn a_silent_device_is_reported_and_sent_a_heartbeat_and_reported_again_when_it_is_heard() {
    let scene = Scene::new("silence");
    let presence = scene.presence();
    let setup = scene.setup().set("DEVICE_SILENCE_LIMIT", "1s").set("DEVICE_HEARTBEAT", "PING");
    let bridge = setup.start();
    let mut device = bridge.device("127.0.0.2");
    let seen = || {
        let event = presence.next().json();
        (event["online"] == true, event["silent"] == true, event["reason"].to_string())
    };
    assert_eq!(seen(), (true, false, "\"connected\"".to_owned()));
    assert_eq!(device.line(), "PING\r\n");
    assert_eq!(seen(), (true, true, "\"silent\"".to_owned()));
    device.send(b"PONG\r\n");
    assert_eq!(seen(), (true, false, "\"heard\"".to_owned()));
    drop(device);
    assert_eq!(seen(), (false, false, "\"closed\"".to_owned()));
}
