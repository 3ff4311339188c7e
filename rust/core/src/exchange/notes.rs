//! What an association tells of its instances: counters, summary, the page, the log.

use std::time::{Instant, SystemTime};

use super::{Exchange, Request};
use crate::activity::{RecentInstance, Shown};
use crate::association::Transfer;
use crate::dataset::anomaly::Anomalies;
use crate::dataset::index::InstanceIndex;
use crate::events::{InstanceFact, MOST_NAMED};
use crate::ingest::{Attempt, Stored};
use crate::layout::TenantId;
use crate::status::{Refusal, QUARANTINED, SUCCESS};
use crate::transcode::TranscodeError;

/// Studies kept for the summary.
const MOST_STUDIES: usize = 10_000;
/// Damaged data sets named in the summary.
const MOST_QUARANTINED: usize = 10;
/// Different failures kept for the summary.
const FAILURE_KINDS: usize = 16;

/// How a C-STORE ended: refused, or stored for a tenant.
#[derive(Clone, Copy)]
pub(super) struct Ended<'a> {
    pub(super) refusal: Option<&'a Refusal>,
    pub(super) outcome: Option<Stored>,
    pub(super) tenant: Option<&'a TenantId>,
}

impl Exchange<'_> {
    pub(super) fn note_transfer(&mut self, tenant: &TenantId, index: InstanceIndex) {
        let key = (tenant.as_str().to_owned(), index.study_instance_uid.to_string());
        let transfers = &mut self.summary.transfers;
        if transfers.len() >= MOST_STUDIES && !transfers.contains_key(&key) {
            return;
        }
        let transfer = transfers.entry(key).or_insert_with(|| Transfer {
            patient_id: index.patient_id,
            accession_number: index.accession_number,
            ..Transfer::default()
        });
        *transfer
            .classes
            .entry(index.sop_class_uid.to_string())
            .or_default() += 1;
    }

    pub(super) fn note_anomalies(&mut self, anomalies: Anomalies) {
        for code in anomalies.codes() {
            *self.summary.anomalies.entry(code).or_default() += 1;
            self.engine.count_anomaly(code);
        }
    }

    pub(super) fn note_transcoding(&mut self, attempt: Attempt) {
        let outcome = attempt.error.as_ref().map_or("Success", TranscodeError::code);
        let transcoded = (attempt.source, attempt.target, outcome.to_owned());
        if let Some(error) = &attempt.error {
            let reason = error.to_string();
            let reasons = &mut self.summary.transcode_failures;
            if reasons.len() < FAILURE_KINDS || reasons.contains_key(&reason) {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        self.engine.count_transcode(transcoded.clone());
        *self.summary.transcodes.entry(transcoded).or_default() += 1;
    }

    pub(super) fn note(&mut self, request: &Request, ended: Ended<'_>, received: Instant, shown: Shown) {
        let refusal = ended.refusal;
        let status = refusal.map_or(SUCCESS, Refusal::status);
        let known = ended.tenant.or(refusal.and_then(Refusal::tenant));
        let told = known
            .or(self.tenant_of_all())
            .map(|tenant| tenant.as_str().to_owned());
        let tenant = known.or(self.agreement.source.tenant.as_ref());
        let tenant = tenant.map_or("", TenantId::as_str);
        self.engine.count(status, tenant, request.bytes);
        if status != QUARANTINED {
            self.live.answered(refusal.is_none());
        }
        if let Some(Refusal::Quarantined { .. }) = refusal {
            self.note_quarantined(request);
        }
        *self.summary.statuses.entry(status).or_default() += 1;
        let comment = refusal.map(Refusal::comment).unwrap_or_default();
        if refusal.is_some() {
            let key = (status, comment.clone());
            if self.summary.failures.len() < FAILURE_KINDS || self.summary.failures.contains_key(&key) {
                *self.summary.failures.entry(key).or_default() += 1;
            }
        }
        self.summary.refused += u64::from(refusal.is_some());
        let is_named = refusal.is_some() && self.summary.refused <= MOST_NAMED;
        let tenant_value = refusal.and_then(Refusal::tenant_value).map(ToOwned::to_owned);
        if self.engine.recent().is_watched() {
            let answer = (status, comment.clone(), tenant_value.clone());
            self.show(request, answer, tenant, received, shown);
        }
        let source = &self.agreement.source;
        self.engine.events().push(is_named, || InstanceFact {
            association: self.summary.association,
            message_id: request.message_id,
            status,
            comment,
            sop_instance_uid: request
                .sop_instance_uid
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            bytes: request.bytes,
            commit_seconds: received.elapsed().as_secs_f64(),
            is_named,
            address: source.address.clone(),
            calling_ae_title: source.calling_ae_title.clone(),
            tenant_value,
            tenant: told,
            outcome: ended.outcome.map_or("", Stored::as_str),
        });
    }

    /// Whose all instances are, where no private element may say otherwise.
    pub(super) fn tenant_of_all(&self) -> Option<&TenantId> {
        let source = &self.agreement.source;
        let decides = source.tenant_by_rule || self.engine.config().private_tenant.is_none();
        source.tenant.as_ref().filter(|_| decides)
    }

    pub(super) fn note_stored(&mut self, stored: Stored, tenant: &str) {
        match stored {
            Stored::New => {}
            Stored::Replaced => self.summary.replaced += 1,
            Stored::Identical => self.summary.identical += 1,
            Stored::Kept => self.summary.kept += 1,
        }
        if !self.summary.tenants.contains(tenant) {
            self.summary.tenants.insert(tenant.to_owned());
        }
    }

    fn note_quarantined(&mut self, request: &Request) {
        let quarantined = &mut self.summary.quarantined;
        if let Some(uid) = request
            .sop_instance_uid
            .as_ref()
            .filter(|_| quarantined.len() < MOST_QUARANTINED)
        {
            quarantined.push(uid.to_string());
        }
    }

    fn show(
        &self,
        request: &Request,
        (status, comment, tenant_value): (u16, String, Option<String>),
        tenant: &str,
        received: Instant,
        shown: Shown,
    ) {
        let context = self.agreement.answer.contexts.get(&request.context_id);
        self.engine.recent().push(RecentInstance {
            number: 0,
            at: SystemTime::now(),
            association: self.live.id,
            tenant: tenant.to_owned(),
            status,
            comment,
            tenant_value,
            sop_class_uid: request
                .sop_class_uid
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            bytes: request.bytes,
            received_as: context
                .map(|context| context.transfer_syntax.clone())
                .unwrap_or_default(),
            commit_seconds: received.elapsed().as_secs_f64(),
            shown,
        });
    }
}
