//! `Partial`: the beginning of a frame whose end has not come yet.

/// Empty, and without memory, between frames. Whoever cuts the frames bounds it.
#[derive(Debug, Default)]
pub(super) struct Partial {
    bytes: Vec<u8>,
    /// Frames that were cut off.
    ended: u64,
}

impl Partial {
    /// How much is here.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// If anything is here: how many frames came before it.
    pub(super) fn amid(&self) -> Option<u64> {
        (!self.bytes.is_empty()).then_some(self.ended)
    }

    /// Takes up bytes as they come: `cut` sees all that is here and tells how much of it it has
    /// used up, until it tells that it needs more, which is nothing used.
    pub(super) fn feed<E>(
        &mut self,
        bytes: &[u8],
        mut cut: impl FnMut(&[u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let Self { bytes: kept, ended } = self;
        let cut = |bytes: &[u8]| {
            let used = cut(bytes)?;
            *ended += u64::from(used > 0);
            Ok(used)
        };
        if kept.is_empty() {
            // What comes in whole frames is never copied.
            kept.extend_from_slice(rest(bytes, cut)?);
            return Ok(());
        }
        kept.extend_from_slice(bytes);
        let rest = rest(kept, cut)?;
        // What goes on being one frame stays where it is: copied at each piece, it would be copied
        // many times over.
        if rest.len() < kept.len() {
            *kept = rest.to_vec();
        }
        Ok(())
    }
}

/// What `cut` leaves of `bytes`.
fn rest<E>(mut bytes: &[u8], mut cut: impl FnMut(&[u8]) -> Result<usize, E>) -> Result<&[u8], E> {
    while !bytes.is_empty() {
        let used = cut(bytes)?;
        if used == 0 {
            break;
        }
        bytes = bytes.get(used..).unwrap_or_default();
    }
    Ok(bytes)
}

#[cfg(test)]
impl Partial {
    /// Whether it holds memory.
    pub(super) fn holds_memory(&self) -> bool {
        self.bytes.capacity() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds frames that begin with their length; the frames it cut.
    fn feed(partial: &mut Partial, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let fed = partial.feed(bytes, |bytes| {
            let Some((length, rest)) = bytes.split_first() else { return Err("nothing") };
            let Some(frame) = rest.get(..usize::from(*length)) else { return Ok(0) };
            frames.push(frame.to_vec());
            Ok(1 + frame.len())
        });
        assert_eq!(fed, Ok(()));
        frames
    }

    #[test]
    fn what_is_not_whole_is_kept_until_it_is_and_no_longer() {
        let mut partial = Partial::default();
        assert_eq!(feed(&mut partial, b"\x01a\x02bc\x00"), [&b"a"[..], b"bc", b""]);
        assert!(!partial.holds_memory());
        assert_eq!(partial.amid(), None);
        assert_eq!(feed(&mut partial, b"\x01a\x02b"), [b"a"]);
        assert_eq!((partial.len(), partial.amid()), (2, Some(4)));
        assert_eq!(feed(&mut partial, b""), [b""; 0]);
        assert_eq!(feed(&mut partial, b"c\x03d"), [b"bc"]);
        assert_eq!(partial.amid(), Some(5), "another one");
        assert_eq!(feed(&mut partial, b"ef"), [b"def"]);
        assert!(!partial.holds_memory());
    }

    #[test]
    fn an_error_is_passed_on() {
        let mut calls = 0;
        let fed = Partial::default().feed(b"abc", |_| {
            calls += 1;
            if calls < 3 { Ok(1) } else { Err("broken") }
        });
        assert_eq!(fed, Err("broken"));
    }
}
