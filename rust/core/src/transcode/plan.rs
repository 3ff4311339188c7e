//! Whether an instance is stored as received or transcoded, and to what. Pure: a table of its own tests.

use std::collections::HashSet;
use std::hash::BuildHasher;

use crate::transfer_syntax::{is_deflated, is_native, is_video_or_jpip};

/// What becomes of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan<'c> {
    /// Stored as received.
    AsReceived(Reason),
    /// Transcoded to this transfer syntax.
    Transcode(&'c str),
    /// It should be transcoded and cannot be: stored as received, recorded as failed.
    Impossible,
}

/// Why an instance is stored as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Viewers read its transfer syntax.
    ViewersReadIt,
    /// Video and JPIP: there is nothing to decode to.
    VideoOrJpip,
    /// It has no Pixel Data.
    NoPixelData,
}

impl Reason {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::ViewersReadIt => "viewers read its transfer syntax",
            Self::VideoOrJpip => "video and JPIP are stored as they are",
            Self::NoPixelData => "it has no pixel data",
        }
    }
}

/// Decides for an instance.
#[must_use]
pub fn plan<'c, S: BuildHasher>(
    transfer_syntax: &str,
    has_pixel_data: bool,
    viewer_transfer_syntaxes: &HashSet<String, S>,
    target: &'c str,
) -> Plan<'c> {
    if viewer_transfer_syntaxes.contains(transfer_syntax) || transfer_syntax == target {
        Plan::AsReceived(Reason::ViewersReadIt)
    } else if is_video_or_jpip(transfer_syntax) {
        Plan::AsReceived(Reason::VideoOrJpip)
    } else if !has_pixel_data {
        Plan::AsReceived(Reason::NoPixelData)
    } else if can_decode(transfer_syntax) && can_encode(target) {
        Plan::Transcode(target)
    } else {
        Plan::Impossible
    }
}

/// Whether pixel data of this transfer syntax can be read.
#[must_use]
pub fn can_decode(transfer_syntax: &str) -> bool {
    is_native(transfer_syntax) || storescp_codecs::decoder(transfer_syntax).is_some()
}

/// Whether this transfer syntax can be written. All of them are lossless, because a lossy one would need a new SOP
/// Instance UID (PS3.3 C.7.6.1.1.5). Explicit VR Big Endian is retired and never written.
#[must_use]
pub fn can_encode(transfer_syntax: &str) -> bool {
    matches!(transfer_syntax, "1.2.840.10008.1.2" | "1.2.840.10008.1.2.1")
        || (is_deflated(transfer_syntax) && is_native(transfer_syntax))
        || storescp_codecs::encoder(transfer_syntax).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPLICIT: &str = "1.2.840.10008.1.2.1";

    fn decide(transfer_syntax: &str, has_pixel_data: bool) -> Plan<'static> {
        let viewers = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"];
        plan(
            transfer_syntax,
            has_pixel_data,
            &viewers.iter().map(ToString::to_string).collect::<HashSet<_>>(),
            EXPLICIT,
        )
    }

    #[test]
    fn each_kind_of_transfer_syntax_has_its_plan() {
        for (transfer_syntax, has_pixel_data, expected) in [
            (
                "1.2.840.10008.1.2.4.50",
                true,
                Plan::AsReceived(Reason::ViewersReadIt),
            ),
            (
                "1.2.840.10008.1.2.1",
                true,
                Plan::AsReceived(Reason::ViewersReadIt),
            ),
            (
                "1.2.840.10008.1.2.4.102",
                true,
                Plan::AsReceived(Reason::VideoOrJpip),
            ),
            (
                "1.2.840.10008.1.2.4.94",
                true,
                Plan::AsReceived(Reason::VideoOrJpip),
            ),
            (
                "1.2.840.10008.1.2.4.110",
                false,
                Plan::AsReceived(Reason::NoPixelData),
            ),
            ("1.2.840.10008.1.2.4.110", true, Plan::Transcode(EXPLICIT)),
            ("1.2.840.10008.1.2.4.92", true, Plan::Transcode(EXPLICIT)),
            ("1.2.840.10008.1.2.1.98", true, Plan::Transcode(EXPLICIT)),
            ("1.2.840.10008.1.2.8.1", true, Plan::Transcode(EXPLICIT)),
            ("1.2.840.10008.1.2.4.53", true, Plan::Transcode(EXPLICIT)),
            ("1.2.840.10008.1.2", true, Plan::Transcode(EXPLICIT)),
            ("1.2.840.10008.1.2.2", true, Plan::Transcode(EXPLICIT)),
            ("1.2.840.10008.1.2.1.99", true, Plan::Transcode(EXPLICIT)),
            ("1.2.3.4.5", true, Plan::Impossible),
            ("1.2.3.4.5", false, Plan::AsReceived(Reason::NoPixelData)),
        ] {
            assert_eq!(
                decide(transfer_syntax, has_pixel_data),
                expected,
                "{transfer_syntax}"
            );
        }
    }

    #[test]
    fn lossy_and_unknown_syntaxes_are_no_targets() {
        for target in [
            "1.2.840.10008.1.2.4.50",
            "1.2.840.10008.1.2.4.81",
            "1.2.840.10008.1.2.4.91",
            "1.2.840.10008.1.2.2",
            "1.2.840.10008.1.2.4.95",
            "1.2",
        ] {
            assert!(!can_encode(target), "{target}");
        }
        for target in [
            "1.2.840.10008.1.2",
            "1.2.840.10008.1.2.1",
            "1.2.840.10008.1.2.1.99",
            "1.2.840.10008.1.2.5",
            "1.2.840.10008.1.2.4.80",
            "1.2.840.10008.1.2.4.90",
        ] {
            assert!(can_encode(target), "{target}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_plan_is_for_what_viewers_cannot_read_and_never_for_what_cannot_be_made(
            source in "1\\.2\\.840\\.10008\\.1\\.2(\\.[1-8])?(\\.[0-9]{1,3})?|\\PC{0,10}",
            target in "1\\.2\\.840\\.10008\\.1\\.2(\\.[1-5])?(\\.[0-9]{1,3})?",
            has_pixel_data: bool,
            readable: bool,
        ) {
            let viewers: std::collections::HashSet<String> = readable.then(|| source.clone()).into_iter().collect();
            match plan(&source, has_pixel_data, &viewers, &target) {
                Plan::Transcode(to) => {
                    assert!(has_pixel_data && !readable && to == target);
                    assert!(can_decode(&source) && can_encode(to));
                }
                Plan::Impossible => assert!(has_pixel_data && !readable),
                Plan::AsReceived(_) => {}
            }
        }
    }
}
