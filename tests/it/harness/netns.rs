//! A site whose devices can vanish without a word: a network namespace behind a veth pair of its own.
//!
//! Loopback cannot lose anything: a device there that ends is always announced by a FIN or a reset. Here both ends of
//! the pair can be made to send to a hardware address that nobody has, and neither end is told.
//!
//! The namespace has no name. It is held by a process that ends when this one does, however that ends, and then the
//! kernel removes it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::links::Links;
use super::{Bridge, Device, reaper, signal};

/// How many devices a site has room for.
const DEVICES: u8 = 4;
/// Nobody's hardware address.
const NOBODY: &str = "02:00:00:00:00:99";
/// The far end's name; it is alone in its namespace.
const FAR: &str = "bridge";

/// A site. `Setup::reachable` makes a bridge that can be reached from it.
pub(crate) struct Site {
    near: String,
    net: Net,
    holder: Child,
    namespace: File,
    _links: Links,
}

/// The /24 of a site.
#[derive(Clone, Copy)]
struct Net(u8, u8);

impl Site {
    #[track_caller]
    pub(crate) fn new() -> Self {
        require_ip();
        let links = Links::changing();
        let holder = hold_a_namespace();
        let namespace = File::open(format!("/proc/{}/ns/net", holder.id())).expect("a namespace");
        static SITES: AtomicU32 = AtomicU32::new(0);
        let me = std::process::id();
        let near = format!("rl{me}x{}", SITES.fetch_add(1, Ordering::Relaxed));
        let id = holder.id();
        reaper::unplug(&near);
        ip(&format!("link add {near} type veth peer name {FAR} netns {id}\nlink set {near} up"));
        let net = claim_a_net(&near);
        let site = Self { near, net, holder, namespace, _links: links };
        let addresses: String = site
            .addresses()
            .map(|address| format!("address add {address}/24 dev {FAR}\n"))
            .collect();
        site.inside(|| ip(&format!("link set lo up\nlink set {FAR} up\n{addresses}")));
        site
    }

    /// The address of a device here.
    #[track_caller]
    pub(crate) fn address(&self, device: u8) -> String {
        assert!(device < DEVICES, "a site has room for {DEVICES} devices");
        self.net.host(2 + device).to_string()
    }

    /// A device here that is connected, and that the bridge knows to be.
    #[track_caller]
    pub(crate) fn device(&self, bridge: &Bridge, device: u8) -> Device {
        let to = SocketAddr::from((self.net.host(1), bridge.device_port));
        let from = self.address(device);
        bridge.knows(self.inside(|| Device::connect_to(to, &from, None)))
    }

    /// From now on nothing arrives any more, either way, and neither side is told.
    #[track_caller]
    pub(crate) fn vanish(&self) {
        let to_nobody = |address, dev: &str| {
            format!("neigh replace {address} lladdr {NOBODY} dev {dev} nud permanent\n")
        };
        let near: String = self.addresses().map(|device| to_nobody(device, &self.near)).collect();
        ip(&near);
        self.inside(|| ip(&to_nobody(self.net.host(1), FAR)));
    }

    /// From now on nothing arrives any more, and this machine, which nobody there answers, finds that it has no way.
    #[track_caller]
    pub(crate) fn unplug(&self) {
        self.inside(|| ip(&format!("link set {FAR} down")));
    }

    /// Ends what `vanish` began.
    #[track_caller]
    pub(crate) fn reappear(&self) {
        let ask_again = |address, dev: &str| format!("neigh delete {address} dev {dev}\n");
        let near: String = self.addresses().map(|device| ask_again(device, &self.near)).collect();
        ip(&near);
        self.inside(|| ip(&ask_again(self.net.host(1), FAR)));
    }

    /// Does something in the namespace. The sockets it makes and the processes it starts stay there.
    #[track_caller]
    fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        // A thread for this alone: one that has moved is not needed for anything else, and need not come back.
        let done = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.namespace.as_fd(), network).expect("setns");
                act()
            });
            there.join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let net = self.net;
        (0..DEVICES).map(move |device| net.host(2 + device))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // With the namespace the kernel would remove it too, but sockets that try in vain to send what they still have
        // keep that for minutes.
        let removed = Command::new("ip").args(["link", "delete", &self.near]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("the interface {} stays behind", self.near);
        }
        signal::kill_group(self.holder.id());
        self.holder.wait().expect("a killed child ends");
    }
}

impl Net {
    /// All that there are, in 10.64.0.0/10; parallel runs begin at different ones.
    fn all() -> impl Iterator<Item = Self> {
        const COUNT: u32 = 1 << 14;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let start = std::process::id().wrapping_mul(61);
        (0..COUNT).map(move |_| {
            let [_, _, high, low] =
                (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT).to_be_bytes();
            Self(64 + high, low)
        })
    }

    fn host(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.0, self.1, number)
    }
}

/// Gives `near` the first address of a /24 that this machine has no other way to.
#[track_caller]
fn claim_a_net(near: &str) -> Net {
    let claim = |net: &Net| {
        let (address, net) = (net.host(1), net.host(0));
        ip(&format!("address add {address}/24 dev {near}"));
        let ours = ip(&format!("route show root {net}/24"))
            .lines()
            .all(|route| route.contains(&format!(" dev {near} ")));
        if !ours {
            ip(&format!("address delete {address}/24 dev {near}"));
        }
        ours
    };
    Net::all().find(claim).expect("a free /24 in 10.64.0.0/10")
}

/// A process in a new network namespace, which ends when its standard input does: with this process at the latest.
#[track_caller]
fn hold_a_namespace() -> Child {
    let mut holder = Command::new("unshare")
        .args(["--net", "cat"])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare runs");
    // What `cat` repeats it repeats in the new namespace.
    let asked = holder.stdin.as_mut().expect("a pipe").write_all(b"there\n");
    let mut answer = String::new();
    let answered = BufReader::new(holder.stdout.as_mut().expect("a pipe")).read_line(&mut answer);
    if asked.is_err() || answered.is_err() || answer != "there\n" {
        let why = holder.wait_with_output().expect("unshare ends");
        panic!(
            "this test makes a network namespace and was not allowed to ({}): run it as root, in a container with \
             the capabilities SYS_ADMIN and NET_ADMIN",
            String::from_utf8_lossy(&why.stderr).trim()
        );
    }
    holder
}

#[track_caller]
fn require_ip() {
    let found = Command::new("ip").arg("-V").stdout(Stdio::null()).status();
    assert!(found.is_ok(), "this test needs the program `ip`: run `apt-get install iproute2`");
}

/// Has `ip` carry out commands, one a line, in the namespace of the calling thread; what it prints.
#[track_caller]
fn ip(commands: &str) -> String {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ip runs");
    child.stdin.take().expect("a pipe").write_all(commands.as_bytes()).expect("ip reads");
    let output = child.wait_with_output().expect("ip ends");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip cannot do this:\n{commands}\n{why}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
