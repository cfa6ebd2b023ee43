//! Errors as `application/problem+json` (RFC 9457), also those of axum itself; and the headers that every
//! answer bears.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

const PROBLEM_JSON: &str = "application/problem+json";
/// Errors of axum itself are a sentence; of a longer one only the title is told.
const SENTENCE_MAX: usize = 4096;
/// What asks these looks at the status, and shows people the text as it is.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// What every answer bears: a browser takes nothing from elsewhere for a page of the bridge, guesses no
/// type, shows it in no frame and tells nobody where it was.
const HEADERS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// Why a request is not answered as its sender hoped.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    /// When it may be tried again.
    retry_after: Option<Duration>,
    /// The command it is about, if it may have been published.
    id: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None, id: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn too_many(detail: impl Into<String>, left: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail).again_after(left)
    }

    /// It may be tried again after `left`.
    pub(crate) fn again_after(self, left: Duration) -> Self {
        Self { retry_after: Some(left), ..self }
    }

    /// It is about this command.
    pub(crate) fn of(self, id: String) -> Self {
        Self { id: Some(id), ..self }
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            id: self.id.as_deref(),
        };
        // Strings and a number: this cannot fail.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(left) = self.retry_after {
            // Whole seconds, and never too few.
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// The layer: makes of every error a problem, and gives every answer its headers.
pub(super) async fn dress(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if is_error && !is(response.headers(), PROBLEM_JSON) && !PROBES.contains(&&*path) {
        let detail = match status {
            StatusCode::NOT_FOUND => {
                format!("there is no {path}; /openapi.json says what there is")
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                format!("{path} does not take {method}; /openapi.json says what it takes")
            }
            _ => String::new(),
        };
        response = mended(response, detail).await;
    }
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if is(headers, PROBLEM_JSON) || is(headers, "application/json") {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// The same error as a problem, with what it says unless there is something better.
async fn mended(response: Response, better: String) -> Response {
    let (parts, body) = response.into_parts();
    let said = to_bytes(body, SENTENCE_MAX).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let detail = if said.is_empty() { better } else { said };
    let mut problem = Problem::new(parts.status, detail).into_response();
    for (name, value) in &parts.headers {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            problem.headers_mut().insert(name, value.clone());
        }
    }
    problem
}

fn is(headers: &HeaderMap, kind: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.split(';').next()).is_some_and(|value| value.trim() == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_of_axums_own_keeps_its_status_and_what_it_says() {
        let headers = [(header::ALLOW, "GET")];
        let error = (StatusCode::METHOD_NOT_ALLOWED, headers, "said\n").into_response();
        let problem = mended(error, "better".to_owned()).await;
        assert_eq!(problem.headers()[header::ALLOW], "GET");
        assert_eq!(problem.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let body = to_bytes(problem.into_body(), 1000).await.expect("a body");
        let expected =
            r#"{"type":"about:blank","title":"Method Not Allowed","status":405,"detail":"said"}"#;
        assert_eq!(body, expected);
    }

    #[test]
    fn who_has_to_wait_is_told_at_least_how_long() {
        let problem = Problem::too_many("wait", Duration::from_millis(1001)).into_response();
        assert_eq!(problem.headers()[header::RETRY_AFTER], "2");
    }
}
