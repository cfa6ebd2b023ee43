//! AMQP over TLS, with an authority of one's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::harness::{Broker, Scene, command, free_port};

#[test]
fn the_broker_is_reached_over_tls_and_only_if_its_certificate_is_trusted() {
    let files = TempDir::new().expect("a directory");
    let trusted = authority(files.path(), "trusted");
    let stranger = authority(files.path(), "stranger");
    let (certificate, key) = server_certificate(files.path(), "trusted");
    let port = free_port();
    let listeners = format!("[{{\"127.0.0.1\",{port}}},{{\"127.0.0.2\",{port}}}]");
    let options = format!(
        "[{{cacertfile,{trusted:?}}},{{certfile,{certificate:?}}},{{keyfile,{key:?}}},{{verify,verify_none}}]"
    );
    let settings = [("ssl_listeners", &*listeners), ("ssl_options", &*options)];
    let scene = Scene::on(Arc::new(Broker::prepared(&settings)), "tls");
    let tls = scene.setup().set("MQ_TLS", "on").set("MQ_PORT", port.to_string());

    for host in ["127.0.0.1", "localhost"] {
        let bridge = tls.clone().set("MQ_HOST", host).set("MQ_CA_FILE", &trusted).start();
        let mut device = bridge.device("127.0.0.2");
        scene.publish(&command("127.0.0.2", "OVER TLS"));
        assert_eq!(device.line(), "OVER TLS\r\n");
    }
    // A small system has no authorities of its own.
    let bare = tls.clone().set("MQ_HOST", "localhost").set("SSL_CERT_FILE", "/nonexistent");
    let end = bare.clone().set("MQ_CA_FILE", &trusted).run(&["check"]);
    assert_eq!(end.code, Some(0), "{end:?}");
    let end = bare.run(&["check"]);
    assert_eq!(end.code, Some(69), "{end:?}");
    assert!(end.stderr.contains("MQ_CA_FILE"), "{end:?}");
    // A host is held to its own name: the certificate has not that of the first.
    let both = tls.clone().set("MQ_HOST", "127.0.0.2,localhost").set("MQ_CA_FILE", &trusted);
    let end = both.run(&["check"]);
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(end.stderr.contains(&format!("no TLS with the broker at 127.0.0.2:{port}")), "{end:?}");
    assert!(end.stdout.contains(&format!("localhost:{port} can be used")), "{end:?}");
    for (why, setup) in [
        ("signed by another authority", tls.clone().set("MQ_CA_FILE", &stranger)),
        ("signed by an authority the system does not know", tls.clone()),
    ] {
        let end = setup.run(&["check"]);
        assert_eq!(end.code, Some(69), "{why}: {end:?}");
        let said = format!("{}{}", end.stdout, end.stderr);
        assert!(said.contains("MQ_CA_FILE"), "{why}: {said}");
    }
    // Plain AMQP to the TLS port, and TLS to the plain port.
    for setup in [
        tls.clone().set("MQ_TLS", "off"),
        scene.setup().set("MQ_TLS", "on").set("MQ_CA_FILE", &trusted),
    ] {
        let end = setup.set("MQ_CONNECT_TIMEOUT", "5s").run(&["check"]);
        assert_eq!(end.code, Some(69), "{end:?}");
        let said = format!("{}{}", end.stdout, end.stderr);
        assert!(said.contains("MQ_TLS"), "{said}");
    }
    for (file, text) in
        [("missing.pem", None), ("empty.pem", Some("")), ("words.pem", Some("no certificate"))]
    {
        let path = files.path().join(file);
        if let Some(text) = text {
            std::fs::write(&path, text).expect("written");
        }
        let end = tls.clone().set("MQ_CA_FILE", &path).run(&["check"]);
        assert!(matches!(end.code, Some(64 | 69)), "{file}: {end:?}");
        let said = format!("{}{}", end.stdout, end.stderr);
        assert!(said.contains("MQ_CA_FILE"), "{file}: {said}");
    }
}

/// Makes a certificate authority; the file of its certificate.
fn authority(dir: &Path, name: &str) -> PathBuf {
    let certificate = dir.join(format!("{name}.pem"));
    let key = dir.join(format!("{name}.key"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &format!("/CN={name} authority"),
        "-keyout",
        text(&key),
        "-out",
        text(&certificate),
        "-addext",
        "keyUsage=critical,keyCertSign",
    ]);
    certificate
}

/// Makes a certificate for loopback, signed by the authority; the files of certificate and key.
fn server_certificate(dir: &Path, authority: &str) -> (PathBuf, PathBuf) {
    let [certificate, key, request, extensions] =
        ["server.pem", "server.key", "server.csr", "server.ext"].map(|name| dir.join(name));
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    std::fs::write(&extensions, names).expect("written");
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        text(&key),
        "-out",
        text(&request),
    ]);
    let (ca, ca_key) = (dir.join(format!("{authority}.pem")), dir.join(format!("{authority}.key")));
    openssl(&[
        "x509",
        "-req",
        "-in",
        text(&request),
        "-CA",
        text(&ca),
        "-CAkey",
        text(&ca_key),
        "-set_serial",
        "1",
        "-days",
        "2",
        "-extfile",
        text(&extensions),
        "-out",
        text(&certificate),
    ]);
    (certificate, key)
}

#[track_caller]
fn openssl(args: &[&str]) {
    let output = Command::new("openssl")
        .args(args)
        .output()
        .expect("openssl is installed (apt-get install openssl)");
    assert!(
        output.status.success(),
        "openssl {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
