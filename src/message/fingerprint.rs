//! The hash of a body.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// SHA-256 of a message's body, to notice one ID that is used for two different messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

/// Not 32 bytes, or not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 32 bytes, or 64 lower-case hexadecimal digits")]
pub struct InvalidFingerprint(());

impl Fingerprint {
    /// The fingerprint of a body: of its exact bytes.
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// A fingerprint that was kept somewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hexadecimal digits, in ASCII.
    pub(crate) fn hex(&self) -> [u8; 64] {
        let mut hex = [0; 64];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 0x0f)];
        }
        hex
    }
}

impl TryFrom<&[u8]> for Fingerprint {
    type Error = InvalidFingerprint;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self).map_err(|_| InvalidFingerprint(()))
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(hex: &str) -> Result<Self, Self::Err> {
        let value = |digit: u8| DIGITS.iter().position(|known| *known == digit);
        if hex.len() != 64 {
            return Err(InvalidFingerprint(()));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let (Some(high), Some(low)) = (value(pair[0]), value(pair[1])) else {
                return Err(InvalidFingerprint(()));
            };
            *byte = u8::try_from(high << 4 | low).unwrap_or_default();
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.hex()).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell two apart.
        write!(f, "Fingerprint({self:.16}…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4, example "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn it_is_sha_256() {
        let print = Fingerprint::of(b"abc");
        assert_eq!(print.to_string(), ABC);
        assert_eq!(print.hex().as_slice(), ABC.as_bytes());
        assert_eq!(ABC.parse(), Ok(print));
        assert_eq!(format!("{print:?}"), "Fingerprint(ba7816bf8f01cfea…)");
        assert_eq!(Fingerprint::try_from(print.as_bytes().as_slice()), Ok(print));
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(Fingerprint::try_from([0; 31].as_slice()).is_err());
        assert!(ABC.to_uppercase().parse::<Fingerprint>().is_err());
        assert!(ABC[1..].parse::<Fingerprint>().is_err());
        assert!(format!("é{}", &ABC[2..]).parse::<Fingerprint>().is_err());
    }
}
