//! Why something could not be sent, as values with a code.

use std::io;

use super::tls::TlsFailure;

/// Why an association could not be opened, or an instance not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The host name has no address.
    #[error("{0}")]
    Name(io::Error),
    /// No connection could be opened.
    #[error("{0}")]
    Connect(io::Error),
    /// TLS could not be agreed on.
    #[error("{0}")]
    Tls(TlsFailure),
    /// The peer answered with TLS where there was none.
    #[error("it expects TLS")]
    ExpectsTls,
    /// The peer ended the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer was silent, or took nothing, for longer than the time limit.
    #[error("no answer in time")]
    Silent,
    /// The connection broke in another way.
    #[error("{0}")]
    Io(io::Error),
    /// The file cannot be read.
    #[error("{0}")]
    File(io::Error),
    /// A-ASSOCIATE-RJ: result, source and reason (PS3.8 Table 9-21).
    #[error("rejected ({0}/{1}/{2})")]
    Rejected(u8, u8, u8),
    /// A-ABORT: source and reason (PS3.8 Table 9-26).
    #[error("aborted by the peer ({0}/{1})")]
    Aborted(u8, u8),
    /// The peer breaks the protocol.
    #[error("the peer breaks the protocol: {0}")]
    Protocol(&'static str),
    /// No accepted presentation context has this class in this transfer syntax.
    #[error("the peer does not accept its class in its transfer syntax")]
    NotAccepted,
    /// What is asked for does not fit in an A-ASSOCIATE-RQ.
    #[error("the association request would be too long")]
    RequestTooLong,
}

impl SendError {
    /// The word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::Connect(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => "connect.refused",
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "connect.timeout",
                _ => "connect.other",
            },
            Self::Tls(failure) => failure.code(),
            Self::ExpectsTls => "tls.expected",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Io(_) => "io",
            Self::File(_) => "file",
            Self::Rejected(..) => "rejected",
            Self::Aborted(..) => "aborted",
            Self::Protocol(_) => "protocol",
            Self::NotAccepted => "not_accepted",
            Self::RequestTooLong => "request_too_long",
        }
    }

    /// The numbers of a rejection or an abort.
    #[must_use]
    pub fn numbers(&self) -> Vec<u8> {
        match *self {
            Self::Rejected(result, source, reason) => vec![result, source, reason],
            Self::Aborted(source, reason) => vec![source, reason],
            _ => Vec::new(),
        }
    }
}

/// Of a connection that was open.
impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls {
            return Self::Tls(tls.into());
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::WriteZero
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted => Self::Closed,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Io(error),
        }
    }
}
