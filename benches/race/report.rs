//! The tables, as Markdown.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::{fs, io};

use crate::Size;
use crate::contender::{BATCH_LEN, BOUND, Entry, EntryKind};
use crate::cores::can_pin;
use crate::harness::{Figure, Spread, load, machine};
use crate::plot::plot;
use crate::workload::Workload;

/// What the runs of one contender with one payload gave, by the name of the figure.
#[derive(Default)]
pub(crate) struct Cell(HashMap<String, Vec<f64>>);

impl Cell {
    pub(crate) fn add(&mut self, figures: HashMap<String, f64>) {
        for (name, value) in figures {
            self.0.entry(name).or_default().push(value);
        }
    }

    fn spread(&self, figure: &str) -> Option<Spread> {
        self.0.get(figure).map(|runs| Spread::of(runs))
    }
}

/// One workload: a row for each contender, a column for each payload.
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    more_is_better: bool,
    pub(crate) payloads: &'static [&'static str],
    pub(crate) rows: Vec<Row>,
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) kind: EntryKind,
    /// The figure, and what else is to be said.
    pub(crate) cells: Vec<(Spread, String)>,
}

pub(crate) struct Report {
    size: Size,
    rounds: usize,
    /// Of the machine, by others, before the race.
    load: Option<f64>,
    sections: Vec<Section>,
    skipped: Vec<String>,
    parts: Vec<(String, Vec<Figure>)>,
}

impl Report {
    pub(crate) fn new(size: Size, rounds: usize) -> Report {
        Report { size, rounds, load: load(), sections: vec![], skipped: vec![], parts: vec![] }
    }

    pub(crate) fn skip(&mut self, workload: &str, name: &str, reason: String) {
        self.skipped.push(format!("{workload}: {name} was skipped: {reason}"));
    }

    pub(crate) fn add_workload(
        &mut self,
        workload: &Workload,
        entries: &[Entry],
        cells: HashMap<(&str, &str), Cell>,
    ) {
        let cell_of = |entry: &Entry, payload: &str| {
            let cell = &cells[&(entry.name, payload)];
            let spread = cell.spread(workload.figure()).expect("each run gives its figure");
            let p99 = cell.spread("p99_us").map(|p99| format!("; p99 {}", short(p99.median)));
            let busy = cell.spread("busy_percent").map(|busy| format!("; {:.0} % busy", busy.median));
            (spread, p99.unwrap_or_default() + &busy.unwrap_or_default())
        };
        let row_of = |entry: &Entry| Row {
            name: entry.name,
            kind: entry.kind,
            cells: workload.payloads.iter().map(|payload| cell_of(entry, payload)).collect(),
        };
        self.sections.push(Section {
            name: workload.name,
            title: workload.title,
            unit: workload.unit(),
            more_is_better: workload.more_is_better(),
            payloads: workload.payloads,
            rows: entries.iter().map(row_of).collect(),
        });
    }

    pub(crate) fn add_part(&mut self, name: &str, output: &str) {
        self.parts.push((name.into(), output.lines().filter_map(Figure::read).collect()));
    }

    pub(crate) fn markdown(&self) -> String {
        let load = self.load.map_or_else(String::new, |load| format!(", load before the race {load:.2}"));
        let pinned = match can_pin() {
            true => "Where there are as many cores as threads, each thread has its own.",
            false => {
                "The kernel chose the cores, as there is no `taskset`: expect figures that differ from run to run."
            }
        };
        let mut text = format!(
            "# Race\n\nMachine: {}{load}. Size: {}, {} rounds. Batches are of {BATCH_LEN} messages; what is bounded holds \
             {BOUND}. Medians, with the least and the greatest in parentheses. {pinned}\n",
            machine(),
            self.size.name(),
            self.rounds
        );
        for section in &self.sections {
            section.write(&mut text);
        }
        for line in &self.skipped {
            let _ = writeln!(text, "\n{line}");
        }
        if !self.parts.is_empty() {
            text += "\n## Ours alone\n\n| part | figure | found | goal, at most |\n|---|---|---:|---:|\n";
        }
        for (name, figures) in &self.parts {
            for Figure { what, value, unit, goal } in figures {
                let _ = writeln!(text, "| {name} | {what} | {} {unit} | {goal} |", short(*value));
            }
        }
        text
    }

    pub(crate) fn write_to(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("race.md"), self.markdown())?;
        fs::write(folder.join("race.svg"), plot(&self.sections, &machine()))
    }
}

impl Section {
    fn write(&self, text: &mut String) {
        let _ = write!(text, "\n## {} {}: {}\n\n| |", self.name, self.title, self.unit);
        self.payloads.iter().for_each(|payload| *text += &format!(" {payload} |"));
        *text += "\n|---|";
        self.payloads.iter().for_each(|_| *text += "---:|");
        text.push('\n');
        for row in &self.rows {
            let _ = write!(text, "| {}{} |", row.name, row.kind.remark());
            for (spread, more) in &row.cells {
                let (median, min, max) = (short(spread.median), short(spread.min), short(spread.max));
                let _ = write!(text, " {median} ({min} to {max}){more} |");
            }
            text.push('\n');
        }
        self.write_ratios(text);
    }

    /// Our best form by the best of those to be compared with it: what only polls is not.
    fn write_ratios(&self, text: &mut String) {
        let best = |column: usize, takes: fn(EntryKind) -> bool| {
            let rows = self.rows.iter().filter(|row| takes(row.kind));
            let medians = rows.map(|row| row.cells[column].0.median);
            if self.more_is_better { medians.reduce(f64::max) } else { medians.reduce(f64::min) }
        };
        let ratio = |column| {
            let ours = best(column, |kind| kind == EntryKind::Ours)?;
            Some(ours / best(column, |kind| matches!(kind, EntryKind::Blocking | EntryKind::Server))?)
        };
        let ratios: Option<Vec<f64>> = (0..self.payloads.len()).map(ratio).collect();
        let Some(ratios) = ratios else { return };
        *text += "| **best of ours ÷ best peer that does not poll** |";
        ratios.iter().for_each(|ratio| *text += &format!(" **{}** |", short(*ratio)));
        text.push('\n');
    }
}

impl EntryKind {
    fn remark(self) -> &'static str {
        match self {
            EntryKind::Polling => " (polls)",
            EntryKind::Baseline => " (one thread)",
            _ => "",
        }
    }
}

/// With three digits that count.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
