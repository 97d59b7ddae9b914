//! Attributes as text: a JSON object of strings, so that a person or another program reads and writes the column as well.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::CharIndices;

/// The text of a row's attributes is not a JSON object whose values are strings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attributes are not a JSON object of strings: byte {position} is wrong")]
pub struct AttributesError {
    position: usize,
}

pub(super) fn to_json(attributes: &[(String, String)]) -> String {
    let mut json = String::from("{");
    for (number, (key, value)) in attributes.iter().enumerate() {
        if number > 0 {
            json.push(',');
        }
        push_string(&mut json, key);
        json.push(':');
        push_string(&mut json, value);
    }
    json.push('}');
    json
}

fn push_string(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            control if control < ' ' => {
                let _always_fits = write!(json, "\\u{:04x}", u32::from(control));
            }
            other => json.push(other),
        }
    }
    json.push('"');
}

/// In the order of the text. A key that stands twice counts with its last value once they are set on a message.
pub(super) fn from_json(text: &str) -> Result<Vec<(String, String)>, AttributesError> {
    let mut reader = Reader { characters: text.char_indices().peekable(), end: text.len() };
    let mut attributes = Vec::new();
    reader.expect('{')?;
    if !reader.take('}') {
        loop {
            let key = reader.string()?;
            reader.expect(':')?;
            attributes.push((key, reader.string()?));
            if !reader.take(',') {
                break;
            }
        }
        reader.expect('}')?;
    }
    reader.skip_space();
    match reader.characters.peek() {
        None => Ok(attributes),
        Some(_) => Err(reader.wrong()),
    }
}

struct Reader<'a> {
    characters: Peekable<CharIndices<'a>>,
    end: usize,
}

impl Reader<'_> {
    fn wrong(&mut self) -> AttributesError {
        AttributesError { position: self.characters.peek().map_or(self.end, |(position, _)| *position) }
    }

    fn skip_space(&mut self) {
        while self.characters.next_if(|(_, c)| matches!(c, ' ' | '\t' | '\n' | '\r')).is_some() {}
    }

    fn take(&mut self, sign: char) -> bool {
        self.skip_space();
        self.characters.next_if(|(_, c)| *c == sign).is_some()
    }

    fn expect(&mut self, sign: char) -> Result<(), AttributesError> {
        if self.take(sign) { Ok(()) } else { Err(self.wrong()) }
    }

    fn string(&mut self) -> Result<String, AttributesError> {
        self.expect('"')?;
        let mut text = String::new();
        loop {
            match self.characters.next_if(|(_, c)| *c >= ' ') {
                Some((_, '"')) => return Ok(text),
                Some((_, '\\')) => text.push(self.escape()?),
                Some((_, other)) => text.push(other),
                None => return Err(self.wrong()),
            }
        }
    }

    fn escape(&mut self) -> Result<char, AttributesError> {
        let plain = |sign| match sign {
            '"' | '\\' | '/' => Some(sign),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            _ => None,
        };
        if let Some(character) = self.characters.peek().and_then(|(_, sign)| plain(*sign)) {
            self.characters.next();
            return Ok(character);
        }
        let first = self.unit()?;
        let code = match first {
            // The first half of a character beyond the sixteen bits: the second must follow.
            0xD800..0xDC00 => {
                if self.characters.next_if(|(_, c)| *c == '\\').is_none() {
                    return Err(self.wrong());
                }
                match self.unit()? {
                    second @ 0xDC00..0xE000 => 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00),
                    _ => return Err(self.wrong()),
                }
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.wrong())
    }

    /// `u` and four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, AttributesError> {
        if self.characters.next_if(|(_, c)| *c == 'u').is_none() {
            return Err(self.wrong());
        }
        let mut unit = 0;
        for _ in 0..4 {
            match self.characters.next_if(|(_, c)| c.is_ascii_hexdigit()) {
                Some((_, digit)) => unit = unit * 16 + digit.to_digit(16).unwrap_or_default(),
                None => return Err(self.wrong()),
            }
        }
        Ok(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection, prelude::*};

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_other_programs_write_is_read() {
        assert_eq!(from_json(" { } ").unwrap(), []);
        let text = r#" {"region" : "eu\/west" , "\u00e9\ud83d\ude00":"\"\\\b\f\n\r\t"} "#;
        assert_eq!(
            from_json(text).unwrap(),
            pairs(&[("region", "eu/west"), ("é😀", "\"\\\u{8}\u{c}\n\r\t")])
        );
    }

    #[test]
    fn what_is_no_object_of_strings_is_refused_with_its_place() {
        let at = |text: &str| from_json(text).unwrap_err().position;
        assert_eq!(at(""), 0);
        assert_eq!(at("null"), 0);
        assert_eq!(at(r#"{"a":1}"#), 5);
        assert_eq!(at(r#"{"a":"b",}"#), 9);
        assert_eq!(at(r#"{"a":"b"} x"#), 10);
        assert_eq!(at(r#"{"a":"b"#), 7);
        assert_eq!(at("{\"a\":\"\n\"}"), 6);
        assert_eq!(at(r#"{"a":"\x"}"#), 7);
        assert_eq!(at(r#"{"a":"\u12"}"#), 10);
        assert!(from_json(r#"{"a":"\ud83d"}"#).is_err());
        assert!(from_json(r#"{"a":"\ud83d\u0041"}"#).is_err());
        assert!(from_json(r#"{"a":"\ude00"}"#).is_err());
    }

    proptest! {
        #[test]
        fn attributes_survive_their_text(attributes in collection::vec(("(?s).{0,9}", "(?s).{0,9}"), 0..5)) {
            prop_assert_eq!(from_json(&to_json(&attributes)).unwrap(), attributes);
        }

        #[test]
        fn no_text_panics(text in r#"[{}":,\\u0-9a-fD ]{0,24}"#, wild in ".*") {
            let _ = (from_json(&text), from_json(&wild));
        }
    }
}
