//! `Properties`: what came with a message besides its body. Pure.
//!
//! Most messages have nothing here that anyone asks for, or an id. So they are kept as they came, in a few
//! bytes, and taken apart when something of the rest is wanted: to be published again, for instance. With
//! headers they are taken apart at once, which any command may have to be asked for.

use std::ops::Deref;
use std::sync::OnceLock;

use amq_protocol::protocol::basic::parse_properties;
use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};

/// The first two bytes say which properties follow, in this order, from the highest bit on.
const FLAGS: usize = 2;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const CORRELATION_ID: u16 = 1 << 10;
const REPLY_TO: u16 = 1 << 9;
const EXPIRATION: u16 = 1 << 8;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
/// The lowest bits are of no property.
const NONE: u16 = 0b11;

/// What came with a message besides its body.
#[derive(Debug)]
pub(in super::super) struct Properties {
    /// As they came; checked, and without headers. None if they were taken apart at once.
    raw: Option<Raw>,
    whole: OnceLock<Box<BasicProperties>>,
}

/// A content type, a delivery mode and an id fit in here: then a message costs one piece of memory less.
const SHORT_MAX: usize = 62;

#[derive(Debug)]
enum Raw {
    Short(u8, [u8; SHORT_MAX]),
    Long(Box<[u8]>),
}

impl Raw {
    fn of(bytes: &[u8]) -> Self {
        let mut short = [0; SHORT_MAX];
        match (short.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(room), Ok(length)) => {
                room.copy_from_slice(bytes);
                Self::Short(length, short)
            }
            (None, _) | (_, Err(_)) => Self::Long(bytes.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(length, bytes) => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        }
    }
}

impl Properties {
    /// Those of a header's frame; none if they cannot be read.
    pub(in super::super) fn read(bytes: &[u8]) -> Option<Self> {
        if is_plain(bytes) {
            return Some(Self { raw: Some(Raw::of(bytes)), whole: OnceLock::new() });
        }
        parse_properties(bytes).ok().map(|(_, whole)| whole.into())
    }

    pub(super) fn table(&self) -> Option<&FieldTable> {
        if self.raw.is_some() { None } else { self.headers().as_ref() }
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.text(MESSAGE_ID, |whole| whole.message_id())
    }

    pub(super) fn correlated(&self) -> Option<&str> {
        self.text(CORRELATION_ID, |whole| whole.correlation_id())
    }

    pub(super) fn answer_to(&self) -> Option<&str> {
        self.text(REPLY_TO, |whole| whole.reply_to())
    }

    pub(super) fn ends_after(&self) -> Option<&str> {
        self.text(EXPIRATION, |whole| whole.expiration())
    }

    pub(super) fn stamped(&self) -> Option<u64> {
        match &self.raw {
            Some(raw) => find(raw.bytes(), TIMESTAMP)?.try_into().ok().map(u64::from_be_bytes),
            None => *self.timestamp(),
        }
    }

    fn text(
        &self,
        which: u16,
        of: impl Fn(&BasicProperties) -> &Option<ShortString>,
    ) -> Option<&str> {
        match &self.raw {
            Some(raw) => std::str::from_utf8(find(raw.bytes(), which)?).ok(),
            None => of(self).as_ref().map(ShortString::as_str),
        }
    }
}

impl From<BasicProperties> for Properties {
    fn from(whole: BasicProperties) -> Self {
        Self { raw: None, whole: OnceLock::from(Box::new(whole)) }
    }
}

impl Deref for Properties {
    type Target = BasicProperties;

    fn deref(&self) -> &BasicProperties {
        // What is kept as it came was checked then.
        let raw = || self.raw.as_ref().map_or(&[][..], Raw::bytes);
        let parsed = || parse_properties(raw()).map(|(_, whole)| whole).unwrap_or_default();
        self.whole.get_or_init(|| Box::new(parsed()))
    }
}

/// Whether these are whole, have no headers, and could be read.
fn is_plain(bytes: &[u8]) -> bool {
    let Some((flags, _)) = bytes.split_first_chunk::<FLAGS>() else { return false };
    let flags = u16::from_be_bytes(*flags);
    let mut walk = Walk::of(bytes);
    flags & (HEADERS | NONE) == 0
        && walk.by_ref().all(|(which, value)| !is_text(which) || std::str::from_utf8(value).is_ok())
        && !walk.broken
}

/// The value of one of them, without its length.
fn find(bytes: &[u8], which: u16) -> Option<&[u8]> {
    let (flags, _) = bytes.split_first_chunk::<FLAGS>()?;
    // Nearly always.
    if u16::from_be_bytes(*flags) & which == 0 {
        return None;
    }
    Walk::of(bytes).find(|(found, _)| *found == which).map(|(_, value)| value)
}

fn is_text(which: u16) -> bool {
    which & (HEADERS | DELIVERY_MODE | PRIORITY | TIMESTAMP) == 0
}

/// Each property without headers, from the first.
struct Walk<'a> {
    flags: u16,
    rest: &'a [u8],
    /// Not all that should be there is.
    broken: bool,
}

impl<'a> Walk<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let Some((flags, rest)) = bytes.split_first_chunk::<FLAGS>() else {
            return Self { flags: 0, rest: &[], broken: true };
        };
        Self { flags: u16::from_be_bytes(*flags) & !NONE, rest, broken: false }
    }

    fn value(&mut self, which: u16) -> Option<&'a [u8]> {
        let length = match which {
            DELIVERY_MODE | PRIORITY => 1,
            TIMESTAMP => size_of::<u64>(),
            _ => {
                let (length, rest) = self.rest.split_first()?;
                self.rest = rest;
                usize::from(*length)
            }
        };
        let (value, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(value)
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let which = 1_u16.checked_shl(15_u32.checked_sub(self.flags.leading_zeros())?)?;
        self.flags &= !which;
        let value = self.value(which);
        if value.is_none() {
            self.broken = true;
            self.flags = 0;
        }
        Some((which, value?))
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::protocol::basic::gen_properties;
    use lapin::types::AMQPValue;
    use proptest::prelude::*;

    use super::*;

    fn bytes(properties: &BasicProperties) -> Vec<u8> {
        gen_properties(properties)(Vec::new().into()).expect("bytes").into_inner().0
    }

    /// Whatever is asked first, the answers are those of the library.
    fn check(bytes: &[u8]) {
        let whole = parse_properties(bytes).ok().map(|(_, whole)| whole);
        let read = Properties::read(bytes);
        assert_eq!(read.is_some(), whole.is_some(), "{bytes:?}");
        let (Some(read), Some(whole)) = (read, whole) else { return };
        let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
        let asked = || {
            let told = [read.id(), read.correlated(), read.answer_to(), read.ends_after()];
            (told.map(|told| told.map(str::to_owned)), read.stamped(), read.table().cloned())
        };
        let names =
            [whole.message_id(), whole.correlation_id(), whole.reply_to(), whole.expiration()];
        let expected = (names.map(text), *whole.timestamp(), whole.headers().clone());
        assert_eq!(asked(), expected);
        assert_eq!(*read, whole);
        assert_eq!(asked(), expected, "once they are taken apart");
    }

    fn some() -> impl Strategy<Value = BasicProperties> {
        let texts = prop::collection::vec(prop::option::of("[a-zé]{0,9}"), 10);
        let numbers = (any::<Option<u8>>(), any::<Option<u8>>(), any::<Option<u64>>());
        (texts, numbers, prop::option::of(any::<i64>())).prop_map(|(texts, numbers, header)| {
            let mut of = BasicProperties::default();
            macro_rules! set {
                ( $values:expr, $( $with:ident ),* ) => {{
                    let mut values = $values.into_iter();
                    $( if let Some(Some(value)) = values.next() { of = of.$with(value.into()); } )*
                }};
            }
            set!(
                texts,
                with_content_type,
                with_content_encoding,
                with_correlation_id,
                with_reply_to,
                with_expiration,
                with_message_id,
                with_type,
                with_user_id,
                with_app_id,
                with_cluster_id
            );
            set!([numbers.0, numbers.1], with_delivery_mode, with_priority);
            set!([numbers.2], with_timestamp);
            if let Some(value) = header {
                let mut table = FieldTable::default();
                table.insert("h".into(), AMQPValue::LongLongInt(value));
                of = of.with_headers(table);
            }
            of
        })
    }

    proptest! {
        #[test]
        fn what_is_asked_for_is_what_came(properties in some(), cut in any::<prop::sample::Index>()) {
            let bytes = bytes(&properties);
            check(&bytes);
            check(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn any_bytes_are_read_as_the_library_reads_them(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            check(&bytes);
        }
    }
}
