//! The epoch of a replay: what makes a message that is sent again another one.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// The most bytes of a name: it travels beside everything else in one frame.
const LONGEST: usize = 128;

/// The name of a replay: why messages that took effect are to do so once more, such as
/// `2026-11-vat-fix`.
///
/// 1 to 128 bytes of UTF-8 without control characters, compared byte by byte. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch(Arc<str>);

/// The replay that a guard handles a message in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) epoch: Epoch,
    /// Whether its original took no effect before: it is claimed as well then.
    pub(crate) is_first: bool,
}

/// The name of an epoch is empty, too long, or holds control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEpoch {
    /// It has no bytes.
    #[error("an epoch must not be empty")]
    Empty,
    /// It has more than 128 bytes.
    #[error("an epoch has at most 128 bytes, this one has {bytes}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// It holds a control character.
    #[error("an epoch holds no control characters, this one has {} at byte {at}", .character.escape_default())]
    ControlCharacter {
        /// The first one.
        character: char,
        /// Where it starts, in bytes.
        at: usize,
    },
}

impl Epoch {
    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`InvalidEpoch`] unless it has 1 to 128 bytes and no control characters.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, InvalidEpoch> {
        let name = name.into();
        if name.is_empty() {
            return Err(InvalidEpoch::Empty);
        }
        if name.len() > LONGEST {
            return Err(InvalidEpoch::TooLong { bytes: name.len() });
        }
        match name.char_indices().find(|(_, character)| character.is_control()) {
            Some((at, character)) => Err(InvalidEpoch::ControlCharacter { character, at }),
            None => Ok(Self(name)),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Epoch {
    type Error = InvalidEpoch;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(name)
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.as_str().to_owned()
    }
}

impl std::str::FromStr for Epoch {
    type Err = InvalidEpoch;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({:?})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_name_without_control_characters_is_an_epoch() {
        for name in ["a", "2026-11-vat-fix", "é ü", &"a".repeat(128)] {
            assert_eq!(Epoch::new(name).unwrap().as_str(), name);
        }
        assert_eq!(Epoch::new(""), Err(InvalidEpoch::Empty));
        assert_eq!(Epoch::new("a".repeat(129)), Err(InvalidEpoch::TooLong { bytes: 129 }));
        let refused = Epoch::new("a\nb").unwrap_err();
        assert_eq!(refused, InvalidEpoch::ControlCharacter { character: '\n', at: 1 });
        assert_eq!(refused.to_string(), r"an epoch holds no control characters, this one has \n at byte 1");
    }
}
