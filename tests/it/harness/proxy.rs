//! A TCP proxy between the bridge and its broker that breaks connections in the ways networks do.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    broker_port: u16,
    links: Mutex<Vec<Arc<Link>>>,
    over: AtomicBool,
}

struct Link {
    bridge: TcpStream,
    broker: TcpStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// What the broker says does not arrive; what the bridge says does.
    Deaf,
    /// The bridge's end is closed, and the broker does not know.
    Half,
    Ended,
}

impl Proxy {
    pub(crate) fn start(broker_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let shared =
            Arc::new(Shared { broker_port, links: Mutex::default(), over: AtomicBool::new(false) });
        let proxy = Self { port, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            while let Ok((bridge, _)) = listener.accept() {
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                // Without a broker the connection ends at once.
                if let Ok(broker) = TcpStream::connect(("127.0.0.1", shared.broker_port)) {
                    shared.join(bridge, broker);
                }
            }
        });
        proxy
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends those connections whose bit is set in `which`, the oldest being the lowest.
    pub(crate) fn cut(&self, which: usize) {
        self.each(which, |link| link.end());
    }

    /// Ends the bridge's side of them only: the broker takes them to be alive, until `heal`.
    pub(crate) fn cut_half(&self, which: usize) {
        self.each(which, |link| {
            link.set(State::Half);
            link.bridge.shutdown(Shutdown::Both).ok();
        });
    }

    /// Holds back what the broker says on them, until `heal` or `cut`.
    pub(crate) fn deafen(&self, which: usize) {
        self.each(which, |link| link.set(State::Deaf));
    }

    /// The same on the connection that comes to the broker from this port.
    pub(crate) fn deafen_port(&self, port: u16) {
        for link in self.shared.lock().iter() {
            if link.broker.local_addr().is_ok_and(|address| address.port() == port) {
                link.set(State::Deaf);
            }
        }
    }

    /// Has the broker learn which connections have ended, and lets the others go on.
    pub(crate) fn heal(&self) {
        for link in self.shared.lock().iter() {
            let state = *link.lock();
            match state {
                State::Half => link.end(),
                State::Deaf => link.set(State::Whole),
                State::Whole | State::Ended => {}
            }
        }
    }

    fn each(&self, which: usize, what: impl Fn(&Link)) {
        let mut links = self.shared.lock();
        links.retain(|link| *link.lock() != State::Ended);
        let alive = links.iter().filter(|link| *link.lock() != State::Half);
        let chosen = alive.enumerate().filter(|(index, _)| which & (1 << index) != 0);
        chosen.for_each(|(_, link)| what(link));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.lock().iter().for_each(|link| link.end());
        // Wakes the thread that accepts.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

impl Shared {
    fn join(&self, bridge: TcpStream, broker: TcpStream) {
        for stream in [&bridge, &broker] {
            stream.set_nodelay(true).expect("TCP_NODELAY");
        }
        let link =
            Link { bridge, broker, state: Mutex::new(State::Whole), changed: Condvar::new() };
        let link = Arc::new(link);
        self.lock().push(Arc::clone(&link));
        let up = Arc::clone(&link);
        std::thread::spawn(move || up.carry_up());
        std::thread::spawn(move || link.carry_down());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    fn carry_up(&self) {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = (&self.bridge).read(&mut buffer) {
            if (&self.broker).write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        if *self.lock() != State::Half {
            self.end();
        }
    }

    fn carry_down(&self) {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = (&self.broker).read(&mut buffer) {
            let mut state = self.lock();
            while *state == State::Deaf {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let state = *state;
            // Nobody is there to hear it, and the broker does not notice.
            if state == State::Half {
                continue;
            }
            if state == State::Ended || (&self.bridge).write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        self.end();
    }

    fn end(&self) {
        self.set(State::Ended);
        self.bridge.shutdown(Shutdown::Both).ok();
        self.broker.shutdown(Shutdown::Both).ok();
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
