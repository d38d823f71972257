//! Who may speak with whom: certificates made by the two commands, real sockets on loopback.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use chipfit_agent::pki::{self, Validity};
use chipfit_agent::stream::{Connection, Counters, DeviceSecurity, TrainerSecurity, accept, connect};
use chipfit_agent::{AgentError, DeviceName, Identity, LinkShape, tls};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An authority with the devices `camera` and `gate`.
fn authority() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    pki::init(folder.path(), Validity::default(), false).expect("an authority");
    for device in ["camera", "gate"] {
        pki::device(folder.path(), &name(device), Validity::default(), false).expect("a device");
    }
    folder
}

fn name(text: &str) -> DeviceName {
    text.parse().expect("a device name")
}

fn identity(authority: &Path, bundle: &str) -> Identity {
    Identity::open(&authority.join(bundle)).expect("a bundle")
}

fn device(identity: &Identity) -> DeviceSecurity {
    DeviceSecurity::Tls(tls::device_config(identity).expect("a device's TLS"))
}

fn trainer(identity: &Identity, expected: Option<&str>) -> TrainerSecurity {
    let expected = expected.map(name);
    TrainerSecurity::Tls(tls::trainer_config(identity, expected.as_ref()).expect("a trainer's TLS"))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// What both ends make of a connection over which each sends one word: the device's view and the trainer's.
type Outcome = (Result<Vec<u8>, String>, Result<Vec<u8>, String>);

async fn say(connection: Result<Connection, AgentError>, word: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = connection.map_err(|error| error.to_string())?.into_stream();
    let mut heard = vec![0; 5];
    let talk = async {
        stream.write_all(word).await?;
        stream.flush().await?;
        stream.read_exact(&mut heard).await?;
        io::Result::Ok(())
    };
    talk.await.map_err(|error| error.to_string())?;
    Ok(heard)
}

fn meet(device: &DeviceSecurity, trainer: &TrainerSecurity) -> Outcome {
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let serve = async {
            let (tcp, peer) = listener.accept().await.expect("a connection");
            say(accept(tcp, peer, device).await, b"there").await
        };
        let ask = async {
            let connection = connect(&address, trainer, LinkShape::default(), Arc::new(Counters::default())).await;
            say(connection, b"hello").await
        };
        tokio::join!(serve, ask)
    })
}

fn talked() -> Outcome {
    (Ok(b"hello".to_vec()), Ok(b"there".to_vec()))
}

#[test]
fn trainer_and_device_of_one_authority_talk() {
    let folder = authority();
    let camera = device(&identity(folder.path(), "devices/camera"));
    let me = identity(folder.path(), "trainer");
    assert_eq!(meet(&camera, &trainer(&me, None)), talked());
    assert_eq!(meet(&camera, &trainer(&me, Some("camera"))), talked());
}

#[test]
fn a_device_of_another_name_is_refused_where_one_is_expected() {
    let folder = authority();
    let gate = device(&identity(folder.path(), "devices/gate"));
    let (there, here) = meet(&gate, &trainer(&identity(folder.path(), "trainer"), Some("camera")));
    assert!(here.expect_err("refused").contains("certificate"));
    assert!(there.is_err());
}

#[test]
fn a_device_can_only_call_itself_what_its_certificate_says() {
    let folder = authority();
    let camera = device(&identity(folder.path(), "devices/camera"));
    let me = trainer(&identity(folder.path(), "trainer"), None);
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let serve = async {
            let (tcp, peer) = listener.accept().await.expect("a connection");
            accept(tcp, peer, &camera).await
        };
        let ask = connect(&address, &me, LinkShape::default(), Arc::new(Counters::default()));
        let (there, here) = tokio::join!(serve, ask);
        there.expect("accepted");
        let here = here.expect("connected");
        assert!(here.peer().may_be(&name("camera")));
        assert!(!here.peer().may_be(&name("gate")));
    });
}

#[test]
fn another_authority_is_refused_by_both_ends() {
    let (ours, theirs) = (authority(), authority());
    let our_device = device(&identity(ours.path(), "devices/camera"));
    let their_device = device(&identity(theirs.path(), "devices/camera"));
    let our_trainer = trainer(&identity(ours.path(), "trainer"), None);
    let their_trainer = trainer(&identity(theirs.path(), "trainer"), None);
    for (device, trainer) in [(&our_device, &their_trainer), (&their_device, &our_trainer)] {
        let (there, here) = meet(device, trainer);
        assert!(there.is_err() && here.is_err(), "{there:?} {here:?}");
    }
    // A trainer that believes anybody is still refused by the device.
    let mixed = tempfile::tempdir().expect("a folder");
    for (from, file) in [(&ours, "ca.pem"), (&theirs, "certificate.pem"), (&theirs, "key.pem")] {
        fs::copy(from.path().join("trainer").join(file), mixed.path().join(file)).expect("copied");
    }
    let stranger = trainer(&Identity::open(mixed.path()).expect("a bundle"), None);
    let (there, here) = meet(&our_device, &stranger);
    assert!(there.is_err() && here.is_err(), "{there:?} {here:?}");
}

#[test]
fn roles_cannot_be_exchanged() {
    let folder = authority();
    let (camera, me) = (identity(folder.path(), "devices/camera"), identity(folder.path(), "trainer"));
    let gate = identity(folder.path(), "devices/gate");
    let (there, here) = meet(&device(&camera), &trainer(&gate, None));
    assert!(there.is_err() && here.is_err(), "a device as trainer: {there:?} {here:?}");
    let (there, here) = meet(&device(&me), &trainer(&me, None));
    assert!(there.is_err() && here.is_err(), "the trainer as device: {there:?} {here:?}");
}

#[test]
fn a_peer_without_a_certificate_and_one_that_speaks_plainly_are_refused() {
    let folder = authority();
    let camera = device(&identity(folder.path(), "devices/camera"));
    let ca = fs::read(folder.path().join("ca.pem")).expect("the authority");
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serve = async {
            let (tcp, peer) = listener.accept().await.expect("a connection");
            say(accept(tcp, peer, &camera).await, b"there").await
        };
        let nameless = async {
            use rustls::pki_types::pem::PemObject;
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(&ca).expect("a certificate")).expect("a root");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = vec![b"chipfit/1".to_vec()];
            let tcp = TcpStream::connect(address).await.expect("connected");
            let server = ServerName::try_from("camera").expect("a name");
            let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server, tcp).await?;
            stream.read_u8().await
        };
        let (there, here) = tokio::join!(serve, nameless);
        assert!(there.is_err() && here.is_err(), "{there:?} {here:?}");
        let serve = async {
            let (tcp, peer) = listener.accept().await.expect("a connection");
            say(accept(tcp, peer, &camera).await, b"there").await
        };
        let plain = async {
            let mut tcp = TcpStream::connect(address).await.expect("connected");
            let _ = tcp.write_all(b"hello, I am the trainer\n").await;
            let mut heard = Vec::new();
            let _ = tcp.read_to_end(&mut heard).await;
            heard
        };
        let (there, heard) = tokio::join!(serve, plain);
        assert!(there.is_err());
        assert!(!heard.windows(5).any(|window| window == b"there"));
    });
}

#[test]
fn plain_tcp_stays_on_loopback() {
    assert_eq!(meet(&DeviceSecurity::InsecureLoopback, &TrainerSecurity::InsecureLoopback), talked());
    let counters = Arc::new(Counters::default());
    let beyond = connect("192.0.2.1:7431", &TrainerSecurity::InsecureLoopback, LinkShape::default(), counters);
    let error = block_on(beyond).expect_err("refused");
    assert!(matches!(error, AgentError::PlainBeyondLoopback { .. }), "{error}");
}

#[test]
fn bytes_are_counted_with_their_records() {
    let folder = authority();
    let camera = device(&identity(folder.path(), "devices/camera"));
    let me = trainer(&identity(folder.path(), "trainer"), None);
    let counters = Arc::new(Counters::default());
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let serve = async {
            let (tcp, peer) = listener.accept().await.expect("a connection");
            let mut stream = accept(tcp, peer, &camera).await.expect("accepted").into_stream();
            let mut heard = vec![0; 100_000];
            stream.read_exact(&mut heard).await.expect("read");
        };
        let ask = async {
            let connection = connect(&address, &me, LinkShape::default(), Arc::clone(&counters)).await;
            let mut stream = connection.expect("connected").into_stream();
            let before = counters.sent();
            stream.write_all(&vec![7; 100_000]).await.expect("written");
            stream.flush().await.expect("flushed");
            counters.sent() - before
        };
        let ((), sent) = tokio::join!(serve, ask);
        // At most 16 KiB a record, 22 bytes each for header, type and tag.
        assert!((100_000 + 7 * 22..102_000).contains(&sent), "{sent}");
        assert!(counters.received() > 500, "the handshake counts: {}", counters.received());
    });
}

#[cfg(unix)]
#[test]
fn keys_are_their_owners_and_nothing_is_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let folder = authority();
    let mode = |file: &str| fs::metadata(folder.path().join(file)).expect(file).permissions().mode() & 0o777;
    for key in ["ca-key.pem", "trainer/key.pem", "devices/camera/key.pem"] {
        assert_eq!(mode(key), 0o600, "{key}");
    }
    assert_eq!(mode("devices/camera"), 0o700);
    let all = || {
        let files =
            ["ca.pem", "ca-key.pem", "trainer/key.pem", "devices/camera/key.pem", "devices/camera/certificate.pem"];
        files.map(|file| fs::read(folder.path().join(file)).expect(file))
    };
    let before = all();
    let again = pki::init(folder.path(), Validity::default(), false).expect_err("refused");
    assert!(matches!(again, AgentError::Exists { .. }), "{again}");
    let again = pki::device(folder.path(), &name("camera"), Validity::default(), false).expect_err("refused");
    assert!(matches!(again, AgentError::Exists { .. }), "{again}");
    assert_eq!(all(), before);
    pki::device(folder.path(), &name("camera"), Validity::default(), true).expect("replaced");
    let after = all();
    assert_eq!(after[..3], before[..3]);
    assert_ne!(after[3..], before[3..]);
    let left: Vec<_> = fs::read_dir(folder.path().join("devices/camera")).expect("a folder").collect();
    assert_eq!(left.len(), 3, "no temporary file stays");
}

#[test]
fn a_damaged_authority_or_bundle_is_named() {
    let folder = authority();
    let nowhere = pki::device(&folder.path().join("none"), &name("camera"), Validity::default(), false);
    assert!(nowhere.expect_err("refused").to_string().contains("ca.pem"));
    let other = authority();
    fs::copy(other.path().join("ca-key.pem"), folder.path().join("ca-key.pem")).expect("copied");
    let mixed = pki::device(folder.path(), &name("new"), Validity::default(), false).expect_err("refused");
    assert!(mixed.to_string().contains("ca-key.pem"), "{mixed}");
    assert!(!folder.path().join("devices/new").exists());
    fs::write(folder.path().join("trainer/key.pem"), "no key").expect("written");
    let broken = Identity::open(&folder.path().join("trainer")).expect_err("refused");
    assert!(broken.to_string().contains("key.pem"), "{broken}");
    fs::copy(other.path().join("trainer/key.pem"), folder.path().join("trainer/key.pem")).expect("copied");
    let foreign = Identity::open(&folder.path().join("trainer")).expect("a key as such");
    assert!(tls::trainer_config(&foreign, None).is_err());
}
