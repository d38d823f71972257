//! Stacked horizontal shares: one bar per row, cut into categories.

use crate::model::{Shares, Tone, Unit};
use crate::number;
use crate::svg::{Anchor, Svg, shorten, width_of};

const WIDTH: f64 = 760.0;
const ROW: f64 = 30.0;
const BAR: f64 = 20.0;
const TOP: f64 = 6.0;
/// Letters of a row's name.
const NAME_LETTERS: usize = 30;
/// Narrowest part that holds its percentage.
const TEXT_ROOM: f64 = 42.0;

/// The colour class of a category.
pub(crate) fn colour(shares: &Shares, number: usize) -> &'static str {
    let tone = shares.categories.get(number).and_then(|category| category.tone);
    match tone {
        Some(Tone::Neutral) => "neutral",
        Some(Tone::Calm) => "c0",
        Some(Tone::Good) => "c2",
        Some(Tone::Warning) => "c4",
        Some(Tone::Bad) => "c1",
        None => ["c0", "c1", "c2", "c3", "c4", "c5", "c6"][number % 7],
    }
}

/// Draws the picture.
pub(crate) fn draw(shares: &Shares) -> String {
    let name_width = shares.rows.iter().map(|row| width_of(&shorten(&row.name, NAME_LETTERS))).fold(0.0, f64::max);
    let count_text = |counts: &[u64]| format!("n = {}", number::grouped(total(counts)));
    let count_width = shares.rows.iter().map(|row| width_of(&count_text(&row.counts))).fold(0.0, f64::max);
    let (left, right) = (name_width + 14.0, WIDTH - count_width - 14.0);
    let bottom = TOP + ROW * shares.rows.len() as f64;
    let mut svg = Svg::new(WIDTH, bottom + 30.0);
    for percent in [0u32, 25, 50, 75, 100] {
        let x = left + (right - left) * f64::from(percent) / 100.0;
        svg.line("grid", [x, TOP], [x, bottom + 4.0]);
        svg.text("tick", [x, bottom + 19.0], Anchor::Middle, &format!("{percent}%"));
    }
    for (number, row) in shares.rows.iter().enumerate() {
        let y = TOP + number as f64 * ROW + (ROW - BAR) / 2.0;
        svg.label("tick", [left - 8.0, y + BAR / 2.0 + 4.0], Anchor::End, &row.name, NAME_LETTERS);
        svg.text("tick", [right + 10.0, y + BAR / 2.0 + 4.0], Anchor::Start, &count_text(&row.counts));
        let sum = total(&row.counts);
        let mut before = 0u64;
        for (number, (category, count)) in shares.categories.iter().zip(&row.counts).enumerate() {
            if *count == 0 || sum == 0 {
                continue;
            }
            let share = *count as f64 / sum as f64;
            let x = left + (right - left) * before as f64 / sum as f64;
            let width = (right - left) * share;
            let percent = number::value(share, Unit::Percent, 3);
            let title = format!("{}\n{}: {} of {}, {percent}", row.name, category.name, count, sum);
            let class = colour(shares, number);
            // A hair's breadth between parts, where they are wide enough.
            let gap = if width > 3.0 { 1.0 } else { 0.0 };
            svg.rect(&format!("share {class}"), [x, y], [width - gap, BAR], &title);
            if width >= TEXT_ROOM {
                let at = [x + width / 2.0, y + BAR / 2.0 + 4.0];
                svg.text("share-value", at, Anchor::Middle, &number::value(share, Unit::Percent, 2));
            }
            before = before.saturating_add(*count);
        }
    }
    let names: Vec<&str> = shares.categories.iter().map(|category| category.name.as_str()).collect();
    svg.finish(&format!(
        "{}. Stacked bars of {} rows; parts: {}. All values are in the table below the picture.",
        shares.title,
        shares.rows.len(),
        names.join(", ")
    ))
}

fn total(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

/// The picture's numbers: headings, then rows.
pub(crate) fn numbers(shares: &Shares) -> (Vec<String>, Vec<Vec<String>>) {
    let columns = ["Row".to_owned()].into_iter().chain(shares.categories.iter().map(|c| c.name.clone()));
    let rows = shares.rows.iter().map(|row| {
        let sum = total(&row.counts);
        let cell = |count: &u64| {
            let share = if sum == 0 { 0.0 } else { *count as f64 / sum as f64 };
            format!("{} ({})", number::grouped(*count), number::value(share, Unit::Percent, 3))
        };
        let counts = row.counts.iter().map(cell);
        std::iter::once(row.name.clone()).chain(counts).chain([number::grouped(sum)]).collect()
    });
    (columns.chain(["Sum".to_owned()]).collect(), rows.collect())
}
