//! Connections before they are associations.

use std::net::{IpAddr, TcpListener};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use storescp_core::net::admission::Network;
use storescp_core::net::gate;
use storescp_core::net::tls::{ClientAuth, TlsFiles, TlsSetup};
use storescp_core::wire::proxy;

use crate::boundary::{run, CoreError};

/// Watches connections until their A-ASSOCIATE-RQ is complete.
#[pyclass(frozen, module = "storescp._core")]
pub struct Gate(pub Arc<gate::Gate>);

/// A connection whose A-ASSOCIATE-RQ is complete; used up by `refuse` or `Engine.receive`.
#[pyclass(frozen, module = "storescp._core")]
pub struct Connection(pub Mutex<Option<gate::Connection>>);

/// Certificates, key and authorities of a TLS listener, read and checked.
#[pyclass(frozen, module = "storescp._core")]
pub struct Tls(TlsSetup);

#[pymethods]
impl Tls {
    /// Reads PEM files. Raises `CoreError` that names the setting.
    #[new]
    fn new(
        py: Python<'_>,
        certificate: PathBuf,
        private_key: PathBuf,
        client_ca: Option<PathBuf>,
        client_auth: &str,
        crl: Option<PathBuf>,
    ) -> PyResult<Self> {
        let client_auth = match client_auth {
            "required" => ClientAuth::Required,
            "optional" => ClientAuth::Optional,
            "none" => ClientAuth::None,
            _ => return Err(CoreError::new_err("client_auth: required, optional or none")),
        };
        let files = TlsFiles {
            certificate,
            private_key,
            client_ca,
            client_auth,
            crl,
        };
        run(py, || TlsSetup::load(&files).map(Self))
    }
}

#[pymethods]
impl Gate {
    /// `balancers`: networks (address, prefix length) from where connections begin with a PROXY header.
    #[new]
    #[allow(clippy::too_many_arguments)] // each is a limit
    fn new(
        py: Python<'_>,
        max_connections: usize,
        max_connections_per_address: usize,
        handshake_timeout: f64,
        request_timeout: f64,
        max_request_bytes: u32,
        balancers: Vec<(IpAddr, u32)>,
        tls: Option<&Tls>,
    ) -> PyResult<Self> {
        let seconds =
            |value| Duration::try_from_secs_f64(value).map_err(|error| CoreError::new_err(error.to_string()));
        let limits = gate::GateLimits {
            connections: max_connections,
            per_address: max_connections_per_address,
            handshake_timeout: seconds(handshake_timeout)?,
            request_timeout: seconds(request_timeout)?,
            request_bytes: max_request_bytes,
        };
        let balancers = balancers.into_iter();
        let balancers = balancers
            .map(|(address, prefix_length)| Network::new(address, prefix_length))
            .collect();
        let tls = tls.map(|tls| tls.0.clone());
        run(py, || {
            gate::Gate::start(limits, balancers, tls).map(|gate| Self(Arc::new(gate)))
        })
    }

    /// What new connections get from now on.
    fn set_tls(&self, tls: &Tls) {
        self.0.set_tls(tls.0.clone());
    }

    /// Takes over the descriptor of a listening socket (`socket.detach()`) and accepts until `stop`.
    fn listen(&self, py: Python<'_>, descriptor: i32, encrypted: bool) -> PyResult<()> {
        if descriptor < 0 {
            return Err(CoreError::new_err("not a descriptor"));
        }
        // SAFETY: the caller has detached the descriptor from its socket, so nobody else owns or closes it
        // (`storescp.network.listener` is the only caller).
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        run(py, move || {
            self.0.listen(TcpListener::from(descriptor), encrypted)
        })
    }

    /// Connections now open, associations included.
    #[getter]
    fn connections(&self) -> usize {
        self.0.connections()
    }

    /// Whether its threads live, or were told to end.
    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// Connections turned away since start, by reason.
    fn refused(&self) -> Vec<(&'static str, u64)> {
        let counters = self.0.counters();
        [
            ("connections", &counters.connections),
            ("connections_per_address", &counters.per_address),
            ("request_timeout", &counters.timeout),
            ("malformed_request", &counters.malformed),
            ("request_memory", &counters.request_memory),
            ("tls_handshake", &counters.handshake),
            ("proxy_header", &counters.proxy_header),
            ("not_accepted", &counters.not_accepted),
        ]
        .map(|(reason, counter)| (reason, counter.load(Ordering::Relaxed)))
        .to_vec()
    }

    /// Connections turned away since the last call: address and port (where they are known), reason, detail. The first thousand.
    fn take_refused(&self) -> Vec<(Option<(String, u16)>, &'static str, String)> {
        let refused = self.0.take_refused().into_iter();
        refused
            .map(|one| {
                let peer = one.peer.map(|peer| (peer.ip().to_string(), peer.port()));
                (peer, one.reason, one.detail)
            })
            .collect()
    }

    /// Closes all connections that are no associations.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        run(py, || {
            self.0.stop();
            Ok::<_, std::convert::Infallible>(())
        })
    }
}

impl Connection {
    /// Hands the connection over, once.
    pub fn take(&self) -> PyResult<gate::Connection> {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        connection.ok_or_else(|| CoreError::new_err("the connection was used already"))
    }

    fn look<T>(&self, look: impl FnOnce(&gate::Connection) -> T) -> PyResult<T> {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard
            .as_ref()
            .map(look)
            .ok_or_else(|| CoreError::new_err("the connection was used already"))
    }
}

#[pymethods]
impl Connection {
    /// The whole A-ASSOCIATE-RQ, PDU header included.
    #[getter]
    fn request<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.look(|connection| PyBytes::new(py, connection.request()))
    }

    /// Address and port of the peer, by its PROXY header where there was one.
    #[getter]
    fn peer(&self) -> PyResult<(String, u16)> {
        self.look(|connection| (connection.peer().ip().to_string(), connection.peer().port()))
    }

    /// The address that the connection came from where it began with a PROXY header.
    #[getter]
    fn proxy_address(&self) -> PyResult<Option<String>> {
        self.look(|connection| connection.proxy().map(|address| address.to_string()))
    }

    /// TLS version and the peer's certificate (DER), or None on a clear connection.
    #[getter]
    fn tls<'py>(&self, py: Python<'py>) -> PyResult<Option<(String, Option<Bound<'py, PyBytes>>)>> {
        let peer = self.look(gate::Connection::tls_peer)?;
        Ok(peer.map(|peer| {
            let certificate = peer.certificate.map(|bytes| PyBytes::new(py, &bytes));
            (peer.version, certificate)
        }))
    }

    /// Sends a last PDU and closes.
    fn refuse(&self, py: Python<'_>, pdu: &[u8]) -> PyResult<()> {
        let connection = self.take()?;
        let pdu = pdu.to_vec();
        run(py, move || {
            connection.refuse(&pdu);
            Ok::<_, std::convert::Infallible>(())
        })
    }
}

/// Looks at the bytes of a PROXY header so far: how many more certainly belong to it, 0 where it is complete, and then address
/// and port that it names; none where those of the connection count. Raises `CoreError` that says what is wrong.
#[pyfunction]
pub fn parse_proxy_header(received: &[u8]) -> PyResult<(usize, Option<(String, u16)>)> {
    match proxy::parse(received).map_err(|malformed| CoreError::new_err(malformed.to_string()))? {
        proxy::Progress::More(wanted) => Ok((wanted, None)),
        proxy::Progress::Complete(proxy::Source::Connection) => Ok((0, None)),
        proxy::Progress::Complete(proxy::Source::Peer(peer)) => {
            Ok((0, Some((peer.ip().to_string(), peer.port()))))
        }
    }
}

/// Whether bytes begin as a PROXY header does.
#[pyfunction]
pub fn begins_proxy_header(received: &[u8]) -> bool {
    proxy::begins_header(received)
}
