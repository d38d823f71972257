//! Standard output and standard error: no panic on a closed pipe, no control characters from a model's names,
//! progress only where a person looks.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Writes `text` to standard output. A reader that went away is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Writes a line to standard error, if anybody listens.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// `text` with control characters escaped: names in a file may hold anything.
pub(crate) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A bar of `steps` steps on standard error; hidden where that is no terminal.
pub(crate) fn bar(what: &'static str, steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps).with_message(what);
    // The template is a constant; were it wrong, the default style would do.
    if let Ok(style) = ProgressStyle::with_template("{msg:10} [{bar:32}] {pos}/{len}  {per_sec}  {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// An aligned table.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns whose heading begins with `>` are aligned to the right.
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: a cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|c| printable(c)).collect());
    }

    /// The table as text, a line each row, no spaces at the ends of lines.
    pub(crate) fn render(&self) -> String {
        let titles: Vec<&str> = self.header.iter().map(|h| h.trim_start_matches('>')).collect();
        let width = |column: usize, title: &str| {
            let cells = self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
            cells.max().unwrap_or(0).max(title.chars().count())
        };
        let widths: Vec<usize> = titles.iter().enumerate().map(|(i, t)| width(i, t)).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for ((cell, width), title) in cells.zip(&widths).zip(&self.header) {
                if title.starts_with('>') {
                    text.push_str(&format!("{cell:>width$}  "));
                } else {
                    text.push_str(&format!("{cell:<width$}  "));
                }
            }
            format!("{}\n", text.trim_end())
        };
        let mut text = line(&mut titles.iter().copied());
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        text
    }
}

/// A count with three or four significant digits and its unit: `109.77 M`.
pub(crate) fn count(n: u64) -> String {
    const UNITS: [(u64, &str); 5] =
        [(1_000_000_000_000_000, "P"), (1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    match UNITS.iter().find(|(unit, _)| n >= *unit) {
        // Hundredths of the unit, rounded down; exact numbers are in the JSON document.
        Some((unit, letter)) => format!("{}.{:02} {letter}", n / unit, n % unit / (unit / 100)),
        None => n.to_string(),
    }
}

/// [`count`], or a question mark where it is not known.
pub(crate) fn maybe_count(n: Option<u64>) -> String {
    n.map_or_else(|| "?".to_owned(), count)
}

/// Lengths as `3x3`, or a dash for none.
pub(crate) fn by<T: ToString>(lengths: &[T]) -> String {
    join(lengths, "x")
}

/// Numbers with `separator` between them, or a dash for none.
pub(crate) fn join<T: ToString>(numbers: &[T], separator: &str) -> String {
    if numbers.is_empty() {
        return "-".to_owned();
    }
    numbers.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_three_digits() {
        let cases = [(0, "0"), (999, "999"), (1_000, "1.00 k"), (109_772_800, "109.77 M"), (u64::MAX, "18446.74 P")];
        for (n, want) in cases {
            assert_eq!(count(n), want);
        }
    }

    #[test]
    fn tables_align_and_escape() {
        let mut table = Table::new(&["name", ">n"]);
        table.row(vec!["a\u{1b}[31m".into(), "1".into()]);
        table.row(vec!["b".into(), "10".into()]);
        assert_eq!(table.render(), "name          n\na\\u{1b}[31m   1\nb            10\n");
    }
}
