//! A device that does not read, and the commands that wait for it.

use super::{Bridge, Device, Scene, command, eventually};

/// Large, so that a few fill the buffers of a connection.
const LENGTH: usize = 100_000;
/// What `DEVICE_LINE_MAX` must allow for `stalling_command`.
pub(crate) const STALL_LINE_MAX: &str = "131072";

/// Publishes large commands for `address`, which must not read, until `waiting` of them are unsettled: the socket takes
/// no more. The numbers of all that were published are 0 to the returned count.
#[track_caller]
pub(crate) fn stall(scene: &Scene, bridge: &Bridge, address: &str, waiting: usize) -> usize {
    const ENOUGH: usize = 400;
    let waiting = waiting as f64;
    let written_before = bridge.outcomes("written");
    for number in 0..ENOUGH {
        scene.publish(&command(address, &stalling_line(number)));
        let published = (number + 1) as f64;
        let unsettled = eventually("the command is written or waits", || {
            let (written, unsettled) =
                (bridge.outcomes("written"), bridge.metric("rabbitline_unsettled"));
            let known = written - written_before + unsettled;
            if known == published {
                Ok(unsettled)
            } else {
                Err(format!("{written} written, {unsettled} unsettled"))
            }
        });
        if unsettled >= waiting {
            return number + 1;
        }
    }
    panic!("{ENOUGH} large commands were written to a device that does not read");
}

/// The command with this number.
pub(crate) fn stalling_line(number: usize) -> String {
    let head = format!("{number:06} ");
    head + &"x".repeat(LENGTH)
}

/// The number of a large command as a device received it, terminator included.
#[track_caller]
pub(crate) fn stalling_number(line: &[u8]) -> usize {
    let text = std::str::from_utf8(line).expect("UTF-8");
    let number = text.get(..6).and_then(|digits| digits.parse().ok()).expect("a large command");
    assert_eq!(text, stalling_line(number) + "\r\n", "a whole line");
    number
}

/// The numbers of the next `count` lines of a device, which are large commands.
#[track_caller]
pub(crate) fn stalling_numbers(device: &mut Device, count: usize) -> Vec<usize> {
    (0..count).map(|_| stalling_number(device.line().as_bytes())).collect()
}

/// What waited for a device that did not read, at its connection `old`, arrives at `new`: all `published` commands to
/// the last, in order, none at both.
#[track_caller]
pub(crate) fn goes_on_where_it_moved(old: &mut Device, new: &mut Device, published: usize) {
    let on_old: Vec<usize> = old.until_closed().iter().map(|line| stalling_number(line)).collect();
    let mut on_new = Vec::new();
    while on_new.last() != Some(&(published - 1)) {
        on_new.push(stalling_number(new.line().as_bytes()));
    }
    assert!(on_new.windows(2).all(|pair| pair[0] < pair[1]), "in order: {on_new:?}");
    assert!(on_new.len() >= 4, "all that waited but for the one partly written: {on_new:?}");
    assert!(on_old.iter().all(|number| *number < on_new[0]), "{on_old:?} then {on_new:?}");
}
