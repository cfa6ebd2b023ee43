//! The console: a page for people, in the program itself, which looks and acts through the same HTTP API
//! as any program.
//!
//! Plain files, sent as they are: there is nothing to build, nothing comes from elsewhere, and the
//! `Content-Security-Policy` allows nothing else.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::route::Route;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// One file of the page.
#[derive(Debug, Clone, Copy)]
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! files {
    ($($path:literal $kind:ident $name:literal;)*) => {
        &[$(File { path: $path, kind: $kind, text: include_str!(concat!("console/", $name)) }),*]
    };
}

const FILES: &[File] = files! {
    "/" HTML "index.html";
    "/console.css" CSS "console.css";
    "/console/views.css" CSS "views.css";
    "/console/theme.js" JS "theme.js";
    "/console/main.js" JS "main.js";
    "/console/api.js" JS "api.js";
    "/console/chart.js" JS "chart.js";
    "/console/device.js" JS "device.js";
    "/console/devices.js" JS "devices.js";
    "/console/dom.js" JS "dom.js";
    "/console/fleet.js" JS "fleet.js";
    "/console/format.js" JS "format.js";
    "/console/link.js" JS "link.js";
    "/console/list.js" JS "list.js";
    "/console/overview.js" JS "overview.js";
    "/console/send.js" JS "send.js";
    "/console/sent.js" JS "sent.js";
    "/console/session.js" JS "session.js";
    "/console/snapshot.js" JS "snapshot.js";
    "/console/stats.js" JS "stats.js";
    "/console/status.js" JS "status.js";
    "/console/timeline.js" JS "timeline.js";
    "/console/undelivered.js" JS "undelivered.js";
    "/console/words.js" JS "words.js";
};

/// The files, which need no token: they say nothing of this bridge.
pub(super) fn routes() -> impl Iterator<Item = Route> {
    FILES.iter().map(|file| {
        let tag = file.tag();
        Route::open(file.path).get(async move |headers: HeaderMap| file.answer(&tag, &headers))
    })
}

impl File {
    /// Names what is in it: another program may have other files at the same paths.
    fn tag(&self) -> HeaderValue {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.text.as_bytes());
        let first = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}"));
        let tag = format!("\"{}\"", first.collect::<String>());
        // Hexadecimal digits in quotes: this cannot fail.
        HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\""))
    }

    /// The file, unless the browser has it. It asks each time, so that a page never mixes two versions.
    fn answer(&self, tag: &HeaderValue, asked: &HeaderMap) -> Response {
        let headers = [
            (header::ETAG, tag.clone()),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        if asked.get(header::IF_NONE_MATCH) == Some(tag) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let kind = [(header::CONTENT_TYPE, self.kind)];
        (headers, kind, self.text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The paths in quotes behind `before` in a text.
    fn named<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
        let behind = text.split(before).skip(1);
        behind.filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn the_page_names_each_file_and_no_other() {
        let served: BTreeSet<&str> = FILES.iter().map(|file| file.path).collect();
        assert_eq!(served.len(), FILES.len());
        let mut used = BTreeSet::from(["/".to_owned()]);
        for file in FILES {
            let [sources, links] = ["src=\"", " href=\"/c"].map(|before| named(file.text, before));
            used.extend(sources.into_iter().map(str::to_owned));
            used.extend(links.into_iter().map(|rest| format!("/c{rest}")));
            for import in named(file.text, "from \"./") {
                let path = format!("/console/{import}");
                assert!(served.contains(&*path), "{} imports {import}", file.path);
                assert!(FILES[0].text.contains(&path), "{path} is not loaded ahead");
            }
        }
        assert_eq!(used.iter().map(String::as_str).collect::<BTreeSet<_>>(), served);
    }

    #[test]
    fn nothing_in_it_is_what_the_policy_forbids() {
        for file in FILES {
            for forbidden in ["style=", "innerHTML", "onclick=\"", "javascript:", "eval(", "https:"]
            {
                assert!(!file.text.contains(forbidden), "{forbidden} in {}", file.path);
            }
            assert!(!file.text.contains("<script>"), "a script in {}", file.path);
        }
    }

    #[test]
    fn its_files_are_small() {
        let all: usize = FILES.iter().map(|file| file.text.len()).sum();
        assert!(all < 200_000, "{all} bytes");
        for file in FILES {
            assert!(file.text.lines().count() < 400, "{}", file.path);
        }
    }

    #[test]
    fn a_browser_that_has_a_file_is_not_sent_it_again() {
        for file in FILES {
            let tag = file.tag();
            let fresh = file.answer(&tag, &HeaderMap::new());
            assert_eq!(fresh.status(), StatusCode::OK);
            assert_eq!(
                (&fresh.headers()[header::CONTENT_TYPE], &fresh.headers()[header::ETAG]),
                (&HeaderValue::from_static(file.kind), &tag)
            );
            let has = HeaderMap::from_iter([(header::IF_NONE_MATCH, tag.clone())]);
            assert_eq!(file.answer(&tag, &has).status(), StatusCode::NOT_MODIFIED);
        }
    }
}
