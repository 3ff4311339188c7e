//! A damaged data set is kept as received, with a note of what is known of it (`dicom_store_scp.malformed = "quarantine"`).

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::Reception;
use crate::config::Malformed;
use crate::layout::TenantId;
use crate::status::Refusal;
use crate::store::damaged;
use crate::uid::trim_padding;

/// What says whose an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TenantFrom {
    /// A rule of the configuration.
    #[serde(rename = "rule")]
    Rule,
    /// The private element in the command set.
    #[serde(rename = "command set")]
    CommandSet,
    /// The private element in the data set.
    #[serde(rename = "data set")]
    DataSet,
    /// The default of the configuration.
    #[serde(rename = "default")]
    Default,
}

/// What is known of a damaged data set: enough to take it as if it came now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Note {
    /// RFC 3339, UTC.
    pub received_at: String,
    /// Why it would have been refused.
    pub reason: String,
    /// The status of that refusal, hexadecimal.
    pub status: String,
    /// Calling AE title.
    pub calling_ae_title: String,
    /// Called AE title.
    pub called_ae_title: String,
    /// Address of the sender.
    pub address: String,
    /// Whose it is, as far as that is known.
    pub tenant: Option<String>,
    /// What says so.
    pub tenant_from: Option<TenantFrom>,
    /// Value of the private element, where it names no known tenant.
    pub private_tenant: Option<String>,
    /// Affected SOP Class UID of the command set.
    pub affected_sop_class_uid: String,
    /// Affected SOP Instance UID of the command set.
    pub affected_sop_instance_uid: String,
    /// Transfer syntax of the presentation context.
    pub transfer_syntax_uid: String,
    /// Message ID of the command set.
    pub message_id: Option<u16>,
    /// Bytes of the file, header included.
    pub size: u64,
    /// XXH3-128 of the file, hexadecimal.
    pub digest: String,
}

impl Reception<'_> {
    /// Goes on without the scan where what is refused may be kept.
    pub(super) fn note_damage(&mut self, refusal: Refusal) -> Result<(), Refusal> {
        if self.announced.malformed == Malformed::Refuse || !refusal.is_of_damage() {
            return Err(refusal);
        }
        self.damage = Some(refusal);
        self.check_room()
    }

    /// What will not find room is refused while it arrives.
    pub(super) fn check_room(&mut self) -> Result<(), Refusal> {
        if self.damage.is_none() || self.store.damaged().has_room(damaged::weight(self.received, 1))? {
            return Ok(());
        }
        Err(match self.damage.take() {
            Some(damage) => Refusal::QuarantineFull(Box::new(damage)),
            None => Refusal::Bug,
        })
    }

    /// Keeps the data set. What is answered is a refusal in each case: nothing is stored and recorded.
    pub(super) fn keep(mut self, damage: Refusal) -> Refusal {
        match self.put_into_quarantine(&damage) {
            Ok(true) => Refusal::Quarantined {
                name: damaged::name_of(self.trace_id),
                reason: Box::new(damage),
            },
            Ok(false) => Refusal::QuarantineFull(Box::new(damage)),
            Err(refusal) => refusal,
        }
    }

    /// Whether there was room.
    fn put_into_quarantine(&mut self, damage: &Refusal) -> Result<bool, Refusal> {
        let known = self.known_tenant();
        let (tenant, from) = match known {
            Ok((tenant, from)) => (Some(tenant), Some(from)),
            Err(_) => (None, None),
        };
        if let Some(tenant) = &tenant {
            self.settle_tenant(tenant)?;
        }
        let note = self.damage_note(damage, tenant, from);
        let text = serde_json::to_vec_pretty(&note).map_err(|_| Refusal::Bug)?;
        let store = self.store;
        let Some(room) = store
            .damaged()
            .room(damaged::weight(self.spool.size(), text.len() as u64))?
        else {
            return Ok(false);
        };
        store
            .damaged()
            .keep(&mut self.spool, store.incoming(), self.trace_id, &text, room)?;
        Ok(true)
    }

    fn damage_note(&self, damage: &Refusal, tenant: Option<TenantId>, from: Option<TenantFrom>) -> Note {
        let private = self.private_value().filter(|_| tenant.is_none());
        Note {
            received_at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            reason: damage.comment(),
            status: format!("{:04X}", damage.status()),
            calling_ae_title: self.source.calling_ae_title.clone(),
            called_ae_title: self.source.called_ae_title.clone(),
            address: self.source.address.clone(),
            tenant: tenant.map(|tenant| tenant.as_str().to_owned()),
            tenant_from: from,
            private_tenant: private.map(|value| String::from_utf8_lossy(trim_padding(value)).into_owned()),
            affected_sop_class_uid: self.announced.sop_class_uid.to_string(),
            affected_sop_instance_uid: self.announced.sop_instance_uid.to_string(),
            transfer_syntax_uid: self.announced.transfer_syntax.to_owned(),
            message_id: self.announced.message_id,
            size: self.spool.size(),
            digest: format!("{:032x}", u128::from_be_bytes(self.spool.digest())),
        }
    }
}
