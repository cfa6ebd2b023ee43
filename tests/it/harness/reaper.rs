//! Leaves nothing running and nothing lying about, however the test process ends: SIGKILL and Ctrl-C included.
//!
//! A small shell reads orders from a pipe. When the pipe closes, which the kernel does for a dead process too, it
//! kills every process group still watched and removes the directories and network interfaces. Tests also kill what they started in `Drop`;
//! this is for the ends that run no `Drop`, and for the shared broker node, which lives in a static.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

const SCRIPT: &str = r#"
groups=" " ; newline='
' ; dirs="" ; interfaces=""
while read -r order what; do
    case $order in
        watch) groups="$groups$what " ;;
        forget) groups="${groups%% $what *} ${groups#* $what }" ;;
        remove) dirs="$dirs$what$newline" ;;
        unplug) interfaces="$interfaces $what" ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
for interface in $interfaces; do ip link delete "$interface" 2>/dev/null; done
printf %s "$dirs" | while read -r dir; do rm -rf -- "$dir" || rm -rf -- "$dir"; done
"#;

/// The process group is killed when this process ends.
pub(crate) fn watch(group: u32) {
    order(&format!("watch {group}"));
}

/// The process group has ended and its number may come to belong to somebody else.
pub(crate) fn forget(group: u32) {
    order(&format!("forget {group}"));
}

/// The directory is removed when this process ends.
pub(crate) fn remove(dir: &Path) {
    order(&format!("remove {}", dir.display()));
}

/// The network interface is removed when this process ends, if it is still there.
pub(crate) fn unplug(interface: &str) {
    order(&format!("unplug {interface}"));
}

fn order(line: &str) {
    static REAPER: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| Mutex::new(start()));
    let mut pipe = reaper.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    writeln!(pipe, "{line}").expect("the reaper reads its orders");
}

#[expect(clippy::zombie_processes, reason = "it outlives this process: that is what it is for")]
fn start() -> ChildStdin {
    let mut child = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("/bin/sh runs");
    child.stdin.take().expect("a pipe")
}
