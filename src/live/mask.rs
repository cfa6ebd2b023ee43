//! `Mask`: secrets in lines and commands, which readers of the live streams are not shown.

use std::borrow::Cow;

use regex::bytes::{Captures, Regex};

use crate::settings::Pattern;

/// What stands for what is not shown.
const MASKED: &[u8] = b"***";
/// The group of the expression that is masked; all that matches if there is none.
const SECRET: &str = "secret";

/// What follows a word for a secret: the rest of its quotation, or of its word.
const USUAL: &str = r#"(?i-u)(?:pass(?:word|wd|phrase)?|pwd|pin|token|secret|api[_-]?key|authorization|bearer)\\?["']?(?:\s*[=:]\s*|\s+)(?:(?:bearer|basic)\s+)?(?<secret>\\?"(?:[^"\\]|\\[^"])*\\?"|'[^']*'|[^\s"',;&)}\]]+)"#;

/// What is replaced before anybody is shown it.
#[derive(Debug, Clone)]
pub(crate) struct Mask(Option<Regex>);

impl Mask {
    /// One that replaces what matches `given`, or what usually is a secret.
    pub(crate) fn new(given: Option<&Pattern>) -> Self {
        // It is tested that the usual one is one.
        Self(given.map(|given| given.0.clone()).or_else(|| Regex::new(USUAL).ok()))
    }

    /// `text` without its secrets.
    pub(crate) fn over<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let Some(regex) = &self.0 else { return Cow::Borrowed(text) };
        regex.replace_all(text, |found: &Captures<'_>| {
            let Some(whole) = found.get(0) else { return Vec::new() };
            let secret = found.name(SECRET).unwrap_or(whole);
            let before = text.get(whole.start()..secret.start()).unwrap_or_default();
            let behind = text.get(secret.end()..whole.end()).unwrap_or_default();
            [before, MASKED, behind].concat()
        })
    }

    /// The same of text that is UTF-8.
    pub(crate) fn over_text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.over(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            // An expression of bytes may have cut a character in two.
            Cow::Owned(masked) => Cow::Owned(String::from_utf8_lossy(&masked).into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_usually_is_a_secret_is_masked_and_the_rest_is_not() {
        let mask = Mask::new(None);
        assert!(mask.0.is_some(), "the usual expression is one");
        for (text, shown) in [
            ("SET PASSWORD hunter2", "SET PASSWORD ***"),
            ("login user=x pwd=hunter2;mode=1", "login user=x pwd=***;mode=1"),
            (
                r#"{"user":"x","password":"hun ter\\2","n":1}"#,
                r#"{"user":"x","password":***,"n":1}"#,
            ),
            (r#"{\"token\":\"abc\"}"#, r#"{\"token\":***}"#),
            ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
            ("api_key='a b' next", "api_key=*** next"),
            ("secret: größe rest", "secret: *** rest"),
            ("SET OUT1 ON", "SET OUT1 ON"),
            ("TEMP=21.5", "TEMP=21.5"),
        ] {
            assert_eq!(mask.over_text(text), shown);
        }
    }

    fn mask(pattern: &str) -> Mask {
        Mask::new(Some(&Pattern(Regex::new(pattern).expect("an expression"))))
    }

    #[test]
    fn an_expression_of_ones_own_masks_all_it_matches_or_its_group() {
        let whole = mask("PIN=[0-9]+");
        assert_eq!(whole.over_text("A PIN=12 PIN=3 token=x"), "A *** *** token=x");
        let group = mask("PIN=(?<secret>[0-9]+)#");
        assert_eq!(group.over_text("A PIN=12# PIN=3"), "A PIN=***# PIN=3");
        let nothing = mask("$^x");
        assert_eq!(nothing.over_text("password=x"), "password=x");
        assert_eq!(&*whole.over(b"\xff PIN=1"), b"\xff ***");
    }
}
