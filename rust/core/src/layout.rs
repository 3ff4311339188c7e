//! Where an instance lies: `tenant/date/study/series/instance.dcm` beneath the storage root.

use std::fmt::Write as _;

use arrayvec::ArrayString;
use chrono::{Datelike as _, NaiveDate};
use serde::Deserialize;

use crate::uid::Uid;

/// Temporary files of the same file system.
pub const INCOMING: &str = ".incoming";
/// The outbox and what belongs to it.
pub const OUTBOX: &str = ".outbox";
/// Files that were not what was to be recorded, each with a note of why.
pub const QUARANTINE: &str = ".quarantine";
/// Files that another instance took the place of.
pub const REPLACED: &str = ".replaced";
/// Characters of a tenant id at most.
const LONGEST_TENANT: usize = 64;

/// A tenant id: `[A-Za-z0-9][A-Za-z0-9_-]{0,63}`, so it is always one harmless path component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct TenantId(ArrayString<LONGEST_TENANT>);

/// The text is not a tenant id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tenant id is 1 to 64 letters, digits, '_' or '-', beginning with a letter or digit")]
pub struct TenantGrammar;

impl TenantId {
    /// Checks the grammar.
    ///
    /// # Errors
    /// [`TenantGrammar`].
    pub fn parse(text: &str) -> Result<Self, TenantGrammar> {
        let starts = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        let grammar = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        if !(starts && grammar) {
            return Err(TenantGrammar);
        }
        ArrayString::from(text).map(Self).map_err(|_| TenantGrammar)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TenantId {
    type Error = TenantGrammar;

    fn try_from(text: String) -> Result<Self, TenantGrammar> {
        Self::parse(&text)
    }
}

/// The place of one instance, relative to the storage root. Every component is checked by its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePath {
    relative: String,
    /// Bytes before the `/` in front of the file's name.
    folders_bytes: usize,
}

impl InstancePath {
    /// The place of an instance; without a study date the folder is `00000000`.
    #[must_use]
    pub fn new(
        tenant: &TenantId,
        date: Option<NaiveDate>,
        study: &Uid,
        series: &Uid,
        instance: &Uid,
    ) -> Self {
        let [tenant, study, series, instance] = [
            tenant.as_str(),
            study.as_str(),
            series.as_str(),
            instance.as_str(),
        ];
        let mut relative = String::with_capacity(
            tenant.len() + study.len() + series.len() + instance.len() + "/YYYYMMDD///.dcm".len(),
        );
        let (year, month, day) = date.map_or((0, 0, 0), |day| (day.year(), day.month(), day.day()));
        // A `String` takes all that is written.
        let _ = write!(relative, "{tenant}/{year:04}{month:02}{day:02}/{study}/{series}");
        let folders_bytes = relative.len();
        let _ = write!(relative, "/{instance}.dcm");
        Self {
            relative,
            folders_bytes,
        }
    }

    /// The series folder relative to the storage root: `tenant/date/study/series`.
    #[must_use]
    pub fn folders(&self) -> &str {
        self.relative.get(..self.folders_bytes).unwrap_or_default()
    }

    /// The name of the file in the series folder.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.relative.get(self.folders_bytes + 1..).unwrap_or_default()
    }

    /// The path relative to the storage root, with `/`.
    #[must_use]
    pub fn relative(&self) -> &str {
        &self.relative
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_one_harmless_component() {
        for good in ["1234567890", "hospital-a", "A_1", &"x".repeat(64)] {
            assert!(TenantId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".outbox",
            "-a",
            "_a",
            "a/b",
            "a.b",
            "ä",
            &"x".repeat(65),
            "a\0",
        ] {
            assert_eq!(TenantId::parse(bad), Err(TenantGrammar), "{bad}");
        }
    }

    #[test]
    fn the_path_names_tenant_date_study_series_and_instance() {
        let uid = |text: &str| Uid::parse(text.as_bytes()).unwrap();
        let tenant = TenantId::parse("t").unwrap();
        let path = InstancePath::new(
            &tenant,
            NaiveDate::from_ymd_opt(2026, 1, 2),
            &uid("1"),
            &uid("2"),
            &uid("3"),
        );
        assert_eq!(path.relative(), "t/20260102/1/2/3.dcm");
        assert_eq!(
            InstancePath::new(&tenant, None, &uid("1"), &uid("2"), &uid("3")).relative(),
            "t/00000000/1/2/3.dcm"
        );
    }

    proptest::proptest! {
        #[test]
        fn whatever_passes_the_grammar_stays_beneath_the_root(
            tenant in "[./A-Za-z0-9_-]{0,70}|\\PC{0,5}",
            uids in proptest::collection::vec("[0-9./]{0,70}|\\PC{0,5}", 3),
        ) {
            let parsed: Vec<Uid> = uids.iter().filter_map(|uid| Uid::parse(uid.as_bytes()).ok()).collect();
            if let (Ok(tenant), [study, series, instance]) = (TenantId::parse(&tenant), parsed.as_slice()) {
                let path = InstancePath::new(&tenant, None, study, series, instance);
                let relative = path.relative();
                let components: Vec<_> = std::path::Path::new(relative).components().collect();
                assert_eq!(components.len(), 5);
                assert!(components.iter().all(|one| matches!(one, std::path::Component::Normal(_))));
                assert!(!relative.starts_with('.') && relative.len() <= 300);
            }
        }
    }
}
