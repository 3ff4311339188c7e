//! Who may come in: the rules of a configuration and the places that are taken, asked anew for every association.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::layout::TenantId;

/// A network in CIDR notation: address and prefix length.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Network(IpAddr, u32);

impl Network {
    /// All addresses that begin with the first `prefix_length` bits of an address.
    #[must_use]
    pub fn new(address: IpAddr, prefix_length: u32) -> Self {
        Self(address, prefix_length)
    }

    pub(super) fn contains(self, address: IpAddr) -> bool {
        // All bits are shifted away where there is no prefix.
        match (self.0, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differing = ours.to_bits() ^ theirs.to_bits();
                differing.checked_shr(32 - self.1.min(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differing = ours.to_bits() ^ theirs.to_bits();
                differing.checked_shr(128 - self.1.min(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Whose instances an association brings, where all that it names matches.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRule {
    tenant: TenantId,
    called_ae_title: Option<String>,
    calling_ae_title: Option<String>,
    source: Option<Network>,
    /// It names a certificate's subject, which its caller compares.
    by_certificate: bool,
}

/// The rules of a configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Associations at once.
    max_associations: usize,
    /// Of one address, and of one calling AE title.
    max_per_address: Option<usize>,
    max_per_calling_ae: Option<usize>,
    /// Networks that may come in; none: any.
    peers: Vec<Network>,
    /// Titles that we are called by, and that may come in; none: any.
    called_ae_titles: Option<HashSet<String>>,
    calling_ae_titles: Option<HashSet<String>>,
    /// The first that matches counts.
    tenants: Vec<TenantRule>,
    default_tenant: Option<TenantId>,
}

/// Why somebody may not come in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The address is in no network that may.
    #[error("peer_address")]
    Peer,
    /// Nobody may at present.
    #[error("{0}")]
    Closed(String),
    /// All places are taken, or all of the address or title.
    #[error("association_limit")]
    Limit,
    /// We are not called so.
    #[error("called_ae_title")]
    CalledAeTitle,
    /// No title that may.
    #[error("calling_ae_title")]
    CallingAeTitle,
}

/// Whose instances these are; no tenant where only a private element can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenancy {
    /// The tenant of the rule, or the default.
    pub tenant: Option<TenantId>,
    /// A rule matched.
    pub by_rule: bool,
}

/// Who holds most associations; nothing where there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Largest {
    /// An address, and how many it holds.
    pub address: Option<(IpAddr, usize)>,
    /// A calling AE title, and how many it holds.
    pub calling_ae_title: Option<(String, usize)>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
    by_calling: HashMap<String, usize>,
    closed: Option<String>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Admission {
    rules: Rules,
    taken: Mutex<Taken>,
    let_in: AtomicU64,
}

/// The place of an association, given back when dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
    calling: Option<String>,
}

impl Admission {
    /// With all places free.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            taken: Mutex::default(),
            let_in: AtomicU64::new(0),
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nobody is let in, for a reason in a word; `None`: again by the rules.
    pub fn close(&self, cause: Option<String>) {
        self.taken().closed = cause;
    }

    /// Places taken now, and associations that were let in since the start.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        (self.taken().total, self.let_in.load(Ordering::Relaxed))
    }

    /// The address and the calling AE title that hold most associations now, and how many each.
    #[must_use]
    pub fn largest(&self) -> Largest {
        let taken = self.taken();
        Largest {
            address: taken
                .by_address
                .iter()
                .map(|(&address, &count)| (address, count))
                .max_by_key(|&(_, count)| count),
            calling_ae_title: taken
                .by_calling
                .iter()
                .max_by_key(|(_, &count)| count)
                .map(|(title, &count)| (title.clone(), count)),
        }
    }

    /// Whether an address may come in at all.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let peers = &self.rules.peers;
        peers.is_empty() || peers.iter().any(|network| network.contains(address))
    }

    /// Takes a place.
    ///
    /// # Errors
    /// `Peer`, `Closed` or `Limit`.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Denied> {
        if !self.allows(address) {
            return Err(Denied::Peer);
        }
        let mut taken = self.taken();
        if let Some(cause) = &taken.closed {
            return Err(Denied::Closed(cause.clone()));
        }
        if taken.total >= self.rules.max_associations {
            return Err(Denied::Limit);
        }
        count_up(&mut taken.by_address, address, self.rules.max_per_address)?;
        taken.total += 1;
        Ok(Place {
            admission: Arc::clone(self),
            address,
            calling: None,
        })
    }

    /// Both titles.
    ///
    /// # Errors
    /// `CalledAeTitle` or `CallingAeTitle`.
    pub fn check_titles(&self, called: &str, calling: &str) -> Result<(), Denied> {
        let lacks = |titles: &Option<HashSet<String>>, title| {
            titles.as_ref().is_some_and(|titles| !titles.contains(title))
        };
        if lacks(&self.rules.called_ae_titles, called) {
            return Err(Denied::CalledAeTitle);
        }
        if lacks(&self.rules.calling_ae_titles, calling) {
            return Err(Denied::CallingAeTitle);
        }
        Ok(())
    }

    /// The tenant by the first rule that matches, else the default. `has_subject` tells of the rule with a number
    /// whether the peer's certificate has the subject that it names.
    pub fn tenancy(
        &self,
        called: &str,
        calling: &str,
        address: IpAddr,
        has_subject: impl Fn(usize) -> bool,
    ) -> Tenancy {
        let mut rules = self.rules.tenants.iter().enumerate();
        let matching = rules.find(|(number, rule)| {
            let is = |asked: &Option<String>, title| asked.as_deref().is_none_or(|asked| asked == title);
            is(&rule.called_ae_title, called)
                && is(&rule.calling_ae_title, calling)
                && rule.source.is_none_or(|network| network.contains(address))
                && (!rule.by_certificate || has_subject(*number))
        });
        Tenancy {
            tenant: match matching {
                Some((_, rule)) => Some(rule.tenant),
                None => self.rules.default_tenant,
            },
            by_rule: matching.is_some(),
        }
    }
}

impl Place {
    /// Takes one of the places of a calling AE title, too: the last step, once.
    ///
    /// # Errors
    /// `Limit`.
    pub fn enter_calling(&mut self, calling: &str) -> Result<(), Denied> {
        let most = self.admission.rules.max_per_calling_ae;
        count_up(&mut self.admission.taken().by_calling, calling.to_owned(), most)?;
        self.calling = Some(calling.to_owned());
        self.admission.let_in.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.admission.taken();
        taken.total -= 1;
        count_down(&mut taken.by_address, &self.address);
        if let Some(calling) = &self.calling {
            count_down(&mut taken.by_calling, calling);
        }
    }
}

fn count_up<K: std::hash::Hash + Eq>(
    counts: &mut HashMap<K, usize>,
    key: K,
    most: Option<usize>,
) -> Result<(), Denied> {
    let count = counts.entry(key).or_default();
    if most.is_some_and(|most| *count >= most) {
        return Err(Denied::Limit);
    }
    *count += 1;
    Ok(())
}

fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(rules: serde_json::Value) -> Arc<Admission> {
        let mut all = serde_json::json!({
            "max_associations": 2, "max_per_address": null, "max_per_calling_ae": null, "peers": [],
            "called_ae_titles": null, "calling_ae_titles": null, "tenants": [], "default_tenant": null
        });
        let serde_json::Value::Object(rules) = rules else {
            unreachable!()
        };
        all.as_object_mut().unwrap().extend(rules);
        Arc::new(Admission::new(serde_json::from_value(all).unwrap()))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_counted_by_all_that_has_a_limit_and_come_back() {
        let rules = serde_json::json!({"max_associations": 3, "max_per_address": 2, "max_per_calling_ae": 1});
        let admission = admission(rules);
        let (here, there) = (address("10.0.0.1"), address("10.0.0.2"));
        let mut first = admission.enter(here).unwrap();
        let mut second = admission.enter(here).unwrap();
        assert_eq!(admission.enter(here).unwrap_err(), Denied::Limit);
        let third = admission.enter(there).unwrap();
        assert_eq!(admission.enter(there).unwrap_err(), Denied::Limit);
        first.enter_calling("CT1").unwrap();
        assert_eq!(second.enter_calling("CT1"), Err(Denied::Limit));
        drop(first);
        second.enter_calling("CT1").unwrap();
        drop((second, third));
        assert_eq!(admission.counts(), (0, 2), "the third had no title yet");
        let taken = admission.taken();
        assert!(
            taken.by_address.is_empty() && taken.by_calling.is_empty(),
            "what is gone is forgotten"
        );
    }

    #[test]
    fn who_holds_most_is_known() {
        let admission = admission(serde_json::json!({"max_associations": 9}));
        let nobody = Largest {
            address: None,
            calling_ae_title: None,
        };
        assert_eq!(admission.largest(), nobody);
        let (here, there) = (address("10.0.0.1"), address("10.0.0.2"));
        let mut places: Vec<_> = [here, there, there]
            .map(|peer| admission.enter(peer).unwrap())
            .into();
        for (place, title) in places.iter_mut().zip(["CT1", "CT1", "MR1"]) {
            place.enter_calling(title).unwrap();
        }
        let largest = admission.largest();
        assert_eq!(largest.address, Some((there, 2)));
        assert_eq!(largest.calling_ae_title, Some(("CT1".to_owned(), 2)));
        drop(places);
        assert_eq!(admission.largest(), nobody);
    }

    #[test]
    fn a_closed_door_and_a_strange_address_let_nobody_in() {
        let admission = admission(
            serde_json::json!({"peers": [["10.1.0.0", 16], ["2001:db8::", 32], ["192.0.2.7", 32]]}),
        );
        for (peer, allowed) in [
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::1", false),
            ("192.0.2.7", true),
            ("192.0.2.6", false),
            ("::ffff:10.1.0.1", false),
        ] {
            assert_eq!(admission.enter(address(peer)).is_ok(), allowed, "{peer}");
        }
        admission.close(Some("licence_expired".to_owned()));
        let denied = admission.enter(address("10.1.0.1")).unwrap_err();
        assert_eq!(denied.to_string(), "licence_expired");
        assert_eq!(
            admission.enter(address("10.2.0.1")).unwrap_err(),
            Denied::Peer,
            "who may not come learns no more"
        );
        admission.close(None);
        assert!(admission.enter(address("10.1.0.1")).is_ok());
    }

    #[test]
    fn everybody_is_in_a_network_without_prefix() {
        let admission = admission(serde_json::json!({"peers": [["0.0.0.0", 0]]}));
        assert!(admission.allows(address("203.0.113.9")));
        assert!(!admission.allows(address("::1")));
    }

    #[test]
    fn titles_are_compared_whole() {
        let admission =
            admission(serde_json::json!({"called_ae_titles": ["ME"], "calling_ae_titles": ["CT1"]}));
        assert_eq!(admission.check_titles("ME", "CT1"), Ok(()));
        assert_eq!(admission.check_titles("ME2", "CT1"), Err(Denied::CalledAeTitle));
        assert_eq!(admission.check_titles("ME", "CT"), Err(Denied::CallingAeTitle));
        assert_eq!(admission.check_titles("me", "ct1"), Err(Denied::CalledAeTitle));
    }

    #[test]
    fn the_first_rule_that_matches_names_the_tenant() {
        let rule = |tenant: &str, called: Option<&str>, source: Option<(&str, u32)>, by_certificate: bool| {
            serde_json::json!({"tenant": tenant, "called_ae_title": called, "calling_ae_title": null, "source": source,
                "by_certificate": by_certificate})
        };
        let admission = admission(serde_json::json!({"default_tenant": "rest", "tenants": [
            rule("certified", None, None, true),
            rule("a", Some("A"), Some(("10.0.0.0", 8)), false),
            rule("b", Some("A"), None, false),
        ]}));
        let of = |called, peer, subject: bool| {
            let tenancy = admission.tenancy(called, "X", address(peer), |number| subject && number == 0);
            (tenancy.tenant.unwrap().as_str().to_owned(), tenancy.by_rule)
        };
        assert_eq!(of("A", "10.1.2.3", false), ("a".to_owned(), true));
        assert_eq!(of("A", "192.168.0.1", false), ("b".to_owned(), true));
        assert_eq!(of("Z", "10.1.2.3", false), ("rest".to_owned(), false));
        assert_eq!(of("A", "10.1.2.3", true), ("certified".to_owned(), true));
    }
}
