//! Where an instance lies: `tenant/date/study/series/instance.dcm` beneath the storage root.

use chrono::NaiveDate;
use serde::Deserialize;

use crate::uid::Uid;

/// Temporary files of the same file system.
pub const INCOMING: &str = ".incoming";
/// The outbox and what belongs to it.
pub const OUTBOX: &str = ".outbox";

/// A tenant id: `[A-Za-z0-9][A-Za-z0-9_-]{0,63}`, so it is always one harmless path component.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct TenantId(String);

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
        if starts && grammar && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(TenantGrammar)
        }
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
    folders: [String; 4],
    file_name: String,
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
        let date = date.map_or_else(|| "00000000".to_owned(), |day| day.format("%Y%m%d").to_string());
        Self {
            folders: [
                tenant.as_str().to_owned(),
                date,
                study.to_string(),
                series.to_string(),
            ],
            file_name: format!("{instance}.dcm"),
        }
    }

    /// Tenant, date, study and series folder.
    #[must_use]
    pub fn folders(&self) -> &[String; 4] {
        &self.folders
    }

    /// The name of the file in the series folder.
    #[must_use]
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// The path relative to the storage root, with `/`.
    #[must_use]
    pub fn relative(&self) -> String {
        format!("{}/{}", self.folders.join("/"), self.file_name)
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
                let relative = InstancePath::new(&tenant, None, study, series, instance).relative();
                let components: Vec<_> = std::path::Path::new(&relative).components().collect();
                assert_eq!(components.len(), 5);
                assert!(components.iter().all(|one| matches!(one, std::path::Component::Normal(_))));
                assert!(!relative.starts_with('.') && relative.len() <= 300);
            }
        }
    }
}
