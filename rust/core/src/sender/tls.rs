//! TLS as the side that connects: whom the sender believes, and the certificate that it shows.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    RootCertStore, SignatureScheme,
};

use crate::net::tls::{all, file_error, TlsError};

/// Whom the sender believes and what it shows. All files are PEM.
#[derive(Clone, Debug, Default)]
pub struct ClientFiles {
    /// Authorities that may issue the certificate of the peer. None: every certificate is believed.
    pub ca: Option<PathBuf>,
    /// Certificate to show where the peer asks for one, and those between it and the root.
    pub certificate: Option<PathBuf>,
    /// Its key, unencrypted; without it the file of the certificate has the key, too.
    pub key: Option<PathBuf>,
}

/// TLS towards one peer, for any number of associations.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl ClientTls {
    /// Reads the files. `name` is the host name or address that the certificate of the peer must have.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn load(files: &ClientFiles, name: &str) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Certificate)?;
        let builder = match &files.ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in all("ca", path)? {
                    roots
                        .add(authority)
                        .map_err(|error| file_error("ca", path, &error.to_string()))?;
                }
                builder.with_root_certificates(roots)
            }
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        };
        let config = match &files.certificate {
            Some(path) => {
                let chain: Vec<CertificateDer<'static>> = all("certificate", path)?;
                let key_path = files.key.as_ref().unwrap_or(path);
                let key = PrivateKeyDer::from_pem_file(key_path)
                    .map_err(|_| file_error("key", key_path, "no private key in it that is not encrypted"))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(TlsError::Certificate)?
            }
            None => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    pub(super) fn connection(&self) -> Result<Connection, rustls::Error> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map(Connection::Client)
    }
}

/// Believes every certificate. Only its key must be that of the peer.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why TLS was not agreed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFailure {
    /// No authority of ours issued the certificate of the peer.
    #[error("its certificate is of an unknown authority")]
    UnknownIssuer,
    /// The certificate is for other names; those that it has.
    #[error("its certificate {}", names(.0))]
    WrongName(Vec<String>),
    /// The certificate is too old, or not valid yet.
    #[error("its certificate is expired or not valid yet")]
    NotInForce,
    /// Anything else is wrong with the certificate.
    #[error("its certificate cannot be used: {0}")]
    Certificate(String),
    /// The peer did not take our certificate, or misses one.
    #[error("it does not accept our certificate, or asks for one ({0})")]
    CertificateRefused(String),
    /// The peer ended the handshake for another reason.
    #[error("it refuses the handshake ({0})")]
    Refused(String),
    /// No version or cipher suite is common to both.
    #[error("it has no version or cipher suite of TLS in common with this program")]
    NothingInCommon,
    /// The answer is no TLS.
    #[error("it does not speak TLS")]
    NotTls,
    /// The peer closed the connection during the handshake.
    #[error("it closed the connection during the handshake")]
    Closed,
    /// The peer did not answer.
    #[error("it does not answer to the handshake")]
    Silent,
    /// Whatever else rustls says.
    #[error("{0}")]
    Other(String),
}

impl TlsFailure {
    /// The word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownIssuer => "tls.unknown_issuer",
            Self::WrongName(_) => "tls.wrong_name",
            Self::NotInForce => "tls.not_in_force",
            Self::Certificate(_) => "tls.certificate",
            Self::CertificateRefused(_) => "tls.certificate_refused",
            Self::Refused(_) => "tls.refused",
            Self::NothingInCommon => "tls.nothing_in_common",
            Self::NotTls => "tls.not_tls",
            Self::Closed => "tls.closed",
            Self::Silent => "tls.silent",
            Self::Other(_) => "tls.other",
        }
    }
}

fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "names no host (subjectAltName)".to_owned();
    }
    // As webpki writes them: DnsName("pacs.hospital"), IpAddress(10.1.0.1).
    let bare = presented.iter().map(|name| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, inner)| inner);
        inner.trim_end_matches(')').trim_matches('"')
    });
    format!("is for {}", bare.collect::<Vec<_>>().join(", "))
}

impl From<&rustls::Error> for TlsFailure {
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(why) => certificate_failure(why),
            rustls::Error::AlertReceived(alert) => {
                let text = format!("{alert:?}");
                match alert {
                    AlertDescription::BadCertificate
                    | AlertDescription::NoCertificate
                    | AlertDescription::UnsupportedCertificate
                    | AlertDescription::CertificateRevoked
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::CertificateRequired
                    | AlertDescription::UnknownCA
                    | AlertDescription::AccessDenied
                    | AlertDescription::DecryptError => Self::CertificateRefused(text),
                    AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity => {
                        Self::NothingInCommon
                    }
                    _ => Self::Refused(text),
                }
            }
            rustls::Error::PeerIncompatible(_) => Self::NothingInCommon,
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            other => Self::Other(other.to_string()),
        }
    }
}

fn certificate_failure(why: &CertificateError) -> TlsFailure {
    match why {
        CertificateError::UnknownIssuer => TlsFailure::UnknownIssuer,
        CertificateError::NotValidForName => TlsFailure::WrongName(Vec::new()),
        CertificateError::NotValidForNameContext { presented, .. } => {
            TlsFailure::WrongName(presented.clone())
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => TlsFailure::NotInForce,
        // What webpki says, which has no other form.
        CertificateError::Other(inner) if format!("{inner:?}").contains("CaUsedAsEndEntity") => {
            TlsFailure::Certificate("it is that of an authority (CA:TRUE), not of a service".to_owned())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            TlsFailure::Certificate("it is not for services (extendedKeyUsage serverAuth)".to_owned())
        }
        other => TlsFailure::Certificate(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_certificate_are_told_without_their_kinds() {
        let presented = ["DnsName(\"pacs.hospital\")", "IpAddress(10.1.0.1)"].map(ToOwned::to_owned);
        assert_eq!(
            TlsFailure::WrongName(presented.to_vec()).to_string(),
            "its certificate is for pacs.hospital, 10.1.0.1"
        );
        assert_eq!(
            TlsFailure::WrongName(Vec::new()).to_string(),
            "its certificate names no host (subjectAltName)"
        );
    }

    #[test]
    fn alerts_about_certificates_are_told_from_others() {
        for (alert, code) in [
            (AlertDescription::CertificateRequired, "tls.certificate_refused"),
            (AlertDescription::UnknownCA, "tls.certificate_refused"),
            (AlertDescription::ProtocolVersion, "tls.nothing_in_common"),
            (AlertDescription::HandshakeFailure, "tls.refused"),
        ] {
            let failure = TlsFailure::from(&rustls::Error::AlertReceived(alert));
            assert_eq!(failure.code(), code);
        }
    }
}
