//! What the tables of the index take of a record: of any version, or as wado-storescp writes it, which has no SOP Class UID.
//!
//! Fields that are not known are ignored, and so is what is not understood in `dicom`.

use std::borrow::Cow;

use chrono::NaiveDate;
use serde_json::{Map, Value};

use crate::digest::Digester;

const STATUSES: [&str; 4] = ["NoNeedTransfer", "Success", "Failed", "NeedTransfer"];
const UID_CHARACTERS: usize = 64;
const MOMENT_CHARACTERS: usize = 32;

/// A value of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// Nothing is said.
    Null,
    /// A text.
    Text(String),
    /// A number.
    Integer(i64),
}

/// A record as rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The primary key of its row in `instance`: tenant, study, series, SOP instance, Study Date or nothing.
    pub key: [String; 5],
    /// The node that has the file; empty where the record does not say.
    pub node_id: String,
    /// Where it is in object storage.
    pub file_url: Option<String>,
    /// The other columns of `instance`, without the digest of its description.
    pub row: Vec<Column>,
    /// Columns of `description`.
    pub said: Vec<Column>,
    /// Of these.
    pub digest: String,
}

/// Reads a message.
///
/// # Errors
/// Why it is no record: the name of a field and a kind of error, without a value.
pub fn read(message: &[u8]) -> Result<Incoming, String> {
    let Ok(Value::Object(fields)) = serde_json::from_slice(message) else {
        return Err("message: json_invalid".to_owned());
    };
    let fields = Fields(&fields);
    let uid = |name| fields.exact(name, 1, UID_CHARACTERS);
    let study_date = fields.date("study_date")?;
    let accession_number = fields.optional("accession_number", 16, true)?.map(readable);
    let patient_id = readable(fields.text("patient_id", 0, 64)?);
    let moment = fields.exact("created_time", 0, MOMENT_CHARACTERS)?;
    let moment = match fields.0.get("received_at") {
        None | Some(Value::Null) => moment,
        Some(_) => fields.exact("received_at", 0, MOMENT_CHARACTERS)?,
    };
    let status = fields.text("transfer_status", 0, usize::MAX)?;
    if !STATUSES.contains(&status) {
        return Err("transfer_status: literal_error".to_owned());
    }
    let empty = Map::new();
    let dicom = Said(fields.0.get("dicom").and_then(Value::as_object).unwrap_or(&empty));
    let said = dicom.columns(patient_id, study_date.clone(), accession_number);
    let text = |name, least, most| Ok::<_, String>(Column::Text(fields.exact(name, least, most)?));
    let row = vec![
        Column::Text(
            fields
                .optional("sop_class_uid", UID_CHARACTERS, false)?
                .map(exact)
                .transpose()?
                .unwrap_or_default(),
        ),
        text("file_path", 1, 512)?,
        Column::Integer(fields.integer("file_size", 0, i64::MAX)?),
        text("transfer_syntax_uid", 1, UID_CHARACTERS)?,
        text("target_ts", 1, UID_CHARACTERS)?,
        Column::Text(status.to_owned()),
        Column::Integer(fields.integer("number_of_frames", 1, i64::from(i32::MAX))?),
        Column::Text(readable(fields.text("source_ae", 0, 16)?)),
        text("source_ip", 0, 64)?,
        text("trace_id", 36, 36)?,
        Column::Text(moment),
        dicom.integer("00200013"),
        dicom.integer("00280010"),
        dicom.integer("00280011"),
        dicom.integer("00280100"),
    ];
    Ok(Incoming {
        key: [
            uid("tenant_id")?,
            uid("study_uid")?,
            uid("series_uid")?,
            uid("sop_uid")?,
            study_date.unwrap_or_default(),
        ],
        node_id: fields
            .optional("worker_node_id", 255, false)?
            .map(exact)
            .transpose()?
            .unwrap_or_default(),
        file_url: fields
            .optional("file_url", usize::MAX, false)?
            .map(exact)
            .transpose()?,
        digest: digest(&said),
        row,
        said,
    })
}

/// Of the columns of a description: 32 hexadecimal digits.
#[must_use]
pub fn digest(said: &[Column]) -> String {
    let mut digester = Digester::default();
    for column in said {
        match column {
            Column::Null => digester.update(&[0]),
            Column::Text(text) => {
                digester.update(&[1]);
                digester.update(&(text.len() as u64).to_le_bytes());
                digester.update(text.as_bytes());
            }
            Column::Integer(number) => {
                digester.update(&[2]);
                digester.update(&number.to_le_bytes());
            }
        }
    }
    digester
        .digest()
        .iter()
        .fold(String::with_capacity(32), |mut text, byte| {
            use std::fmt::Write as _;
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Each C0 control character becomes U+FFFD, as in the records that are published now.
fn readable(text: &str) -> String {
    replaced(text).into_owned()
}

fn replaced(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte < 0x20) {
        let is_control = |character: char| character < ' ';
        Cow::Owned(text.replace(is_control, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A database may store no NUL, and an identifier or a path with another character in its place is another one.
fn exact(text: &str) -> Result<String, String> {
    if text.contains('\0') {
        return Err("a NUL character".to_owned());
    }
    Ok(text.to_owned())
}

struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn text(&self, name: &str, least: usize, most: usize) -> Result<&'a str, String> {
        match self.0.get(name) {
            None => Err(format!("{name}: missing")),
            Some(Value::String(text)) => checked(name, text, least, most),
            Some(_) => Err(format!("{name}: string_type")),
        }
    }

    fn exact(&self, name: &str, least: usize, most: usize) -> Result<String, String> {
        exact(self.text(name, least, most)?).map_err(|kind| format!("{name}: {kind}"))
    }

    /// A text or null; `required`: the field must be there.
    fn optional(&self, name: &str, most: usize, required: bool) -> Result<Option<&'a str>, String> {
        match self.0.get(name) {
            None if required => Err(format!("{name}: missing")),
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => checked(name, text, 0, most).map(Some),
            Some(_) => Err(format!("{name}: string_type")),
        }
    }

    fn integer(&self, name: &str, least: i64, most: i64) -> Result<i64, String> {
        let value = self.0.get(name).ok_or_else(|| format!("{name}: missing"))?;
        match value.as_i64() {
            Some(number) if (least..=most).contains(&number) => Ok(number),
            Some(_) => Err(format!("{name}: out_of_range")),
            None => Err(format!("{name}: int_type")),
        }
    }

    fn date(&self, name: &str) -> Result<Option<String>, String> {
        let Some(text) = self.optional(name, 10, true)? else {
            return Ok(None);
        };
        let date =
            NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| format!("{name}: date_parsing"))?;
        Ok(Some(date.to_string()))
    }
}

fn checked<'a>(name: &str, text: &'a str, least: usize, most: usize) -> Result<&'a str, String> {
    // A text has no more characters than bytes.
    let count = if text.len() <= most && least == 0 {
        0
    } else {
        text.chars().count()
    };
    match count {
        count if count < least => Err(format!("{name}: string_too_short")),
        count if count > most => Err(format!("{name}: string_too_long")),
        _ => Ok(text),
    }
}

/// Attributes in the DICOM JSON model (PS3.18 Annex F).
struct Said<'a>(&'a Map<String, Value>);

impl<'a> Said<'a> {
    fn columns(
        &self,
        patient_id: String,
        study_date: Option<String>,
        accession_number: Option<String>,
    ) -> Vec<Column> {
        let text = |value: Option<String>| {
            value
                .filter(|text| !text.is_empty())
                .map_or(Column::Null, Column::Text)
        };
        vec![
            Column::Text(patient_id),
            self.name("00100010"),
            self.date("00100030"),
            self.text("00100040"),
            text(study_date),
            self.time("00080030"),
            text(accession_number),
            self.text("00200010"),
            self.text("00081030"),
            self.name("00080090"),
            self.text("00080201"),
            self.text("00080060"),
            self.integer("00200011"),
            self.text("0008103E"),
            self.text("00180015"),
            self.date("00400244"),
            self.time("00400245"),
            self.sequence("00400275"),
        ]
    }

    fn values(&self, tag: &str) -> &'a [Value] {
        let values = self.0.get(tag).and_then(|attribute| attribute.get("Value"));
        values.and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn first(&self, tag: &str) -> Option<&'a Value> {
        self.values(tag).first()
    }

    /// All values, as DICOM writes them.
    fn text(&self, tag: &str) -> Column {
        let values: Vec<&str> = self
            .values(tag)
            .iter()
            .map(|value| value.as_str().unwrap_or_default())
            .collect();
        if values.iter().all(|value| value.is_empty()) {
            return Column::Null;
        }
        Column::Text(readable(&values.join("\\")))
    }

    /// The first one (PS3.18 F.2.2), as DICOM writes it (PS3.5 6.2).
    fn name(&self, tag: &str) -> Column {
        let Some(Value::Object(groups)) = self.first(tag) else {
            return Column::Null;
        };
        let groups = ["Alphabetic", "Ideographic", "Phonetic"]
            .map(|group| groups.get(group).and_then(Value::as_str).unwrap_or_default());
        match groups.join("=").trim_end_matches('=') {
            "" => Column::Null,
            name => Column::Text(readable(name)),
        }
    }

    fn integer(&self, tag: &str) -> Column {
        let number = self.first(tag).and_then(Value::as_i64);
        number
            .filter(|&number| i32::try_from(number).is_ok())
            .map_or(Column::Null, Column::Integer)
    }

    /// `YYYYMMDD`, or `YYYY.MM.DD` as before DICOM 3.0.
    fn date(&self, tag: &str) -> Column {
        let digits = |text: &str| {
            let (bytes, dots) = (text.as_bytes(), [Some(&b'.'); 2]);
            let plain = if text.len() == 10 && [bytes.get(4), bytes.get(7)] == dots {
                text.replace('.', "")
            } else {
                text.to_owned()
            };
            (plain.len() == 8 && plain.bytes().all(|byte| byte.is_ascii_digit())).then_some(plain)
        };
        let text = self.first(tag).and_then(Value::as_str).map(str::trim);
        let date = text
            .and_then(digits)
            .and_then(|text| NaiveDate::parse_from_str(&text, "%Y%m%d").ok());
        date.map_or(Column::Null, |date| Column::Text(date.to_string()))
    }

    /// As precise as it was: 10, 10:30 or 10:30:59.5.
    fn time(&self, tag: &str) -> Column {
        let text = self.first(tag).and_then(Value::as_str).map(str::trim);
        text.and_then(time).map_or(Column::Null, Column::Text)
    }

    fn sequence(&self, tag: &str) -> Column {
        let values = self.values(tag);
        if values.is_empty() {
            return Column::Null;
        }
        let cleaned = Value::Array(values.iter().map(cleaned).collect());
        Column::Text(cleaned.to_string())
    }
}

/// ISO 8601 of a TM (PS3.5 6.2), with or without colons.
fn time(text: &str) -> Option<String> {
    let (whole, fraction) = text
        .split_once('.')
        .map_or((text, None), |(whole, part)| (whole, Some(part)));
    let digits = match whole.len() {
        5 | 8 => whole.replace(':', ""),
        _ => whole.to_owned(),
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(&digits)
        || fraction.is_some_and(|part| !is_number(part) || part.len() > 6 || digits.len() != 6)
    {
        return None;
    }
    let parts: Vec<&str> = match digits.len() {
        2 | 4 | 6 => (0..digits.len())
            .step_by(2)
            .filter_map(|at| digits.get(at..at + 2))
            .collect(),
        _ => return None,
    };
    let most = ["23", "59", "60"];
    if parts.iter().zip(most).any(|(&part, most)| part > most) {
        return None;
    }
    let fraction = fraction.map(|part| format!(".{part}")).unwrap_or_default();
    Some(parts.join(":") + &fraction)
}

fn cleaned(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(readable(text)),
        Value::Array(values) => Value::Array(values.iter().map(cleaned).collect()),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, value)| (readable(name), cleaned(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_precise_as_they_were() {
        for (text, expected) in [
            ("10", Some("10")),
            ("1030", Some("10:30")),
            ("10:30", Some("10:30")),
            ("103059.5", Some("10:30:59.5")),
            ("10:30:60", Some("10:30:60")),
            ("235959.123456", Some("23:59:59.123456")),
            ("24", None),
            ("1060", None),
            ("1030.5", None),
            ("103059.", None),
            ("103059.1234567", None),
            ("1", None),
            ("", None),
            ("١٠", None),
        ] {
            assert_eq!(time(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_digest_tells_what_is_said_from_what_is_not() {
        let text = |text: &str| Column::Text(text.to_owned());
        let different = [
            vec![text("a"), text("b")],
            vec![text("ab"), text("")],
            vec![text("a"), Column::Null, text("b")],
            vec![Column::Integer(1), Column::Null],
            vec![text("1"), Column::Null],
        ];
        let digests: std::collections::HashSet<String> = different.iter().map(|said| digest(said)).collect();
        assert_eq!(digests.len(), different.len());
        assert!(digests.iter().all(|digest| digest.len() == 32));
    }

    #[test]
    fn what_is_no_record_is_told_by_the_name_of_its_field() {
        for (message, reason) in [
            ("", "message: json_invalid"),
            ("[]", "message: json_invalid"),
            ("{\"study_date\": \"secret\"}", "study_date: date_parsing"),
            ("{\"study_date\": null}", "accession_number: missing"),
            (
                "{\"study_date\": null, \"accession_number\": 1}",
                "accession_number: string_type",
            ),
        ] {
            assert_eq!(read(message.as_bytes()).unwrap_err(), reason);
        }
    }
}
