//! Transcoding: in this process, in worker processes, and as one of them.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use storescp_core::transcode::lockdown::{self, Protection};
use storescp_core::transcode::plan::{self, Plan};
use storescp_core::transcode::pool::{Input, Pool, PoolConfig, Sink, Task};
use storescp_core::transcode::thumbnail::thumbnail_of;
use storescp_core::transcode::{worker, Job, TranscodeError};

use crate::boundary::{run, CoreError};

/// Transcodes a data set in this process: for tests and measurements, not for what a peer sent.
#[pyfunction]
#[pyo3(signature = (dataset, source, target, max_decoded_bytes, threads = 1))]
pub fn transcode<'py>(
    py: Python<'py>,
    dataset: &[u8],
    source: &str,
    target: &str,
    max_decoded_bytes: u64,
    threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let result = run(py, || {
        let job = Job {
            source,
            target,
            max_decoded_bytes,
            threads,
        };
        let mut out = Vec::with_capacity(dataset.len() * 2);
        storescp_core::transcode::transcode(dataset, &job, &mut out, &mut || {}).map_err(coded)?;
        Ok::<_, String>(out)
    })?;
    Ok(PyBytes::new(py, &result))
}

/// The error as `code: text`.
#[allow(clippy::needless_pass_by_value)] // for map_err
fn coded(error: TranscodeError) -> String {
    format!("{}: {error}", error.code())
}

/// What becomes of an instance: "as received", "transcode" or "impossible", and the reason or the target.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // what PyO3 extracts is owned
pub fn transcode_plan(
    transfer_syntax: &str,
    has_pixel_data: bool,
    viewer_transfer_syntaxes: HashSet<String>,
    target: &str,
) -> (&'static str, String) {
    match plan::plan(transfer_syntax, has_pixel_data, &viewer_transfer_syntaxes, target) {
        Plan::AsReceived(reason) => ("as received", reason.text().to_owned()),
        Plan::Transcode(target) => ("transcode", target.to_owned()),
        Plan::Impossible => ("impossible", "there is no codec for it".to_owned()),
    }
}

/// Serves as a worker process: jobs come over standard input. Returns when the supervisor is gone.
#[pyfunction]
pub fn transcode_worker(py: Python<'_>, memory_bytes: u64) -> PyResult<()> {
    run(py, || worker::serve(memory_bytes))
}

/// Gives up new rights, files, the network and most system calls, for good: to be called while there is one thread. Returns the
/// names of the protections that are not to be had here.
#[pyfunction]
pub fn lock_down(py: Python<'_>) -> PyResult<Vec<&'static str>> {
    run(py, || {
        let missing = lockdown::lock_down().into_iter().map(Protection::name);
        Ok::<_, Infallible>(missing.collect())
    })
}

/// The middle frame of the PS3.10 file that is standard input as PNG, at most `edge` pixels wide and high. Raises `CoreError` where
/// there is none, or where it takes more than `max_frame_bytes`.
#[pyfunction]
pub fn thumbnail(py: Python<'_>, edge: u16, max_frame_bytes: u64) -> PyResult<Bound<'_, PyBytes>> {
    let png = run(py, || {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        let file = File::from(stdin.map_err(TranscodeError::from).map_err(coded)?);
        thumbnail_of(&file, edge, max_frame_bytes).map_err(coded)
    })?;
    Ok(PyBytes::new(py, &png))
}

/// A file behind its header.
struct FileSink<'f> {
    file: &'f File,
    header_bytes: u64,
}

impl Sink for FileSink<'_> {
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        Ok((self.file.as_fd(), self.header_bytes))
    }

    fn meanwhile(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn take(&mut self, result: &[u8]) -> io::Result<()> {
        // Its cursor is behind the header.
        self.file.write_all(result)
    }

    fn take_over(&mut self, bytes: u64) -> io::Result<()> {
        // Nothing is recorded of the file that could be wrong afterwards.
        if Some(self.file.metadata()?.len()) != self.header_bytes.checked_add(bytes) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

/// Worker processes for files.
#[pyclass(frozen, module = "storescp._core")]
pub struct Transcoder {
    pool: Pool,
}

#[pymethods]
impl Transcoder {
    #[new]
    fn new(config_json: &str) -> PyResult<Self> {
        let config: PoolConfig =
            serde_json::from_str(config_json).map_err(|error| CoreError::new_err(error.to_string()))?;
        Ok(Self {
            pool: Pool::new(config),
        })
    }

    /// Writes `header` and the data set of `source_path` (from `offset` on) in the target transfer syntax to a new file, not
    /// synced. Returns frames and bytes of the data set. A file that could not be finished is removed.
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // PyO3 extracts owned values
    fn transcode_file(
        &self,
        py: Python<'_>,
        source_path: PathBuf,
        offset: u64,
        target_path: PathBuf,
        header: &[u8],
        source: &str,
        target: &str,
        max_decoded_bytes: u64,
    ) -> PyResult<(usize, u64)> {
        run(py, || {
            let input = File::open(&source_path).map_err(|error| coded(error.into()))?;
            let mut output = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&target_path)
                .map_err(|error| coded(error.into()))?;
            let outcome = (|| {
                output.write_all(header)?;
                let task = Task {
                    source,
                    target,
                    max_decoded_bytes,
                    input: Input::File(input.as_fd(), offset),
                    stop: None,
                };
                let mut sink = FileSink {
                    file: &output,
                    header_bytes: header.len() as u64,
                };
                let report = self.pool.transcode(&task, &mut sink)?;
                Ok((report.frames, report.bytes))
            })();
            outcome.map_err(|error: TranscodeError| {
                // Nothing of a failure stays; what matters is why it failed.
                let _ = std::fs::remove_file(&target_path);
                coded(error)
            })
        })
    }

    /// Worker processes that are alive.
    #[getter]
    fn live(&self) -> usize {
        self.pool.live()
    }
}
