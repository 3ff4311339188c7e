//! What a data set is and whose: from its identifying attributes, the association and the private element.

use super::{Reception, TenantFrom};
use crate::dataset::index::InstanceIndex;
use crate::layout::TenantId;
use crate::status::Refusal;

impl Reception<'_> {
    /// What the data set is and whose, once all of it is there.
    pub(super) fn identified(&mut self) -> Result<(InstanceIndex, TenantId), Refusal> {
        if let Some(damage) = self.damage.take() {
            return Err(damage);
        }
        self.scan.finish()?;
        let tenant = self.known_tenant().map(|(tenant, _)| tenant);
        let plan = self.engine.tenants().plan(tenant.as_ref().ok());
        let mut index = plan.read(self.scan.captured(), self.scan.encoding())?;
        index.anomalies = index.anomalies.and(self.scan.anomalies());
        if index.sop_class_uid != self.announced.sop_class_uid {
            return Err(Refusal::IdentityMismatch("SOPClassUID"));
        }
        if index.sop_instance_uid != self.announced.sop_instance_uid {
            return Err(Refusal::IdentityMismatch("SOPInstanceUID"));
        }
        Ok((index, tenant?))
    }

    /// A tenant that only the data set names may have its own store and limits.
    pub(super) fn settle_tenant(&mut self, tenant: &TenantId) -> Result<(), Refusal> {
        let tenants = self.engine.tenants();
        if self.in_flight.is_none() {
            self.in_flight = tenants.enter(tenant)?;
        }
        let store = tenants.store(Some(tenant));
        if !std::ptr::eq(store, self.store) {
            self.engine.check_space(store)?;
            self.spool.move_to(store)?;
            self.store = store;
        }
        Ok(())
    }

    /// A rule wins; else the private element of the command set, then of the data set; else the default.
    pub(super) fn known_tenant(&self) -> Result<(TenantId, TenantFrom), Refusal> {
        let by_association = |from| {
            let tenant = self.source.tenant.ok_or(Refusal::TenantNotAuthorised(None))?;
            Ok((tenant, from))
        };
        if self.source.tenant_by_rule {
            return by_association(TenantFrom::Rule);
        }
        let private = self.engine.config().private_tenant.as_ref();
        match (private, self.announced.command_tenant) {
            (Some(_), Some(tenant)) => return Ok((tenant, TenantFrom::CommandSet)),
            (None, _) => return by_association(TenantFrom::Default),
            (Some(_), None) => {}
        }
        match (private, self.private_value()) {
            (Some(private), Some(value)) => Ok((private.resolve(value)?, TenantFrom::DataSet)),
            _ => by_association(TenantFrom::Default),
        }
    }

    /// Value of the private element in the data set, where one is asked for. One that is cut short is none.
    pub(super) fn private_value(&self) -> Option<&[u8]> {
        let tag = self.engine.config().private_tenant.as_ref()?.tag();
        let slot = self.engine.tenants().captured_tags().slot(tag)?;
        let captured = self.scan.captured().get(slot).filter(|value| value.present)?;
        let is_whole = !self.scan.is_inside_value();
        is_whole.then_some(captured.bytes.as_slice())
    }
}
