//! TLS on the side of devices: authorities made up for the purpose, the files of a listener, and a device.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use super::Setup;
use super::wait::DEADLINE;

/// The name of every bridge.
const BRIDGE: &str = "bridge.example";

/// Who vouches for certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate with its key.
pub(crate) struct Certificate {
    der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pem: String,
    key_pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Self { issuer: Issuer::new(params, key), certificate: der, pem }
    }

    /// A certificate of a device with this common name and this DNS name.
    pub(crate) fn vouch(&self, cn: &str, dns: &str) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.subject_alt_names = vec![SanType::DnsName(dns.try_into().expect("ASCII"))];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Certificate {
            der: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// Itself, for those who are to trust it.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate of a bridge.
    pub(crate) fn server(&self) -> Certificate {
        self.vouch("bridge", BRIDGE)
    }

    /// What a device is set up with that trusts this authority.
    fn client(&self, own: Option<&Certificate>) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("trusted");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder
                .with_client_auth_cert(vec![own.der.clone()], own.key.clone_key())
                .expect("a pair"),
        };
        let name = ServerName::try_from(BRIDGE).expect("a name");
        ClientConnection::new(Arc::new(config), name).expect("a client")
    }
}

impl Certificate {
    /// The certificate and its key, for a server that is not ours.
    pub(crate) fn pems(&self) -> [&str; 2] {
        [&self.pem, &self.key_pem]
    }

    /// Whether a device was shown this one.
    pub(crate) fn is_shown_to(&self, device: &TlsDevice) -> bool {
        let shown = device.stream.conn.peer_certificates();
        shown.and_then(|shown| shown.first()) == Some(&self.der)
    }
}

/// The files of a listener.
pub(crate) struct TlsFiles(TempDir);

impl TlsFiles {
    pub(crate) fn new(server: &Certificate) -> Self {
        let files = Self(TempDir::new().expect("a directory"));
        files.replace(server);
        files
    }

    /// Spoils the certificate.
    pub(crate) fn spoil(&self) {
        std::fs::write(self.at("server.pem"), "no certificate").expect("written");
    }

    /// Puts another certificate in the place of the one that is there.
    pub(crate) fn replace(&self, server: &Certificate) {
        for (name, text) in [("server.pem", &server.pem), ("server.key", &server.key_pem)] {
            std::fs::write(self.at("new"), text).expect("written");
            std::fs::rename(self.at("new"), self.at(name)).expect("renamed");
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A bridge whose devices speak TLS.
    pub(crate) fn serve(&self, setup: Setup) -> Setup {
        let setup = setup.set("DEVICE_TLS_CERTIFICATE", self.at("server.pem"));
        setup.set("DEVICE_TLS_KEY", self.at("server.key"))
    }

    /// One that asks devices for a certificate of this authority.
    pub(crate) fn serve_those_of(&self, authority: &Authority, setup: Setup) -> Setup {
        std::fs::write(self.at("ca.pem"), &authority.pem).expect("written");
        self.serve(setup).set("DEVICE_TLS_CLIENT_CA", self.at("ca.pem"))
    }
}

/// A device that speaks TLS.
pub(crate) struct TlsDevice {
    stream: StreamOwned<ClientConnection, TcpStream>,
    unread: Vec<u8>,
}

impl TlsDevice {
    /// Agrees on TLS over a connection that trusts `authority` and shows `own`, if the bridge will have it. That the
    /// bridge will not have its certificate a device may learn only when it reads.
    pub(crate) fn over(
        stream: TcpStream,
        authority: &Authority,
        own: Option<&Certificate>,
    ) -> io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut stream = StreamOwned::new(authority.client(own), stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream, unread: Vec::new() })
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.stream.sock.local_addr().expect("a connected socket")
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let sent = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
        sent.unwrap_or_else(|error| panic!("{}: cannot send: {error}", self.local()));
    }

    /// Has both sides go on with new keys.
    pub(crate) fn renew_keys(&mut self) {
        self.stream.conn.refresh_traffic_keys().expect("TLS 1.3");
        self.stream.flush().expect("sent");
    }

    /// Ends the connection as TLS wants it.
    pub(crate) fn say_goodbye(mut self) {
        self.stream.conn.send_close_notify();
        self.stream.flush().expect("sent");
    }

    /// The next line, with its terminator, as it came.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let line = self.line_or_end();
        let line =
            line.unwrap_or_else(|end| panic!("{}: the connection ended: {end}", self.local()));
        String::from_utf8(line).expect("a line of UTF-8")
    }

    /// The lines that come before the bridge ends the connection.
    #[track_caller]
    pub(crate) fn until_closed(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.line_or_end().ok()).collect()
    }

    /// The next line, or how the connection ended.
    #[track_caller]
    fn line_or_end(&mut self) -> Result<Vec<u8>, String> {
        let end = Instant::now() + DEADLINE;
        let mut looked = 0;
        let mut chunk = [0; 65_536];
        loop {
            if let Some(at) = self.unread[looked..].iter().position(|byte| *byte == b'\n') {
                return Ok(self.unread.drain(..=looked + at).collect());
            }
            looked = self.unread.len();
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.sock.set_read_timeout(Some(left)).expect("SO_RCVTIMEO");
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("closed".to_owned()),
                Ok(count) => self.unread.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("{}: nothing came within {DEADLINE:?}", self.local())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
