//! Imports point down: reads `src/` and points at every path through `crate::` or `super::` that looks up a floor, or from
//! `delivery` sideways into `log` or back.
//!
//! It sees paths, not meaning: a macro, or a method of a type that came in as an argument, passes unseen.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors of the house. What stands on one may use itself, its own floor and those below; the two wings of the first
/// floor do not know each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Floor {
    /// 0: values only.
    Words,
    /// 1a: decides.
    Delivery,
    /// 1b: remembers.
    Log,
    /// 2: locks, clocks, wake-ups.
    Engine,
    /// 3: what users hold.
    Front,
    /// 4: the front page and the leaves.
    Leaf,
}

impl Floor {
    fn height(self) -> u8 {
        match self {
            Floor::Words => 0,
            Floor::Delivery | Floor::Log => 1,
            Floor::Engine => 2,
            Floor::Front => 3,
            Floor::Leaf => 4,
        }
    }

    fn may_use(self, other: Floor) -> bool {
        self == other || other.height() < self.height()
    }
}

/// Every module of the crate's root, and `lib` for the root itself. A new one is added here.
const FLOORS: &[(&str, Floor)] = &[
    ("binary", Floor::Words),
    ("codec", Floor::Words),
    ("contain", Floor::Words),
    ("error", Floor::Words),
    ("few", Floor::Words),
    ("message", Floor::Words),
    ("name", Floor::Words),
    ("options", Floor::Words),
    ("sequence", Floor::Words),
    ("sync", Floor::Words),
    ("time", Floor::Words),
    ("delivery", Floor::Delivery),
    ("log", Floor::Log),
    ("journal", Floor::Log),
    ("clock", Floor::Engine),
    ("engine", Floor::Engine),
    ("asynchronous", Floor::Front),
    ("broker", Floor::Front),
    ("channel", Floor::Front),
    ("handles", Floor::Front),
    ("inbox", Floor::Leaf),
    ("outbox", Floor::Leaf),
    ("sql", Floor::Front),
    ("stats", Floor::Words),
    ("subscribe", Floor::Front),
    ("subscription", Floor::Front),
    ("topic", Floor::Front),
    ("transaction", Floor::Front),
    ("guide", Floor::Leaf),
    ("lib", Floor::Leaf),
];

fn floor_of(module: &str) -> Option<Floor> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

#[test]
fn imports_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    assert!(files.iter().any(|file| file.ends_with("lib.rs")), "{} holds no crate", src.display());

    let mut complaints = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let path = file.strip_prefix(&src).expect("files come from src");
        complaints.extend(check(path, &text).into_iter().map(|complaint| complaint.to_string()));
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.expect("a directory entry can be read").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

#[derive(Debug)]
struct Complaint {
    file: PathBuf,
    line: usize,
    text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file.display(), self.line, self.text)
    }
}

/// What is wrong with one file; `path` is relative to `src/`.
fn check(path: &Path, text: &str) -> Vec<Complaint> {
    let complain = |line, text| Complaint { file: path.to_owned(), line, text };
    let modules = modules_of(path);
    let home = modules.first().map_or("lib", String::as_str);
    let Some(floor) = floor_of(home) else {
        return vec![complain(
            1,
            format!("the module `{home}` has no floor: add it to FLOORS in tests/layers.rs"),
        )];
    };
    let mut complaints = Vec::new();
    for (line, target) in targets(&tokens(text), &modules) {
        match floor_of(&target).filter(|_| target != "lib") {
            Some(other) if floor.may_use(other) => {}
            Some(other) => {
                let text = format!(
                    "`{home}` is on the floor {floor:?} and may not use `{target}`, on the floor {other:?}"
                );
                complaints.push(complain(line, text));
            }
            // Something else of the root: an item that the front page re-exports.
            None if floor.may_use(Floor::Leaf) => {}
            None => {
                let text = format!(
                    "`crate::{target}` is no module in FLOORS of tests/layers.rs: add it there if it is one; if it is an item \
                     that lib.rs re-exports, import it from the module that defines it"
                );
                complaints.push(complain(line, text));
            }
        }
    }
    complaints
}

/// `delivery/filter.rs` is `[delivery, filter]`, `delivery/mod.rs` is `[delivery]`, `lib.rs` is the root: `[]`.
fn modules_of(path: &Path) -> Vec<String> {
    let mut modules: Vec<String> = path
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if modules.last().is_some_and(|last| last == "mod") || modules == ["lib"] {
        modules.pop();
    }
    modules
}

/// What of the crate's root the paths of a file name, with their lines.
fn targets(tokens: &[Token], file_modules: &[String]) -> Vec<(usize, String)> {
    let mut targets = Vec::new();
    // Modules written inside the file, with the brace depth that ends them: `super` counts them.
    let mut inline: Vec<usize> = Vec::new();
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.retain(|&outside| outside < depth);
            }
            "mod" if texts(tokens, at + 2) == Some("{") => inline.push(depth),
            "use" if texts(tokens, at + 1) == Some("crate") && texts(tokens, at + 2) != Some("::") => {
                targets.push((token.line, "self".to_owned()));
            }
            "crate" if texts(tokens, at + 1) == Some("::") => names(tokens, at + 2, &mut targets),
            "super" if !follows_path(tokens, at) => {
                let mut behind = at;
                let mut supers = 0;
                while texts(tokens, behind) == Some("super") && texts(tokens, behind + 1) == Some("::") {
                    supers += 1;
                    behind += 2;
                }
                // Only as far as the root: less stays within a module, more does not compile.
                if supers == file_modules.len() + inline.len() {
                    names(tokens, behind, &mut targets);
                }
            }
            _ => {}
        }
    }
    targets
}

fn texts(tokens: &[Token], at: usize) -> Option<&str> {
    tokens.get(at).map(|token| token.text.as_str())
}

/// Whether the token belongs to a path that began before it, as the second `super` of `super::super`.
fn follows_path(tokens: &[Token], at: usize) -> bool {
    at >= 2 && texts(tokens, at - 1) == Some("::") && texts(tokens, at - 2) == Some("super")
}

/// The names at the head of a path or of a group of paths: `a` of `a::b`, `a` and `d` of `{a::{b, c}, d}`.
fn names(tokens: &[Token], from: usize, targets: &mut Vec<(usize, String)>) {
    let Some(first) = tokens.get(from) else { return };
    if first.text != "{" {
        targets.push((first.line, first.text.clone()));
        return;
    }
    let mut depth = 0;
    let mut heads = true;
    for token in &tokens[from..] {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => return,
            "}" => depth -= 1,
            "," if depth == 1 => {
                heads = true;
                continue;
            }
            _ if depth == 1 && heads => {
                targets.push((token.line, token.text.clone()));
                heads = false;
            }
            _ => {}
        }
    }
}

struct Token {
    line: usize,
    text: String,
}

/// The words and signs of a source text, without comments, strings and characters. `::` is one sign.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = token_len(rest, first);
        let (token, behind) = rest.split_at(len);
        let is_code =
            !token.starts_with("//") && !token.starts_with("/*") && !token.ends_with(['"', '#', '\'']);
        if is_code && !first.is_whitespace() {
            tokens.push(Token { line, text: token.strip_prefix("r#").unwrap_or(token).to_owned() });
        }
        line += token.matches('\n').count();
        rest = behind;
    }
    tokens
}

fn token_len(rest: &str, first: char) -> usize {
    if rest.starts_with("//") {
        rest.find('\n').unwrap_or(rest.len())
    } else if rest.starts_with("/*") {
        comment_len(rest)
    } else if let Some(len) = raw_string_len(rest) {
        len
    } else if rest.starts_with("b\"") || rest.starts_with("c\"") {
        1 + quoted_len(&rest[1..], '"')
    } else if rest.starts_with("b'") {
        1 + quoted_len(&rest[1..], '\'')
    } else if first == '"' {
        quoted_len(rest, '"')
    } else if first == '\'' {
        // A character ends with a quote, after one character or an escape; a lifetime does not.
        let mut inside = rest.chars().skip(1);
        let is_character = inside.next() == Some('\\') || inside.next() == Some('\'');
        if is_character { quoted_len(rest, '\'') } else { 1 }
    } else if rest.starts_with("::") {
        2
    } else if is_word(first) {
        let start = if rest.starts_with("r#") { 2 } else { 0 };
        start + rest[start..].find(|c| !is_word(c)).unwrap_or(rest.len() - start)
    } else {
        first.len_utf8()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn comment_len(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// `r"…"`, `br#"…"#` and the like.
fn raw_string_len(rest: &str) -> Option<usize> {
    let behind =
        rest.strip_prefix("br").or_else(|| rest.strip_prefix("cr")).or_else(|| rest.strip_prefix('r'))?;
    let hashes = behind.len() - behind.trim_start_matches('#').len();
    let inside = behind[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = inside.find(&close).map_or(inside.len(), |at| at + close.len());
    Some(rest.len() - inside.len() + end)
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn lines_of_complaints(path: &str, text: &str) -> Vec<usize> {
    check(Path::new(path), text).into_iter().map(|complaint| complaint.line).collect()
}

#[test]
fn a_look_up_or_sideways_is_pointed_at() {
    let bad = "use std::fmt;\n\
        use crate::engine::Registry;\n\
        use crate::{log::Segment, sequence::{Sequence, engine}, time};\n\
        fn f() -> crate::broker::Broker {}\n\
        pub(crate) use crate::{\n    name::Name,\n    topic::Topic,\n};\n";
    assert_eq!(lines_of_complaints("delivery/lease.rs", bad), [2, 3, 4, 7]);
    assert_eq!(lines_of_complaints("log/mod.rs", "use crate::delivery::Ledger;"), [1]);
    assert_eq!(
        lines_of_complaints("log/segment.rs", "use crate::log::Slot;\nuse crate::message::Extras;"),
        []
    );
    assert_eq!(
        lines_of_complaints("message.rs", "use crate::sequence::Sequence;\nuse crate::delivery::Ledger;"),
        [2]
    );
    assert_eq!(
        lines_of_complaints("engine/local/topic.rs", "use crate::{delivery, log};\nuse crate::topic::Topic;"),
        [2]
    );
    assert_eq!(
        lines_of_complaints("broker.rs", "use crate::{engine, topic::Topic};\nuse crate::guide;"),
        [2]
    );
    assert_eq!(
        lines_of_complaints("lib.rs", "mod guide;\npub use crate::broker::Broker;\npub use crate::Thing;"),
        []
    );
    let complaint = &check(Path::new("log/mod.rs"), "\nuse crate::delivery::Ledger;")[0];
    let text =
        "src/log/mod.rs:2: `log` is on the floor Log and may not use `delivery`, on the floor Delivery";
    assert_eq!(complaint.to_string(), text);
}

#[test]
fn a_look_up_through_super_is_pointed_at() {
    assert_eq!(
        lines_of_complaints("time.rs", "use super::sequence::Sequence;\nuse super::engine::Timer;"),
        [2]
    );
    assert_eq!(
        lines_of_complaints("delivery/lease.rs", "use super::engine::X;\nuse super::super::engine::X;"),
        [2]
    );
    assert_eq!(lines_of_complaints("delivery/mod.rs", "use super::{log, time};"), [1]);
    // A module inside the file is one step more.
    let nested = "mod tests {\n    use super::engine;\n    use super::super::engine;\n}\nuse super::log;\nfn f() { mod a {} }\n";
    assert_eq!(lines_of_complaints("time.rs", nested), [3, 5]);
}

#[test]
fn an_item_of_the_front_page_and_a_module_without_a_floor_are_pointed_at() {
    let complaints = check(
        Path::new("message.rs"),
        "use crate::Error;\nuse crate::*;\nuse crate as root;\ncrate::shout!();",
    );
    assert_eq!(complaints.iter().map(|complaint| complaint.line).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(complaints[0].text.contains("import it from the module that defines it"), "{}", complaints[0]);
    let complaint = &check(Path::new("attic/mod.rs"), "use std::fmt;")[0];
    assert_eq!(
        complaint.to_string(),
        "src/attic/mod.rs:1: the module `attic` has no floor: add it to FLOORS in tests/layers.rs"
    );
}

#[test]
fn only_code_counts() {
    let text = "//! See [`crate::Broker`].\n\
        /* use crate::broker; /* nested crate::topic */ crate::engine */\n\
        const A: &str = \"crate::broker \\\" crate::topic\";\n\
        const B: &str = r#\"crate::broker \" crate::topic\"#;\n\
        const C: (u8, char, char) = (b'\"', '\"', '\\'');\n\
        pub(crate) fn f<'a>(x: &'a str) -> &'a str { x }\n\
        const D: &[u8] = b\"crate::broker\";\n\
        fn r#use() { let recrate = 1; } // crate::topic\n";
    assert_eq!(lines_of_complaints("name.rs", text), []);
    // After all of these the reader is still awake.
    assert_eq!(lines_of_complaints("name.rs", &format!("{text}use crate::topic::Topic;")), [9]);
    assert_eq!(lines_of_complaints("name.rs", "\"a\nb\"; /* c\n */ crate::topic::f();"), [3]);
}
