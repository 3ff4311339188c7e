//! What is odd about a request, bounded whatever the request has in it.

/// Kinds of oddities with different details that are kept; further ones are counted together.
const MOST: usize = 16;
/// Bytes of what the peer wrote that are quoted.
const QUOTED_BYTES: usize = 32;

/// What is odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An item or sub-item of a type that is not known in its place. PS3.8 9.3.1: it is ignored.
    UnknownItem,
    /// An item that may be there once; the last one counts.
    RepeatedItem,
    /// An item that must be there.
    MissingItem,
    /// Up to three zero bytes behind the last item.
    TrailingBytes,
    /// A UID with padding, which PS3.8 Annex F does not allow.
    PaddedUid,
    /// Another application context name beside that of DICOM, or one that cannot be read.
    ApplicationContext,
    /// A presentation context too short to have an identifier.
    PresentationContext,
    /// An identifier that is even (PS3.8 9.3.2.2): the context is left out.
    ContextId,
    /// An identifier that several contexts have: result 3 for all of them.
    RepeatedContextId,
    /// A presentation context without an abstract syntax that can be read: result 3.
    AbstractSyntax,
    /// A transfer syntax that cannot be read, or none in a context: result 4. Or more of them than are looked at.
    TransferSyntax,
    /// A maximum length of other than four bytes.
    MaximumLength,
    /// An implementation class UID that is none.
    ImplementationClassUid,
    /// An implementation version name of other than 1 to 16 ASCII characters.
    ImplementationVersionName,
    /// An asynchronous operations window of other than four bytes.
    AsynchronousOperations,
    /// A role selection that breaks PS3.7 D.3.3.4.
    RoleSelection,
    /// An extended negotiation that breaks PS3.7 D.3.3.5.
    ExtendedNegotiation,
    /// A common extended negotiation that breaks PS3.7 D.3.3.6.
    CommonExtendedNegotiation,
    /// A user identity of an unknown type, or one that breaks PS3.7 D.3.3.7.
    UserIdentity,
    /// An AE title field with more than a title.
    AeTitle,
    /// Further oddities.
    More,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::UnknownItem,
        Self::RepeatedItem,
        Self::MissingItem,
        Self::TrailingBytes,
        Self::PaddedUid,
        Self::ApplicationContext,
        Self::PresentationContext,
        Self::ContextId,
        Self::RepeatedContextId,
        Self::AbstractSyntax,
        Self::TransferSyntax,
        Self::MaximumLength,
        Self::ImplementationClassUid,
        Self::ImplementationVersionName,
        Self::AsynchronousOperations,
        Self::RoleSelection,
        Self::ExtendedNegotiation,
        Self::CommonExtendedNegotiation,
        Self::UserIdentity,
        Self::AeTitle,
        Self::More,
    ];

    /// The word for logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownItem => "unknown_item",
            Self::RepeatedItem => "repeated_item",
            Self::MissingItem => "missing_item",
            Self::TrailingBytes => "trailing_bytes",
            Self::PaddedUid => "padded_uid",
            Self::ApplicationContext => "application_context",
            Self::PresentationContext => "presentation_context",
            Self::ContextId => "context_id",
            Self::RepeatedContextId => "repeated_context_id",
            Self::AbstractSyntax => "abstract_syntax",
            Self::TransferSyntax => "transfer_syntax",
            Self::MaximumLength => "maximum_length",
            Self::ImplementationClassUid => "implementation_class_uid",
            Self::ImplementationVersionName => "implementation_version_name",
            Self::AsynchronousOperations => "asynchronous_operations",
            Self::RoleSelection => "role_selection",
            Self::ExtendedNegotiation => "extended_negotiation",
            Self::CommonExtendedNegotiation => "common_extended_negotiation",
            Self::UserIdentity => "user_identity",
            Self::AeTitle => "ae_title",
            Self::More => "more",
        }
    }
}

/// Something odd, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oddity {
    /// What is odd.
    pub kind: Kind,
    /// Where, or the bytes: printable ASCII.
    pub detail: String,
    /// How many are alike.
    pub count: usize,
}

/// The oddities of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oddities(Vec<Oddity>);

impl Oddities {
    /// Adds one, or counts it with those that are alike.
    pub fn add(&mut self, kind: Kind, detail: impl Into<String>) {
        let detail = detail.into();
        let alike = |known: &&mut Oddity| known.kind == kind && known.detail == detail;
        if let Some(known) = self.0.iter_mut().find(alike) {
            known.count += 1;
            return;
        }
        let is_full = self.0.len() >= MOST;
        match self.0.last_mut() {
            Some(more) if is_full => {
                if more.kind == Kind::More {
                    more.count += 1;
                } else {
                    self.0.push(Oddity {
                        kind: Kind::More,
                        detail: String::new(),
                        count: 1,
                    });
                }
            }
            _ => self.0.push(Oddity {
                kind,
                detail,
                count: 1,
            }),
        }
    }

    /// In the order in which they were found.
    #[must_use]
    pub fn into_vec(self) -> Vec<Oddity> {
        self.0
    }
}

/// The beginning of what the peer wrote, escaped.
#[must_use]
pub fn quoted(bytes: &[u8]) -> String {
    match bytes.split_at_checked(QUOTED_BYTES) {
        Some((beginning, rest)) if !rest.is_empty() => format!("{}...", beginning.escape_ascii()),
        _ => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_is_counted_and_the_rest_is_bounded() {
        let mut oddities = Oddities::default();
        for number in 0..1000 {
            oddities.add(Kind::UnknownItem, "60");
            oddities.add(Kind::PaddedUid, number.to_string());
        }
        let all = oddities.into_vec();
        assert_eq!(all.len(), MOST + 1);
        assert_eq!((all[0].kind, all[0].count), (Kind::UnknownItem, 1000));
        assert_eq!((all[MOST].kind, all[MOST].count), (Kind::More, 985));
    }

    #[test]
    fn quotes_are_printable_and_short() {
        assert_eq!(quoted(b"V1\\2\xC9\n\0"), r"V1\\2\xc9\n\x00");
        assert!(quoted(&vec![0; 70_000]).len() <= 4 * QUOTED_BYTES + 3);
        assert_eq!(quoted(&[b'A'; QUOTED_BYTES]).len(), QUOTED_BYTES);
    }

    #[test]
    fn each_kind_has_its_own_word() {
        let words: std::collections::HashSet<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(words.len(), Kind::ALL.len());
    }
}
