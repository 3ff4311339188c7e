//! What the core knows, without an engine.

use std::convert::Infallible;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use storescp_core::dataset::anomaly::Anomaly;
use storescp_core::dataset::index::IndexPlan;
use storescp_core::dataset::json::Attribute;
use storescp_core::dataset::scan::ScanLimits;
use storescp_core::dataset::stream::DatasetScan;
use storescp_core::file_records::FileRecords;
use storescp_core::incoming::{self, Column};
use storescp_core::layout::{InstancePath, TenantId};
use storescp_core::outbox::journal;
use storescp_core::recovery::{examine, NotOurs};
use storescp_core::status::Refusal;
use storescp_core::transcode::plan::{can_decode, can_encode};

use crate::boundary::{run, CoreError};

/// Nesting that the configuration allows at most.
const DEEPEST: usize = 256;

/// The identity and index attributes of a data set.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct ScanResult {
    sop_class_uid: String,
    sop_instance_uid: String,
    study_instance_uid: String,
    series_instance_uid: String,
    patient_id: String,
    study_date: Option<String>,
    accession_number: Option<String>,
    number_of_frames: u32,
    has_pixel_data: bool,
    anomalies: Vec<&'static str>,
    has_odd_pixel_data: bool,
}

/// Scans a data set. Raises `CoreError` with the status in hexadecimal and the reason where it would be refused.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // what PyO3 extracts is owned
pub fn scan(
    py: Python<'_>,
    dataset: &[u8],
    transfer_syntax: &str,
    required_attributes: Vec<String>,
) -> PyResult<ScanResult> {
    let plan =
        IndexPlan::requiring(&required_attributes).map_err(|error| CoreError::new_err(error.to_string()))?;
    run(py, || {
        let outcome = (|| {
            let mut scan = DatasetScan::new(transfer_syntax, plan.tags(), ScanLimits::default(), 1 << 31);
            scan.feed(dataset)?;
            scan.finish()?;
            let index = plan.read(scan.captured(), scan.encoding())?;
            Ok::<_, Refusal>(ScanResult {
                sop_class_uid: index.sop_class_uid.to_string(),
                sop_instance_uid: index.sop_instance_uid.to_string(),
                study_instance_uid: index.study_instance_uid.to_string(),
                series_instance_uid: index.series_instance_uid.to_string(),
                patient_id: index.patient_id,
                study_date: index.study_date.map(|day| day.format("%Y-%m-%d").to_string()),
                accession_number: index.accession_number,
                number_of_frames: index.number_of_frames,
                has_pixel_data: scan.has_pixel_data(),
                anomalies: index.anomalies.and(scan.anomalies()).codes().collect(),
                has_odd_pixel_data: scan.anomalies().concern_pixel_data(),
            })
        })();
        outcome.map_err(|refusal| format!("{:04X} {}", refusal.status(), refusal.comment()))
    })
}

/// Values of elements of a data set, as far as it can be read: this raises nothing where it is damaged. Tags are group and element in
/// one number. None for an element that is absent, and for one inside which a data set ends.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // what PyO3 extracts is owned
pub fn readable_values(
    py: Python<'_>,
    dataset: &[u8],
    transfer_syntax: &str,
    tags: Vec<u32>,
) -> PyResult<Vec<Option<Vec<u8>>>> {
    run(py, || {
        Ok::<_, Infallible>(storescp_core::dataset::readable::values(
            dataset,
            transfer_syntax,
            &tags,
        ))
    })
}

/// Size, digest (XXH3-128, big endian) and place of a stored file, read whole: `tenant/date/study/series/instance.dcm` as its data
/// set has it. Raises `CoreError` where it is not a PS3.10 file or its data set cannot be read to the end.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // what PyO3 extracts is owned
pub fn examine_file(py: Python<'_>, path: PathBuf, tenant: &str) -> PyResult<(u64, [u8; 16], String)> {
    let tenant = TenantId::parse(tenant).map_err(|error| CoreError::new_err(error.to_string()))?;
    run(py, || {
        let file = File::open(&path)?;
        let limits = ScanLimits {
            nesting: DEEPEST,
            ..ScanLimits::default()
        };
        let plan = IndexPlan::requiring(&[]).map_err(|_| NotOurs::Index(Refusal::Bug))?;
        let found = examine(&file, &plan, limits, u64::MAX, &AtomicBool::new(false))?;
        let index = &found.index;
        let place = InstancePath::new(
            &tenant,
            index.study_date,
            &index.study_instance_uid,
            &index.series_instance_uid,
            &index.sop_instance_uid,
        );
        Ok::<_, NotOurs>((found.size, found.digest, place.relative().to_owned()))
    })
}

/// What the tables of the index take of a record, `(key, node_id, file_url, row, said, digest)`; or, where it is none, why: names of
/// fields and kinds of errors, no values.
#[pyfunction]
pub fn read_record<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let found = match incoming::read(message) {
        Ok(found) => found,
        Err(reason) => return Ok(PyString::new(py, &reason).into_any()),
    };
    let key = PyTuple::new(py, found.key)?;
    let (row, said) = (columns(py, found.row)?, columns(py, found.said)?);
    let parts = (key, found.node_id, found.file_url, row, said, found.digest);
    Ok(parts.into_pyobject(py)?.into_any())
}

fn columns(py: Python<'_>, values: Vec<Column>) -> PyResult<Bound<'_, PyTuple>> {
    let values = values.into_iter().map(|value| match value {
        Column::Null => Ok(py.None().into_bound(py)),
        Column::Text(text) => Ok(PyString::new(py, &text).into_any()),
        Column::Integer(number) => Ok(number.into_pyobject(py)?.into_any()),
    });
    PyTuple::new(py, values.collect::<PyResult<Vec<_>>>()?)
}

/// The digest of the columns of a description that say a text, or nothing.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // what PyO3 extracts is owned
pub fn description_digest(said: Vec<Option<String>>) -> String {
    let said: Vec<Column> = said
        .into_iter()
        .map(|text| text.map_or(Column::Null, Column::Text))
        .collect();
    incoming::digest(&said)
}

/// Makes records of stored instances from their files; safe with several threads.
#[pyclass(frozen, module = "storescp._core")]
pub struct StoredRecords(FileRecords);

#[pymethods]
impl StoredRecords {
    /// Records that have attributes of these keywords, of files on a node. Raises `CoreError` where they cannot have one.
    #[new]
    fn new(attributes: Vec<String>, node_id: String) -> PyResult<Self> {
        let records = FileRecords::new(attributes, node_id);
        records
            .map(Self)
            .map_err(|error| CoreError::new_err(error.to_string()))
    }

    /// The record of a file at a path relative to its storage root, as JSON; its trace id is zero, and its time that of the
    /// file. Raises `CoreError` where it is no instance of ours at its place, or cannot be read.
    #[allow(clippy::needless_pass_by_value)] // what PyO3 extracts is owned
    fn record(&self, py: Python<'_>, path: PathBuf, relative: &str) -> PyResult<String> {
        run(py, || self.0.record(&path, relative))
    }
}

/// Why a C-STORE may be refused: DIMSE status and an example of the Error Comment, one for each kind.
#[pyfunction]
pub fn refusals() -> Vec<(u16, String)> {
    let kinds = Refusal::kinds().into_iter();
    kinds.map(|kind| (kind.status(), kind.comment())).collect()
}

/// Whether records can have the attribute of a keyword: its values are text, numbers or a sequence.
#[pyfunction]
pub fn is_record_attribute(keyword: &str) -> bool {
    Attribute::of(keyword).is_ok()
}

/// The transfer syntaxes that are known: UID, name, whether pixel data of it can be decoded, and whether encoded.
#[pyfunction]
pub fn transfer_syntaxes() -> Vec<(&'static str, &'static str, bool, bool)> {
    storescp_core::transfer_syntax::known()
        .map(|(uid, name)| (uid, name, can_decode(uid), can_encode(uid)))
        .collect()
}

/// The defined terms of Specific Character Set that are read.
#[pyfunction]
pub fn character_sets() -> Vec<&'static str> {
    storescp_core::dataset::charset::DEFINED_TERMS.to_vec()
}

/// Spellings of devices that are read besides the defined terms of Specific Character Set.
#[pyfunction]
pub fn other_character_sets() -> Vec<&'static str> {
    storescp_core::dataset::charset::OTHER_TERMS.to_vec()
}

/// The cipher suites of TLS by their IANA names, in our order of preference.
#[pyfunction]
pub fn cipher_suites() -> Vec<String> {
    storescp_core::net::tls::cipher_suites()
}

/// Version, and the versions of what it stands on.
#[pyfunction]
pub fn build_info() -> Vec<(&'static str, String)> {
    let mut info = vec![
        ("version", storescp_core::VERSION.to_owned()),
        ("dicom-rs", env!("STORESCP_DICOM_RS_VERSION").to_owned()),
        ("sqlite", storescp_core::outbox::sqlite_version().to_owned()),
    ];
    info.extend(storescp_codecs::versions());
    info.push(("jxl-rs", env!("STORESCP_JXL_RS_VERSION").to_owned()));
    let fail_points = storescp_core::failpoint::compiled();
    if !fail_points.is_empty() {
        info.push(("for tests only, with fail points", fail_points.join(" ")));
    }
    info
}

/// Script `n` brings an outbox of version `n` to version `n + 1`.
#[pyfunction]
pub fn outbox_migrations() -> Vec<&'static str> {
    storescp_core::outbox::MIGRATIONS.to_vec()
}

/// A row of the journal: trace id, key, record, path, size, digest, when it was received (microseconds since 1970).
type JournalRow = (String, String, String, String, u64, [u8; 16], i64);

/// Rows that an interrupted Rust engine left in the journal beside the outbox's database, in their order.
#[pyfunction]
pub fn read_journal(py: Python<'_>, folder: PathBuf) -> PyResult<Vec<JournalRow>> {
    let rows = run(py, move || journal::read(&folder))?;
    Ok(rows
        .into_iter()
        .map(|row| {
            (
                row.trace_id,
                row.key,
                row.payload,
                row.path,
                row.size,
                row.digest,
                row.created,
            )
        })
        .collect())
}

/// Removes the journal, once its rows are in the database.
#[pyfunction]
pub fn remove_journal(py: Python<'_>, folder: PathBuf) -> PyResult<()> {
    run(py, move || journal::remove(&folder))
}

/// The code of each anomaly.
#[pyfunction]
pub fn anomalies() -> Vec<&'static str> {
    Anomaly::ALL.map(Anomaly::code).to_vec()
}
