//! The Rust engine, as Python sees it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use storescp_core::association::{receive, Agreement, Summary};
use storescp_core::config::EngineConfig;
use storescp_core::engine::{self, StartError, Transcoded};
use storescp_core::events::Wanted;
use storescp_core::ingest::{Announced, Reception, Scratch, Source};
use storescp_core::layout::TenantId;
use storescp_core::outbox::Topic;
use storescp_core::retry::Tenancy;
use storescp_core::status::{Refusal, SUCCESS};
use storescp_core::uid::Uid;

use crate::boundary::{run, CoreError, TemporaryFailure};
use crate::desk::{Answer, Place};
use crate::gate::Connection;

/// Receives, validates, stores and records. Made once; `close` gives the storage root back.
#[pyclass(frozen, module = "storescp._core")]
pub struct Engine(Mutex<Option<Arc<engine::Engine>>>);

/// What is told about an association when it is over.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct AssociationSummary {
    association: u64,
    outcome: &'static str,
    reason: &'static str,
    statuses: Vec<(u16, u64)>,
    identical: u64,
    kept: u64,
    replaced: u64,
    tenants: Vec<String>,
    failures: Vec<(u16, String, u64)>,
    transcodes: Vec<(String, String, String, u64)>,
    transcode_failures: Vec<(String, u64)>,
    anomalies: Vec<(&'static str, u64)>,
    quarantined: Vec<String>,
    transfers: Vec<TransferredStudy>,
    refused: u64,
    echoes: u64,
    received_bytes: u64,
    oversized_pdus: u64,
    seconds: f64,
}

/// Stage, buckets, sum.
type StageReading = (&'static str, Vec<(f64, u64)>, f64);

/// Tenant, study, patient, accession number, instances by SOP class.
type TransferredStudy = (String, String, String, Option<String>, Vec<(String, u64)>);

/// What start-up found of an interrupted predecessor. Lists have the first hundred.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct StartUp {
    rows_kept: u64,
    rows_dropped: u64,
    temporary_files: usize,
    quarantined: Vec<String>,
    quarantined_count: u64,
    missing: Vec<String>,
    missing_count: u64,
    undecided: Vec<(String, String)>,
    undecided_count: u64,
    unusable: Vec<(String, String)>,
    unusable_count: u64,
}

/// What a walk through the files found. Lists have the first hundred.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct Recovery {
    files: u64,
    recorded: u64,
    left: u64,
    missing: Vec<String>,
    missing_count: u64,
    changed: Vec<String>,
    changed_count: u64,
    unreadable: Vec<(String, String)>,
    unreadable_count: u64,
}

/// How the storage is: what needs an operator, and what is kept beside the instances.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct StorageState {
    quarantined: u64,
    undecided: u64,
    changed: u64,
    unreadable: u64,
    missing: u64,
    replaced_files: u64,
    replaced_bytes: u64,
    replaced_max_bytes: u64,
    replaced_total: u64,
    damaged: u64,
    damaged_bytes: u64,
    damaged_max_bytes: u64,
    damaged_since: Option<f64>,
}

/// One C-STORE, for the log.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct InstanceFact {
    association: u64,
    message_id: u16,
    status: u16,
    comment: String,
    sop_instance_uid: String,
    bytes: u64,
    commit_seconds: f64,
    is_named: bool,
    address: String,
    calling_ae_title: String,
    tenant_value: Option<String>,
    tenant: Option<String>,
    outcome: &'static str,
}

/// An association that runs.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct LiveAssociation {
    association: u64,
    address: String,
    calling_ae_title: String,
    called_ae_title: String,
    tenant: Option<String>,
    seconds: f64,
    bytes: u64,
    stored: u64,
    refused: u64,
}

/// A C-STORE that was answered.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct RecentInstance {
    number: u64,
    at: f64,
    association: u64,
    tenant: String,
    status: u16,
    comment: String,
    tenant_value: Option<String>,
    modality: String,
    sop_class_uid: String,
    patient_id: String,
    bytes: u64,
    frames: u32,
    received_as: String,
    transcoded_to: Option<String>,
    transcode_failure: Option<String>,
    anomalies: Vec<&'static str>,
    commit_seconds: f64,
    file: Option<PathBuf>,
}

/// A record to be published.
#[pyclass(frozen, get_all, module = "storescp._core")]
pub struct OutboxRow {
    id: i64,
    ready: i64,
    trace_id: String,
    key: String,
    payload: Py<PyBytes>,
}

impl Engine {
    pub fn inner(&self) -> PyResult<Arc<engine::Engine>> {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard
            .clone()
            .ok_or_else(|| CoreError::new_err("the engine is closed"))
    }
}

/// 0: `topic_main`, 1: `topic_dicom_receive`.
fn topic(number: usize) -> PyResult<Topic> {
    match number {
        0 => Ok(Topic::Main),
        1 => Ok(Topic::Log),
        _ => Err(CoreError::new_err("there are two topics: 0 and 1")),
    }
}

fn source(
    calling_ae_title: String,
    called_ae_title: String,
    address: String,
    tenant: Option<&str>,
    tenant_by_rule: bool,
) -> PyResult<Source> {
    let tenant = tenant
        .map(TenantId::parse)
        .transpose()
        .map_err(|error| CoreError::new_err(error.to_string()))?;
    Ok(Source {
        calling_ae_title,
        called_ae_title,
        address,
        tenant,
        tenant_by_rule,
    })
}

fn flat(transcodes: BTreeMap<Transcoded, u64>) -> Vec<(String, String, String, u64)> {
    transcodes
        .into_iter()
        .map(|((source, target, outcome), count)| (source, target, outcome, count))
        .collect()
}

impl From<Summary> for AssociationSummary {
    fn from(summary: Summary) -> Self {
        Self {
            association: summary.association,
            outcome: summary.outcome.as_str(),
            reason: summary.reason,
            statuses: summary.statuses.into_iter().collect(),
            identical: summary.identical,
            kept: summary.kept,
            replaced: summary.replaced,
            tenants: summary.tenants.into_iter().collect(),
            failures: summary
                .failures
                .into_iter()
                .map(|((status, comment), count)| (status, comment, count))
                .collect(),
            transcodes: flat(summary.transcodes),
            transcode_failures: summary.transcode_failures.into_iter().collect(),
            anomalies: summary.anomalies.into_iter().collect(),
            quarantined: summary.quarantined,
            transfers: summary
                .transfers
                .into_iter()
                .map(|((tenant, study), transfer)| {
                    let classes = transfer.classes.into_iter().collect();
                    (
                        tenant,
                        study,
                        transfer.patient_id,
                        transfer.accession_number,
                        classes,
                    )
                })
                .collect(),
            refused: summary.refused,
            echoes: summary.echoes,
            received_bytes: summary.received_bytes,
            oversized_pdus: summary.oversized_pdus,
            seconds: summary.seconds,
        }
    }
}

#[pymethods]
impl Engine {
    /// Opens storage and outbox from the JSON form of the engine's configuration. `TemporaryFailure` where it is worth another attempt.
    #[new]
    fn new(py: Python<'_>, config_json: &str) -> PyResult<Self> {
        let opened = run(py, || {
            let config: Result<EngineConfig, _> = serde_json::from_str(config_json);
            Ok::<_, std::convert::Infallible>(config.map_err(StartError::from).and_then(engine::Engine::open))
        })?;
        match opened {
            Ok(engine) => Ok(Self(Mutex::new(Some(Arc::new(engine))))),
            Err(error) if error.may_pass() => Err(TemporaryFailure::new_err(error.to_string())),
            Err(error) => Err(CoreError::new_err(error.to_string())),
        }
    }

    /// Serves an association until it ends: sends the A-ASSOCIATE-AC of `answer`, and gives `place` back at the end.
    #[allow(clippy::too_many_arguments)] // one call per association, each a keyword argument in Python
    fn receive(
        &self,
        py: Python<'_>,
        connection: &Connection,
        answer: &Answer,
        place: &Place,
        calling_ae_title: String,
        called_ae_title: String,
        address: String,
        tenant: Option<&str>,
        tenant_by_rule: bool,
    ) -> PyResult<AssociationSummary> {
        let engine = self.inner()?;
        let agreement = Agreement {
            answer: Arc::clone(&answer.0),
            source: source(calling_ae_title, called_ae_title, address, tenant, tenant_by_rule)?,
        };
        let (connection, place) = (connection.take()?, place.take());
        let summary = run(py, || {
            Ok::<_, std::convert::Infallible>(receive(&engine, connection, &agreement, place))
        })?;
        Ok(summary.into())
    }

    /// Takes one data set as a C-STORE would. Returns status and error comment.
    #[allow(clippy::too_many_arguments)] // mirrors what a C-STORE brings
    fn ingest(
        &self,
        py: Python<'_>,
        dataset: &[u8],
        sop_class_uid: &str,
        sop_instance_uid: &str,
        transfer_syntax: &str,
        calling_ae_title: String,
        called_ae_title: String,
        address: String,
        tenant: Option<&str>,
    ) -> PyResult<(u16, String)> {
        let engine = self.inner()?;
        let source = source(calling_ae_title, called_ae_title, address, tenant, false)?;
        let refusal = run(py, || {
            let outcome = (|| {
                let instance =
                    Uid::parse(sop_instance_uid.as_bytes()).map_err(|_| Refusal::CommandInstanceUid)?;
                let class = Uid::parse(sop_class_uid.as_bytes()).map_err(|_| Refusal::ClassMismatch)?;
                let mut reception = Reception::begin(
                    &engine,
                    &source,
                    Announced {
                        command_tenant: None,
                        sop_class_uid: class,
                        sop_instance_uid: instance,
                        message_id: None,
                        transfer_syntax,
                        malformed: engine.config().malformed,
                    },
                    Scratch::default(),
                )?;
                reception.append(dataset)?;
                reception.finish().map(|_| ())
            })();
            Ok::<_, std::convert::Infallible>(
                outcome.err().map(|refusal| (refusal.status(), refusal.comment())),
            )
        })?;
        Ok(refusal.unwrap_or((SUCCESS, String::new())))
    }

    /// Nothing when an instance can be taken now, else why not.
    fn unavailable(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let engine = self.inner()?;
        run(py, || {
            Ok::<_, std::convert::Infallible>(engine.admit().err().map(|refusal| refusal.comment()))
        })
    }

    /// What start-up found.
    fn start_up(&self) -> PyResult<StartUp> {
        let engine = self.inner()?;
        let found = engine.start_up();
        let settled = &found.settled;
        Ok(StartUp {
            rows_kept: settled.kept,
            rows_dropped: settled.dropped,
            temporary_files: found.temporary_files,
            quarantined: settled.quarantined.first.clone(),
            quarantined_count: settled.quarantined.count,
            missing: settled.missing.first.clone(),
            missing_count: settled.missing.count,
            undecided: settled.undecided.first.clone(),
            undecided_count: settled.undecided.count,
            unusable: found.unusable.first.clone(),
            unusable_count: found.unusable.count,
        })
    }

    /// How the storage is, by what is in memory: this asks no disk.
    fn storage_state(&self) -> PyResult<StorageState> {
        let state = self.inner()?.storage_state();
        Ok(StorageState {
            quarantined: state.quarantined,
            undecided: state.undecided,
            changed: state.changed,
            unreadable: state.unreadable,
            missing: state.missing,
            replaced_files: state.replaced.files,
            replaced_bytes: state.replaced.bytes,
            replaced_max_bytes: state.replaced.max_bytes,
            replaced_total: state.replaced.replaced,
            damaged: state.damaged.data_sets,
            damaged_bytes: state.damaged.bytes,
            damaged_max_bytes: state.damaged.max_bytes,
            damaged_since: state
                .damaged
                .since_ms
                .map(|since| Duration::from_millis(since).as_secs_f64()),
        })
    }

    /// Decides again about rows whose file could not be looked at: rows kept and rows dropped since the last call, paths of files
    /// put into quarantine (the first hundred), how many paths are still undecided.
    fn reconsider(&self, py: Python<'_>) -> PyResult<(u64, u64, Vec<String>, u64)> {
        let engine = self.inner()?;
        let settled = run(py, || engine.reconsider())?;
        Ok((
            settled.kept,
            settled.dropped,
            settled.quarantined.first,
            settled.undecided.count,
        ))
    }

    /// Removes replaced files whose time is over, and counts anew what operators may have removed. How many went, and folders
    /// that cannot be read, with the reason.
    fn sweep(&self, py: Python<'_>) -> PyResult<(u64, Vec<(String, String)>)> {
        let engine = self.inner()?;
        let (removed, unreadable) = run(py, || Ok::<_, std::convert::Infallible>(engine.sweep()))?;
        Ok((removed, unreadable.first))
    }

    /// Whether the outbox's thread lives. Where it does not, nothing is recorded or published any more.
    fn outbox_is_alive(&self) -> PyResult<bool> {
        Ok(self.inner()?.outbox().is_alive())
    }

    /// An outbox that start-up found damaged: where it was put, what was wrong, how many rows could be read.
    fn damage(&self) -> PyResult<Option<(String, String, u64)>> {
        let engine = self.inner()?;
        let damage = engine.start_up().damage.as_ref();
        Ok(damage.map(|damage| {
            let aside = damage.aside.display().to_string();
            (aside, damage.reason.clone(), damage.salvaged)
        }))
    }

    /// Records the files that an interrupted predecessor may have left without a record, where there may be any; None where
    /// there was nothing to do. What could not be read is looked at again by the next call.
    fn recover(&self, py: Python<'_>) -> PyResult<Option<Recovery>> {
        let engine = self.inner()?;
        let recovered = run(py, || engine.recover())?;
        Ok(recovered.map(|found| Recovery {
            files: found.files,
            recorded: found.recorded,
            left: found.left,
            missing_count: found.missing.count,
            missing: found.missing.first,
            changed_count: found.changed.count,
            changed: found.changed.first,
            unreadable_count: found.unreadable.count,
            unreadable: found.unreadable.first,
        }))
    }

    /// The protections that processes which decode images have to do without, by name; None before the first one was started.
    fn missing_protections(&self) -> PyResult<Option<Vec<&'static str>>> {
        let engine = self.inner()?;
        let missing = engine.transcoders().missing_protections();
        Ok(missing.map(|missing| missing.iter().map(|one| one.name()).collect()))
    }

    /// Ends `recover` early; the next start begins it again.
    fn stop_recovery(&self) -> PyResult<()> {
        self.inner()?.stop_recovery();
        Ok(())
    }

    /// Takes up at most `most` wishes for a record: path, and why it could not be, or None.
    fn republish_wished(&self, py: Python<'_>, most: u32) -> PyResult<Vec<(String, Option<String>)>> {
        let engine = self.inner()?;
        let outcomes = run(py, || engine.republish_wished(most))?;
        Ok(outcomes
            .into_iter()
            .map(|(path, outcome)| (path, outcome.err().map(|error| error.to_string())))
            .collect())
    }

    /// Stores a damaged data set that is in quarantine: None where it is stored, else why it stays. `tenant` and whether a rule
    /// names it count where the note names none.
    #[allow(clippy::needless_pass_by_value)] // PyO3 converts a path to an owned one
    fn retry(
        &self,
        py: Python<'_>,
        root: PathBuf,
        name: &str,
        tenant: Option<&str>,
        by_rule: bool,
    ) -> PyResult<Option<String>> {
        let engine = self.inner()?;
        let tenant = tenant.and_then(|tenant| TenantId::parse(tenant).ok());
        let tenancy = tenant.map(|tenant| Tenancy { tenant, by_rule });
        let outcome = run(py, || {
            Ok::<_, std::convert::Infallible>(engine.retry(&root, name, tenancy))
        })?;
        Ok(outcome.err().map(|stays| stays.to_string()))
    }

    /// Transcodes a stored instance in place: None where viewers can read it now, else why it stays as it is. `path` is relative
    /// to the storage root.
    #[allow(clippy::needless_pass_by_value)] // PyO3 converts a path to an owned one
    fn transcode_stored(&self, py: Python<'_>, root: PathBuf, path: &str) -> PyResult<Option<String>> {
        let engine = self.inner()?;
        let outcome = run(py, || {
            Ok::<_, std::convert::Infallible>(engine.transcode_stored(&root, path))
        })?;
        Ok(outcome.err().map(|unchanged| unchanged.to_string()))
    }

    /// Takes up at most `most` wishes of operators: whether it is a stored instance to be transcoded, its path or the name of an
    /// entry of the quarantine, and why it stays as it is, or None.
    fn retry_wished(&self, py: Python<'_>, most: u32) -> PyResult<Vec<(bool, String, Option<String>)>> {
        let engine = self.inner()?;
        let outcomes = run(py, || engine.retry_wished(most))?;
        Ok(outcomes
            .into_iter()
            .map(|one| (one.is_stored, one.name, one.stays))
            .collect())
    }

    /// Bytes of data sets received since start, and C-STOREs as (status, tenant, count).
    fn counters(&self) -> PyResult<(u64, Vec<(u16, String, u64)>)> {
        let (bytes, instances) = self.inner()?.counters();
        let counts = instances.into_iter().flat_map(|(tenant, statuses)| {
            statuses
                .into_iter()
                .map(move |(status, count)| (status, tenant.clone(), count))
        });
        Ok((bytes, counts.collect()))
    }

    /// Transcodings since start: source, target, `Success` or what kind of failure, count.
    fn transcodes(&self) -> PyResult<Vec<(String, String, String, u64)>> {
        Ok(flat(self.inner()?.transcodes()))
    }

    /// Anomalies of stored instances since start: code, count.
    fn anomalies(&self) -> PyResult<Vec<(&'static str, u64)>> {
        Ok(self.inner()?.anomalies().into_iter().collect())
    }

    /// Tenants with a quota: bytes that they use, and bytes that they may use.
    fn quotas(&self) -> PyResult<Vec<(String, u64, u64)>> {
        let engine = self.inner()?;
        let quotas = engine.tenants().quotas().into_iter();
        Ok(quotas
            .map(|(tenant, used, most)| (tenant.as_str().to_owned(), used, most))
            .collect())
    }

    /// How long stages took: stage, (upper limit in seconds, how many up to it), all of them together in seconds.
    fn stages(&self) -> PyResult<Vec<StageReading>> {
        let readings = self.inner()?.stages().read().into_iter();
        Ok(readings
            .map(|one| (one.stage.as_str(), one.buckets, one.sum))
            .collect())
    }

    /// Free bytes in the file system of the storage root.
    fn free_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        let engine = self.inner()?;
        run(py, || engine.tenants().store(None).free_bytes())
    }

    /// The associations that run.
    fn associations(&self) -> PyResult<Vec<LiveAssociation>> {
        let live = self.inner()?.associations();
        Ok(live
            .iter()
            .map(|one| {
                let (bytes, stored, refused) = one.counts();
                LiveAssociation {
                    association: one.id,
                    address: one.source.address.clone(),
                    calling_ae_title: one.source.calling_ae_title.clone(),
                    called_ae_title: one.source.called_ae_title.clone(),
                    tenant: one
                        .source
                        .tenant
                        .as_ref()
                        .map(|tenant| tenant.as_str().to_owned()),
                    seconds: one.since.elapsed().as_secs_f64(),
                    bytes,
                    stored,
                    refused,
                }
            })
            .collect())
    }

    /// From now on the last instances are kept for `recent_instances`.
    fn watch_instances(&self) -> PyResult<()> {
        self.inner()?.recent().watch();
        Ok(())
    }

    /// The last instances, or the last of those that failed, the oldest first; `at` in seconds since 1970.
    fn recent_instances(&self, failed: bool) -> PyResult<Vec<RecentInstance>> {
        let engine = self.inner()?;
        let recent = if failed {
            engine.recent().failed()
        } else {
            engine.recent().instances()
        };
        Ok(recent
            .into_iter()
            .map(|one| RecentInstance {
                number: one.number,
                at: one
                    .at
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs_f64(),
                association: one.association,
                tenant: one.tenant,
                status: one.status,
                tenant_value: one.tenant_value,
                comment: one.comment,
                modality: one.shown.modality,
                sop_class_uid: one.sop_class_uid,
                patient_id: one.shown.patient_id,
                bytes: one.bytes,
                frames: one.shown.frames,
                received_as: one.received_as,
                transcoded_to: one.shown.transcoded_to,
                transcode_failure: one.shown.transcode_failure,
                anomalies: one.shown.anomalies.codes().collect(),
                commit_seconds: one.commit_seconds,
                file: one.shown.file,
            })
            .collect())
    }

    /// Keeps facts about single instances from now on: of all, or of the refused ones that are named.
    fn enable_events(&self, of_all: bool) -> PyResult<()> {
        self.inner()?
            .events()
            .want(if of_all { Wanted::All } else { Wanted::Named });
        Ok(())
    }

    /// Facts since the last call, waiting up to `timeout` seconds for one, and how many were dropped.
    fn events(&self, py: Python<'_>, timeout: f64) -> PyResult<(Vec<InstanceFact>, u64)> {
        let engine = self.inner()?;
        let (facts, dropped) = run(py, || {
            let timeout = Duration::try_from_secs_f64(timeout)?;
            Ok::<_, std::time::TryFromFloatSecsError>(engine.events().drain(timeout))
        })?;
        let facts = facts
            .into_iter()
            .map(|fact| InstanceFact {
                association: fact.association,
                message_id: fact.message_id,
                status: fact.status,
                comment: fact.comment,
                sop_instance_uid: fact.sop_instance_uid,
                bytes: fact.bytes,
                commit_seconds: fact.commit_seconds,
                is_named: fact.is_named,
                address: fact.address,
                calling_ae_title: fact.calling_ae_title,
                tenant_value: fact.tenant_value,
                tenant: fact.tenant,
                outcome: fact.outcome,
            })
            .collect();
        Ok((facts, dropped))
    }

    /// Counts anew what tenants with a quota have stored. Folders that cannot be read, with the reason.
    fn measure_tenants(&self, py: Python<'_>) -> PyResult<Vec<(String, String)>> {
        let engine = self.inner()?;
        let unreadable = run(py, || Ok::<_, std::convert::Infallible>(engine.measure()))?;
        Ok(unreadable.first)
    }

    /// Aborts every association.
    fn abort_all(&self, py: Python<'_>) -> PyResult<()> {
        let engine = self.inner()?;
        run(py, || {
            engine.abort_all();
            Ok::<_, std::convert::Infallible>(())
        })
    }

    /// Waits up to `timeout` seconds for a publishable row later than `after`; the order of the last one there was.
    fn outbox_wait(&self, py: Python<'_>, after: i64, timeout: f64) -> PyResult<i64> {
        let engine = self.inner()?;
        run(py, || {
            Ok::<_, std::time::TryFromFloatSecsError>(
                engine.outbox().wait(after, Duration::try_from_secs_f64(timeout)?),
            )
        })
    }

    /// Ends every `outbox_wait`, now and from now on.
    fn outbox_stop_waiting(&self) -> PyResult<()> {
        self.inner()?.outbox().stop_waiting();
        Ok(())
    }

    /// The first publishable rows later than `after`, in the order of acknowledgement.
    fn outbox_claim(
        &self,
        py: Python<'_>,
        topic_number: usize,
        after: i64,
        most: u32,
    ) -> PyResult<Vec<OutboxRow>> {
        let (engine, topic) = (self.inner()?, topic(topic_number)?);
        let rows = run(py, || engine.outbox().claim(topic, after, most))?;
        Ok(rows
            .into_iter()
            .map(|row| OutboxRow {
                id: row.id,
                ready: row.ready,
                trace_id: row.trace_id,
                key: row.key,
                payload: PyBytes::new(py, row.payload.as_bytes()).unbind(),
            })
            .collect())
    }

    /// Records that a topic acknowledged rows.
    fn outbox_done(&self, py: Python<'_>, topic_number: usize, ids: Vec<i64>) -> PyResult<()> {
        let (engine, topic) = (self.inner()?, topic(topic_number)?);
        run(py, || engine.outbox().done(topic, ids))
    }

    /// Commits everything recorded before.
    fn outbox_flush(&self, py: Python<'_>) -> PyResult<()> {
        let engine = self.inner()?;
        run(py, || engine.outbox().flush())
    }

    /// Records that publication failed, and why.
    fn outbox_fail(&self, py: Python<'_>, topic_number: usize, reason: &str) -> PyResult<()> {
        let (engine, topic) = (self.inner()?, topic(topic_number)?);
        run(py, || engine.outbox().fail(topic, reason))
    }

    /// Sets aside rows that a topic refused: id and reason.
    fn outbox_reject(&self, py: Python<'_>, topic_number: usize, rows: Vec<(i64, String)>) -> PyResult<()> {
        let (engine, topic) = (self.inner()?, topic(topic_number)?);
        run(py, || engine.outbox().reject(topic, rows))
    }

    /// Makes rows pending again that operators want to be tried again; how many.
    fn outbox_adopt_retries(&self, py: Python<'_>) -> PyResult<u64> {
        let engine = self.inner()?;
        run(py, || engine.outbox().adopt_retries())
    }

    /// Takes the payload of at most `most` rows delivered before a time (microseconds since 1970); how many.
    fn outbox_prune(&self, py: Python<'_>, before: i64, most: u32) -> PyResult<u64> {
        let engine = self.inner()?;
        run(py, || engine.outbox().prune(before, most))
    }

    /// Rows that a topic has not acknowledged, rows set aside, payload bytes of both.
    fn outbox_backlog(&self) -> PyResult<(u64, u64, u64)> {
        let backlog = self.inner()?.outbox().backlog();
        Ok((backlog.pending, backlog.dead, backlog.bytes))
    }

    /// Of one topic: rows pending, when the oldest was received (microseconds since 1970), rows set aside.
    fn outbox_lag(&self, py: Python<'_>, topic_number: usize) -> PyResult<(u32, Option<i64>, u32)> {
        let (engine, topic) = (self.inner()?, topic(topic_number)?);
        let lag = run(py, || engine.outbox().lag(topic))?;
        Ok((lag.pending, lag.oldest, lag.dead))
    }

    /// Gives storage root and outbox back once the last association is over.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let engine = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        run(py, move || {
            drop(engine);
            Ok::<_, std::convert::Infallible>(())
        })
    }
}
