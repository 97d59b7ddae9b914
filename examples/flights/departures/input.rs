//! The file: one departure a line, read as it goes by, so that a year needs no more memory than a day.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// What is wrong with the file, and where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{} line {line}: {problem}", path.display())]
    Line { path: PathBuf, line: u64, problem: String },
}

/// A departure as it stands in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    /// Its line in the file; the header is line 1.
    pub(crate) line: u64,
    pub(crate) carrier: &'a str,
    pub(crate) number: u32,
    /// The aircraft, where it is known.
    pub(crate) tail: Option<&'a str>,
    pub(crate) origin: &'a str,
    /// Whether it left at all.
    pub(crate) departed: bool,
    /// Minutes, below zero when it left early.
    pub(crate) delay: Option<i32>,
}

impl Row<'_> {
    /// An aircraft leaves from several airports, whose publishers know nothing of each other: only tail and
    /// origin together have an order.
    pub(crate) fn ordering_key(&self) -> Option<String> {
        self.tail.map(|tail| format!("{tail}/{}", self.origin))
    }

    /// One departure in fifty is published twice, as by a publisher that saw no receipt and tried again.
    pub(crate) fn is_published_twice(&self) -> bool {
        (self.line - 1).is_multiple_of(50)
    }
}

/// Calls `each` with every departure in the order of the file, until the first error.
pub(crate) fn for_each_row<F>(path: &Path, mut each: impl FnMut(Row<'_>) -> Result<(), F>) -> Result<(), F>
where
    F: From<InputError>,
{
    let file = File::open(path).map_err(|source| InputError::Open { path: path.to_owned(), source })?;
    let mut reader = BufReader::new(file);
    let mut text = String::new();
    let mut columns = None;
    for line in 1.. {
        let wrong = |problem| InputError::Line { path: path.to_owned(), line, problem };
        text.clear();
        if reader.read_line(&mut text).map_err(|error| wrong(format!("cannot be read: {error}")))? == 0 {
            break;
        }
        let text = text.trim_end_matches(['\n', '\r']);
        match &columns {
            None => columns = Some(Columns::find(text).map_err(wrong)?),
            Some(_) if text.is_empty() => {}
            Some(columns) => each(columns.row(line, text).map_err(wrong)?)?,
        }
    }
    match columns {
        Some(_) => Ok(()),
        None => {
            Err(InputError::Line { path: path.to_owned(), line: 1, problem: "the header is missing".into() }
                .into())
        }
    }
}

/// Where in a line the wanted fields stand.
struct Columns {
    count: usize,
    wanted: [usize; WANTED.len()],
}

const WANTED: [&str; 6] = ["carrier", "flight", "tailnum", "origin", "dep_time", "dep_delay"];

impl Columns {
    fn find(header: &str) -> Result<Self, String> {
        let names: Vec<_> = header.split(',').collect();
        let mut wanted = [0; WANTED.len()];
        for (place, name) in wanted.iter_mut().zip(WANTED) {
            let found = names.iter().position(|candidate| *candidate == name);
            *place = found.ok_or_else(|| format!("the header has no column `{name}`"))?;
        }
        Ok(Columns { count: names.len(), wanted })
    }

    fn row<'a>(&self, line: u64, text: &'a str) -> Result<Row<'a>, String> {
        let mut fields = [""; WANTED.len()];
        let mut count = 0;
        // No field of this data is quoted, so that every comma parts two fields.
        for (place, field) in text.split(',').enumerate() {
            count += 1;
            if let Some(wanted) = self.wanted.iter().position(|column| *column == place) {
                fields[wanted] = field;
            }
        }
        if count != self.count {
            return Err(format!("{count} fields where the header has {}", self.count));
        }
        let [carrier, number, tail, origin, departure, delay] = fields;
        Ok(Row {
            line,
            carrier: known(carrier).ok_or("no carrier")?,
            number: known(number).map_or(Err("no flight number".into()), |text| whole("flight", text))?,
            tail: known(tail),
            origin: known(origin).ok_or("no origin")?,
            departed: known(departure).map(|text| whole::<u16>("dep_time", text)).transpose()?.is_some(),
            delay: known(delay).map(|text| whole("dep_delay", text)).transpose()?,
        })
    }
}

/// `NA` and nothing both stand for a value that is not known.
fn known(field: &str) -> Option<&str> {
    (field != "NA" && !field.is_empty()).then_some(field)
}

fn whole<N: std::str::FromStr>(column: &str, text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("`{column}` is `{text}`, not a whole number in range"))
}
