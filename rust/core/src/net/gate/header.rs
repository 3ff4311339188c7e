//! The PROXY header that a connection from a load balancer begins with, read before TLS and before the request.

use std::io::{self, Read as _};
use std::net::TcpStream;

use crate::wire::proxy::{self, Progress, Source, ABSENT, CUT, LATE, OPENING_BYTES};

/// A header as far as it came.
#[derive(Debug, Default)]
pub(super) struct Header(Vec<u8>);

/// What reading comes to for now.
pub(super) enum Outcome {
    More,
    Complete(Source),
    /// It ended before its first byte, as the checks of balancers do that only connect.
    Closed,
    /// Nothing in the text is the peer's.
    Malformed(String),
}

impl Header {
    /// Reads what is there, and no byte behind the header.
    pub(super) fn read(&mut self, mut socket: &TcpStream, buffer: &mut [u8]) -> Outcome {
        loop {
            let wanted = match proxy::parse(&self.0) {
                Ok(Progress::More(wanted)) => wanted.min(buffer.len()),
                Ok(Progress::Complete(source)) => return Outcome::Complete(source),
                Err(malformed) => return Outcome::Malformed(malformed.to_string()),
            };
            match socket.read(buffer.get_mut(..wanted).unwrap_or_default()) {
                Ok(count) if count > 0 => self.0.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::More,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) if self.0.is_empty() => return Outcome::Closed,
                Ok(_) | Err(_) => return Outcome::Malformed(CUT.to_owned()),
            }
        }
    }

    /// What is to be said at its deadline.
    pub(super) fn overdue(&self) -> &'static str {
        if self.0.is_empty() {
            ABSENT
        } else {
            LATE
        }
    }
}

/// Whether what waits in a socket begins as a PROXY header does; none while nothing waits. It stays there.
pub(super) fn is_next(socket: &TcpStream) -> Option<bool> {
    let mut opening = [0; OPENING_BYTES];
    let count = socket.peek(&mut opening).ok()?;
    (count > 0).then(|| proxy::begins_header(opening.get(..count).unwrap_or_default()))
}
