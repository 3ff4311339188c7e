//! Being the sender, for testing a link and for benches.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use storescp_core::file_meta;
use storescp_core::sender::{Answer, Identity, Request, SendError};

use crate::boundary::{run, CoreError};

/// File Meta Information is shorter.
const HEAD_BYTES: u64 = 1 << 20;

/// An association as its requestor. Raises `CoreError` with what the peer did instead; then it is of no more use.
#[pyclass(module = "storescp._core")]
pub struct Sender {
    inner: Option<storescp_core::sender::Sender>,
}

impl Sender {
    fn inner(&mut self) -> PyResult<&mut storescp_core::sender::Sender> {
        self.inner
            .as_mut()
            .ok_or_else(|| CoreError::new_err("the association is over"))
    }
}

#[pymethods]
impl Sender {
    /// Connects and proposes contexts (abstract and transfer syntax). `timeout`: seconds for each wait for the network.
    #[new]
    fn new(
        py: Python<'_>,
        host: &str,
        port: u16,
        calling: &str,
        called: &str,
        contexts: Vec<(String, String)>,
        timeout: f64,
    ) -> PyResult<Self> {
        let request = Request {
            calling_ae_title: calling.to_owned(),
            called_ae_title: called.to_owned(),
            contexts,
        };
        let timeout =
            Duration::try_from_secs_f64(timeout).map_err(|error| CoreError::new_err(error.to_string()))?;
        let inner = run(py, || {
            storescp_core::sender::Sender::connect((host, port), &request, timeout)
        })?;
        Ok(Self { inner: Some(inner) })
    }

    /// Whether the peer accepted a class in a transfer syntax.
    fn accepts(&mut self, sop_class: &str, transfer_syntax: &str) -> PyResult<bool> {
        Ok(self.inner()?.accepts(sop_class, transfer_syntax))
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
        let inner = self.inner()?;
        let identity = Identity {
            sop_class,
            sop_instance,
            transfer_syntax,
        };
        run(py, || {
            let mut file = File::open(&path)?;
            let mut head = Vec::new();
            (&mut file).take(HEAD_BYTES).read_to_end(&mut head)?;
            let at =
                file_meta::dataset_at(&head).ok_or(SendError::Protocol("the file is not a PS3.10 file"))?;
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
        let inner = self.inner()?;
        run(py, || {
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
            Ok::<_, SendError>(answers)
        })
    }

    /// Ends the association in order.
    fn release(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.inner.take() {
            Some(inner) => run(py, || inner.release()),
            None => Ok(()),
        }
    }
}
