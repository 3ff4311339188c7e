//! What a TLS listener presents and whom it believes (PS3.15 B.12: the profiles of BCP 195).
//!
//! TLS 1.2 and 1.3 with AEAD and forward secrecy, which is all that rustls has. Sessions are never resumed: a certificate that
//! was revoked or has expired since would come in by its old session.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{Connection, RootCertStore, ServerConfig, ServerConnection};

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Nobody gets in without one.
    Required,
    /// One that is shown must be good.
    Optional,
    /// None is asked for.
    None,
}

/// The files, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Our certificate and those between it and the root.
    pub certificate: PathBuf,
    /// Its key, unencrypted.
    pub private_key: PathBuf,
    /// Roots of client certificates.
    pub client_ca: Option<PathBuf>,
    /// See [`ClientAuth`].
    pub client_auth: ClientAuth,
    /// Revocation lists, one for each authority that issues client certificates.
    pub crl: Option<PathBuf>,
}

/// Why TLS cannot be set up. Names the setting.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds none of what it should.
    #[error("{setting}: {path}: {reason}")]
    File {
        /// The key in `[tls]`.
        setting: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not go together, or cannot be used.
    #[error("certificate: {0}")]
    Certificate(rustls::Error),
    /// The host name that a peer is to have a certificate for is none.
    #[error("name: {0} is no host name and no address")]
    Name(String),
    /// The authorities or revocation lists cannot be used.
    #[error("client_ca: {0}")]
    ClientAuthority(#[from] VerifierBuilderError),
    /// Client certificates are asked for, but there is nothing to check them with.
    #[error("client_ca: a file is needed where client_auth is not \"none\"")]
    NoClientAuthority,
}

/// The cipher suites that are offered, by their IANA names, in our order of preference.
#[must_use]
pub fn cipher_suites() -> Vec<String> {
    let suites = rustls::crypto::ring::default_provider().cipher_suites;
    let names = suites.iter().map(|suite| format!("{:?}", suite.suite()));
    names.map(|name| name.replace("TLS13_", "TLS_")).collect()
}

/// A set-up that new connections get.
#[derive(Clone, Debug)]
pub struct TlsSetup(Arc<ServerConfig>);

impl TlsSetup {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] names the setting.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain: Vec<CertificateDer<'static>> = all("certificate", &files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.private_key)
            .map_err(|error| file_error("private_key", &files.private_key, &error.to_string()))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Certificate)?;
        let builder = if files.client_auth == ClientAuth::None {
            builder.with_no_client_auth()
        } else {
            let path = files.client_ca.as_deref().ok_or(TlsError::NoClientAuthority)?;
            let mut roots = RootCertStore::empty();
            for authority in all("client_ca", path)? {
                roots
                    .add(authority)
                    .map_err(|error| file_error("client_ca", path, &error.to_string()))?;
            }
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            if let Some(path) = &files.crl {
                let lists: Vec<CertificateRevocationListDer<'static>> = all("crl", path)?;
                // Of the client's certificate: a list of the root's own is rarely kept.
                verifier = verifier.with_crls(lists).only_check_end_entity_revocation();
            }
            if files.client_auth == ClientAuth::Optional {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build()?)
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(TlsError::Certificate)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn accept(&self) -> Result<Connection, rustls::Error> {
        ServerConnection::new(Arc::clone(&self.0)).map(Connection::Server)
    }
}

pub(crate) fn all<T: rustls::pki_types::pem::PemObject>(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<T>, TlsError> {
    let found: Result<Vec<T>, _> = T::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(file_error(setting, path, "nothing of the kind in it")),
        Err(error) => Err(file_error(setting, path, &error.to_string())),
    }
}

pub(crate) fn file_error(setting: &'static str, path: &Path, reason: &str) -> TlsError {
    TlsError::File {
        setting,
        path: path.display().to_string(),
        reason: reason.to_owned(),
    }
}
