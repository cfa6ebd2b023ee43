//! `/openapi.json`: what may be asked, described for programs.

use axum::http::header;
use axum::response::IntoResponse;

/// The description. A test holds it against the routes, another real answers against it.
const OPENAPI: &str = include_str!("openapi.json");

pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::{message, probes, routes};
    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let api: Value = serde_json::from_str(OPENAPI).expect("JSON");
        let paths = api["paths"].as_object().expect("paths");
        let described = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").keys();
            methods.map(move |method| format!("{method} {path}"))
        });
        let described: BTreeSet<String> = described.collect();
        let all = || routes().into_iter().chain(probes::routes());
        let there = all().flat_map(|route| {
            route.methods.into_iter().map(move |method| format!("{method} {}", route.path))
        });
        let there: BTreeSet<String> = there.chain([format!("get {}", message::PATH)]).collect();
        assert_eq!(described, there);
        for route in all() {
            for method in route.methods {
                let is_open = api["paths"][route.path][method]["security"].is_array();
                assert_eq!(is_open, route.is_open, "{method} {}", route.path);
            }
        }
        assert_eq!(api["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn what_it_refers_to_is_there() {
        fn refer<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
            if let Some(to) = value["$ref"].as_str() {
                found.insert(to);
            }
            let inner = value.as_object().into_iter().flat_map(|it| it.values());
            let items = value.as_array().into_iter().flatten();
            inner.chain(items).for_each(|it| refer(it, found));
        }
        let api: Value = serde_json::from_str(OPENAPI).expect("JSON");
        let mut found = BTreeSet::new();
        refer(&api, &mut found);
        for to in &found {
            assert!(api.pointer(to.trim_start_matches('#')).is_some(), "{to}");
        }
        for kind in ["schemas", "responses"] {
            for name in api["components"][kind].as_object().expect("them").keys() {
                let to = format!("#/components/{kind}/{name}");
                assert!(found.contains(&*to), "nothing refers to {to}");
            }
        }
    }
}
