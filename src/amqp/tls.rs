//! What `amqps://` verifies the broker with, and shows it in turn.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};

use super::error::{ConnectError, ConnectErrorKind};
use crate::error::BoxError;

/// Certificates for `amqps://` connections.
///
/// The broker's certificate and host name are always verified; there is no switch that turns it
/// off. Files are read at every connect, so a renewed certificate is used from the next connection
/// on.
#[derive(Clone, Default)]
pub struct TlsOptions {
    authorities: Vec<Pem>,
    identity: Option<(Pem, Pem)>,
}

#[derive(Clone)]
enum Pem {
    File(PathBuf),
    Text(String),
}

impl TlsOptions {
    /// The system's certificate authorities, and no client certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in this PEM file, in addition to those of the system.
    ///
    /// There must be some in the system's store; where there is none, the variable `SSL_CERT_FILE`
    /// can name this file.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.authorities.push(Pem::File(path.into()));
        self
    }

    /// Like [`ca_file`](Self::ca_file), with the PEM text itself.
    #[must_use]
    pub fn ca_pem(mut self, pem: impl Into<String>) -> Self {
        self.authorities.push(Pem::Text(pem.into()));
        self
    }

    /// Shows the broker a client certificate: PEM files of the certificate with its chain, and of
    /// its private key, unencrypted.
    ///
    /// To log in by it, too (RabbitMQ's plugin `rabbitmq_auth_mechanism_ssl`), add
    /// `?auth_mechanism=external` to the URI.
    #[must_use]
    pub fn client_certificate_files(mut self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((Pem::File(chain.into()), Pem::File(key.into())));
        self
    }

    /// Like [`client_certificate_files`](Self::client_certificate_files), with the PEM texts
    /// themselves.
    #[must_use]
    pub fn client_certificate_pem(mut self, chain: impl Into<String>, key: impl Into<String>) -> Self {
        self.identity = Some((Pem::Text(chain.into()), Pem::Text(key.into())));
        self
    }

    /// Reads the files, off the async threads.
    pub(super) async fn load(&self) -> Result<OwnedTLSConfig, ConnectError> {
        let options = self.clone();
        let loaded = tokio::task::spawn_blocking(move || options.read()).await;
        match loaded {
            Ok(Ok(config)) => Ok(config),
            Ok(Err(error)) => Err(ConnectError::setup(ConnectErrorKind::Tls, error)),
            Err(error) => Err(ConnectError::setup(ConnectErrorKind::Tls, error)),
        }
    }

    fn read(&self) -> Result<OwnedTLSConfig, BoxError> {
        let mut chain = String::new();
        for authority in &self.authorities {
            // rustls would pass over a file without any certificate.
            chain.push_str(&authority.read("CERTIFICATE-----")?);
            chain.push('\n');
        }
        let identity = match &self.identity {
            None => None,
            Some((chain, key)) => Some(OwnedIdentity::PKCS8 {
                pem: chain.read("CERTIFICATE-----")?.into_bytes(),
                key: key.read("PRIVATE KEY-----")?.into_bytes(),
            }),
        };
        Ok(OwnedTLSConfig { identity, cert_chain: (!chain.is_empty()).then_some(chain) })
    }
}

impl Pem {
    fn read(&self, what: &str) -> Result<String, BoxError> {
        let (text, place) = match self {
            Self::Text(text) => (text.clone(), "the PEM text".to_owned()),
            Self::File(path) => (read(path)?, path.display().to_string()),
        };
        let there =
            text.lines().any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(what));
        if there { Ok(text) } else { Err(format!("{place} holds no `-----BEGIN ... {what}`").into()) }
    }
}

fn read(path: &Path) -> Result<String, BoxError> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("authorities", &self.authorities.len())
            .field("client_certificate", &self.identity.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_no_certificate_is_refused_by_name() {
        let error = TlsOptions::new().ca_file("Cargo.toml").read().unwrap_err();
        assert!(error.to_string().contains("Cargo.toml holds no"), "{error}");
        let error = TlsOptions::new().ca_file("no-such-file.pem").read().unwrap_err();
        assert!(error.to_string().contains("no-such-file.pem"), "{error}");
        let key = "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----";
        let swapped = TlsOptions::new().client_certificate_pem(key, key);
        let error = swapped.read().unwrap_err();
        assert!(!format!("{error} {error:?} {swapped:?}").contains("canary"));
    }
}
