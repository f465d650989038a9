//! `amqps://`: the broker is verified, and can verify the client. A proxy that ends TLS stands
//! before the real broker.

use std::sync::Arc;

use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage,
    amqp::{ConnectError, ConnectErrorKind, TlsOptions},
    consumer::{DeclareError, WorkQueue},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring::default_provider,
        pki_types::{PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

use super::support::{amqp::Client, broker, unique};

trials! {
    broker_is_verified_by_authority_and_name,
    client_certificate_is_shown_and_read_from_files,
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Certificate {
    pem: String,
    der: Vec<u8>,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("sign"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(&self, name: &str) -> Certificate {
        let key = KeyPair::generate().expect("key");
        let issuer: &Issuer<'_, KeyPair> = &self.0;
        let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        let certificate = params.signed_by(&key, issuer).expect("sign");
        Certificate { pem: certificate.pem(), der: certificate.der().to_vec(), key: key.serialize_pem() }
    }
}

/// Ends TLS before the broker; asks for a client certificate of `clients`, if given.
struct TlsProxy {
    url: String,
    accepting: JoinHandle<()>,
}

impl TlsProxy {
    async fn start(certificate: &Certificate, clients: Option<&Authority>) -> Self {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.0.der().clone()).expect("root");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("verifier"))
            }
        };
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).expect("key");
        let config = builder.with_single_cert(vec![certificate.der.clone().into()], key).expect("config");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let plain = broker();
        let (credentials, rest) = plain.split_once('@').expect("credentials");
        let (upstream, path) = rest.split_once('/').expect("path");
        let url = format!("{}@localhost:{port}/{path}", credentials.replacen("amqp", "amqps", 1));
        let upstream = upstream.to_owned();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let Ok(mut broker) = TcpStream::connect(upstream).await else { return };
                    let _ = copy_bidirectional(&mut client, &mut broker).await;
                });
            }
        });
        Self { url, accepting }
    }

    async fn connect(&self, options: TlsOptions) -> Result<IdempotentPublisher, ConnectError> {
        IdempotentPublisher::builder(&self.url).tls(options).connect().await
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

pub async fn broker_is_verified_by_authority_and_name() {
    let authority = Authority::new();
    let trusting = || TlsOptions::new().ca_pem(authority.pem());
    let proxy = TlsProxy::start(&authority.issue("localhost"), None).await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("tls").await;
    let publisher = proxy.connect(trusting()).await.expect("a trusted authority");
    publisher.publish_idempotent(OutgoingMessage::to("", &queue).body("x")).await.expect("published");
    client.delete(&queue).await;
    // The version is asked for on a connection of its own.
    let work = unique("tls-work");
    let declare = async |options| WorkQueue::new(&proxy.url, &work).tls(options).declare().await;
    declare(trusting()).await.expect("a trusted authority");
    client.delete(&work).await;
    client.delete(&format!("{work}.parked")).await;
    match declare(TlsOptions::new()).await {
        Err(DeclareError::Connect(error)) => assert_eq!(error.kind(), ConnectErrorKind::Tls, "{error:?}"),
        other => panic!("nobody knows this authority: {other:?}"),
    }

    let stranger = proxy.connect(TlsOptions::new()).await.expect_err("nobody knows this authority");
    assert_eq!(stranger.kind(), ConnectErrorKind::Tls, "{stranger:?}");
    let other = proxy.connect(TlsOptions::new().ca_pem(Authority::new().pem())).await.expect_err("another's");
    assert_eq!(other.kind(), ConnectErrorKind::Tls, "{other:?}");

    let misnamed = TlsProxy::start(&authority.issue("broker.example"), None).await;
    let error = misnamed.connect(trusting()).await.expect_err("another host's certificate");
    assert_eq!(error.kind(), ConnectErrorKind::Tls, "{error:?}");

    let plain = IdempotentPublisher::builder(broker()).tls(trusting()).connect().await;
    assert_eq!(plain.expect_err("it would be ignored").kind(), ConnectErrorKind::InvalidUri);
}

pub async fn client_certificate_is_shown_and_read_from_files() {
    let authority = Authority::new();
    let proxy = TlsProxy::start(&authority.issue("localhost"), Some(&authority)).await;
    let trusting = || TlsOptions::new().ca_pem(authority.pem());
    let anonymous = proxy.connect(trusting()).await.expect_err("a client certificate is asked for");
    assert!(
        matches!(anonymous.kind(), ConnectErrorKind::Tls | ConnectErrorKind::Unreachable),
        "{anonymous:?}"
    );

    let certificate = authority.issue("orders");
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("tls"));
    std::fs::create_dir_all(&dir).expect("folder");
    let [ca, chain, key] = ["ca.pem", "chain.pem", "key.pem"].map(|name| dir.join(name));
    std::fs::write(&ca, authority.pem()).expect("write");
    std::fs::write(&chain, &certificate.pem).expect("write");
    std::fs::write(&key, &certificate.key).expect("write");
    let from_files = TlsOptions::new().ca_file(&ca).client_certificate_files(&chain, &key);
    proxy.connect(from_files.clone()).await.expect("a known client");
    std::fs::remove_dir_all(&dir).expect("remove");
    let gone = proxy.connect(from_files).await.expect_err("read at every connect");
    assert_eq!(gone.kind(), ConnectErrorKind::Tls);
    let from_texts = trusting().client_certificate_pem(&certificate.pem, &certificate.key);
    proxy.connect(from_texts).await.expect("a known client");
}
