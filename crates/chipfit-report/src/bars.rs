//! Horizontal bars with intervals, one per name.

use crate::model::Bars;
use crate::number;
use crate::scale::{self, Linear};
use crate::svg::{Anchor, Svg, shorten, width_of};

const WIDTH: f64 = 760.0;
const TOP: f64 = 8.0;
/// Letters of a bar's name.
const NAME_LETTERS: usize = 32;

/// Draws the picture.
pub(crate) fn draw(bars: &Bars) -> String {
    let count = bars.bars.len() as f64;
    // High enough for the upright title, too.
    let row = (620.0 / count).clamp(14.0, 24.0).max((width_of(&bars.name_title) + 8.0) / count);
    let bar_height = (row * 0.62).min(15.0);
    let name_width = bars.bars.iter().map(|bar| width_of(&shorten(&bar.name, NAME_LETTERS))).fold(0.0, f64::max);
    let value_text = |value: f64| number::value(value, bars.unit, 3);
    let value_width = bars.bars.iter().map(|bar| width_of(&value_text(bar.value))).fold(0.0, f64::max);
    let (left, right) = (name_width + 40.0, WIDTH - value_width - 16.0);
    let highest = bars.bars.iter().map(|bar| bar.high).fold(0.0, f64::max);
    let (from, to, ticks) = scale::nice(0.0, highest, 6, bars.unit);
    let axis = Linear { from, to, at: [left, right] };
    let bottom = TOP + row * count;

    let mut svg = Svg::new(WIDTH, bottom + 48.0);
    for tick in &ticks {
        let x = axis.position(tick.value);
        svg.line("grid", [x, TOP], [x, bottom + 4.0]);
        svg.text("tick", [x, bottom + 18.0], Anchor::Middle, &tick.label);
    }
    svg.text("axis-title", [(left + right) / 2.0, bottom + 40.0], Anchor::Middle, &bars.value_title);
    svg.upright("axis-title", [15.0, (TOP + bottom) / 2.0], Anchor::Middle, &bars.name_title);
    for (number, bar) in bars.bars.iter().enumerate() {
        let middle = TOP + (number as f64 + 0.5) * row;
        svg.label("tick", [left - 8.0, middle + 4.0], Anchor::End, &bar.name, NAME_LETTERS);
        let interval = number::with_interval([bar.value, bar.low, bar.high], bars.unit, 4);
        let title = format!("{}\n{}: {interval}, {} trials", bar.name, bars.value_title, number::grouped(bar.count));
        let (value, low, high) = (axis.position(bar.value), axis.position(bar.low), axis.position(bar.high));
        svg.rect("share c0", [left, middle - bar_height / 2.0], [(value - left).max(0.75), bar_height], &title);
        // First wider in the page's colour, so that it stands out from the bar.
        for class in ["halo", "whisker"] {
            svg.line(class, [low, middle], [high, middle]);
            svg.line(class, [low, middle - 3.5], [low, middle + 3.5]);
            svg.line(class, [high, middle - 3.5], [high, middle + 3.5]);
        }
        svg.text("tick", [high + 7.0, middle + 4.0], Anchor::Start, &value_text(bar.value));
    }
    svg.line("axis", [left, TOP], [left, bottom + 4.0]);
    svg.finish(&format!(
        "{}. Bars of {} for {} names of kind {}. All values are in the table below the picture.",
        bars.title,
        bars.value_title,
        bars.bars.len(),
        bars.name_title
    ))
}

/// The picture's numbers: headings, then rows.
pub(crate) fn numbers(bars: &Bars) -> (Vec<String>, Vec<Vec<String>>) {
    let columns = [&bars.name_title, &bars.value_title, "Interval from", "to", "Trials"];
    let value = |value: f64| number::value(value, bars.unit, 5);
    let row = |bar: &crate::model::Bar| {
        vec![bar.name.clone(), value(bar.value), value(bar.low), value(bar.high), number::grouped(bar.count)]
    };
    (columns.map(str::to_owned).to_vec(), bars.bars.iter().map(row).collect())
}
