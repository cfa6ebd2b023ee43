//! TLS for devices: certificates from files that are read again when they change.
//!
//! A connection keeps the certificate it began with; the next one gets the new one. Certificate and
//! key may change one after the other: while they do not fit each other, the old ones stay in force.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::pem;
use crate::settings::CertificateName;
use crate::watched::Watched;

/// Where a listener's certificates are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// PEM: the listener's certificate, and those between it and one that devices trust.
    pub(crate) certificate: PathBuf,
    /// PEM: its private key.
    pub(crate) key: PathBuf,
    /// PEM: who vouches for devices; then a device without a certificate of theirs is not let in.
    pub(crate) client_ca: Option<PathBuf>,
}

/// Reads a listener's certificates, and again when they change.
pub(crate) fn watch(files: Files) -> Result<Watched<ServerConfig>, String> {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
    let paths = paths.into_iter().flatten().cloned().collect();
    Watched::new(paths, move || read(&files))
}

fn read(files: &Files) -> Result<ServerConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in pem::certificates(path)? {
                roots.add(certificate).map_err(|error| pem::wrong(path, &error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| pem::wrong(path, &error))?)
        }
    };
    let key = pem::private_key(&files.key)?;
    // This tells, too, whether the key is the certificate's.
    builder
        .with_single_cert(pem::certificates(&files.certificate)?, key)
        .map_err(|error| pem::wrong(&files.certificate, &error))
}

/// The name in a device's certificate.
pub(crate) fn name_in(certificate: &CertificateDer<'_>, which: CertificateName) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    match which {
        CertificateName::Cn => {
            let name = certificate.subject().iter_common_name().next()?;
            name.as_str().ok().map(str::to_owned)
        }
        CertificateName::San => {
            let names = certificate.subject_alternative_name().ok()??;
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
                GeneralName::OtherName(..)
                | GeneralName::RFC822Name(_)
                | GeneralName::X400Address(_)
                | GeneralName::DirectoryName(_)
                | GeneralName::EDIPartyName(_)
                | GeneralName::IPAddress(_)
                | GeneralName::RegisteredID(_)
                | GeneralName::Invalid(..) => None,
            })
        }
    }
}

#[cfg(test)]
mod tests;
