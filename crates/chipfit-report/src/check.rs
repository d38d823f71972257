//! Whether a report can be drawn: finite numbers, ordered intervals, full tables.

use crate::model::{Bars, Block, Curve, HeatMap, Report, Shares, Table, XScale};

/// Why a report cannot be drawn; names the block by its title.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A number that has no place in the picture.
    #[error("'{title}': {what} is {value}, which cannot be drawn")]
    Number {
        /// Of the block.
        title: String,
        /// Which number.
        what: String,
        /// The number.
        value: f64,
    },
    /// An interval that does not hold its estimate.
    #[error("'{title}': the interval [{low}, {high}] of {what} does not hold {value}")]
    Interval {
        /// Of the block.
        title: String,
        /// Whose interval.
        what: String,
        /// The estimate.
        value: f64,
        /// The interval's lower end.
        low: f64,
        /// The interval's upper end.
        high: f64,
    },
    /// An interval with one end.
    #[error("'{title}': the interval of {what} has one end; give both or none")]
    HalfInterval {
        /// Of the block.
        title: String,
        /// Whose interval.
        what: String,
    },
    /// A row with too few or too many entries.
    #[error("'{title}': row {row} has {found} entries, {wanted} are needed")]
    Length {
        /// Of the block.
        title: String,
        /// From 0.
        row: usize,
        /// Its entries.
        found: usize,
        /// The columns.
        wanted: usize,
    },
    /// Nothing to draw.
    #[error("'{title}': there is nothing to draw")]
    Empty {
        /// Of the block.
        title: String,
    },
}

/// Checks all blocks.
pub(crate) fn report(report: &Report) -> Result<(), ReportError> {
    report.sections.iter().flat_map(|section| &section.blocks).try_for_each(|block| match block {
        Block::Text { .. } | Block::Definitions { .. } => Ok(()),
        Block::Table(table) => self::table(table),
        Block::Curve(curve) => self::curve(curve),
        Block::HeatMap(map) => heat_map(map),
        Block::Shares(shares) => self::shares(shares),
        Block::Bars(bars) => self::bars(bars),
    })
}

fn filled(title: &str, is_filled: bool) -> Result<(), ReportError> {
    if is_filled { Ok(()) } else { Err(ReportError::Empty { title: title.to_owned() }) }
}

fn lengths(title: &str, found: impl Iterator<Item = usize>, wanted: usize) -> Result<(), ReportError> {
    match found.enumerate().find(|(_, found)| *found != wanted) {
        Some((row, found)) => Err(ReportError::Length { title: title.to_owned(), row, found, wanted }),
        None => Ok(()),
    }
}

fn number(title: &str, what: impl Fn() -> String, value: f64, is_good: bool) -> Result<(), ReportError> {
    // Beyond these, sums and ratios of two numbers overflow.
    if is_good && value.is_finite() && value.abs() < 1e150 {
        return Ok(());
    }
    Err(ReportError::Number { title: title.to_owned(), what: what(), value })
}

/// An estimate that is not negative, inside its interval.
fn estimate(title: &str, what: impl Fn() -> String, [value, low, high]: [f64; 3]) -> Result<(), ReportError> {
    for number_of in [value, low, high] {
        number(title, &what, number_of, number_of >= 0.0)?;
    }
    if low <= value && value <= high {
        return Ok(());
    }
    Err(ReportError::Interval { title: title.to_owned(), what: what(), value, low, high })
}

fn table(table: &Table) -> Result<(), ReportError> {
    filled(&table.title, !table.columns.is_empty())?;
    lengths(&table.title, table.rows.iter().map(Vec::len), table.columns.len())
}

fn curve(curve: &Curve) -> Result<(), ReportError> {
    let title = &curve.title;
    filled(title, curve.series.iter().any(|series| !series.points.is_empty()))?;
    for series in &curve.series {
        for (position, point) in series.points.iter().enumerate() {
            let what = |axis: &str| format!("{axis} of point {position} of '{}'", series.name);
            number(title, || what("x"), point.x, curve.x_scale == XScale::Linear || point.x >= 0.0)?;
            number(title, || what("y"), point.y, true)?;
            match (point.low, point.high) {
                (None, None) => {}
                (Some(low), Some(high)) => {
                    number(title, || what("low"), low, true)?;
                    number(title, || what("high"), high, true)?;
                    if !(low <= point.y && point.y <= high) {
                        let (title, what) = (title.clone(), what("y"));
                        return Err(ReportError::Interval { title, what, value: point.y, low, high });
                    }
                }
                _ => return Err(ReportError::HalfInterval { title: title.clone(), what: what("y") }),
            }
        }
    }
    for reference in &curve.references {
        number(title, || format!("the level of '{}'", reference.name), reference.y, true)?;
    }
    if let Some([bottom, top]) = curve.y_range {
        number(title, || "the bottom of the vertical axis".to_owned(), bottom, true)?;
        number(title, || "the top of the vertical axis".to_owned(), top, top > bottom)?;
    }
    Ok(())
}

fn heat_map(map: &HeatMap) -> Result<(), ReportError> {
    filled(&map.title, !map.columns.is_empty() && !map.rows.is_empty())?;
    if map.cells.len() != map.rows.len() {
        return Err(ReportError::Length {
            title: map.title.clone(),
            row: map.cells.len().min(map.rows.len()),
            found: 0,
            wanted: map.columns.len(),
        });
    }
    lengths(&map.title, map.cells.iter().map(Vec::len), map.columns.len())?;
    for (row, cells) in map.rows.iter().zip(&map.cells) {
        for (column, cell) in map.columns.iter().zip(cells) {
            if let Some(cell) = cell {
                estimate(&map.title, || format!("'{row}', '{column}'"), [cell.value, cell.low, cell.high])?;
            }
        }
    }
    Ok(())
}

fn shares(shares: &Shares) -> Result<(), ReportError> {
    filled(&shares.title, !shares.categories.is_empty() && !shares.rows.is_empty())?;
    lengths(&shares.title, shares.rows.iter().map(|row| row.counts.len()), shares.categories.len())
}

fn bars(bars: &Bars) -> Result<(), ReportError> {
    filled(&bars.title, !bars.bars.is_empty())?;
    bars.bars.iter().try_for_each(|bar| estimate(&bars.title, || bar.name.clone(), [bar.value, bar.low, bar.high]))
}
