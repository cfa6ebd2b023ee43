//! TLS with the broker: who may vouch for its certificate.

use std::io;
use std::path::Path;

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};

use super::BrokerError;
use crate::pem;
use crate::settings::{Broker, Endpoint};

/// What begins a TLS session with `host`; none if it is spoken to in plain.
///
/// Made anew for each connection, so that the authorities are those of now.
pub(super) fn connector(
    mq: &Broker,
    host: &Endpoint,
) -> Result<Option<RustlsConnector>, BrokerError> {
    if !mq.tls.is_on() {
        return Ok(None);
    }
    let made = trusting(mq.ca_file.as_deref()).map(Some);
    made.map_err(|source| BrokerError::Tls { address: host.to_string(), source })
}

fn trusting(ca_file: Option<&Path>) -> io::Result<RustlsConnector> {
    let system = RustlsConnectorConfig::new_with_native_certs();
    let authorities = match ca_file {
        None => system?,
        // A small system may know no authorities at all: those in the file are enough then.
        Some(path) => system
            .unwrap_or_default()
            .with_parsable_certificates(pem::certificates(path).map_err(io::Error::other)?),
    };
    authorities.connector_with_no_client_auth()
}
