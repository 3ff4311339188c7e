//! The attributes that identify and index an instance, validated (PS3.3 C.7.1.1, C.7.2.1, C.12.1).

use std::sync::Arc;

use chrono::NaiveDate;
use dicom_core::dictionary::{DataDictionary as _, DataDictionaryEntry};
use dicom_core::Tag;
use dicom_dictionary_std::{tags, StandardDataDictionary};

use super::anomaly::{Anomalies, Anomaly};
use super::captured::{Captured, CapturedTags};
use super::charset::{Decoded, SpecificCharacterSet};
use super::json::{self, Attribute, DicomJson, UnknownAttribute, ValueEncoding};
use super::values::{date, number_of_frames};
use crate::status::Refusal;
use crate::transfer_syntax::Encoding;
use crate::uid::{trim_padding, Uid};

/// PS3.5 6.2: an LO value has at most 64 characters, an SH value 16.
const PATIENT_ID_CHARACTERS: usize = 64;
const ACCESSION_NUMBER_CHARACTERS: usize = 16;

/// The tags whose values are always kept by the scan.
const INDEX_TAGS: [Tag; 10] = [
    tags::SPECIFIC_CHARACTER_SET,
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::STUDY_DATE,
    tags::ACCESSION_NUMBER,
    tags::MODALITY,
    tags::PATIENT_ID,
    tags::STUDY_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::NUMBER_OF_FRAMES,
];

/// Which attributes are captured and which of them must be there; made once from the configuration.
#[derive(Clone, Debug)]
pub struct IndexPlan {
    captures: Captures,
    required: Vec<(Tag, String)>,
}

/// What the scan keeps, for all plans of a service.
#[derive(Clone, Debug)]
pub struct Captures {
    tags: CapturedTags,
    /// In the order of their tags.
    described: Arc<[Attribute]>,
}

/// What is known of an instance once its data set was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceIndex {
    /// SOP Class UID of the data set.
    pub sop_class_uid: Uid,
    /// SOP Instance UID of the data set.
    pub sop_instance_uid: Uid,
    /// Study Instance UID.
    pub study_instance_uid: Uid,
    /// Series Instance UID.
    pub series_instance_uid: Uid,
    /// Patient ID, at most 64 characters; empty where it is absent and not required.
    pub patient_id: String,
    /// Study Date, where it is a date.
    pub study_date: Option<NaiveDate>,
    /// Accession Number of 1 to 16 characters.
    pub accession_number: Option<String>,
    /// Number of Frames, 1 where it is absent or cannot be read.
    pub number_of_frames: u32,
    /// Modality, a code of PS3.3 C.7.3.1.1.1; empty where it is absent or no code.
    pub modality: String,
    /// The attributes that the record has of it.
    pub described: DicomJson,
    /// What was odd about the data set.
    pub anomalies: Anomalies,
}

impl Captures {
    /// For plans that require the keywords of these lists, a private element, and records that have these attributes.
    ///
    /// # Errors
    /// [`UnknownAttribute`].
    pub fn new<'k>(
        required: impl Iterator<Item = &'k [String]>,
        private: Option<Tag>,
        record_attributes: &[String],
    ) -> Result<Self, UnknownAttribute> {
        let mut identifying = INDEX_TAGS.to_vec();
        for keyword in required.flatten() {
            identifying.push(tag_of(keyword)?);
        }
        identifying.extend(private);
        let mut described = record_attributes
            .iter()
            .map(|keyword| Attribute::of(keyword))
            .collect::<Result<Vec<_>, _>>()?;
        described.sort_unstable_by_key(|attribute| attribute.tag);
        described.dedup_by_key(|attribute| attribute.tag);
        let describing: Vec<Tag> = described.iter().map(|attribute| attribute.tag).collect();
        Ok(Self {
            tags: CapturedTags::new(&identifying, &describing),
            described: described.into(),
        })
    }

    /// What the scan must capture.
    #[must_use]
    pub fn tags(&self) -> &CapturedTags {
        &self.tags
    }
}

impl IndexPlan {
    /// A plan that requires these keywords besides the four UIDs, and describes nothing.
    ///
    /// # Errors
    /// [`UnknownAttribute`].
    pub fn requiring(required_attributes: &[String]) -> Result<Self, UnknownAttribute> {
        let captures = Captures::new(std::iter::once(required_attributes), None, &[])?;
        Self::new(captures, required_attributes)
    }

    /// A plan that requires these keywords, which are among those of `captures`, besides the four UIDs.
    ///
    /// # Errors
    /// [`UnknownAttribute`].
    pub fn new(captures: Captures, required_attributes: &[String]) -> Result<Self, UnknownAttribute> {
        let required = required_attributes
            .iter()
            .map(|keyword| Ok((tag_of(keyword)?, keyword.clone())))
            .collect::<Result<_, _>>()?;
        Ok(Self { captures, required })
    }

    /// What the scan must capture.
    #[must_use]
    pub fn tags(&self) -> &CapturedTags {
        &self.captures.tags
    }

    /// Validates the captured values of a data set of this encoding.
    ///
    /// # Errors
    /// C000 for a UID that breaks the grammar; A900 for a required attribute that is absent, empty or invalid.
    pub fn read(&self, captured: &[Captured], encoding: Encoding) -> Result<InstanceIndex, Refusal> {
        let Captures {
            tags: captured_tags,
            described,
        } = &self.captures;
        let value = |tag: Tag| captured_tags.slot(tag).and_then(|slot| captured.get(slot));
        let bytes = |tag: Tag| value(tag).map_or(&[][..], |captured| trim_padding(&captured.bytes));
        let charset = SpecificCharacterSet::from_value(bytes(tags::SPECIFIC_CHARACTER_SET));

        // Grammar before presence: a hostile UID is a broken data set, whatever else is missing.
        let identity = [
            (tags::SOP_CLASS_UID, "SOPClassUID"),
            (tags::SOP_INSTANCE_UID, "SOPInstanceUID"),
            (tags::STUDY_INSTANCE_UID, "StudyInstanceUID"),
            (tags::SERIES_INSTANCE_UID, "SeriesInstanceUID"),
        ]
        .map(|(tag, keyword)| match bytes(tag) {
            [] => Ok(Err(Refusal::AttributeMissing(keyword.to_owned()))),
            uid => Uid::parse(uid).map(Ok).map_err(|_| Refusal::DatasetUid(keyword)),
        });
        let [sop_class, sop_instance, study, series] = identity;
        let (sop_class, sop_instance, study, series) = (sop_class?, sop_instance?, study?, series?);
        let (mut patient_id, is_patient_id_doubtful) = text(charset, bytes(tags::PATIENT_ID));
        let (accession_number, is_accession_doubtful) = text(charset, bytes(tags::ACCESSION_NUMBER));
        let is_cut = cut(&mut patient_id, PATIENT_ID_CHARACTERS);
        let mut anomalies = Anomalies::default();
        if is_patient_id_doubtful || is_accession_doubtful {
            anomalies.insert(Anomaly::CharacterSet);
        }
        let mut index = InstanceIndex {
            sop_class_uid: sop_class?,
            sop_instance_uid: sop_instance?,
            study_instance_uid: study?,
            series_instance_uid: series?,
            patient_id,
            study_date: date(bytes(tags::STUDY_DATE)),
            accession_number: Some(accession_number)
                .filter(|number| (1..=ACCESSION_NUMBER_CHARACTERS).contains(&number.chars().count())),
            number_of_frames: number_of_frames(bytes(tags::NUMBER_OF_FRAMES)).unwrap_or(1),
            modality: code(bytes(tags::MODALITY)),
            described: DicomJson::default(),
            anomalies,
        };
        for (tag, keyword) in &self.required {
            if bytes(*tag).iter().all(|&byte| byte == b' ' || byte == 0) {
                return Err(Refusal::AttributeMissing(keyword.clone()));
            }
            let valid = match *tag {
                tags::PATIENT_ID => !is_cut,
                tags::STUDY_DATE => index.study_date.is_some(),
                tags::ACCESSION_NUMBER => index.accession_number.is_some(),
                _ => true,
            };
            if !valid {
                return Err(Refusal::AttributeInvalid(keyword.clone()));
            }
        }
        let encoding = ValueEncoding {
            elements: encoding,
            charset,
        };
        let (described, is_doubtful) = json::of_captured(described, captured_tags, captured, encoding);
        index.described = described;
        if is_doubtful {
            index.anomalies.insert(Anomaly::CharacterSet);
        }
        Ok(index)
    }
}

fn tag_of(keyword: &str) -> Result<Tag, UnknownAttribute> {
    StandardDataDictionary
        .by_name(keyword)
        .map(DataDictionaryEntry::tag)
        .ok_or_else(|| UnknownAttribute::Keyword(keyword.to_owned()))
}

/// Leading and trailing spaces of LO and SH are not significant (PS3.5 6.2). Neither has control characters; one that is there
/// becomes U+FFFD, so that what consumers store is never cut at a NUL. Returns also whether the text is doubtful.
fn text(charset: SpecificCharacterSet, value: &[u8]) -> (String, bool) {
    let is_padding = |c| c == ' ' || c == '\0';
    let Decoded {
        mut text,
        is_doubtful,
    } = charset.decode(value);
    text.truncate(text.trim_end_matches(is_padding).len());
    text.drain(..text.len() - text.trim_start_matches(is_padding).len());
    if text.bytes().any(|byte| byte < b' ') {
        text = text
            .chars()
            .map(|c| if c < ' ' { char::REPLACEMENT_CHARACTER } else { c })
            .collect();
    }
    (text, is_doubtful)
}

/// Leaves the first `characters`, never half of one. Returns whether there were more.
fn cut(text: &mut String, characters: usize) -> bool {
    let end = text.char_indices().nth(characters).map(|(end, _)| end);
    if let Some(end) = end {
        text.truncate(end);
    }
    end.is_some()
}

/// A CS value: at most 16 capital letters, digits, spaces and underscores (PS3.5 6.2).
fn code(value: &[u8]) -> String {
    let is_code =
        |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b' ' | b'_');
    std::str::from_utf8(value)
        .ok()
        .map(|text| text.trim_matches(' '))
        .filter(|text| text.len() <= 16 && text.bytes().all(|byte| is_code(&byte)))
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        required: &[&str],
        change: impl Fn(Tag) -> Option<&'static [u8]>,
    ) -> Result<InstanceIndex, Refusal> {
        let plan = IndexPlan::requiring(&required.iter().map(|&k| k.to_owned()).collect::<Vec<_>>()).unwrap();
        let captured: Vec<Captured> = INDEX_TAGS
            .into_iter()
            .map(|tag| {
                let default: &[u8] = match tag {
                    tags::SOP_CLASS_UID => b"1.2.840.10008.5.1.4.1.1.2\0",
                    tags::SOP_INSTANCE_UID => b"1.2.3.4\0",
                    tags::STUDY_INSTANCE_UID => b"1.2.3\0",
                    tags::SERIES_INSTANCE_UID => b"1.2.3.5\0",
                    tags::PATIENT_ID => b"P1",
                    tags::STUDY_DATE => b"20260102",
                    _ => b"",
                };
                Captured {
                    bytes: change(tag).unwrap_or(default).to_vec(),
                    present: true,
                    ..Captured::default()
                }
            })
            .collect();
        plan.read(&captured, Encoding::EXPLICIT_LITTLE)
    }

    fn with(tag: Tag, value: &'static [u8]) -> impl Fn(Tag) -> Option<&'static [u8]> {
        move |t| (t == tag).then_some(value)
    }

    const DEFAULT: [&str; 2] = ["PatientID", "StudyDate"];

    #[test]
    fn dates_in_several_forms() {
        let day = NaiveDate::from_ymd_opt(2026, 1, 2);
        assert_eq!(read(&DEFAULT, |_| None).unwrap().study_date, day);
        for written in [&b"2026.01.02"[..], b"2026-01-02", b"20260102120000.5"] {
            let found = read(&DEFAULT, |t| (t == tags::STUDY_DATE).then_some(written));
            assert_eq!(found.unwrap().study_date, day, "{written:?}");
        }
        for broken in [
            &b"20260230"[..],
            b"2026-0102",
            b"20261",
            b"00000101",
            b"20260102\\20260103",
        ] {
            let refusal = read(&DEFAULT, |t| (t == tags::STUDY_DATE).then_some(broken)).unwrap_err();
            assert_eq!(refusal.status(), 0xA900, "{broken:?}");
            assert_eq!(
                read(&[], |t| (t == tags::STUDY_DATE).then_some(broken))
                    .unwrap()
                    .study_date,
                None
            );
        }
    }

    #[test]
    fn a_long_patient_id_is_refused_where_required_and_else_cut_at_a_character() {
        let long: &'static [u8] = Box::leak("ü".repeat(70).into_bytes().into_boxed_slice());
        let change = move |t| match t {
            tags::PATIENT_ID => Some(long),
            tags::SPECIFIC_CHARACTER_SET => Some(&b"ISO_IR 192"[..]),
            _ => None,
        };
        assert_eq!(read(&DEFAULT, change).unwrap_err().status(), 0xA900);
        assert_eq!(read(&[], change).unwrap().patient_id, "ü".repeat(64));
    }

    #[test]
    fn uids_absent_are_a900_and_broken_are_c000() {
        assert_eq!(
            read(&[], with(tags::STUDY_INSTANCE_UID, b""))
                .unwrap_err()
                .status(),
            0xA900
        );
        assert_eq!(
            read(&[], with(tags::SERIES_INSTANCE_UID, b"../x"))
                .unwrap_err()
                .status(),
            0xC000
        );
        assert_eq!(
            read(&[], with(tags::SOP_INSTANCE_UID, b"1.2\\1.3"))
                .unwrap_err()
                .status(),
            0xC000
        );
    }

    #[test]
    fn accession_number_and_frames_have_defaults() {
        assert_eq!(
            read(&[], with(tags::ACCESSION_NUMBER, b" A-1 "))
                .unwrap()
                .accession_number
                .as_deref(),
            Some("A-1")
        );
        assert_eq!(
            read(&[], with(tags::ACCESSION_NUMBER, b"12345678901234567"))
                .unwrap()
                .accession_number,
            None
        );
        for (value, frames) in [
            (&b"12 "[..], 12),
            (b"", 1),
            (b"0", 1),
            (b"2.0\t", 2),
            (b"-3", 1),
            (b"junk", 1),
            (b"99999999999", 1),
        ] {
            assert_eq!(
                read(&[], |t| (t == tags::NUMBER_OF_FRAMES).then_some(value))
                    .unwrap()
                    .number_of_frames,
                frames
            );
        }
    }

    #[test]
    fn text_that_the_character_set_does_not_explain_is_an_anomaly() {
        for (charset, patient_id, expected, is_anomaly) in [
            (&b"ISO_IR 100"[..], &b"M\xfcller"[..], "M\u{fc}ller", false),
            (b"ISO_IR 192", b"M\xfcller", "M\u{FFFD}ller", true),
            (b"NO SUCH SET", b"M\xfcller", "M\u{fc}ller", true),
            (b"NO SUCH SET", b"Muller", "Muller", false),
            (b"", b"M\xfcller", "M\u{fc}ller", true),
            (b"ISO_IR 192", b"A\x00B", "A\u{FFFD}B", false),
        ] {
            for tag in [tags::PATIENT_ID, tags::ACCESSION_NUMBER] {
                let found = read(&[], |t| match t {
                    tags::SPECIFIC_CHARACTER_SET => Some(charset),
                    t if t == tag => Some(patient_id),
                    _ => None,
                })
                .unwrap();
                assert_eq!(
                    found.anomalies.contains(Anomaly::CharacterSet),
                    is_anomaly,
                    "{charset:?}"
                );
                let text = [Some(found.patient_id), found.accession_number];
                assert!(text.contains(&Some(expected.to_owned())), "{text:?}");
            }
        }
    }

    #[test]
    fn any_keyword_can_be_required() {
        assert_eq!(read(&["Modality"], |_| None).unwrap_err().status(), 0xA900);
        assert!(read(&["Modality"], with(tags::MODALITY, b"CT")).is_ok());
        assert!(IndexPlan::requiring(&["NoSuchKeyword".to_owned()]).is_err());
    }
}
