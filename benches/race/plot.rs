//! The tables, as a picture: one block for each workload, one column of bars for each payload.

use std::fmt::Write;

use crate::contender::EntryKind;
use crate::report::{Row, Section, short};

const NAME_WIDTH: f64 = 200.0;
const COLUMN_WIDTH: f64 = 250.0;
/// The longest bar; beside it stands its figure.
const BAR_WIDTH: f64 = 180.0;
const LINE_HEIGHT: f64 = 18.0;
const HEAD_HEIGHT: f64 = 62.0;
const MARGIN: f64 = 16.0;

pub(crate) fn plot(sections: &[Section], machine: &str) -> String {
    let columns = sections.iter().map(|section| section.payloads.len()).max().unwrap_or(1);
    let width = 2.0 * MARGIN + NAME_WIDTH + COLUMN_WIDTH * columns as f64;
    let mut top = MARGIN + LINE_HEIGHT;
    let mut blocks = String::new();
    for section in sections {
        block(&mut blocks, section, top);
        top += HEAD_HEIGHT + LINE_HEIGHT * section.rows.len() as f64;
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        height = top + MARGIN
    );
    let about = format!("Medians, with the least and the greatest as a line. {machine}");
    label(&mut text, MARGIN, MARGIN + 4.0, "start", "#555", &about);
    text + &blocks + "</svg>\n"
}

fn block(text: &mut String, section: &Section, top: f64) {
    let heading = format!("{} {}: {}", section.name, section.title, section.unit);
    let _ = write!(text, "<g font-weight=\"bold\" font-size=\"14\">");
    label(text, MARGIN, top + 22.0, "start", "#111", &heading);
    let _ = writeln!(text, "</g>");
    let line_top = |line: usize| top + HEAD_HEIGHT - LINE_HEIGHT + LINE_HEIGHT * line as f64;
    for (line, row) in section.rows.iter().enumerate() {
        let baseline = line_top(line) + 12.0;
        label(text, MARGIN + NAME_WIDTH - 8.0, baseline, "end", "#111", row.name);
    }
    for (column, payload) in section.payloads.iter().enumerate() {
        let left = MARGIN + NAME_WIDTH + COLUMN_WIDTH * column as f64;
        label(text, left, top + 40.0, "start", "#555", payload);
        let compared = section.rows.iter().filter(|row| row.kind != EntryKind::Baseline);
        let most = compared.map(|row| row.cells[column].0.median).fold(f64::MIN_POSITIVE, f64::max);
        for (line, row) in section.rows.iter().enumerate() {
            bar(text, row, column, (left, line_top(line)), most);
        }
    }
}

fn bar(text: &mut String, row: &Row, column: usize, (left, top): (f64, f64), most: f64) {
    let spread = &row.cells[column].0;
    let length = |value: f64| BAR_WIDTH * (value / most).min(1.0);
    let (width, middle) = (length(spread.median), top + LINE_HEIGHT / 2.0 - 1.0);
    let colour = match row.kind {
        EntryKind::Ours => "#2563eb",
        EntryKind::Blocking | EntryKind::Server => "#9ca3af",
        EntryKind::Polling => "#f59e0b",
        EntryKind::Baseline => "#e5e7eb",
    };
    let height = LINE_HEIGHT - 4.0;
    let _ = writeln!(
        text,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>"
    );
    let (from, to) = (left + length(spread.min), left + length(spread.max));
    let _ = writeln!(text, "<path d=\"M{from:.1} {middle}H{to:.1}\" stroke=\"#111\"/>");
    label(
        text,
        left + length(spread.max).max(width) + 5.0,
        top + 12.0,
        "start",
        "#111",
        &short(spread.median),
    );
}

fn label(text: &mut String, x: f64, y: f64, anchor: &str, colour: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        text,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>"
    );
}
