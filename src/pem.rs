//! PEM files of certificates and keys, with errors that name the file.

use std::fmt;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// All certificates in a file: one at least.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|error| wrong(path, &error))?;
    if all.is_empty() { Err(wrong(path, &"there is no certificate in it")) } else { Ok(all) }
}

/// The first private key in a file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| wrong(path, &error))
}

/// What is wrong with a file.
pub(crate) fn wrong(path: &Path, error: &dyn fmt::Display) -> String {
    format!("cannot use {}: {error}", path.display())
}
