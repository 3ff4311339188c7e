//! A connection as the association sees it: bytes in, bytes out, clear or TLS.

use std::cell::RefCell;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::Connection;

/// What is taken from the socket at a time, several TLS records.
const INCOMING_BYTES: usize = 64 * 1024;
/// The same until there is an association: thousands of connections may wait that long.
const WAITING_BYTES: usize = 4 * 1024;

/// See the module documentation. Reading and writing go through `&Stream`, on one thread at a time.
#[derive(Debug)]
pub struct Stream {
    socket: Arc<TcpStream>,
    tls: Option<RefCell<Tls>>,
}

#[derive(Debug)]
struct Tls {
    connection: Connection,
    incoming: BufReader<Socket>,
}

/// `Read` for what came before and for a shared socket.
#[derive(Debug)]
struct Socket {
    before: io::Cursor<Vec<u8>>,
    socket: Arc<TcpStream>,
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.before.read(buffer)? {
            0 => (&*self.socket).read(buffer),
            count => Ok(count),
        }
    }
}

/// What is known of the peer of a TLS connection.
#[derive(Clone, Debug)]
pub struct TlsPeer {
    /// `TLSv1_2` or `TLSv1_3`.
    pub version: String,
    /// Its certificate (DER), where it showed one.
    pub certificate: Option<Vec<u8>>,
}

impl Stream {
    /// A clear connection.
    #[must_use]
    pub fn clear(socket: TcpStream) -> Self {
        Self {
            socket: Arc::new(socket),
            tls: None,
        }
    }

    /// A connection with TLS on it, of either side; the handshake is to come.
    pub(crate) fn encrypted(socket: TcpStream, connection: Connection) -> Self {
        let mut stream = Self::clear(socket);
        stream.begin_tls(connection);
        stream
    }

    /// From here on there is TLS on a clear connection, of either side; the handshake is to come.
    pub(crate) fn begin_tls(&mut self, connection: Connection) {
        let incoming = self.incoming(WAITING_BYTES, Vec::new());
        self.tls = Some(RefCell::new(Tls { connection, incoming }));
    }

    fn incoming(&self, bytes: usize, before: Vec<u8>) -> BufReader<Socket> {
        let socket = Arc::clone(&self.socket);
        let before = io::Cursor::new(before);
        BufReader::with_capacity(bytes, Socket { before, socket })
    }

    /// Whether it is without TLS.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.tls.is_none()
    }

    /// The socket beneath, to watch it or to shut it down from another thread.
    #[must_use]
    pub fn socket(&self) -> &Arc<TcpStream> {
        &self.socket
    }

    /// That of an association: blocking from now on, with time limits for each read and write, and read in large pieces.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn block(&self, read_timeout: Duration, write_timeout: Duration) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            let incoming = &mut tls.borrow_mut().incoming;
            let mut unread = incoming.buffer().to_vec();
            incoming.get_mut().before.read_to_end(&mut unread)?;
            *incoming = self.incoming(INCOMING_BYTES, unread);
        }
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(read_timeout))?;
        self.socket.set_write_timeout(Some(write_timeout))
    }

    /// Whether the TLS handshake is not over.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.borrow().connection.is_handshaking())
    }

    /// Does the TLS handshake on a socket that blocks.
    ///
    /// # Errors
    /// What the operating system says, or a [`rustls::Error`] within.
    pub(crate) fn shake_hands(&self) -> io::Result<()> {
        let Some(tls) = &self.tls else {
            return Ok(());
        };
        let tls = &mut *tls.borrow_mut();
        loop {
            tls.flush(&self.socket)?;
            if !tls.connection.is_handshaking() {
                return Ok(());
            }
            if tls.receive(&self.socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Who is on the other side of a TLS connection.
    #[must_use]
    pub fn tls_peer(&self) -> Option<TlsPeer> {
        let tls = self.tls.as_ref()?.borrow();
        let certificates = tls.connection.peer_certificates().unwrap_or_default();
        Some(TlsPeer {
            version: format!("{:?}", tls.connection.protocol_version()?),
            certificate: certificates.first().map(|first| first.to_vec()),
        })
    }

    /// Nothing more will be written.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn close_write(&self) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            let tls = &mut *tls.borrow_mut();
            tls.connection.send_close_notify();
            tls.flush(&self.socket)?;
        }
        self.socket.shutdown(Shutdown::Write)
    }
}

impl Tls {
    fn flush(&mut self, socket: &TcpStream) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut &*socket)?;
        }
        Ok(())
    }

    fn read(&mut self, socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Closed without a word, as many peers do: what matters is whether the association was released.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                outcome => return outcome,
            }
            match self.flush(socket) {
                // A peer that takes nothing now may send all the same.
                Err(error) if is_full(&error) => {}
                outcome => outcome?,
            }
            if self.receive(socket)? == 0 {
                return Ok(0);
            }
        }
    }

    /// Takes what has come; the bytes, none at the end of the connection.
    fn receive(&mut self, socket: &TcpStream) -> io::Result<usize> {
        let count = self.connection.read_tls(&mut self.incoming)?;
        if let Err(error) = self.connection.process_new_packets() {
            // Best effort: the alert tells the peer why.
            let _ = self.flush(socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(count)
    }
}

/// Whether the socket takes nothing at present; with a time limit for writes the kernel says either.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&*self.socket).read(buffer),
            Some(tls) => {
                let tls = &mut *tls.borrow_mut();
                let count = tls.read(&self.socket, buffer)?;
                // The last flight of a handshake may still be here, or the answer to a key update (RFC 8446 4.6.3). What was read is
                // not lost where the peer takes neither now: the next call tries again, and says what is wrong.
                let _ = tls.flush(&self.socket);
                Ok(count)
            }
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&*self.socket).write(buffer),
            Some(tls) => {
                let tls = &mut *tls.borrow_mut();
                let count = tls.connection.writer().write(buffer)?;
                tls.flush(&self.socket)?;
                Ok(count)
            }
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => (&*self.socket).write_vectored(slices),
            Some(tls) => {
                let tls = &mut *tls.borrow_mut();
                let count = tls.connection.writer().write_vectored(slices)?;
                tls.flush(&self.socket)?;
                Ok(count)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &self.tls {
            None => Ok(()),
            Some(tls) => tls.borrow_mut().flush(&self.socket),
        }
    }
}

#[cfg(test)]
mod tests;
