//! A-ASSOCIATE-RQs, made clean before anybody negotiates.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use storescp_core::wire::request::{self, Cleaned, Kind, Oddity};
use storescp_core::wire::title;

use crate::boundary::run;

/// A request that any reader takes, and what was odd about the original.
#[pyclass(frozen, module = "storescp._core")]
pub struct CleanRequest(Cleaned);

/// Code, detail, and how many are alike.
pub type OddityTuple<'a> = (&'static str, &'a str, usize);

/// As Python has them.
pub fn tuples(oddities: &[Oddity]) -> Vec<OddityTuple<'_>> {
    oddities
        .iter()
        .map(|one| (one.kind.as_str(), one.detail.as_str(), one.count))
        .collect()
}

#[pymethods]
impl CleanRequest {
    /// The A-ASSOCIATE-RQ.
    #[getter]
    fn pdu<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.pdu)
    }

    /// Whether the original proposes a presentation context, be it one that cannot be answered.
    #[getter]
    fn has_proposals(&self) -> bool {
        self.0.has_proposals
    }

    /// What was odd, AE titles excepted: code, detail, count.
    #[getter]
    fn oddities(&self) -> Vec<OddityTuple<'_>> {
        tuples(&self.0.oddities)
    }
}

impl CleanRequest {
    /// What was odd.
    pub fn to_oddities(&self) -> Vec<Oddity> {
        self.0.oddities.clone()
    }
}

/// Makes an A-ASSOCIATE-RQ clean. Raises `CoreError` that says why one cannot be followed.
#[pyfunction]
pub fn clean_request(py: Python<'_>, pdu: &[u8]) -> PyResult<CleanRequest> {
    run(py, || request::clean(pdu).map(CleanRequest))
}

/// What is odd about the titles of a request: code, detail, count.
#[pyfunction]
pub fn title_oddities(pdu: &[u8]) -> Vec<(&'static str, String, usize)> {
    request::title_oddities(pdu)
        .into_iter()
        .map(|one| (one.kind.as_str(), one.detail, one.count))
        .collect()
}

/// The AE title in a field, or None for one that is refused.
#[pyfunction]
pub fn read_title(field: &[u8]) -> Option<String> {
    title::read(field).map(|title| title.text)
}

/// Every code that an oddity can have.
#[pyfunction]
pub fn request_oddities() -> Vec<&'static str> {
    Kind::ALL.iter().map(|kind| kind.as_str()).collect()
}
