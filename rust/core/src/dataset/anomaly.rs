//! What was odd about a data set that is stored as received all the same.

/// A kind of oddity. Its code appears in records, metrics and log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anomaly {
    /// An item or sequence delimitation item that is superfluous, or has a length (PS3.5 7.5).
    Delimiter,
    /// Zero bytes behind the last element.
    TrailingBytes,
    /// A value representation that is not in PS3.5 6.2, or none where one belongs.
    IllegalVr,
    /// An element of group 0001, 0003, 0005 to 0007 or FFFF (PS3.5 7.1), or of group 0002 behind another element.
    ReservedGroup,
    /// Elements of group 0002 before all others. They are left out of the file: readers would take them for its own.
    FileMetaInDataSet,
    /// Text that its Specific Character Set does not explain.
    CharacterSet,
    /// A sequence of defined length whose content does not consist of items.
    SequenceContent,
    /// Encapsulated Pixel Data in a native transfer syntax, or the reverse (PS3.5 A.4).
    PixelDataEncoding,
    /// Nothing of the data set: no process was free to transcode it.
    TranscodingBusy,
}

impl Anomaly {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Delimiter,
        Self::TrailingBytes,
        Self::IllegalVr,
        Self::ReservedGroup,
        Self::FileMetaInDataSet,
        Self::CharacterSet,
        Self::SequenceContent,
        Self::PixelDataEncoding,
        Self::TranscodingBusy,
    ];

    /// The code in records, metrics and log lines.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Delimiter => "delimiter",
            Self::TrailingBytes => "trailing_bytes",
            Self::IllegalVr => "illegal_vr",
            Self::ReservedGroup => "reserved_group",
            Self::FileMetaInDataSet => "file_meta_in_data_set",
            Self::CharacterSet => "character_set",
            Self::SequenceContent => "sequence_content",
            Self::PixelDataEncoding => "pixel_data_encoding",
            Self::TranscodingBusy => "transcoding_busy",
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// The anomalies of one data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anomalies {
    kinds: u16,
    pixel_data: bool,
}

impl Anomalies {
    /// Adds one.
    pub fn insert(&mut self, anomaly: Anomaly) {
        self.kinds |= anomaly.bit();
    }

    /// Adds one that concerns Pixel Data: no transcoding of them is trusted.
    pub fn insert_in_pixel_data(&mut self, anomaly: Anomaly) {
        self.insert(anomaly);
        self.pixel_data = true;
    }

    /// Without one of them.
    #[must_use]
    pub fn without(self, anomaly: Anomaly) -> Self {
        Self {
            kinds: self.kinds & !anomaly.bit(),
            ..self
        }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            kinds: self.kinds | other.kinds,
            pixel_data: self.pixel_data || other.pixel_data,
        }
    }

    /// Whether it is among them.
    #[must_use]
    pub fn contains(self, anomaly: Anomaly) -> bool {
        self.kinds & anomaly.bit() != 0
    }

    /// Whether one of them concerns Pixel Data.
    #[must_use]
    pub fn concern_pixel_data(self) -> bool {
        self.pixel_data
    }

    /// Those of which a record has the codes. Codes that are not known are passed over.
    #[must_use]
    pub fn of_codes<'c>(codes: impl Iterator<Item = &'c str>) -> Self {
        let mut found = Self::default();
        for code in codes {
            if let Some(known) = Anomaly::ALL.into_iter().find(|anomaly| anomaly.code() == code) {
                found.insert(known);
            }
        }
        found
    }

    /// Their codes, in the order of [`Anomaly::ALL`].
    pub fn codes(self) -> impl Iterator<Item = &'static str> {
        Anomaly::ALL
            .into_iter()
            .filter(move |&anomaly| self.contains(anomaly))
            .map(Anomaly::code)
    }
}

impl serde::Serialize for Anomalies {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.codes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_code_and_bit() {
        let mut all = Anomalies::default();
        assert_eq!(serde_json::to_string(&all).unwrap(), "[]");
        for anomaly in Anomaly::ALL {
            assert!(!all.contains(anomaly));
            all.insert(anomaly);
        }
        let codes: std::collections::BTreeSet<_> = all.codes().collect();
        assert_eq!(codes.len(), Anomaly::ALL.len());
        assert!(!all.concern_pixel_data());
        assert_eq!(Anomalies::of_codes(all.codes().chain(["later"])), all);
        let others = all.without(Anomaly::TranscodingBusy);
        assert!(!others.contains(Anomaly::TranscodingBusy) && others.contains(Anomaly::Delimiter));
        all.insert_in_pixel_data(Anomaly::Delimiter);
        assert!(all.concern_pixel_data());
    }
}
