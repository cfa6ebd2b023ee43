//! Tokens of people and programs: a line each, a role and a token, white space between. Empty lines and
//! those that begin with `#` say nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use ring::hmac;
use ring::rand::SystemRandom;

use super::Role;
use crate::watched::Watched;

/// The shortest token: nobody guesses 16 characters that were drawn by lot.
const LENGTH_MIN: usize = 16;
/// Tokens there may be: each is held against what was sent, at some 2 µs, whichever it is.
const TOKENS_MAX: usize = 100;

/// The tokens of a file that is read again when it changes.
#[derive(Debug)]
pub(super) struct Tokens {
    digests: Watched<Vec<(Role, hmac::Tag)>>,
    /// Known to this process alone: what is compared says nothing of the token.
    key: hmac::Key,
}

impl Tokens {
    /// Reads the file.
    pub(super) fn open(path: PathBuf) -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| "the system gives no random numbers".to_owned())?;
        let digest = {
            let key = key.clone();
            move |(role, token): (Role, String)| (role, hmac::sign(&key, token.as_bytes()))
        };
        let read_it = {
            let path = path.clone();
            move || Ok(read(&path)?.into_iter().map(&digest).collect())
        };
        Ok(Self { digests: Watched::new(vec![path], read_it)?, key })
    }

    /// Whose token this is. Takes as long for each, right or wrong.
    pub(super) fn role(&self, token: &[u8]) -> Option<Role> {
        let digests = self.digests.get();
        let is_it = |tag: &hmac::Tag| hmac::verify(&self.key, token, tag.as_ref()).is_ok();
        digests.iter().fold(None, |found, (role, tag)| if is_it(tag) { Some(*role) } else { found })
    }
}

/// The first token of the file, for a program that asks a bridge with it.
pub(crate) fn first_token(path: &Path) -> Result<String, String> {
    let first = read(path)?.into_iter().next();
    first.map(|(_, token)| token).ok_or_else(|| format!("{}: no token in it", path.display()))
}

fn read(path: &Path) -> Result<Vec<(Role, String)>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    parse(&text).map_err(|reason| format!("{}: {reason}", path.display()))
}

/// An error names its line, and never shows what is in it.
fn parse(text: &str) -> Result<Vec<(Role, String)>, String> {
    let mut tokens = Vec::new();
    let mut seen = HashSet::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| format!("line {number}: {what}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let role = words.first().and_then(|word| Role::from_word(word));
        let (Some(role), [_, token]) = (role, &*words) else {
            return Err(wrong("expected `reader TOKEN` or `operator TOKEN`"));
        };
        if token.len() < LENGTH_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong(&format!(
                "expected a token of at least {LENGTH_MIN} ASCII characters"
            )));
        }
        if !seen.insert(*token) {
            return Err(wrong("expected a token of its own, got one of a line before"));
        }
        if tokens.len() == TOKENS_MAX {
            return Err(wrong(&format!("expected at most {TOKENS_MAX} tokens")));
        }
        tokens.push((role, (*token).to_owned()));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_roles_and_tokens() {
        let text = "# of the console\nreader  0123456789abcdef\n\n operator\tfedcba9876543210 \r\n";
        let expected = [(Role::Reader, "0123456789abcdef"), (Role::Operator, "fedcba9876543210")];
        assert_eq!(
            parse(text),
            Ok(expected.map(|(role, token)| (role, token.to_owned())).to_vec())
        );
        assert_eq!(parse(""), Ok(Vec::new()), "nobody");
    }

    #[test]
    fn what_is_wrong_is_said_by_its_line_without_the_token() {
        for (text, what) in [
            ("admin 0123456789abcdef", "`operator TOKEN`"),
            ("reader", "`reader TOKEN`"),
            ("reader 0123456789abcdef more", "`reader TOKEN`"),
            ("reader 0123456789abcde", "at least 16"),
            ("reader 0123456789abcdeü", "ASCII"),
            ("reader 0123456789abcdef\noperator 0123456789abcdef", "line 2"),
        ] {
            let wrong = parse(text).expect_err(text);
            assert!(wrong.contains(what) && !wrong.contains("0123"), "{wrong}");
        }
        let many: String =
            (0..=TOKENS_MAX).map(|n| format!("reader token-number-{n:06}\n")).collect();
        assert!(parse(&many).expect_err("too many").contains("at most 100"));
    }

    #[test]
    fn a_token_is_that_of_its_line_until_the_file_changes() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "reader 0123456789abcdef\noperator fedcba9876543210\n")
            .expect("written");
        let tokens = Tokens::open(file.path().to_owned()).expect("tokens");
        assert_eq!(tokens.role(b"0123456789abcdef"), Some(Role::Reader));
        assert_eq!(tokens.role(b"fedcba9876543210"), Some(Role::Operator));
        for wrong in [&b""[..], b"0123456789abcde", b"0123456789abcdef0"] {
            assert_eq!(tokens.role(wrong), None);
        }
        assert_eq!(first_token(file.path()), Ok("0123456789abcdef".to_owned()));
        std::fs::write(file.path(), "reader another-one-of-many\n").expect("written");
        tokens.digests.get_now();
        assert_eq!(tokens.role(b"0123456789abcdef"), None);
        assert_eq!(tokens.role(b"another-one-of-many"), Some(Role::Reader));
    }
}
