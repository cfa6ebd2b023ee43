//! `Watched`: what was read from files, and is read again when they change.
//!
//! Nobody is told of a change; whoever asks finds it. Files that cannot be read, or do not hold what
//! they should, leave in force what was read before; that is said once, and they are tried again.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::{info, warn};

/// How often files are looked at, at most: a new certificate or a new token may wait so long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells one state of the files from another: of each when it was changed, its length and which
/// file it is, for it may have been put in the place of the other.
type Stamp = Vec<Option<(SystemTime, u64, u64)>>;

/// What was read from some files.
pub(crate) struct Watched<T> {
    paths: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    /// Held while files are looked at or read: they are small and local.
    state: Mutex<State<T>>,
}

struct State<T> {
    looked: Instant,
    stamp: Stamp,
    value: Arc<T>,
    /// Why the files could not be read when they were looked at last.
    error: Option<String>,
}

impl<T> Watched<T> {
    /// Reads `paths` with `read`; fails if they cannot be read now.
    pub(crate) fn new(
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // Before they are read: what changes meanwhile is seen at the next look.
        let stamp = stamp(&paths);
        let value = Arc::new(read()?);
        let state = State { looked: Instant::now(), stamp, value, error: None };
        Ok(Self { paths, read: Box::new(read), state: Mutex::new(state) })
    }

    /// What the files hold.
    pub(crate) fn get(&self) -> Arc<T> {
        self.look(Instant::now())
    }

    /// What the files hold, looked at now however short ago that was done: for who has changed them.
    pub(crate) fn get_now(&self) -> Arc<T> {
        let looked = self.state.lock().unwrap_or_else(PoisonError::into_inner).looked;
        self.look(looked + LOOK_EVERY)
    }

    fn look(&self, now: Instant) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now < state.looked + LOOK_EVERY {
            return Arc::clone(&state.value);
        }
        state.looked = now;
        let stamp = stamp(&self.paths);
        // After an error they are tried again unchanged: it may have been a lack of descriptors.
        if stamp != state.stamp || state.error.is_some() {
            state.stamp = stamp;
            self.read_again(&mut state);
        }
        Arc::clone(&state.value)
    }

    fn read_again(&self, state: &mut State<T>) {
        match (self.read)() {
            Ok(value) => {
                state.value = Arc::new(value);
                state.error = None;
                info!(paths = ?self.paths, "files have changed and were read again.");
            }
            Err(error) => {
                if state.error.as_ref() != Some(&error) {
                    warn!(%error, "files have changed and cannot be read; what was read before stays in force.");
                }
                state.error = Some(error);
            }
        }
    }
}

fn stamp(paths: &[PathBuf]) -> Stamp {
    let of = |path: &PathBuf| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.modified().ok()?, data.len(), data.ino()))
    };
    paths.iter().map(of).collect()
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the value, which may be a secret.
        f.debug_struct("Watched").field("paths", &self.paths).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: PathBuf) -> Result<Watched<u32>, String> {
        Watched::new(vec![path.clone()], move || {
            let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|_| format!("expected a number, got {text}"))
        })
    }

    #[test]
    fn a_change_is_seen_and_a_mistake_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("number");
        assert!(number(path.clone()).is_err(), "it is not there");
        std::fs::write(&path, "1").expect("written");
        let watched = number(path.clone()).expect("a number");
        let start = Instant::now();
        let at = |seconds: u32| *watched.look(start + LOOK_EVERY * seconds);
        let write = |text: &str| std::fs::write(&path, text).expect("written");
        write("20");
        assert_eq!(at(0), 1, "not looked at again so soon");
        assert_eq!(at(1), 20);
        write("wrong");
        assert_eq!(at(2), 20);
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(at(3), 20);
        write("3000");
        assert_eq!(at(4), 3000);
    }

    #[test]
    fn a_file_of_the_same_length_and_time_in_its_place_is_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, other) = (folder.path().join("number"), folder.path().join("other"));
        std::fs::write(&path, "1").expect("written");
        std::fs::write(&other, "2").expect("written");
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        for path in [&path, &other] {
            let file = std::fs::File::options().write(true).open(path).expect("there");
            file.set_modified(then).expect("set");
        }
        let watched = number(path.clone()).expect("a number");
        std::fs::rename(&other, &path).expect("renamed");
        assert_eq!(*watched.get_now(), 2);
    }

    #[test]
    fn what_could_not_be_read_is_tried_again_unchanged() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let file = tempfile::NamedTempFile::new().expect("a file");
        let reads = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&reads);
        let watched = Watched::new(vec![file.path().to_owned()], move || {
            match counted.fetch_add(1, Ordering::Relaxed) {
                1 => Err("no descriptor is left".to_owned()),
                nth => Ok(nth),
            }
        });
        let watched = watched.expect("read");
        assert_eq!(*watched.get_now(), 0, "unchanged");
        std::fs::write(file.path(), "changed").expect("written");
        let looks = [(); 3].map(|()| *watched.get_now());
        assert_eq!(looks, [0, 2, 2]);
    }
}
