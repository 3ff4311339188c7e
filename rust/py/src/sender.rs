//! Being the sender, for testing a link and for benches.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use storescp_core::file_meta;
use storescp_core::sender::{self, Answer, ClientFiles, Identity, Patience, Request, SendError, User};

use crate::boundary::{run, CoreError};

pyo3::import_exception!(storescp.errors, LinkError);

/// File Meta Information is shorter.
const HEAD_BYTES: u64 = 1 << 20;

/// An association as its requestor. Raises `LinkError` with what the peer did instead; then it is of no more use.
#[pyclass(module = "storescp._core")]
pub struct Sender(Mutex<Option<sender::Sender>>);

/// TLS towards one peer, for any number of associations.
#[pyclass(frozen, module = "storescp._core")]
pub struct ClientTls(sender::ClientTls);

/// What went wrong keeps its code and its numbers.
fn link_error(error: &SendError) -> PyErr {
    LinkError::new_err((error.code(), error.to_string(), error.numbers()))
}

/// Runs without the GIL.
fn run_link<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, SendError> + Send) -> PyResult<T> {
    run(py, || Ok::<_, Infallible>(work()))?.map_err(|error| link_error(&error))
}

fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|error| CoreError::new_err(error.to_string()))
}

impl Sender {
    fn slot(&mut self) -> &mut Option<sender::Sender> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&mut self) -> PyResult<&mut sender::Sender> {
        self.slot()
            .as_mut()
            .ok_or_else(|| CoreError::new_err("the association is over"))
    }

    /// Uses the association. One that is of no more use is closed at once: a traceback may hold this object for long.
    fn attempt<T: Send>(
        &mut self,
        py: Python<'_>,
        work: impl FnOnce(&mut sender::Sender) -> Result<T, SendError> + Send,
    ) -> PyResult<T> {
        let inner = self.inner()?;
        let outcome = run(py, || Ok::<_, Infallible>(work(inner)));
        if !matches!(outcome, Ok(Ok(_) | Err(SendError::NotAccepted))) {
            *self.slot() = None;
        }
        outcome?.map_err(|error| link_error(&error))
    }
}

#[pymethods]
impl ClientTls {
    /// Reads PEM files. `name`: host name or address that the certificate of the peer must have; without `ca` every
    /// certificate is believed; without `key` the file of the certificate has it.
    #[new]
    #[pyo3(signature = (name, ca=None, certificate=None, key=None))]
    fn new(
        name: &str,
        ca: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> PyResult<Self> {
        let files = ClientFiles { ca, certificate, key };
        sender::ClientTls::load(&files, name)
            .map(Self)
            .map_err(|error| CoreError::new_err(error.to_string()))
    }
}

#[pymethods]
impl Sender {
    /// Connects and proposes contexts (abstract and transfer syntax). `timeout`: seconds for each wait for the network,
    /// `connect_timeout` for the connection itself; `user`: username and passcode.
    #[new]
    #[pyo3(signature = (host, port, calling, called, contexts, timeout, *, connect_timeout=None, tls=None, user=None))]
    #[allow(clippy::too_many_arguments)] // what an association is asked for
    fn new(
        py: Python<'_>,
        host: &str,
        port: u16,
        calling: &str,
        called: &str,
        contexts: Vec<(String, String)>,
        timeout: f64,
        connect_timeout: Option<f64>,
        tls: Option<&ClientTls>,
        user: Option<(String, Option<String>)>,
    ) -> PyResult<Self> {
        let request = Request {
            calling_ae_title: calling.to_owned(),
            called_ae_title: called.to_owned(),
            contexts,
            user: user.map(|(name, passcode)| User { name, passcode }),
        };
        let patience = Patience {
            connect: seconds(connect_timeout.unwrap_or(timeout))?,
            wait: seconds(timeout)?,
        };
        let tls = tls.map(|tls| &tls.0);
        let inner = run_link(py, || {
            sender::Sender::connect((host, port), &request, tls, patience)
        })?;
        Ok(Self(Mutex::new(Some(inner))))
    }

    /// The presentation context of a C-ECHO.
    #[staticmethod]
    fn echo_context() -> (String, String) {
        sender::Sender::echo_context()
    }

    /// Whether the peer accepted a class in a transfer syntax.
    fn accepts(&mut self, sop_class: &str, transfer_syntax: &str) -> PyResult<bool> {
        Ok(self.inner()?.accepts(sop_class, transfer_syntax))
    }

    /// Whether the peer says that it has looked at the user.
    #[getter]
    fn confirms_user(&mut self) -> PyResult<bool> {
        Ok(self.inner()?.confirms_user())
    }

    /// Sends a C-ECHO; status and seconds.
    fn echo(&mut self, py: Python<'_>) -> PyResult<(u16, f64)> {
        self.attempt(py, |inner| {
            let answer = inner.echo()?;
            Ok((answer.status, answer.time.as_secs_f64()))
        })
    }

    /// Sends a PS3.10 file as it is; status, Error Comment and seconds.
    #[allow(clippy::needless_pass_by_value)] // what PyO3 extracts is owned
    fn store_file(
        &mut self,
        py: Python<'_>,
        path: PathBuf,
        sop_class: &str,
        sop_instance: &str,
        transfer_syntax: &str,
    ) -> PyResult<(u16, String, f64)> {
        let identity = Identity {
            sop_class,
            sop_instance,
            transfer_syntax,
        };
        self.attempt(py, |inner| {
            let mut file = File::open(&path).map_err(SendError::File)?;
            let mut head = Vec::new();
            let read = (&mut file).take(HEAD_BYTES).read_to_end(&mut head);
            read.map_err(SendError::File)?;
            let at = file_meta::dataset_at(&head)
                .ok_or_else(|| SendError::File(std::io::Error::other("not a PS3.10 file")))?;
            inner
                .store_file(&identity, &mut file, at as u64)
                .map(|answer| (answer.status, answer.comment, answer.time.as_secs_f64()))
        })
    }

    /// Sends data sets of one class and transfer syntax, by SOP Instance UID; status and seconds of each.
    #[allow(clippy::needless_pass_by_value)] // what PyO3 extracts is owned
    fn store_many(
        &mut self,
        py: Python<'_>,
        sop_class: &str,
        transfer_syntax: &str,
        instances: Vec<(String, PyBackedBytes)>,
    ) -> PyResult<Vec<(u16, f64)>> {
        self.attempt(py, |inner| {
            let mut answers = Vec::with_capacity(instances.len());
            for (sop_instance, dataset) in &instances {
                let identity = Identity {
                    sop_class,
                    sop_instance,
                    transfer_syntax,
                };
                let Answer { status, time, .. } = inner.store(&identity, dataset)?;
                answers.push((status, time.as_secs_f64()));
            }
            Ok(answers)
        })
    }

    /// Ends the association in order.
    fn release(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.slot().take() {
            Some(inner) => run_link(py, || inner.release()),
            None => Ok(()),
        }
    }
}
