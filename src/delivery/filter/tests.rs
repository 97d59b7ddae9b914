use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn takes(filter: &str, attributes: &[(&str, &str)]) -> bool {
    let attributes: BTreeMap<&str, &str> = attributes.iter().copied().collect();
    let filter = Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error:?}"));
    filter.matches(|key| attributes.get(key).copied())
}

/// Expects the error where `^` stands in `marked`, and these words in its reason.
fn refuses(marked: &str, words: &str) {
    let position = marked.find('^').expect("a ^ marks where the error is");
    let source = marked.replacen('^', "", 1);
    match Filter::parse(&source) {
        Ok(_) => panic!("{source:?} was parsed"),
        Err(error) => {
            assert_eq!(error.position, position, "{source:?}: {}", error.reason);
            assert!(error.reason.contains(words), "{source:?}: {:?} does not say {words:?}", error.reason);
        }
    }
}

#[test]
fn the_four_tests_say_what_they_say() {
    let eu: &[_] = &[("region", "eu")];
    for (filter, on_eu, on_empty, on_nothing) in [
        ("attributes:region", true, true, false),
        (r#"attributes.region = "eu""#, true, false, false),
        (r#"attributes.region = """#, false, true, false),
        (r#"attributes.region != "eu""#, false, true, true),
        (r#"hasPrefix(attributes.region, "e")"#, true, false, false),
        (r#"hasPrefix(attributes.region, "eu")"#, true, false, false),
        (r#"hasPrefix(attributes.region, "eu-")"#, false, false, false),
        (r#"hasPrefix(attributes.region, "u")"#, false, false, false),
        (r#"hasPrefix(attributes.region, "")"#, true, true, false),
    ] {
        for (negation, wanted) in [("", true), ("NOT ", false), ("-", false)] {
            let filter = format!("{negation}{filter}");
            assert_eq!(takes(&filter, eu), on_eu == wanted, "{filter} on eu");
            assert_eq!(takes(&filter, &[("region", "")]), on_empty == wanted, "{filter} on an empty value");
            assert_eq!(
                takes(&filter, &[("Region", "eu")]),
                on_nothing == wanted,
                "{filter} on another attribute"
            );
        }
    }
}

/// The examples of Google's page on filters for subscriptions, and of pages that follow it.
#[test]
fn filters_written_for_google_pubsub_work() {
    let com: &[_] = &[("domain", "com"), ("iana.org/language_tag", "en")];
    for (filter, wanted) in [
        ("attributes:domain", true),
        (r#"attributes:"iana.org/language_tag""#, true),
        (r#"attributes.domain = "com""#, true),
        (r#"attributes.domain != "com""#, false),
        (r#"attributes."iana.org/language_tag" = "en""#, true),
        (r#"hasPrefix(attributes.domain, "co")"#, true),
        ("NOT attributes:domain", false),
        ("-attributes:domain", false),
        (r#"attributes:"iana.org/language_tag" AND attributes.domain = "com""#, true),
        (
            r#"attributes:"iana.org/language_tag" OR attributes.domain = "org" OR attributes.tag = "dot""#,
            true,
        ),
        (
            r#"attributes:"iana.org/language_tag" AND (attributes.domain = "net" OR attributes.domain = "org")"#,
            false,
        ),
        (
            r#"attributes:"iana.org/language_tag" AND (attributes.domain = "net" OR hasPrefix(attributes.domain, "co")) AND NOT hasPrefix(attributes.head, "foo")"#,
            true,
        ),
        (
            r#"attributes.domain != "com" OR attributes.language_tag = "en_US" OR (NOT hasPrefix(attributes.head, "moo") OR attributes.head = "moot" )"#,
            true,
        ),
        (r#"attributes.ce-type="com" AND hasPrefix(attributes.ce-source, "baz/")"#, false),
    ] {
        assert_eq!(takes(filter, com), wanted, "{filter}");
    }
}

#[test]
fn negation_binds_tightest() {
    assert!(!takes("NOT attributes:a AND attributes:b", &[]));
    assert!(takes("NOT (attributes:a AND attributes:b)", &[]));
    assert!(takes("-attributes:a OR attributes:b", &[("b", "")]));
    assert!(!takes("-(attributes:a OR attributes:b)", &[("b", "")]));
    assert!(takes(r#"NOT attributes.a != "1""#, &[("a", "1")]));
    assert!(takes("NOT (-attributes:a)", &[("a", "")]));
}

#[test]
fn white_space_is_free_between_tokens() {
    let ab: &[_] = &[("a", "1"), ("b", "2")];
    for filter in [
        " \t\r\n attributes \n : \t a ",
        r#"attributes.a="1"AND attributes.b="2""#,
        r#"attributes . a = "1" AND(attributes . "b"!="3")"#,
        "NOT(attributes:c)AND NOT\nattributes:c",
        "(attributes:a)AND-attributes:c",
        "- attributes:c",
        "-hasPrefix ( attributes . a , \"2\" )",
        r#"(((attributes:a)) OR((attributes:c)))"#,
    ] {
        assert!(takes(filter, ab), "{filter:?}");
    }
}

#[test]
fn a_bare_key_may_look_like_anything_else() {
    for key in ["AND", "NOT", "attributes", "hasPrefix", "-", "-a-", "_1", "0"] {
        assert!(takes(&format!("attributes:{key}"), &[(key, "")]), "{key}");
        assert!(takes(&format!("attributes.{key}!=\"x\" AND attributes : {key}"), &[(key, "")]), "{key}");
    }
}

#[test]
fn a_string_holds_any_text() {
    for (written, meant) in [
        (r#""""#, ""),
        (r#""\"\\\"""#, r#""\""#),
        ("\"line\nend\ttab\0nul\"", "line\nend\ttab\0nul"),
        ("\"みな 🎈 (AND)\"", "みな 🎈 (AND)"),
    ] {
        assert!(takes(&format!("attributes.a = {written}"), &[("a", meant)]), "{written} as a value");
        assert!(takes(&format!("attributes:{written}"), &[(meant, "")]), "{written} as a key");
        assert!(
            takes(&format!("hasPrefix(attributes.a, {written})"), &[("a", &format!("{meant}!"))]),
            "{written} as a prefix"
        );
    }
}

#[test]
fn an_error_says_where_a_test_is_missing() {
    refuses("^", "expected a test such as attributes.key = \"value\", found the end");
    refuses("  \n^", "found the end");
    refuses("(^)", "found ')'");
    refuses("NOT ^", "found the end");
    refuses("attributes:a AND ^", "found the end");
    refuses("attributes:a OR ^OR attributes:b", "AND and OR stand between two tests");
    refuses("^AND attributes:a", "AND and OR stand between two tests");
    refuses("^not attributes:a", "NOT is written in capitals");
    refuses("^!attributes:a", "write NOT");
    refuses("NOT ^NOT attributes:a", "one NOT or - too many");
    refuses("-^-attributes:a", "one NOT or - too many");
    refuses("NOT ^- attributes:a", "one NOT or - too many");
    refuses("^Attributes:a", "the word is attributes, in small letters");
    refuses("^attribute.a = \"x\"", "the word is attributes, in small letters");
    refuses("^hasprefix(attributes.a, \"x\")", "the word is hasPrefix, with a capital P");
    refuses("^region = \"eu\"", "an attribute is written attributes.key");
    refuses("^\"a\"", "found '\"'");
    refuses("(^\u{a0}attributes:a)", "found '\\u{a0}'");
    refuses("attributes:a AND ^é", "found 'é'");
    refuses("^aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "found aaaaaaaaaaaaaaaaaaaaaaaa;");
}

#[test]
fn an_error_says_what_is_wrong_inside_a_test() {
    refuses("attributes^", "expected '.' or ':' and a key");
    refuses(
        "attributes ^= \"x\"",
        "expected '.' or ':' and a key, as in attributes.key or attributes:key, found '='",
    );
    refuses("attributes:^", "expected a key");
    refuses("attributes. ^= \"x\"", "expected a key");
    refuses("attributes:^é", "stands in double quotes");
    refuses("attributes.a^.b = \"x\"", "stands in double quotes");
    refuses("attributes:iana^.org/language_tag", "stands in double quotes");
    refuses("attributes:a^é", "stands in double quotes");
    refuses(
        "attributes.a^",
        "expected = or !=, found the end; to ask whether the attribute is there, write attributes:key",
    );
    refuses("attributes.a ^: \"x\"", "expected = or !=");
    refuses("attributes.a ^! = \"x\"", "expected = or !=");
    refuses("attributes.a =^= \"x\"", "one = too many");
    refuses("attributes.a !=^= \"x\"", "one = too many");
    refuses("attributes.a = ^", "expected a value in double quotes");
    refuses("attributes.a = ^x", "expected a value in double quotes");
    refuses("attributes.a = ^'x'", "expected a value in double quotes");
    refuses("attributes.a = ^“x”", "expected a value in double quotes");
    refuses("attributes.a = ^\"x", "has no closing \"");
    refuses("attributes:^\"", "has no closing \"");
    refuses("attributes.a = ^\"x\\\"", "has no closing \"");
    refuses("attributes.a = \"é^\\u00e9\"", "any other character as it is");
    refuses("attributes.a = \"é^\\", "write \\\\ for one \\");
    refuses("hasPrefix ^attributes.a", "expected '('");
    refuses("hasPrefix(^a, \"x\")", "expected an attribute, as in hasPrefix(attributes.key, \"prefix\")");
    refuses("hasPrefix(attributes^:a, \"x\")", "expected '.'");
    refuses("hasPrefix(attributes.a^)", "expected ','");
    refuses("hasPrefix(attributes.a, ^b)", "expected a value in double quotes");
    refuses("hasPrefix(attributes.a, \"x\"^", "expected ')', found the end");
}

#[test]
fn an_error_says_what_is_wrong_between_tests() {
    refuses("attributes:a ^attributes:b", "expected AND, OR or the end of the filter, found attributes");
    refuses("attributes:a ^and attributes:b", "AND and OR are written in capitals");
    refuses("attributes:a ^Or attributes:b", "AND and OR are written in capitals");
    refuses("attributes:a ^NOT attributes:b", "write AND NOT or OR NOT");
    refuses("attributes:a ^-attributes:b", "found '-'");
    refuses("attributes:a ^&& attributes:b", "write AND and OR as words");
    refuses("attributes:a ^|| attributes:b", "write AND and OR as words");
    refuses("attributes:a ^ANDattributes:b", "found ANDattributes");
    refuses("attributes:a ^= \"x\"", "with a dot");
    refuses("attributes.a = \"x\" ^\"y\"", "found '\"'");
    refuses("attributes:a^)", "no '(' is open");
    refuses("(attributes:a) ^) OR (", "no '(' is open");
    refuses("(attributes:a^", "a ')' for the '(' at byte 0, found the end");
    refuses("attributes:a OR ( (attributes:b)^", "a ')' for the '(' at byte 16, found the end");
    refuses(
        "(attributes:a ^or attributes:b)",
        "a ')' for the '(' at byte 0, found or; AND and OR are written in capitals",
    );
}

#[test]
fn and_and_or_mix_only_with_parentheses() {
    refuses("attributes:a AND attributes:b ^OR attributes:c", "mix only with parentheses");
    refuses("attributes:a OR attributes:b OR attributes:c ^AND attributes:d", "mix only with parentheses");
    refuses("(attributes:a OR attributes:b) AND attributes:c ^OR attributes:d", "mix only with parentheses");
    refuses("attributes:a AND (attributes:b OR attributes:c ^AND attributes:d)", "mix only with parentheses");
    let ac: &[_] = &[("a", ""), ("c", "")];
    assert!(takes("(attributes:a AND attributes:b) OR (attributes:a AND attributes:c)", ac));
    assert!(!takes("(attributes:a OR attributes:b) AND (attributes:b OR attributes:d)", ac));
}

#[test]
fn thirty_two_parentheses_may_be_open_at_once() {
    let nested = |depth: usize| format!("{}attributes:a{}", "(".repeat(depth), ")".repeat(depth));
    assert!(takes(&nested(32), &[("a", "")]));
    refuses(&nested(33).replacen("(attributes", "^(attributes", 1), "one '(' too many: at most 32");
    // Negations alternate, and add no depth.
    let negated = format!("{}-attributes:a{}", "NOT (".repeat(32), ")".repeat(32));
    assert!(!takes(&negated, &[("a", "")]));
    // What is closed does not count, nor does the parenthesis of a function.
    let wide = vec![nested(1); 40].join(" AND ");
    assert!(takes(&wide, &[("a", "")]));
    let deep = nested(32).replace("attributes:a", r#"hasPrefix(attributes.a, "")"#);
    assert!(takes(&deep, &[("a", "")]));
}

#[test]
fn a_filter_has_at_most_1024_bytes_and_a_key_256() {
    let of_len = |len: usize| format!("attributes.a = \"{}\"", "x".repeat(len - 17));
    assert!(takes(&of_len(1024), &[("a", &"x".repeat(1007))]));
    let error = Filter::parse(&of_len(1025)).unwrap_err();
    assert_eq!(error.position, 1024);
    assert!(error.reason.contains("at most 1024 bytes, this one has 1025"), "{}", error.reason);
    // The position is never inside a character.
    let error = Filter::parse(&format!("{}é", "x".repeat(1023))).unwrap_err();
    assert_eq!(error.position, 1023);
    assert!(Filter::parse(&"(".repeat(10_000_000)).is_err());

    let key = "k".repeat(256);
    assert!(takes(&format!("attributes:{key}"), &[(&key, "")]));
    assert!(takes(&format!("attributes:\"{key}\""), &[(&key, "")]));
    refuses(&format!("attributes: ^{key}k"), "key has at most 256 bytes, this one has 257");
    refuses(&format!("attributes.^\"é{}\" = \"\"", &key[1..]), "at most 256 bytes, this one has 257");
}

#[test]
fn matching_looks_up_no_attribute_after_the_one_that_decides() {
    let looks = |filter: &str, taken: bool| {
        let count = Cell::new(0);
        let filter = Filter::parse(filter).unwrap();
        let found = filter.matches(|key| {
            count.set(count.get() + 1);
            (key == "t").then_some("")
        });
        assert_eq!(found, taken, "{filter:?}");
        count.get()
    };
    assert_eq!(looks("attributes:t OR attributes:f OR attributes:f", true), 1);
    assert_eq!(looks("attributes:f AND attributes:t AND attributes:t", false), 1);
    assert_eq!(looks("attributes:f OR attributes:t OR attributes:f", true), 2);
    assert_eq!(looks("(attributes:t AND attributes:f) OR attributes:t", true), 3);
    assert_eq!(looks("NOT (attributes:f AND attributes:t) OR attributes:f", true), 1);
    // The longest there is: every test once.
    assert_eq!(looks(&["attributes:f"; 60].join(" OR "), false), 60);
}

#[test]
fn filters_are_equal_when_their_texts_are() {
    let filter = Filter::parse("attributes:a").unwrap();
    assert_eq!(filter, filter.clone());
    assert_eq!(filter, Filter::parse("attributes:a").unwrap());
    assert_ne!(filter, Filter::parse("attributes : a").unwrap());
    assert_eq!(filter.source(), "attributes:a");
    assert_eq!(format!("{filter:?}"), r#"Filter("attributes:a")"#);
}

/// The naive model: an expression as a tree, walked by recursion.
#[derive(Clone, Debug)]
enum Tree {
    Present(&'static str),
    Equal(&'static str, &'static str),
    Unequal(&'static str, &'static str),
    Prefix(&'static str, &'static str),
    Not(Box<Tree>),
    All(Vec<Tree>),
    Any(Vec<Tree>),
}

impl Tree {
    fn evaluate(&self, attributes: &BTreeMap<&str, &str>) -> bool {
        match self {
            Tree::Present(key) => attributes.contains_key(key),
            Tree::Equal(key, value) => attributes.get(key) == Some(value),
            Tree::Unequal(key, value) => attributes.get(key) != Some(value),
            Tree::Prefix(key, prefix) => attributes.get(key).is_some_and(|value| value.starts_with(prefix)),
            Tree::Not(tree) => !tree.evaluate(attributes),
            Tree::All(trees) => trees.iter().all(|tree| tree.evaluate(attributes)),
            Tree::Any(trees) => trees.iter().any(|tree| tree.evaluate(attributes)),
        }
    }

    /// As text, each part with a pair of parentheses where it must have one, and where the pen likes.
    fn print(&self, pen: &mut Pen) -> String {
        let text = match self {
            Tree::Present(key) => {
                let key = pen.key(key);
                pen.spaced(&["attributes", ":", &key])
            }
            Tree::Equal(key, value) => {
                let key = pen.key(key);
                pen.spaced(&["attributes", ".", &key, "=", &quoted(value)])
            }
            Tree::Unequal(key, value) => {
                let key = pen.key(key);
                pen.spaced(&["attributes", ".", &key, "!=", &quoted(value)])
            }
            Tree::Prefix(key, prefix) => {
                let key = pen.key(key);
                pen.spaced(&["hasPrefix", "(", "attributes", ".", &key, ",", &quoted(prefix), ")"])
            }
            Tree::Not(tree) => {
                let negation = if pen.likes() { "-" } else { "NOT " };
                format!("{negation}{}", tree.print_operand(pen, true))
            }
            Tree::All(trees) => {
                trees.iter().map(|tree| tree.print_operand(pen, false)).collect::<Vec<_>>().join(" AND ")
            }
            Tree::Any(trees) => {
                trees.iter().map(|tree| tree.print_operand(pen, false)).collect::<Vec<_>>().join("\nOR ")
            }
        };
        if pen.likes() && pen.likes() { format!("({text})") } else { text }
    }

    fn print_operand(&self, pen: &mut Pen, is_negated: bool) -> String {
        let text = self.print(pen);
        match self {
            Tree::All(_) | Tree::Any(_) => format!("({text})"),
            Tree::Not(_) if is_negated => format!("({text})"),
            _ => text,
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Whims in spelling, the same for the same seed.
struct Pen(u64);

impl Pen {
    fn likes(&mut self) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 63 == 1
    }

    fn spaced(&mut self, tokens: &[&str]) -> String {
        tokens
            .iter()
            .map(|token| if self.likes() { format!("{token} ") } else { (*token).to_owned() })
            .collect()
    }

    fn key(&mut self, key: &str) -> String {
        let bare = key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        if bare && self.likes() { key.to_owned() } else { quoted(key) }
    }
}

const KEYS: &[&str] = &["a", "b-2", "_c", "AND", "iana.org/é", "q\"\\"];
const VALUES: &[&str] = &["", "c", "co", "com", "om", "é\\\"", " AND "];

fn trees() -> impl Strategy<Value = Tree> {
    let test = prop_oneof![
        select(KEYS).prop_map(Tree::Present),
        (select(KEYS), select(VALUES)).prop_map(|(key, value)| Tree::Equal(key, value)),
        (select(KEYS), select(VALUES)).prop_map(|(key, value)| Tree::Unequal(key, value)),
        (select(KEYS), select(VALUES)).prop_map(|(key, value)| Tree::Prefix(key, value)),
    ];
    test.prop_recursive(6, 16, 4, |tree| {
        prop_oneof![
            tree.clone().prop_map(|tree| Tree::Not(tree.into())),
            vec(tree.clone(), 2..4).prop_map(Tree::All),
            vec(tree, 2..4).prop_map(Tree::Any),
        ]
    })
}

/// Pieces of the language, and of what is not quite it.
fn tokens() -> impl Strategy<Value = String> {
    let token = select(
        &[
            "attributes",
            ":",
            ".",
            "=",
            "!=",
            "(",
            ")",
            ",",
            "AND",
            "OR",
            "NOT",
            "-",
            "hasPrefix",
            "a",
            "\"b\"",
            " ",
            "\n",
            "\"",
            "\\",
            "é",
            "attributes:a",
            "attributes.a=\"x\"",
            "and",
            "!",
        ][..],
    );
    (vec(token, 0..24), select(&["", " "][..])).prop_map(|(tokens, glue)| tokens.join(glue))
}

/// Whatever the text, it is a filter that can be asked, or an error that points into it and says something.
fn check_text(text: &str) -> Result<(), TestCaseError> {
    match Filter::parse(text) {
        Ok(filter) => {
            filter.matches(|_| None);
            filter.matches(|_| Some("x"));
            prop_assert_eq!(filter.source(), text);
        }
        Err(error) => {
            prop_assert!(text.is_char_boundary(error.position), "{:?} points to {}", text, error.position);
            prop_assert!(!error.reason.is_empty() && error.reason.len() < 300, "{:?}", error);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,80}") {
        check_text(&text)?;
    }

    #[test]
    fn no_soup_of_tokens_panics(text in tokens()) {
        check_text(&text)?;
    }

    #[test]
    fn a_filter_means_what_its_tree_means(
        tree in trees(),
        seed: u64,
        maps in vec(btree_map(select(KEYS), select(VALUES), 0..KEYS.len()), 8),
    ) {
        let text = tree.print(&mut Pen(seed));
        prop_assume!(text.len() <= SOURCE_LEN_MAX);
        let filter = Filter::parse(&text).map_err(|error| TestCaseError::fail(format!("{text}: {error:?}")))?;
        for attributes in maps {
            let found = filter.matches(|key| attributes.get(key).copied());
            prop_assert_eq!(found, tree.evaluate(&attributes), "{} on {:?}", text, attributes);
        }
    }

    #[test]
    fn no_filter_that_is_cut_short_panics(tree in trees(), seed: u64, cut: prop::sample::Index) {
        let text = tree.print(&mut Pen(seed));
        prop_assume!(text.len() <= SOURCE_LEN_MAX);
        let cut = text.floor_char_boundary(cut.index(text.len() + 1));
        check_text(&text[..cut])?;
    }
}
