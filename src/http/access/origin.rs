//! Where a request comes from that a browser may have sent: pages of other sites cannot read what a bridge
//! answers, but they could make it act. Pure.

use std::net::IpAddr;

use axum::http::{HeaderMap, header};

/// Whether a request that acts comes from the bridge's own page, or from no page at all. Browsers say
/// where the page is from that sends one; other programs say nothing.
pub(super) fn is_same(headers: &HeaderMap) -> Result<(), &'static str> {
    const SITE: &str = "sec-fetch-site";
    if headers.get_all(SITE).iter().any(|site| site != "same-origin" && site != "none") {
        return Err("Sec-Fetch-Site: expected same-origin; a page of another site sent this");
    }
    let host = text(headers, header::HOST.as_str());
    let same = |origin: &str| {
        let (scheme, authority) = origin.split_once("://")?;
        let default = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return None,
        };
        let bare = |text: &str| text.strip_suffix(default).unwrap_or(text).to_ascii_lowercase();
        (bare(authority) == bare(host?)).then_some(())
    };
    let origins = headers.get_all(header::ORIGIN);
    if origins.iter().any(|origin| origin.to_str().ok().and_then(same).is_none()) {
        return Err("Origin: expected that of the bridge itself; a page of another site sent this");
    }
    Ok(())
}

/// Whether the request names this machine by what no stranger can redirect: a page whose name is made to
/// resolve to 127.0.0.1 is, to a browser, of the same origin as the bridge there.
pub(super) fn is_local_host(headers: &HeaderMap) -> Result<(), &'static str> {
    let is_local = |host: &str| {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
    };
    // Browsers always name it.
    let hosts = headers.get_all(header::HOST);
    if hosts.iter().all(|host| host.to_str().is_ok_and(is_local)) {
        return Ok(());
    }
    Err("Host: expected an IP address or localhost, where there is no HTTP_TOKEN_FILE")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (name.parse().expect("a name"), value.parse().expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_the_bridges_own_page_and_programs_may_act() {
        let host = ("host", "bridge.example:9123");
        for fine in [
            &[host][..],
            &[host, ("origin", "http://bridge.example:9123")],
            &[host, ("origin", "http://BRIDGE.example:9123"), ("sec-fetch-site", "same-origin")],
            &[("host", "bridge.example"), ("origin", "https://bridge.example")],
            &[("host", "bridge.example:443"), ("origin", "https://bridge.example")],
            &[("host", "[::1]:9123"), ("origin", "http://[::1]:9123")],
            &[host, ("sec-fetch-site", "none")],
        ] {
            assert_eq!(is_same(&headers(fine)), Ok(()), "{fine:?}");
        }
        for wrong in [
            &[host, ("origin", "http://bridge.example")][..],
            &[host, ("origin", "http://evil.example:9123")],
            &[host, ("origin", "null")],
            &[host, ("origin", "")],
            &[host, ("origin", "file://bridge.example:9123")],
            &[("origin", "http://bridge.example:9123")],
            &[("host", "bridge.example:80"), ("origin", "https://bridge.example")],
            &[host, ("sec-fetch-site", "same-site")],
            &[host, ("sec-fetch-site", "cross-site"), ("origin", "http://bridge.example:9123")],
        ] {
            assert!(is_same(&headers(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn this_machine_is_named_by_a_number_or_as_localhost() {
        for fine in
            ["127.0.0.1", "127.0.0.1:9123", "localhost:9123", "LOCALHOST", "[::1]:9123", "[::1]"]
        {
            assert_eq!(is_local_host(&headers(&[("host", fine)])), Ok(()), "{fine}");
        }
        for wrong in
            ["evil.example", "localhost.evil.example:9123", "127.0.0.1.evil.example", "", ":80"]
        {
            assert!(is_local_host(&headers(&[("host", wrong)])).is_err(), "{wrong}");
        }
        assert_eq!(is_local_host(&HeaderMap::new()), Ok(()), "no browser");
    }
}
