//! Certificates of authorities made up for the purpose, and handshakes in memory.

use std::io::{Read, Write};

use proptest::prelude::*;
use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Error, ServerConnection};
use tempfile::TempDir;

use super::*;

/// Who vouches for certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate with its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pem: String,
    key_pem: String,
}

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    let (der, pem) = (certificate.der().clone(), certificate.pem());
    Authority { issuer: Issuer::new(params, key), certificate: der, pem }
}

impl Authority {
    fn vouch(&self, cn: &str, names: Vec<SanType>) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.subject_alt_names = names;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        }
    }

    fn server(&self) -> Identity {
        self.vouch("bridge", vec![dns("bridge.example")])
    }

    /// A device that trusts this authority.
    fn client(&self, identity: Option<&Identity>) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("trusted");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(it) => builder
                .with_client_auth_cert(vec![it.certificate.clone()], it.key.clone_key())
                .expect("a pair"),
        };
        let name = ServerName::try_from("bridge.example").expect("a name");
        ClientConnection::new(Arc::new(config), name).expect("a client")
    }
}

/// The files of a listener.
struct Folder {
    folder: TempDir,
    files: Files,
}

impl Folder {
    fn new(server: &Identity, client_ca: Option<&str>) -> Self {
        let folder = TempDir::new().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let client_ca = client_ca.map(|pem| {
            std::fs::write(at("ca.pem"), pem).expect("written");
            at("ca.pem")
        });
        let files = Files { certificate: at("server.pem"), key: at("server.key"), client_ca };
        let folder = Self { folder, files };
        folder.write("server.pem", &server.pem);
        folder.write("server.key", &server.key_pem);
        folder
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("written");
    }

    fn watch(&self) -> Watched<ServerConfig> {
        watch(self.files.clone()).expect("certificates")
    }
}

fn server(watched: &Watched<ServerConfig>) -> ServerConnection {
    ServerConnection::new(watched.get_now()).expect("a server")
}

/// Carries what each has to say to the other until both are silent.
fn talk(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), Error> {
    while client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets()?;
        }
    }
    Ok(())
}

/// What the client reads of what the server says.
fn said(client: &mut ClientConnection, server: &mut ServerConnection, text: &str) -> String {
    server.writer().write_all(text.as_bytes()).expect("room");
    talk(client, server).expect("an intact connection");
    let mut bytes = vec![0; text.len()];
    client.reader().read_exact(&mut bytes).expect("it came");
    String::from_utf8(bytes).expect("text")
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).expect("ASCII"))
}

fn uri(name: &str) -> SanType {
    SanType::URI(Ia5String::try_from(name).expect("ASCII"))
}

#[test]
fn a_device_with_a_trusted_certificate_is_let_in_and_has_its_name() {
    let ours = authority();
    let watched = Folder::new(&ours.server(), Some(&ours.pem)).watch();
    let device = ours.vouch("pump 1", vec![dns("p1.example")]);
    let (mut client, mut server) = (ours.client(Some(&device)), server(&watched));
    talk(&mut client, &mut server).expect("let in");
    assert_eq!(said(&mut client, &mut server, "ON\r\n"), "ON\r\n");
    let shown = server.peer_certificates().and_then(<[_]>::first).expect("shown");
    assert_eq!(name_in(shown, CertificateName::Cn).as_deref(), Some("pump 1"));
    assert_eq!(name_in(shown, CertificateName::San).as_deref(), Some("p1.example"));
}

#[test]
fn a_device_without_a_trusted_certificate_is_refused() {
    let (ours, theirs) = (authority(), authority());
    let watched = Folder::new(&ours.server(), Some(&ours.pem)).watch();
    let stranger = theirs.vouch("pump 1", vec![]);
    let error = talk(&mut ours.client(None), &mut server(&watched)).expect_err("none");
    assert_eq!(error, Error::NoCertificatesPresented);
    let error = talk(&mut ours.client(Some(&stranger)), &mut server(&watched));
    assert!(matches!(error, Err(Error::InvalidCertificate(_))), "{error:?}");
}

#[test]
fn without_an_authority_for_devices_none_is_asked_for() {
    let ours = authority();
    let watched = Folder::new(&ours.server(), None).watch();
    let mut server = server(&watched);
    talk(&mut ours.client(None), &mut server).expect("let in");
    assert!(server.peer_certificates().is_none());
}

#[test]
fn the_next_connection_gets_a_new_certificate_and_an_old_one_goes_on() {
    let (old, new) = (authority(), authority());
    let folder = Folder::new(&old.server(), None);
    let watched = folder.watch();
    let (mut client, mut before) = (old.client(None), server(&watched));
    talk(&mut client, &mut before).expect("let in");
    let identity = new.server();
    folder.write("server.pem", &identity.pem);
    // The key does not fit yet.
    talk(&mut old.client(None), &mut server(&watched)).expect("the old one is in force");
    folder.write("server.key", &identity.key_pem);
    talk(&mut new.client(None), &mut server(&watched)).expect("the new one is in force");
    assert!(talk(&mut old.client(None), &mut server(&watched)).is_err());
    assert_eq!(said(&mut client, &mut before, "ON\r\n"), "ON\r\n");
}

#[test]
fn a_file_that_is_broken_or_gone_leaves_the_old_certificate_in_force() {
    let ours = authority();
    let folder = Folder::new(&ours.server(), Some(&ours.pem));
    let watched = folder.watch();
    let device = ours.vouch("pump 1", vec![]);
    for name in ["server.pem", "server.key", "ca.pem"] {
        for text in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            folder.write(name, text);
            talk(&mut ours.client(Some(&device)), &mut server(&watched)).expect(name);
            let error = watch(folder.files.clone()).expect_err("broken");
            assert!(error.contains(name), "{error}");
        }
        std::fs::remove_file(folder.folder.path().join(name)).expect("removed");
        talk(&mut ours.client(Some(&device)), &mut server(&watched)).expect(name);
        let whole = Folder::new(&ours.server(), Some(&ours.pem)).folder;
        std::fs::copy(whole.path().join(name), folder.folder.path().join(name)).expect("copied");
        // What is looked at first is whole again, so that the next one is what is wrong.
        let identity = ours.server();
        folder.write("server.pem", &identity.pem);
        folder.write("server.key", &identity.key_pem);
    }
}

#[test]
fn a_changed_authority_counts_for_the_next_device() {
    let (old, new) = (authority(), authority());
    let folder = Folder::new(&old.server(), Some(&old.pem));
    let watched = folder.watch();
    let device = new.vouch("pump 1", vec![]);
    assert!(talk(&mut old.client(Some(&device)), &mut server(&watched)).is_err());
    folder.write("ca.pem", &format!("{}{}", old.pem, new.pem));
    talk(&mut old.client(Some(&device)), &mut server(&watched)).expect("let in");
}

#[test]
fn the_first_alternative_name_that_is_a_name_counts() {
    let ours = authority();
    let name =
        |names: Vec<SanType>| name_in(&ours.vouch("pump", names).certificate, CertificateName::San);
    let ip = || SanType::IpAddress([10, 0, 0, 1].into());
    assert_eq!(name(vec![ip(), uri("urn:dev:1"), dns("p1")]).as_deref(), Some("urn:dev:1"));
    assert_eq!(name(vec![ip()]), None);
    assert_eq!(name(vec![]), None);
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        name_in(&CertificateDer::from(bytes), CertificateName::San);
    }
}

#[test]
fn a_damaged_certificate_is_no_trouble() {
    let whole = authority().vouch("pump 1", vec![dns("p1")]).certificate.to_vec();
    for index in 0..whole.len() {
        for which in [CertificateName::Cn, CertificateName::San] {
            name_in(&CertificateDer::from(&whole[..index]), which);
            let mut damaged = whole.clone();
            damaged[index] ^= 0xff;
            name_in(&CertificateDer::from(damaged), which);
        }
    }
}
