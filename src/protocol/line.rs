//! `Line`: lines of text. Pure, bounded, without memory between lines.
//!
//! A line ends with LF; a CR before it is not part of it. A line longer than the limit is an error
//! the connection does not survive: what follows it could not be told apart from its rest.

use super::{Broken, Payload, Port, Protocol};
use crate::command::Reason;
use crate::settings::LineEnding;

/// One device's side of the format.
#[derive(Debug)]
pub(crate) struct Line {
    /// The beginning of a line whose end has not come yet. Empty, and without memory, otherwise.
    partial: Vec<u8>,
    /// Lines that have ended.
    ended: u64,
    max: usize,
}

impl Line {
    /// Cuts lines of at most `max` bytes, endings not counted.
    pub(crate) fn new(max: usize) -> Self {
        Self { partial: Vec::new(), ended: 0, max }
    }

    fn checked<'a>(&self, line: &'a [u8]) -> Result<&'a [u8], Broken> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.max { Err(Broken::TooLong) } else { Ok(line) }
    }
}

impl Protocol for Line {
    fn feed(&mut self, mut bytes: &[u8], port: &mut dyn Port) -> Result<(), Broken> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            self.ended += 1;
            if self.partial.is_empty() {
                port.line(self.checked(head)?);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(head);
                port.line(self.checked(&whole)?);
            }
        }
        // One byte more than the limit may be a CR whose LF is still to come.
        if self.partial.len() + bytes.len() > self.max + 1 {
            return Err(Broken::TooLong);
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn amid(&self) -> Option<u64> {
        (!self.partial.is_empty()).then_some(self.ended)
    }
}

/// What a device reads when this is said to it: there is no way to make it read two lines. Nothing is
/// split and nothing is stripped.
pub(crate) fn encode(payload: &Payload, ending: LineEnding, max: usize) -> Result<Vec<u8>, Reason> {
    let text = payload.content.text();
    check(text, max)?;
    let mut bytes = Vec::with_capacity(text.len() + ending.bytes().len());
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(ending.bytes());
    Ok(bytes)
}

/// Whether `text` can be one line; else why not.
pub(crate) fn check(text: &str, max: usize) -> Result<(), Reason> {
    if text.is_empty() {
        return Err("cmd: expected at least one character, got an empty string".into());
    }
    if text.len() > max {
        return Err(format!("cmd: expected at most {max} bytes, got {}", text.len()).into());
    }
    let forbidden = text.bytes().find_map(|byte| match byte {
        b'\r' => Some("a carriage return"),
        b'\n' => Some("a line feed"),
        0 => Some("a NUL"),
        _ => None,
    });
    match forbidden {
        Some(found) => Err(format!("cmd: expected one line, got {found} inside it").into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Content;
    use super::super::recorder::{Asked, Recorder};
    use super::*;

    fn lines(max: usize, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Result<(), Broken>) {
        let (mut line, mut recorder) = (Line::new(max), Recorder::default());
        let end = pieces.iter().try_for_each(|piece| line.feed(piece, &mut recorder));
        let lines = recorder.asked.into_iter().map(|asked| {
            let Asked::Line(line) = asked else { panic!("{asked:?}") };
            line
        });
        (lines.collect(), end)
    }

    #[test]
    fn lf_and_crlf_end_a_line_however_the_bytes_are_cut() {
        let (found, end) = lines(8, &[b"a\nb\r", b"\n\n", b"c", b"d", b"\r\ne"]);
        assert_eq!(found, [b"a".to_vec(), b"b".to_vec(), b"".to_vec(), b"cd".to_vec()]);
        assert_eq!(end, Ok(()));
    }

    #[test]
    fn the_limit_counts_the_line_without_its_ending() {
        assert_eq!(lines(3, &[b"abc\r\n"]), (vec![b"abc".to_vec()], Ok(())));
        assert_eq!(lines(3, &[b"abc", b"\r", b"\n"]), (vec![b"abc".to_vec()], Ok(())));
        assert_eq!(lines(3, &[b"abcd\n"]).1, Err(Broken::TooLong));
        assert_eq!(lines(3, &[b"ab", b"cd\n"]).1, Err(Broken::TooLong));
        assert_eq!(lines(3, &[b"abcde"]).1, Err(Broken::TooLong));
    }

    proptest! {
        #[test]
        fn cutting_the_bytes_differently_changes_nothing(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
            cuts in prop::collection::vec(0usize..200, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(lines(16, &pieces), lines(16, &[&bytes]));
        }
    }

    #[test]
    fn what_is_not_one_line_is_refused_and_says_why() {
        let wrong = |text: &str, expected: &str| {
            let reason = check(text, 8).expect_err("not a line");
            assert_eq!(reason, expected);
        };
        wrong("a\rb", "cmd: expected one line, got a carriage return inside it");
        wrong("a\nb", "cmd: expected one line, got a line feed inside it");
        wrong("ab\n", "cmd: expected one line, got a line feed inside it");
        wrong("a\0b", "cmd: expected one line, got a NUL inside it");
        wrong("123456789", "cmd: expected at most 8 bytes, got 9");
        wrong("", "cmd: expected at least one character, got an empty string");
    }

    proptest! {
        #[test]
        fn a_line_ends_once_and_only_at_its_end(text in any::<String>(), crlf in any::<bool>()) {
            let ending = if crlf { LineEnding::Crlf } else { LineEnding::Lf };
            if let Ok(line) = encode(&Payload::new(Content::Text(text.as_str().into())), ending, 64) {
                let body = line.strip_suffix(ending.bytes()).expect("ends with its ending");
                prop_assert_eq!(body, text.as_bytes());
                prop_assert!(!body.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
            } else {
                prop_assert!(text.is_empty() || text.len() > 64 || text.contains(['\r', '\n', '\0']));
            }
        }
    }
}
