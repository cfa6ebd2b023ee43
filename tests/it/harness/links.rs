//! The network interfaces of this machine. A browser breaks off what it loads when they change (`ERR_NETWORK_CHANGED`), so
//! tests that change them and tests with a browser run apart.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

static USERS: Mutex<Users> = Mutex::new(Users { changing: 0, steady: 0 });
static FREE: Condvar = Condvar::new();

struct Users {
    changing: usize,
    steady: usize,
}

/// For as long as this lives, who wants the contrary waits.
pub(super) struct Links {
    change: bool,
}

impl Links {
    /// To change them: any number of tests at a time.
    pub(super) fn changing() -> Self {
        let users = FREE.wait_while(users(), |users| users.steady > 0);
        users.unwrap_or_else(PoisonError::into_inner).changing += 1;
        Self { change: true }
    }

    /// To have them stay as they are: any number of tests at a time.
    pub(super) fn steady() -> Self {
        let users = FREE.wait_while(users(), |users| users.changing > 0);
        users.unwrap_or_else(PoisonError::into_inner).steady += 1;
        Self { change: false }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let mut users = users();
        let count = if self.change { &mut users.changing } else { &mut users.steady };
        *count -= 1;
        drop(users);
        FREE.notify_all();
    }
}

fn users() -> MutexGuard<'static, Users> {
    USERS.lock().unwrap_or_else(PoisonError::into_inner)
}
