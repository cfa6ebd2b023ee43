//! A table of open files for one thread. The limit on open files is on the numbers in a table, and one that cannot be raised,
//! as in many containers, is less than a crowd of devices needs.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Has the calling thread open its files in a table of its own from now on, and begins with what `make` makes: the thread's
/// own runtime, which copies something of the process's first. Of what is open elsewhere the thread keeps nothing but the
/// standard streams: a connection that its owner closes must end.
#[expect(unsafe_code, reason = "files of other threads are closed in a copy of their table")]
pub(super) fn of_its_own<T>(make: impl FnOnce() -> T) -> T {
    // SAFETY: the thread has just begun and uses no file that was opened elsewhere.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.expect("a table of one's own");
    let copied = open();
    let made = make();
    for number in copied {
        // SAFETY: it was open before `make`, so it is a copy that nobody uses in this table.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
    made
}

/// What is open, but for the standard streams.
fn open() -> Vec<RawFd> {
    const OWN: &str = "/proc/thread-self/fd";
    let names = std::fs::read_dir(OWN).expect("/proc");
    let numbers = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let numbers: Vec<RawFd> = numbers.filter(|number| *number > 2).collect();
    // What the directory was read with is closed by now.
    let is_open = |number: &RawFd| std::fs::read_link(format!("{OWN}/{number}")).is_ok();
    numbers.into_iter().filter(is_open).collect()
}
