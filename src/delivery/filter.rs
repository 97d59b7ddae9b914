//! The filter language: which messages a subscription takes, told by their attributes.
//!
//! It is Google Pub/Sub's, so that a filter written for it works here, unless it spells characters with escapes such as `\u00e9`. A message
//! that a filter does not take is settled for that subscription without being delivered, and counted as `filtered`. A filter sees attributes
//! only, never the event; for that there is `filter_fn`.
//!
//! # Tests
//!
//! | expression | takes a message |
//! |---|---|
//! | `attributes:region` | that has the attribute, whatever its value, also an empty one |
//! | `attributes.region = "eu"` | whose attribute has exactly this value, byte by byte |
//! | `attributes.region != "eu"` | whose attribute has another value, **or that does not have it** |
//! | `hasPrefix(attributes.region, "eu-")` | that has the attribute, with a value that starts so |
//!
//! # Joining tests
//!
//! | expression | takes a message |
//! |---|---|
//! | `NOT attributes:region` or `-attributes:region` | that does not have the attribute |
//! | `attributes:region AND attributes.kind = "paid" AND NOT attributes:draft` | that passes all tests |
//! | `attributes.kind = "paid" OR attributes.kind = "refunded"` | that passes at least one |
//! | `attributes:region AND (attributes.kind = "paid" OR attributes.kind = "refunded")` | that passes both sides |
//!
//! `NOT` (or `-`) belongs to what follows it at once: `NOT attributes:a AND attributes:b` means `(NOT attributes:a) AND attributes:b`.
//! `AND` and `OR` may stand in one expression only with parentheses that say which belongs together: there is no
//! precedence to remember. Operators and names are case-sensitive: `and` is an error, not an attribute.
//!
//! # Spelling
//!
//! A key of ASCII letters, digits, `_` and `-` is written bare; any other in double quotes: `attributes."iana.org/language_tag" = "en"`.
//! A value always stands in double quotes. Between them any text may stand, of any script and over several lines; only `"` and `\` are
//! written `\"` and `\\`, and there are no other escapes: `"é"` is written as it is. White space (spaces, tabs, line ends) is free between tokens.
//!
//! To take orders of two regions but no test orders:
//!
//! ```
//! # use eventflow::{Broker, Message};
//! # let broker = Broker::in_memory();
//! # let orders = broker.topic::<u64>("orders").open()?;
//! let billing = orders
//!     .subscription("billing")
//!     .filter(r#"(attributes.region = "eu" OR hasPrefix(attributes.region, "us-")) AND NOT attributes:test"#)
//!     .create()?;
//!
//! orders.publish(Message::new(1).attribute("region", "asia"))?;
//! orders.publish(Message::new(2).attribute("region", "eu").attribute("test", ""))?;
//! orders.publish(Message::new(3).attribute("region", "us-east"))?;
//!
//! assert_eq!(*billing.recv()?, 3);
//! # Ok::<(), eventflow::Error>(())
//! ```
//!
//! # Grammar
//!
//! ```text
//! expression = unary { "AND" unary } | unary { "OR" unary }
//! unary      = [ "NOT" | "-" ] primary
//! primary    = "(" expression ")"
//!            | "attributes" ":" key
//!            | "attributes" "." key ( "=" | "!=" ) string
//!            | "hasPrefix" "(" "attributes" "." key "," string ")"
//! key        = ( ASCII letter | digit | "_" | "-" )+ | string
//! string     = double quotes around any characters, with \" and \\ for those two
//! ```
//!
//! # Limits, cost and errors
//!
//! A filter has at most 1,024 bytes and 32 parentheses open at once; a key has at most 256 bytes, as that of an attribute. An empty
//! filter is an error: a subscription that takes everything has none. An error names the byte at which reading stopped, and what to write there.
//!
//! Matching is linear in the filter's length and stops at the first test that decides; it neither allocates nor recurses.

use std::fmt;
use std::sync::Arc;

/// A parsed filter. Two filters are equal when their texts are. A clone costs one reference count.
#[derive(Clone)]
pub(crate) struct Filter(Arc<Program>);

/// What is wrong with a filter's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilterError {
    /// The byte where reading stopped: at most the text's length, and never inside a character.
    pub(crate) position: usize,
    /// What was expected there, and what to write instead.
    pub(crate) reason: String,
}

struct Program {
    source: Box<str>,
    steps: Box<[Step]>,
}

/// The expression as a straight road with forward skips, walked with one flag in hand: whether the part just read is true.
///
/// A chain such as `a AND b AND c` becomes `a; skip if false; b; skip if false; c`, where both skips lead behind `c`. As a chain has one
/// operator only, the flag on arrival is the chain's value whichever way led there: no stack is needed, also not for parentheses.
enum Step {
    /// Sets the flag.
    Test { key: Box<str>, wanted: Wanted },
    /// Turns the flag.
    Not,
    /// Goes on at `to`, always further down, when the flag is `when`.
    Skip { when: bool, to: usize },
}

enum Wanted {
    Present,
    Value(Box<str>),
    Prefix(Box<str>),
}

impl Wanted {
    fn holds(&self, value: Option<&str>) -> bool {
        value.is_some_and(|value| match self {
            Wanted::Present => true,
            Wanted::Value(wanted) => value == &**wanted,
            Wanted::Prefix(prefix) => value.starts_with(&**prefix),
        })
    }
}

impl Filter {
    pub(crate) fn parse(source: &str) -> Result<Filter, FilterError> {
        if source.len() > SOURCE_LEN_MAX {
            let reason = format!(
                "a filter has at most {SOURCE_LEN_MAX} bytes, this one has {}; use filter_fn for longer conditions",
                source.len()
            );
            return Err(FilterError { position: source.floor_char_boundary(SOURCE_LEN_MAX), reason });
        }
        let steps = Parser::new(source).expression()?;
        debug_assert!(skips_lead_forward(&steps), "a filter's skips lead forward, or matching would not end");
        Ok(Filter(Arc::new(Program { source: source.into(), steps })))
    }

    /// The text that was parsed.
    pub(crate) fn source(&self) -> &str {
        &self.0.source
    }

    /// Whether a message is taken; `attribute` looks up the message's attributes.
    pub(crate) fn matches<'a>(&self, attribute: impl Fn(&str) -> Option<&'a str>) -> bool {
        let (mut flag, mut at) = (false, 0);
        while let Some(step) = self.0.steps.get(at) {
            at += 1;
            match step {
                Step::Test { key, wanted } => flag = wanted.holds(attribute(key)),
                Step::Not => flag = !flag,
                Step::Skip { when, to } if flag == *when => at = *to,
                Step::Skip { .. } => {}
            }
        }
        flag
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        self.source() == other.source()
    }
}

impl Eq for Filter {}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.source()).finish()
    }
}

fn skips_lead_forward(steps: &[Step]) -> bool {
    steps
        .iter()
        .enumerate()
        .all(|(at, step)| !matches!(step, Step::Skip { to, .. } if *to <= at || *to > steps.len()))
}

const SOURCE_LEN_MAX: usize = 1024;
const KEY_LEN_MAX: usize = 256;
const DEPTH_MAX: usize = 32;
/// An attribute's value has at most 1,024 bytes. A filter's strings cannot be longer as long as the whole text cannot.
const _: () = assert!(SOURCE_LEN_MAX <= 1024);
/// How much of the text an error repeats.
const EXCERPT_CHARS_MAX: usize = 24;

/// Reads from left to right, once, and writes the steps as it goes. Open parentheses lie on a stack of its own, not on the thread's.
struct Parser<'s> {
    source: &'s str,
    at: usize,
    steps: Vec<Step>,
    /// The expression itself, and every parenthesis that is open. Never empty.
    groups: Vec<Group>,
    /// The skips of the open groups: where they lead is known when the group ends.
    open_skips: Vec<usize>,
}

struct Group {
    /// Where its parenthesis stands.
    start: usize,
    negated: bool,
    operator: Option<Operator>,
    /// Its own skips are `open_skips[first_skip..]`.
    first_skip: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    And,
    Or,
}

impl<'s> Parser<'s> {
    fn new(source: &'s str) -> Self {
        let whole = Group { start: 0, negated: false, operator: None, first_skip: 0 };
        Parser { source, at: 0, steps: Vec::new(), groups: vec![whole], open_skips: Vec::new() }
    }

    fn expression(mut self) -> Result<Box<[Step]>, FilterError> {
        loop {
            self.operand()?;
            // Behind an operand stand any number of closing parentheses, then an operator or the end.
            while self.eat(")") {
                self.close()?;
            }
            if self.rest().is_empty() && self.groups.len() == 1 {
                self.land_skips(0);
                return Ok(self.steps.into());
            }
            self.operator()?;
        }
    }

    /// A test, with the negations and opening parentheses before it.
    fn operand(&mut self) -> Result<(), FilterError> {
        loop {
            let negated = self.negation()?;
            let start = self.skip_white_space();
            if !self.eat("(") {
                self.test()?;
                self.negate(negated);
                return Ok(());
            }
            if self.groups.len() > DEPTH_MAX {
                return self
                    .fail(start, format!("one '(' too many: at most {DEPTH_MAX} may be open at once"));
            }
            self.groups.push(Group { start, negated, operator: None, first_skip: self.open_skips.len() });
        }
    }

    fn negation(&mut self) -> Result<bool, FilterError> {
        let negated = self.eat("-") || self.eat_word("NOT");
        if negated && (self.rest().starts_with('-') || self.word() == "NOT") {
            return self.fail(self.at, "one NOT or - too many: two of them cancel out, write neither");
        }
        Ok(negated)
    }

    fn test(&mut self) -> Result<(), FilterError> {
        let (key, wanted, negated) = if self.eat_word("hasPrefix") {
            self.expect("(")?;
            if !self.eat_word("attributes") {
                return self.expected(r#"an attribute, as in hasPrefix(attributes.key, "prefix")"#, "");
            }
            self.expect(".")?;
            let key = self.key()?;
            self.expect(",")?;
            let prefix = self.value()?;
            self.expect(")")?;
            (key, Wanted::Prefix(prefix), false)
        } else if !self.eat_word("attributes") {
            let hint = test_hint(self.rest());
            return self.expected(r#"a test such as attributes.key = "value""#, hint);
        } else if self.eat(":") {
            (self.key()?, Wanted::Present, false)
        } else if self.eat(".") {
            let key = self.key()?;
            let negated = self.comparison()?;
            (key, Wanted::Value(self.value()?), negated)
        } else {
            return self.expected("'.' or ':' and a key, as in attributes.key or attributes:key", "");
        };
        self.steps.push(Step::Test { key, wanted });
        self.negate(negated);
        Ok(())
    }

    /// Whether it is `!=`.
    fn comparison(&mut self) -> Result<bool, FilterError> {
        let negated = self.eat("!=");
        if !negated && !self.eat("=") {
            return self.expected("= or !=", "; to ask whether the attribute is there, write attributes:key");
        }
        if self.source[self.at..].starts_with('=') {
            return self.fail(self.at, "one = too many: write = or !=");
        }
        Ok(negated)
    }

    fn key(&mut self) -> Result<Box<str>, FilterError> {
        let start = self.skip_white_space();
        let key = if self.rest().starts_with('"') { self.string()? } else { self.bare_key()? };
        if key.len() > KEY_LEN_MAX {
            let reason =
                format!("an attribute's key has at most {KEY_LEN_MAX} bytes, this one has {}", key.len());
            return self.fail(start, reason);
        }
        Ok(key)
    }

    fn bare_key(&mut self) -> Result<Box<str>, FilterError> {
        let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let rest = self.rest();
        let (key, behind) = rest.split_at(rest.find(|c| !is_key(c)).unwrap_or(rest.len()));
        let hint = r#"; a key with other characters stands in double quotes, as in attributes."a.b""#;
        if key.is_empty() {
            return self.expected("a key of letters, digits, _ and -", hint);
        }
        self.at += key.len();
        if behind.starts_with(|c: char| !c.is_ascii() || "./@#$%+*~\\".contains(c)) {
            return self.expected("the key to end here", hint);
        }
        Ok(key.into())
    }

    fn value(&mut self) -> Result<Box<str>, FilterError> {
        if !self.rest().starts_with('"') {
            return self.expected("a value in double quotes", r#", as in "value""#);
        }
        self.string()
    }

    /// A string whose opening quote is next.
    fn string(&mut self) -> Result<Box<str>, FilterError> {
        let start = self.at;
        let mut text = String::new();
        let mut characters = self.source[start..].char_indices().skip(1);
        while let Some((offset, character)) = characters.next() {
            match character {
                '"' => {
                    self.at = start + offset + 1;
                    return Ok(text.into());
                }
                '\\' => match characters.next() {
                    Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                    _ => return self.fail(start + offset, BAD_ESCAPE),
                },
                _ => text.push(character),
            }
        }
        self.fail(start, r#"the string that begins here has no closing "; inside a string, " is written \""#)
    }

    fn operator(&mut self) -> Result<(), FilterError> {
        let start = self.skip_white_space();
        let operator = if self.eat_word("AND") {
            Operator::And
        } else if self.eat_word("OR") {
            Operator::Or
        } else {
            let hint = operator_hint(self.rest());
            return match self.groups.as_slice() {
                [_, .., innermost] => {
                    let what = format!("AND, OR, or a ')' for the '(' at byte {}", innermost.start);
                    self.expected(&what, hint)
                }
                _ => self.expected("AND, OR or the end of the filter", hint),
            };
        };
        if let Some(group) = self.groups.last_mut() {
            if group.operator.is_some_and(|first| first != operator) {
                return self.fail(start, MIXED_OPERATORS);
            }
            group.operator = Some(operator);
        }
        self.open_skips.push(self.steps.len());
        self.steps.push(Step::Skip { when: operator == Operator::Or, to: 0 });
        Ok(())
    }

    /// Ends the innermost group, whose `)` was just read.
    fn close(&mut self) -> Result<(), FilterError> {
        match self.groups.pop() {
            Some(group) if !self.groups.is_empty() => {
                self.land_skips(group.first_skip);
                self.negate(group.negated);
                Ok(())
            }
            _ => self.fail(self.at - 1, "this ')' closes nothing: no '(' is open"),
        }
    }

    /// The skips of a group that ends here lead here.
    fn land_skips(&mut self, first_skip: usize) {
        let end = self.steps.len();
        for skip in self.open_skips.drain(first_skip..) {
            if let Some(Step::Skip { to, .. }) = self.steps.get_mut(skip) {
                *to = end;
            }
        }
    }

    fn negate(&mut self, negated: bool) {
        if negated {
            self.steps.push(Step::Not);
        }
    }

    fn skip_white_space(&mut self) -> usize {
        let rest = &self.source[self.at..];
        self.at += rest.len() - rest.trim_ascii_start().len();
        self.at
    }

    /// What is unread, from the next token on.
    fn rest(&mut self) -> &'s str {
        let at = self.skip_white_space();
        &self.source[at..]
    }

    fn word(&mut self) -> &'s str {
        leading_word(self.rest())
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.word() == word;
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), FilterError> {
        if self.eat(token) { Ok(()) } else { self.expected(&format!("'{token}'"), "") }
    }

    /// Fails at the next token. The hint says what people who write this usually want.
    fn expected<T>(&mut self, what: &str, hint: &str) -> Result<T, FilterError> {
        let found = match (self.word(), self.rest().chars().next()) {
            (_, None) => "the end".to_owned(),
            ("", Some(character)) => format!("{character:?}"),
            (word, _) => word.chars().take(EXCERPT_CHARS_MAX).collect(),
        };
        self.fail(self.at, format!("expected {what}, found {found}{hint}"))
    }

    fn fail<T>(&self, position: usize, reason: impl Into<String>) -> Result<T, FilterError> {
        debug_assert!(self.source.is_char_boundary(position), "an error points between characters");
        Err(FilterError { position, reason: reason.into() })
    }
}

/// The word that `rest` begins with, or nothing. A `-` is no part of it, so that `AND -attributes:a` may be written `AND-attributes:a`.
fn leading_word(rest: &str) -> &str {
    &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())]
}

fn test_hint(rest: &str) -> &'static str {
    match leading_word(rest).to_ascii_lowercase().as_str() {
        "not" => "; NOT is written in capitals",
        "and" | "or" => "; AND and OR stand between two tests",
        "attribute" | "attributes" => "; the word is attributes, in small letters",
        "hasprefix" => "; the word is hasPrefix, with a capital P",
        "" if rest.starts_with('!') => "; write NOT",
        "" => "",
        _ => "; an attribute is written attributes.key",
    }
}

fn operator_hint(rest: &str) -> &'static str {
    match leading_word(rest).to_ascii_lowercase().as_str() {
        "and" | "or" => "; AND and OR are written in capitals",
        "not" => "; write AND NOT or OR NOT",
        "" if rest.starts_with(['&', '|']) => "; write AND and OR as words",
        "" if rest.starts_with(['=', '!']) => {
            r#"; to compare the value, write attributes.key = "value", with a dot"#
        }
        _ => "",
    }
}

const BAD_ESCAPE: &str =
    r#"in a string, \ stands only before " or \: write \\ for one \, and any other character as it is"#;
const MIXED_OPERATORS: &str = "AND and OR mix only with parentheses: write a AND (b OR c), or (a AND b) OR c";

#[cfg(test)]
mod tests;
