//! Hashes that tell whether bytes are the ones recorded. They prove nothing against somebody who wants to deceive.

use twox_hash::{XxHash3_128, XxHash3_64};

/// XXH3 with 128 bits, big endian: of a whole file.
pub type Digest = [u8; 16];

/// A [`Digest`] in the making.
#[derive(Default)]
pub struct Digester(XxHash3_128);

impl Digester {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The digest of all bytes so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.finish_128().to_be_bytes()
    }
}

/// XXH3 with 64 bits.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// [`checksum`] with a seed.
#[must_use]
pub fn checksum_with_seed(bytes: &[u8], seed: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests and hashes of paths are in databases and must not change with the library.
    #[test]
    fn hashes_are_those_of_the_specification() {
        let mut digester = Digester::default();
        assert_eq!(
            digester.digest(),
            0x99aa_06d3_0147_98d8_6001_c324_468d_497f_u128.to_be_bytes()
        );
        for piece in b"tenant/20260102/1.2/1.3/1.4.dcm".chunks(7) {
            digester.update(piece);
        }
        let mut whole = Digester::default();
        whole.update(b"tenant/20260102/1.2/1.3/1.4.dcm");
        assert_eq!(digester.digest(), whole.digest());
        assert_eq!(checksum(b""), 0x2d06_8005_38d3_94c2);
        assert_ne!(checksum_with_seed(b"x", 1), checksum_with_seed(b"x", 2));
    }
}
