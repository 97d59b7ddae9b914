//! Names of topics, subscriptions and snapshots: parsed once, then believed.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest name, in bytes.
const NAME_LEN_MAX: usize = 255;

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A name needs at least one character.
    #[error("it is empty")]
    Empty,
    /// A name has at most 255 bytes.
    #[error("it has {length} bytes, more than {NAME_LEN_MAX}")]
    TooLong {
        /// The name's length in bytes.
        length: usize,
    },
    /// A name starts with an ASCII letter or digit.
    #[error("it must start with an ASCII letter or digit")]
    Start,
    /// A name holds ASCII letters, digits and `._~+%-/`.
    #[error("the character {character:?} at byte {position} is not one of A-Z a-z 0-9 . _ ~ + % - /")]
    Character {
        /// The first character that is not allowed.
        character: char,
        /// Its byte position.
        position: usize,
    },
}

/// The name of a topic, a subscription or a snapshot, checked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(Arc<str>);

impl Name {
    /// The only way in: 1 to 255 bytes of `[A-Za-z0-9._~+%-]` and `/`, starting with a letter or digit.
    pub(crate) fn parse(name: &str) -> Result<Self, NameError> {
        let Some(first) = name.chars().next() else { return Err(NameError::Empty) };
        if name.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong { length: name.len() });
        }
        if let Some((position, character)) = name.char_indices().find(|&(_, c)| !is_allowed(c)) {
            return Err(NameError::Character { character, position });
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Start);
        }
        Ok(Name(name.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._~+%-/".contains(c)
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_checked_once_and_the_error_says_where() {
        assert!(Name::parse("orders/eu-1.v2_a~b+c%20").is_ok());
        assert!(Name::parse(&"a".repeat(255)).is_ok());
        assert_eq!(Name::parse(""), Err(NameError::Empty));
        assert_eq!(Name::parse(&"a".repeat(256)), Err(NameError::TooLong { length: 256 }));
        assert_eq!(Name::parse("-a"), Err(NameError::Start));
        assert_eq!(Name::parse("a b"), Err(NameError::Character { character: ' ', position: 1 }));
        assert_eq!(Name::parse("aé"), Err(NameError::Character { character: 'é', position: 1 }));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = Name::parse(&text);
        }
    }
}
