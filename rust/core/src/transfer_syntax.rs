//! What the core must know of a transfer syntax (PS3.5 Annex A).

use dicom_core::Tag;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

/// How the elements of a data set are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Value representations are written out.
    pub explicit_vr: bool,
    /// Multi-byte numbers start with the most significant byte.
    pub big_endian: bool,
    /// How a header is read whose value representation does not exist.
    pub unknown_vr: UnknownVr,
}

/// How the headers of a data set are read whose value representation is not in PS3.5 6.2. Writers that have such headers write all of
/// them in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownVr {
    /// Not known yet.
    Undecided,
    /// Two capital letters have a 32-bit length, anything else a 16-bit one (DCMTK, Orthanc).
    Future,
    /// Two letters have a 16-bit length, anything else is no value representation but a 32-bit length (pydicom).
    Short,
    /// Two capital letters have a 32-bit length, anything else is no value representation but a 32-bit length.
    Absent,
}

impl Encoding {
    /// Implicit VR Little Endian: also the inside of UN values of undefined length (PS3.5 6.2.2).
    pub const IMPLICIT_LITTLE: Self = Self {
        explicit_vr: false,
        big_endian: false,
        unknown_vr: UnknownVr::Undecided,
    };
    /// Explicit VR Little Endian: what every encapsulated syntax uses (PS3.5 A.4).
    pub const EXPLICIT_LITTLE: Self = Self {
        explicit_vr: true,
        big_endian: false,
        unknown_vr: UnknownVr::Undecided,
    };
    /// Explicit VR Big Endian (retired).
    pub const EXPLICIT_BIG: Self = Self {
        explicit_vr: true,
        big_endian: true,
        unknown_vr: UnknownVr::Undecided,
    };

    /// The encoding of a transfer syntax; one that is not in the dictionary is taken as Explicit VR
    /// Little Endian, as PS3.5 10.1 asks of private syntaxes in practice.
    #[must_use]
    pub fn of(transfer_syntax: &str) -> Self {
        match transfer_syntax {
            "1.2.840.10008.1.2" => Self::IMPLICIT_LITTLE,
            "1.2.840.10008.1.2.2" => Self::EXPLICIT_BIG,
            _ => Self::EXPLICIT_LITTLE,
        }
    }

    /// The same without value representations.
    pub(crate) fn without_vr(self) -> Self {
        Self {
            explicit_vr: false,
            ..self
        }
    }

    pub(crate) fn u16(self, bytes: [u8; 2]) -> u16 {
        if self.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    }

    pub(crate) fn u32(self, bytes: [u8; 4]) -> u32 {
        if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    }

    pub(crate) fn u64(self, bytes: [u8; 8]) -> u64 {
        if self.big_endian {
            u64::from_be_bytes(bytes)
        } else {
            u64::from_le_bytes(bytes)
        }
    }

    pub(crate) fn tag(self, bytes: [u8; 4]) -> Tag {
        let [a, b, c, d] = bytes;
        Tag(self.u16([a, b]), self.u16([c, d]))
    }
}

/// Whether the whole data set is one deflate stream (PS3.5 A.5; JPIP Referenced Deflate A.7, A.9).
#[must_use]
pub fn is_deflated(transfer_syntax: &str) -> bool {
    matches!(
        transfer_syntax,
        "1.2.840.10008.1.2.1.99" | "1.2.840.10008.1.2.4.95" | "1.2.840.10008.1.2.4.205"
    )
}

/// Whether a transfer syntax of the Standard encapsulates Pixel Data (PS3.5 A.4).
#[must_use]
pub fn is_standard_encapsulated(transfer_syntax: &str) -> bool {
    transfer_syntax == "1.2.840.10008.1.2.5"
        || (transfer_syntax.starts_with("1.2.840.10008.1.2.4.") && !is_deflated(transfer_syntax))
}

/// Whether pixel data are not encapsulated: Implicit and Explicit VR Little Endian, Explicit VR Big Endian, Deflated.
#[must_use]
pub fn is_native(transfer_syntax: &str) -> bool {
    matches!(
        transfer_syntax,
        "1.2.840.10008.1.2" | "1.2.840.10008.1.2.1" | "1.2.840.10008.1.2.2" | "1.2.840.10008.1.2.1.99"
    )
}

/// Video and JPIP: nothing to decode to, so such instances are stored as they are.
#[must_use]
pub fn is_video_or_jpip(transfer_syntax: &str) -> bool {
    // PS3.6 Annex A: .4.94, .4.95, .4.204, .4.205 JPIP; .4.100 to .4.108 MPEG2, MPEG-4 AVC and HEVC, with
    // their fragmentable variants ending in .1.
    let Some(rest) = transfer_syntax.strip_prefix("1.2.840.10008.1.2.4.") else {
        return false;
    };
    let number = rest.split('.').next().and_then(|text| text.parse::<u32>().ok());
    matches!(number, Some(94 | 95 | 100..=108 | 204 | 205))
}

/// The transfer syntaxes that dicom-rs knows, and those that can be decoded besides: UID and name, if it has one.
pub fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
    let others = storescp_codecs::DECODABLE
        .into_iter()
        .filter(|uid| TransferSyntaxRegistry.iter().all(|syntax| syntax.uid() != *uid))
        .map(|uid| (uid, ""));
    TransferSyntaxRegistry
        .iter()
        .map(|syntax| (syntax.uid(), syntax.name()))
        .chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn video_and_jpip_are_told_from_still_images() {
        for uid in [
            "1.2.840.10008.1.2.4.94",
            "1.2.840.10008.1.2.4.100.1",
            "1.2.840.10008.1.2.4.108",
            "1.2.840.10008.1.2.4.205",
        ] {
            assert!(is_video_or_jpip(uid), "{uid}");
        }
        for uid in [
            "1.2.840.10008.1.2.4.90",
            "1.2.840.10008.1.2.4.110",
            "1.2.840.10008.1.2.4.203",
            "1.2.840.10008.1.2.1",
        ] {
            assert!(!is_video_or_jpip(uid), "{uid}");
        }
    }
}
