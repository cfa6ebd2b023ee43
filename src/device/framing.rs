//! `Framer`: the bytes of a device, cut into lines. Pure, bounded, without memory between lines.
//!
//! A line ends with LF; a CR before it is not part of it. A line longer than the limit is an error
//! the connection does not survive: what follows it could not be told apart from its rest.

use base64::Engine;

/// Cuts bytes into lines.
#[derive(Debug)]
pub(crate) struct Framer {
    /// The beginning of a line whose end has not come yet. Empty, and without memory, otherwise.
    partial: Vec<u8>,
    max: usize,
}

/// A line was longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Framer {
    /// Cuts lines of at most `max` bytes, endings not counted.
    pub(crate) fn new(max: usize) -> Self {
        Self { partial: Vec::new(), max }
    }

    /// Takes up bytes as they come and gives every line they complete to `line`.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut line: impl FnMut(&[u8]),
    ) -> Result<(), TooLong> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.partial.is_empty() {
                line(self.checked(head)?);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(head);
                line(self.checked(&whole)?);
            }
        }
        // One byte more than the limit may be a CR whose LF is still to come.
        if self.partial.len() + bytes.len() > self.max + 1 {
            return Err(TooLong);
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn checked<'a>(&self, line: &'a [u8]) -> Result<&'a [u8], TooLong> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > self.max { Err(TooLong) } else { Ok(line) }
    }
}

/// A line as JSON can carry it: as text, or else as base64.
pub(crate) fn text_or_base64(line: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(line) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(base64::engine::general_purpose::STANDARD.encode(line))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(max: usize, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Result<(), TooLong>) {
        let (mut framer, mut lines) = (Framer::new(max), Vec::new());
        let mut end = Ok(());
        for piece in pieces {
            end = framer.feed(piece, |line| lines.push(line.to_vec()));
            if end.is_err() {
                break;
            }
        }
        (lines, end)
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
        assert_eq!(lines(3, &[b"abcd\n"]).1, Err(TooLong));
        assert_eq!(lines(3, &[b"ab", b"cd\n"]).1, Err(TooLong));
        assert_eq!(lines(3, &[b"abcde"]).1, Err(TooLong));
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
}
