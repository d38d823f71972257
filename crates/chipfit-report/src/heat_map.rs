//! The heat map: cells in nine shades, a legend with the shades' bounds, hatching where nothing was measured.

use crate::model::{Cell, ColourScale, HeatMap};
use crate::number;
use crate::svg::{Anchor, Svg, shorten, width_of};

const WIDTH: f64 = 760.0;
/// Shades of the scale; the style has as many classes.
const SHADES: usize = 9;
/// Letters of a row's name.
const ROW_LETTERS: usize = 26;
/// Height of a column's name before it is turned.
const COLUMN_ROOM: f64 = 22.0;

/// From values to shades.
struct Shading {
    scale: ColourScale,
    low: f64,
    high: f64,
}

impl Shading {
    fn new(map: &HeatMap) -> Self {
        let values = || map.cells.iter().flatten().flatten().map(|cell| cell.value);
        let high = values().fold(0.0, f64::max);
        let low = values().filter(|value| *value > 0.0).fold(high, f64::min);
        let scale = if low < high { map.scale } else { ColourScale::Linear };
        Self { scale, low: if scale == ColourScale::Log { low } else { 0.0 }, high }
    }

    fn shade(&self, value: f64) -> usize {
        if value <= 0.0 || self.high <= 0.0 {
            return 0;
        }
        let share = match self.scale {
            ColourScale::Linear => value / self.high,
            ColourScale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        // `as` saturates; the largest value has the last shade.
        ((share * SHADES as f64) as usize).min(SHADES - 1)
    }

    /// The lower bound of a shade, or the upper one of the last.
    fn bound(&self, shade: usize) -> f64 {
        let share = shade as f64 / SHADES as f64;
        match self.scale {
            ColourScale::Linear => self.high * share,
            ColourScale::Log => self.low * (self.high / self.low).powf(share),
        }
    }
}

/// Draws the picture.
pub(crate) fn draw(map: &HeatMap) -> String {
    let shading = Shading::new(map);
    let name_width = map.rows.iter().map(|row| width_of(&shorten(row, ROW_LETTERS))).fold(0.0, f64::max);
    let left = 38.0 + name_width;
    let room = WIDTH - 12.0 - left;
    let cell_width = (room / map.columns.len() as f64).min(62.0);
    let cell_height = (560.0 / map.rows.len() as f64).clamp(5.0, 24.0);
    let (width, height) = (cell_width * map.columns.len() as f64, cell_height * map.rows.len() as f64);

    // Column names are written flat, turned upright when they are too wide, and left out where too dense.
    let widest = map.columns.iter().map(|column| width_of(&shorten(column, 18))).fold(0.0, f64::max);
    let is_turned = widest + 4.0 > cell_width && widest > 20.0;
    let name_room = if is_turned { widest + 10.0 } else { COLUMN_ROOM };
    let top = name_room + 22.0;
    let needed = if is_turned { 13.0 } else { widest + 5.0 };
    let every_column = ((needed / cell_width).ceil() as usize).max(1);
    let every_row = ((12.5 / cell_height).ceil() as usize).max(1);

    let mut svg = Svg::new(WIDTH, top + height + 62.0);
    svg.text("axis-title", [left + width / 2.0, 13.0], Anchor::Middle, &map.x_title);
    svg.upright("axis-title", [15.0, top + height / 2.0], Anchor::Middle, &map.y_title);
    for (number, column) in map.columns.iter().enumerate().step_by(every_column) {
        let x = left + (number as f64 + 0.5) * cell_width;
        if is_turned {
            svg.upright("tick", [x + 4.0, top - 5.0], Anchor::Start, &shorten(column, 18));
        } else {
            svg.text("tick", [x, top - 6.0], Anchor::Middle, column);
        }
    }
    let gap = if cell_width.min(cell_height) < 9.0 { 0.3 } else { 1.0 };
    let has_values = cell_width >= 42.0 && cell_height >= 18.0;
    for (number, (row, cells)) in map.rows.iter().zip(&map.cells).enumerate() {
        let y = top + number as f64 * cell_height;
        if number % every_row == 0 {
            svg.label("tick", [left - 7.0, y + cell_height / 2.0 + 4.0], Anchor::End, row, ROW_LETTERS);
        }
        for (number, (column, cell)) in map.columns.iter().zip(cells).enumerate() {
            let x = left + number as f64 * cell_width;
            let title = format!("{row}, {} {column}\n{}", map.x_title, cell_text(map, cell.as_ref()));
            let class = cell.map_or_else(|| "unmeasured".to_owned(), |cell| format!("q{}", shading.shade(cell.value)));
            svg.rect(&class, [x + gap / 2.0, y + gap / 2.0], [cell_width - gap, cell_height - gap], &title);
            if let (true, Some(cell)) = (has_values, cell) {
                let class = format!("cell-value v{}", shading.shade(cell.value));
                let text = number::value(cell.value, map.unit, 2);
                svg.text(&class, [x + cell_width / 2.0, y + cell_height / 2.0 + 4.0], Anchor::Middle, &text);
            }
        }
    }
    draw_legend(&mut svg, map, &shading, [left, top + height + 22.0]);
    svg.finish(&format!(
        "{}. Heat map of {}: {} by {}. All values are in the table below the picture.",
        map.title, map.value_title, map.y_title, map.x_title
    ))
}

fn draw_legend(svg: &mut Svg, map: &HeatMap, shading: &Shading, [left, y]: [f64; 2]) {
    const SWATCH: f64 = 46.0;
    let has_gaps = map.cells.iter().flatten().any(Option::is_none);
    let title_width = width_of(&map.value_title) + 14.0;
    // Right beside the title where there is room for both, else the scale moves left.
    let start =
        (left + title_width).min(WIDTH - 20.0 - SWATCH * SHADES as f64 - if has_gaps { 96.0 } else { 0.0 }).max(8.0);
    let title_at = (start - 10.0).max(left);
    if start >= left + title_width - 0.5 {
        svg.text("legend-title", [title_at, y + 10.0], Anchor::End, &map.value_title);
    } else {
        svg.text("legend-title", [start, y - 6.0], Anchor::Start, &map.value_title);
    }
    // Where all is 0 there is one shade.
    let shades = if shading.high > 0.0 { SHADES } else { 1 };
    for shade in 0..shades {
        let x = start + shade as f64 * SWATCH;
        svg.rect(&format!("q{shade}"), [x, y], [SWATCH, 13.0], "");
    }
    let bounds: Vec<String> = (0..=SHADES).map(|shade| number::value(shading.bound(shade), map.unit, 2)).collect();
    let is_dense = bounds.iter().any(|bound| width_of(bound) + 4.0 > SWATCH);
    for (shade, bound) in bounds.iter().enumerate().step_by(if is_dense { 3 } else { 1 }) {
        if shade > 0 && shades == 1 {
            break;
        }
        svg.text("tick", [start + shade as f64 * SWATCH, y + 28.0], Anchor::Middle, bound);
    }
    if has_gaps {
        let x = start + shades as f64 * SWATCH + 22.0;
        svg.rect("unmeasured", [x, y], [18.0, 13.0], "");
        svg.text("tick", [x + 23.0, y + 10.5], Anchor::Start, "no trials");
    }
}

fn cell_text(map: &HeatMap, cell: Option<&Cell>) -> String {
    cell.map_or_else(
        || "no trials".to_owned(),
        |cell| {
            let interval = number::with_interval([cell.value, cell.low, cell.high], map.unit, 4);
            format!("{}: {interval}, {} trials", map.value_title, number::grouped(cell.count))
        },
    )
}

/// The picture's numbers as a table of rows by columns, every cell with interval and trials: headings, then rows.
pub(crate) fn numbers(map: &HeatMap) -> (Vec<String>, Vec<Vec<String>>) {
    let corner = format!("{} \\ {}", map.y_title, map.x_title);
    let columns = std::iter::once(corner).chain(map.columns.iter().cloned()).collect();
    let cell = |cell: &Option<Cell>| {
        cell.map_or_else(
            || "–".to_owned(),
            |cell| {
                let interval = number::with_interval([cell.value, cell.low, cell.high], map.unit, 3);
                format!("{interval} n={}", cell.count)
            },
        )
    };
    let rows = map.rows.iter().zip(&map.cells);
    let rows = rows.map(|(row, cells)| std::iter::once(row.clone()).chain(cells.iter().map(cell)).collect()).collect();
    (columns, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Caption, Unit};
    use crate::svg::escape;

    fn map(values: &[f64], scale: ColourScale) -> HeatMap {
        let cell = |value: &f64| Some(Cell { value: *value, low: 0.0, high: 1.0, count: 1 });
        HeatMap {
            title: "t".into(),
            x_title: "x".into(),
            y_title: "y".into(),
            value_title: "v".into(),
            unit: Unit::Number,
            scale,
            columns: values.iter().map(|_| "c".to_owned()).collect(),
            rows: vec!["r".into()],
            cells: vec![values.iter().map(cell).collect()],
            caption: Caption { site: "s".into(), rate: "r".into(), flips: "f".into(), note: None },
        }
    }

    #[test]
    fn shades_cover_the_values_and_lie_between_their_bounds() {
        for scale in [ColourScale::Linear, ColourScale::Log] {
            let values = [0.0, 1e-4, 3e-3, 0.02, 0.1, 0.5, 0.9];
            let shading = Shading::new(&map(&values, scale));
            assert_eq!((shading.shade(0.0), shading.shade(0.9)), (0, SHADES - 1));
            for value in &values[1..] {
                let shade = shading.shade(*value);
                assert!(shading.bound(shade) <= value * 1.000_001, "{scale:?} {value}");
                assert!(*value <= shading.bound(shade + 1) * 1.000_001, "{scale:?} {value}");
            }
        }
        // All alike, or all 0.
        assert_eq!(Shading::new(&map(&[0.0], ColourScale::Log)).shade(0.0), 0);
        assert_eq!(Shading::new(&map(&[0.5, 0.5], ColourScale::Log)).shade(0.5), SHADES - 1);
    }

    #[test]
    fn names_are_escaped() {
        let mut hostile = map(&[0.1], ColourScale::Linear);
        hostile.rows = vec!["</svg><script>".into()];
        hostile.columns = vec!["\"><b>".into()];
        let picture = draw(&hostile);
        assert!(!picture.contains("<script>") && !picture.contains("<b>"), "{picture}");
        assert!(picture.contains(&escape("</svg><script>")));
    }
}
