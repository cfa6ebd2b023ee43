//! The first line of a device, when it says there who it is: by a pattern with a group `id` and, if it
//! has to prove it, a group `token`. Pure.

use regex::bytes::Regex;

use crate::protocol::{Broken, Hello};

/// Looks for a hello at the beginning of what has come: the first line that is not empty, of at most
/// `max` bytes without its ending, LF or CR LF.
pub(crate) fn look(bytes: &[u8], pattern: &Regex, max: usize) -> Result<Hello, Broken> {
    // Some devices begin with a line end, to be rid of what a modem may have left before it.
    let empty = empty_lines(bytes);
    if empty > 0 {
        return Ok(Hello::Ignore(empty));
    }
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        // One byte more than the limit may be a CR whose LF is still to come.
        return if bytes.len() > max + 1 { Err(Broken::TooLong) } else { Ok(Hello::More) };
    };
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > max {
        return Err(Broken::TooLong);
    }
    let expected = "expected a hello that matches DEVICE_HELLO_PATTERN";
    let groups = pattern.captures(line).ok_or(Broken::Malformed(expected.into()))?;
    let text = |name: &str| match groups.name(name).map(|group| str::from_utf8(group.as_bytes())) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text.to_owned())),
        Some(Err(_)) => {
            Err(Broken::Malformed(format!("expected a hello whose {name} is UTF-8").into()))
        }
    };
    let id = text("id")?.ok_or(Broken::Malformed(expected.into()))?;
    Ok(Hello::Claim { length: end + 1, id, token: text("token")? })
}

/// How many bytes of empty lines `bytes` begins with.
fn empty_lines(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some(after) = rest.strip_prefix(b"\n").or_else(|| rest.strip_prefix(b"\r\n")) {
        rest = after;
    }
    bytes.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 24;

    fn found(bytes: &[u8]) -> Result<Hello, Broken> {
        static PATTERN: LazyLock<Regex> = LazyLock::new(|| {
            let pattern = r"^HELLO (?<id>[^ ]+)(?: (?-u:(?<token>.+)))?$";
            Regex::new(pattern).expect("a pattern")
        });
        look(bytes, &PATTERN, MAX)
    }

    fn claim(length: usize, id: &str, token: Option<&str>) -> Result<Hello, Broken> {
        Ok(Hello::Claim { length, id: id.to_owned(), token: token.map(str::to_owned) })
    }

    #[test]
    fn the_first_line_says_who_it_is() {
        assert_eq!(found(b"HELLO p1\nT=20\n"), claim(9, "p1", None));
        assert_eq!(found(b"HELLO p1 one two\r\nT=20"), claim(18, "p1", Some("one two")));
        assert_eq!(found("HELLO pümp\n".as_bytes()), claim(12, "pümp", None));
    }

    #[test]
    fn empty_lines_before_it_are_dropped() {
        assert_eq!(found(b"\r\n\n\r\nHELLO p1\n"), Ok(Hello::Ignore(5)));
        assert_eq!(found(b"\n\r"), Ok(Hello::Ignore(1)));
        assert_eq!(found(b"\r"), Ok(Hello::More));
    }

    #[test]
    fn another_line_is_not_let_pass() {
        for line in [&b"T=20\n"[..], b"HELLO \n", b" \n", b"\rHELLO p1\n", b"HELLO \xff\n"] {
            let expected = "expected a hello that matches DEVICE_HELLO_PATTERN";
            assert_eq!(found(line), Err(Broken::Malformed(expected.into())), "{line:?}");
        }
        let expected = "expected a hello whose token is UTF-8";
        assert_eq!(found(b"HELLO p1 \xff\n"), Err(Broken::Malformed(expected.into())));
    }

    #[test]
    fn a_group_that_took_no_part_says_nothing() {
        let pattern = Regex::new("^(?:A (?<id>.+)|B)$").expect("a pattern");
        assert!(matches!(look(b"A p1\n", &pattern, MAX), Ok(Hello::Claim { .. })));
        assert!(matches!(look(b"B\n", &pattern, MAX), Err(Broken::Malformed(_))));
    }

    #[test]
    fn the_limit_counts_the_line_without_its_ending() {
        let id = "p".repeat(MAX - 6);
        let line = format!("HELLO {id}");
        assert_eq!(found(format!("{line}\r\n").as_bytes()), claim(MAX + 2, &id, None));
        assert_eq!(found(format!("{line}\r").as_bytes()), Ok(Hello::More));
        assert_eq!(found(format!("{line}p\n").as_bytes()), Err(Broken::TooLong));
        assert_eq!(found(format!("{line}pp").as_bytes()), Err(Broken::TooLong));
    }

    proptest! {
        #[test]
        fn it_is_found_when_its_line_feed_has_come_and_not_before(
            id in "[a-zé\r]{1,5}", token in prop::option::of("[a-z ]{1,6}"), crlf in any::<bool>(),
            more in prop::collection::vec(any::<u8>(), 0..50), cut in 0usize..100,
        ) {
            let said = token.as_ref().map(|token| format!(" {token}")).unwrap_or_default();
            prop_assume!(!(id.ends_with('\r') && said.is_empty()));
            let line = format!("HELLO {id}{said}{}", if crlf { "\r\n" } else { "\n" });
            let bytes = [line.as_bytes(), &more].concat();
            let cut = cut.min(bytes.len());
            let expected = if cut < line.len() { Ok(Hello::More) } else { claim(line.len(), &id, token.as_deref()) };
            prop_assert_eq!(found(&bytes[..cut]), expected);
        }

        #[test]
        fn no_bytes_are_too_much(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'H'), any::<u8>()], 0..60),
        ) {
            if let Ok(Hello::Ignore(length) | Hello::Claim { length, .. }) = found(&bytes) {
                prop_assert!(0 < length && length <= bytes.len());
            }
        }
    }
}
