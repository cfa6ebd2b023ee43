//! What a proxy says of where a connection comes from: the PROXY protocol, versions 1 and 2
//! (haproxy.org/download/2.9/doc/proxy-protocol.txt). Pure.

use std::fmt;
use std::net::SocketAddr;

use ppp::{v1, v2};

use crate::command::Reason;

/// The longest header of version 1, its CR LF included, as the protocol has it.
const LINE_MAX: usize = 107;
/// The longest header of version 2 that is read: it may go on with fields that are of no use here, TLS
/// certificates among them, for which this is plenty.
pub(crate) const HEADER_MAX: usize = 2048;

/// What the beginning of a connection says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Not enough has come.
    More,
    /// A header of so many bytes: the connection comes from there; or from the proxy itself, which
    /// looks whether anybody is listening.
    Header { length: usize, source: Option<SocketAddr> },
}

/// Looks for a header at the beginning of what has come.
pub(crate) fn look(bytes: &[u8]) -> Result<Look, Reason> {
    if has_begun(bytes, v2::PROTOCOL_PREFIX) {
        second_version(bytes)
    } else if has_begun(bytes, b"PROXY ") {
        first_version(bytes)
    } else {
        Err("expected a PROXY header".into())
    }
}

/// Whether `bytes` begin with `start`, as far as they have come.
fn has_begun(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(byte, expected)| byte == expected)
}

fn first_version(bytes: &[u8]) -> Result<Look, Reason> {
    let head = bytes.get(..LINE_MAX).unwrap_or(bytes);
    // Not before its end has come: `ppp` takes a port that has not begun for a wrong one.
    let Some(end) = memchr::memchr(b'\n', head) else {
        if bytes.len() < LINE_MAX {
            return Ok(Look::More);
        }
        return Err(format!("expected a PROXY header of at most {LINE_MAX} bytes").into());
    };
    let length = end + 1;
    let line = bytes.get(..length).unwrap_or_default();
    // `ppp` takes a CR for a space, and a space before the LF for a CR.
    if memchr::memchr(b'\r', line) != end.checked_sub(1) {
        return Err("expected a PROXY header that ends with CR LF, and no other CR".into());
    }
    let header = v1::Header::try_from(line).map_err(|error| malformed(&error))?;
    let source = match header.addresses {
        v1::Addresses::Tcp4(it) => Some((it.source_address, it.source_port).into()),
        v1::Addresses::Tcp6(it) => Some((it.source_address, it.source_port).into()),
        v1::Addresses::Unknown => None,
    };
    Ok(Look::Header { length, source })
}

fn second_version(bytes: &[u8]) -> Result<Look, Reason> {
    let too_long = |length: usize| {
        format!("expected a PROXY header of at most {HEADER_MAX} bytes, got {length}").into()
    };
    let header = match v2::Header::try_from(bytes) {
        Ok(header) => header,
        Err(v2::ParseError::Incomplete(_)) => return Ok(Look::More),
        Err(v2::ParseError::Partial(has, of)) => {
            let length = bytes.len() - has + of;
            return if length > HEADER_MAX { Err(too_long(length)) } else { Ok(Look::More) };
        }
        Err(error) => return Err(malformed(&error)),
    };
    if header.len() > HEADER_MAX {
        return Err(too_long(header.len()));
    }
    let source = match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(it)) => {
            Some((it.source_address, it.source_port).into())
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(it)) => {
            Some((it.source_address, it.source_port).into())
        }
        (v2::Command::Proxy, v2::Addresses::Unix(_) | v2::Addresses::Unspecified)
        | (v2::Command::Local, _) => None,
    };
    Ok(Look::Header { length: header.len(), source })
}

fn malformed(error: &dyn fmt::Display) -> Reason {
    format!("expected a PROXY header: {error}").into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(length: usize, source: &str) -> Look {
        Look::Header { length, source: Some(source.parse().expect("an address")) }
    }

    fn binary(command: u8, family: u8, addresses: &[u8], more: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len() + more.len()).expect("short");
        let start = [0x20 | command, family];
        [v2::PROTOCOL_PREFIX, &start, &length.to_be_bytes(), addresses, more].concat()
    }

    #[test]
    fn both_versions_name_the_source() {
        let text = b"PROXY TCP4 10.1.2.3 10.0.0.1 4711 8123\r\nHELLO";
        assert_eq!(look(text), Ok(header(40, "10.1.2.3:4711")));
        let text = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 8123\r\n";
        assert_eq!(look(text), Ok(header(text.len(), "[2001:db8::7]:4711")));
        let addresses = [10, 1, 2, 3, 10, 0, 0, 1, 0x12, 0x67, 0x1f, 0xbb];
        let bytes = binary(1, 0x11, &addresses, &[4, 0, 1, 0]);
        assert_eq!(look(&[&bytes[..], b"HELLO"].concat()), Ok(header(32, "10.1.2.3:4711")));
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_names_nobody() {
        assert_eq!(look(b"PROXY UNKNOWN\r\n"), Ok(Look::Header { length: 15, source: None }));
        let local = binary(0, 0, &[], &[]);
        assert_eq!(look(&local), Ok(Look::Header { length: 16, source: None }));
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_it_can_be_told() {
        for wrong in [
            &b"HELLO p1\r\n"[..],
            b"PROXY TCP4 10.1.2.3 x 1 2\r\n",
            b"PROXYTCP4",
            b"GET / HTTP/1.1\r\n",
        ] {
            assert!(look(wrong).is_err(), "{wrong:?}");
        }
        assert!(look(&[b'P'; 200]).is_err());
    }

    #[test]
    fn a_header_has_an_end() {
        let endless = binary(1, 0x11, &[0; 12], &vec![0; 60_000]);
        assert!(look(&endless[..16]).is_err(), "its length is known");
        assert!(look(&endless).is_err());
        let line = [&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat();
        assert_eq!(look(&line[..LINE_MAX - 1]), Ok(Look::More));
        assert!(look(&line[..LINE_MAX]).is_err());
    }

    #[test]
    fn a_bare_line_feed_ends_no_header() {
        assert!(look(b"PROXY TCP4 10.1.2.3 10.0.0.1 4711 8123\n\r\n").is_err());
        assert!(look(b"PROXY UNKNOWN\n").is_err());
        assert!(look(b"PROXY UNKNOWN\rx\n").is_err());
        assert!(look(b"PROXY TCP4 10.1.2.3 10.0.0.1 4711 8123 \n").is_err());
    }

    #[test]
    fn a_carriage_return_separates_nothing() {
        assert!(look(b"PROXY TCP4\r10.1.2.3\r10.0.0.1\r4711\r8123\r\n").is_err());
    }

    proptest! {
        #[test]
        fn a_header_is_found_when_its_last_byte_has_come_and_not_before(
            second in any::<bool>(), ip in any::<[u8; 4]>(), port in any::<u16>(), cut in 0usize..60,
        ) {
            let source = SocketAddr::from((ip, port));
            let whole = if second {
                let addresses = [&ip[..], &[10, 0, 0, 1], &port.to_be_bytes(), &[1, 2]].concat();
                binary(1, 0x11, &addresses, &[])
            } else {
                format!("PROXY TCP4 {} 10.0.0.1 {port} 258\r\n", source.ip()).into_bytes()
            };
            let cut = cut.min(whole.len());
            let expected = if cut == whole.len() {
                Look::Header { length: cut, source: Some(source) }
            } else {
                Look::More
            };
            prop_assert_eq!(look(&whole[..cut]), Ok(expected));
        }

        #[test]
        fn no_bytes_are_too_much(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 1.2.3.4 ", v2::PROTOCOL_PREFIX]),
            rest in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(0x21)], 0..300),
        ) {
            let bytes = [start, &rest].concat();
            if let Ok(Look::Header { length, .. }) = look(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
