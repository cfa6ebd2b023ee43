//! Tokens from a file: a line each, an id and the argon2 hash of its token, white space between.
//! Empty lines and those that begin with `#` say nothing.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, Salt, SaltString};
use argon2::{Argon2, Params};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;

use crate::command::Address;
use crate::watched::Watched;

/// Hashes computed at a time: each takes a core for some 20 ms and 19 MB of memory, and what is left
/// of the machine is for commands. How many wait for their turn is limited by the list of connections
/// that are unknown still, how long by what a device is given to say who it is.
const AT_A_TIME: usize = 1;

/// Ids and hashes, from a file that is read again when it changes.
pub(crate) struct FileTokens {
    hashes: Watched<Hashes>,
    turn: Arc<Semaphore>,
    /// Known to this process alone.
    key: hmac::Key,
    /// Tokens that were right, so that a reconnect costs no hash: no more than the file has lines.
    remembered: Mutex<HashMap<Box<str>, Remembered>>,
}

/// What the file says.
struct Hashes {
    of: HashMap<Box<str>, Arc<str>>,
    /// What the token of an unknown id is held against, so that it takes as long as that of a known one:
    /// the hash of the first line. Without one nobody is known, which need not be hidden.
    first: Option<Arc<str>>,
}

/// A token that was right.
struct Remembered {
    tag: hmac::Tag,
    /// The hash it was right for; another one in the file is not this.
    hash: Arc<str>,
}

impl FileTokens {
    /// Reads the file.
    pub(crate) fn open(path: PathBuf) -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| NO_RANDOM_NUMBERS.to_owned())?;
        let hashes = Watched::new(vec![path.clone()], move || read(&path))?;
        let turn = Arc::new(Semaphore::new(AT_A_TIME));
        Ok(Self { hashes, turn, key, remembered: Mutex::default() })
    }

    /// Whether `token` is the one of `id`.
    pub(super) async fn is_right(&self, id: &str, token: &str) -> Result<bool, String> {
        let hashes = self.hashes.get();
        let known = hashes.of.get(id);
        if known.is_some_and(|hash| self.remembers(id, token, hash)) {
            return Ok(true);
        }
        let Some(hash) = known.or(hashes.first.as_ref()) else { return Ok(false) };
        let matches = self.matches(Arc::clone(hash), token.to_owned()).await?;
        if matches && known.is_some() {
            self.remember(id, token, hash, &hashes);
        }
        Ok(matches && known.is_some())
    }

    /// Whether it is the hash of `token`, found out when it is its turn.
    async fn matches(&self, hash: Arc<str>, token: String) -> Result<bool, String> {
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let turn = turn.map_err(|error| error.to_string())?;
        let check = move || {
            // Here, not with whoever waits: that one may have gone while the hash is computed.
            let _turn = turn;
            let hash = PasswordHash::new(&hash);
            let verify = |hash| Argon2::default().verify_password(token.as_bytes(), &hash);
            hash.is_ok_and(|hash| verify(hash).is_ok())
        };
        tokio::task::spawn_blocking(check).await.map_err(|error| error.to_string())
    }

    fn remembers(&self, id: &str, token: &str, hash: &Arc<str>) -> bool {
        let remembered = self.lock();
        let Some(it) = remembered.get(id) else { return false };
        it.hash == *hash && hmac::verify(&self.key, token.as_bytes(), it.tag.as_ref()).is_ok()
    }

    fn remember(&self, id: &str, token: &str, hash: &Arc<str>, hashes: &Hashes) {
        let tag = hmac::sign(&self.key, token.as_bytes());
        let mut remembered = self.lock();
        remembered.insert(id.into(), Remembered { tag, hash: Arc::clone(hash) });
        if remembered.len() > hashes.of.len() {
            remembered.retain(|id, _| hashes.of.contains_key(id));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FileTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No hash, though it would take long to find its token.
        f.debug_struct("FileTokens").field("hashes", &self.hashes).finish_non_exhaustive()
    }
}

const NO_RANDOM_NUMBERS: &str = "the system gives no random numbers";

/// The line of the file for a token of `id`.
pub(crate) fn line(id: &str, token: &str) -> Result<String, String> {
    Address::parse(id)?;
    if id.contains(char::is_whitespace) || id.starts_with('#') {
        return Err("expected an id without white space that does not begin with `#`".to_owned());
    }
    if token.is_empty() {
        return Err("expected a token, got nothing".to_owned());
    }
    let mut salt = [0; Salt::RECOMMENDED_LENGTH];
    SystemRandom::new().fill(&mut salt).map_err(|_| NO_RANDOM_NUMBERS.to_owned())?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| error.to_string())?;
    let hash = Argon2::default().hash_password(token.as_bytes(), &salt);
    Ok(format!("{id} {}", hash.map_err(|error| error.to_string())?))
}

fn read(path: &Path) -> Result<Hashes, String> {
    let at = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {at}: {error}"))?;
    let mut hashes = Hashes { of: HashMap::new(), first: None };
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let found = line.split_once(char::is_whitespace).map(|(id, hash)| (id, hash.trim()));
        let Some((id, hash)) = found.filter(|(_, hash)| is_argon2(hash)) else {
            return Err(format!(
                "{at}, line {number}: expected an id and an argon2 hash, as `rabbitline token` prints them"
            ));
        };
        let hash: Arc<str> = hash.into();
        hashes.first.get_or_insert_with(|| Arc::clone(&hash));
        if hashes.of.insert(id.into(), hash).is_some() {
            return Err(format!("{at}, line {number}: {id} has a line already"));
        }
    }
    Ok(hashes)
}

/// Whether a token can be held against it.
fn is_argon2(hash: &str) -> bool {
    let can_be_verified = |hash: &PasswordHash<'_>| {
        argon2::Algorithm::try_from(hash.algorithm).is_ok()
            && Params::try_from(hash).is_ok()
            && hash.salt.is_some()
            && hash.hash.is_some()
    };
    PasswordHash::new(hash).is_ok_and(|hash| can_be_verified(&hash))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tempfile::NamedTempFile;

    use super::*;
    use crate::command::ADDRESS_MAX;

    fn file(text: &str) -> NamedTempFile {
        let file = NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    fn open(file: &NamedTempFile) -> Result<FileTokens, String> {
        FileTokens::open(file.path().to_owned())
    }

    fn line(id: &str, token: &str) -> String {
        super::line(id, token).expect("a line")
    }

    #[tokio::test]
    async fn only_the_token_of_the_id_is_right_and_it_is_right_again() {
        let file = file(&format!("# pumps\n\n{}\r\n  {}\n", line("p1", "one"), line("p2", "two")));
        let tokens = open(&file).expect("tokens");
        let right = async |id: &str, token: &str| tokens.is_right(id, token).await;
        assert_eq!(right("p1", "one").await, Ok(true));
        let hashes = tokens.hashes.get();
        assert!(tokens.remembers("p1", "one", &hashes.of["p1"]));
        assert!(!tokens.remembers("p1", "two", &hashes.of["p1"]));
        assert_eq!(right("p1", "one").await, Ok(true), "remembered");
        assert_eq!(right("p1", "two").await, Ok(false));
        assert_eq!(right("p3", "one").await, Ok(false), "the first line is nobody else's");
        assert_eq!(right("p2", "two").await, Ok(true));
    }

    #[tokio::test]
    async fn a_token_that_has_changed_is_not_remembered() {
        let file = file(&format!("{}\n{}\n", line("p1", "one"), line("p2", "two")));
        let tokens = open(&file).expect("tokens");
        assert_eq!(tokens.is_right("p1", "one").await, Ok(true));
        assert_eq!(tokens.is_right("p2", "two").await, Ok(true));
        std::fs::write(file.path(), line("p1", "other")).expect("written");
        tokens.hashes.get_now();
        assert_eq!(tokens.is_right("p1", "one").await, Ok(false));
        assert_eq!(tokens.is_right("p2", "two").await, Ok(false), "it is not in the file any more");
        assert_eq!(tokens.is_right("p1", "other").await, Ok(true));
        assert_eq!(tokens.lock().len(), 1, "no more than the file has");
    }

    #[tokio::test]
    async fn one_hash_is_computed_at_a_time_even_if_nobody_waits_for_it_any_more() {
        let tokens = open(&file(&line("p1", "one"))).expect("tokens");
        let hash = Arc::clone(&tokens.hashes.get().of["p1"]);
        let mut check = Box::pin(tokens.matches(hash, "two".to_owned()));
        assert!(futures_util::poll!(&mut check).is_pending(), "the hash takes a while");
        drop(check);
        assert_eq!(tokens.turn.available_permits(), 0);
        assert_eq!(tokens.is_right("p1", "one").await, Ok(true), "it waits for its turn");
    }

    #[tokio::test]
    async fn an_unknown_id_costs_a_hash_and_a_token_that_was_right_costs_none() {
        let tokens = open(&file(&line("p1", "one"))).expect("tokens");
        assert_eq!(tokens.is_right("p1", "one").await, Ok(true));
        let _turn = tokens.turn.try_acquire().expect("nobody's turn");
        for (id, token) in [("nobody", "one"), ("p1", "two")] {
            assert_eq!(tokens.is_right(id, token).now_or_never(), None, "{id} waits for its turn");
        }
        assert_eq!(tokens.is_right("p1", "one").now_or_never(), Some(Ok(true)));
    }

    #[tokio::test]
    async fn an_empty_file_knows_nobody() {
        let tokens = open(&file("")).expect("tokens");
        assert_eq!(tokens.is_right("p1", "one").await, Ok(false));
    }

    #[test]
    fn a_line_that_is_no_token_is_named() {
        let whole = line("p1", "one");
        let cut = whole.rsplit_once('$').expect("salt and hash").0;
        let bad_cost = whole.replace("m=19456", "m=1");
        let scrypt = whole.replace("argon2id", "scrypt");
        for wrong in ["p1", "p1 secret", cut, &bad_cost, &scrypt] {
            let error = open(&file(&format!("# pumps\n{wrong}\n"))).expect_err(wrong);
            assert!(error.contains("line 2: expected an id and an argon2 hash"), "{error}");
        }
        let error = open(&file(&format!("{whole}\n{whole}\n"))).expect_err("twice");
        assert!(error.ends_with("line 2: p1 has a line already"), "{error}");
    }

    #[test]
    fn a_line_can_be_read_back_and_does_not_show_the_token() {
        assert_ne!(line("p1", "one"), line("p1", "one"), "salted");
        assert!(!line("p1", "secret").contains("secret"));
        let longer = "p".repeat(ADDRESS_MAX + 1);
        for (id, token) in
            [("", "one"), (&*longer, "one"), ("a b", "one"), ("#p1", "one"), ("p1", "")]
        {
            assert!(super::line(id, token).is_err(), "{id:?} {token:?}");
        }
    }
}
