//! The line plot: a logarithmic or even horizontal axis, intervals as bars with caps, levels to compare with.

use crate::model::{Curve, Point, Series, Unit, XScale};
use crate::number;
use crate::scale::{self, Linear, Tick};
use crate::svg::{Anchor, Svg, width_of};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = HEIGHT - 54.0;
const RIGHT: f64 = WIDTH - 18.0;
/// Room for a point at 0 left of a logarithmic axis, and for the gap in the axis.
const ZERO_ROOM: f64 = 56.0;
/// Points of several lines at one place are set apart by this.
const DODGE: f64 = 5.0;

/// The horizontal axis.
struct XAxis {
    scale: XScale,
    linear: Linear,
    ticks: Vec<Tick>,
    /// Where 0 lies on a logarithmic axis, if there is a point at 0.
    zero: Option<f64>,
}

impl XAxis {
    fn new(curve: &Curve, left: f64) -> Self {
        let xs = || curve.series.iter().flat_map(|series| &series.points).map(|point| point.x);
        let ends = |values: &mut dyn Iterator<Item = f64>| {
            values.fold(None, |ends: Option<[f64; 2]>, x| {
                Some(ends.map_or([x, x], |[low, high]| [low.min(x), high.max(x)]))
            })
        };
        match curve.x_scale {
            XScale::Linear => {
                let [low, high] = ends(&mut xs()).unwrap_or([0.0, 1.0]);
                let (from, to, ticks) = scale::nice(low, high, 8, Unit::Number);
                Self { scale: XScale::Linear, linear: Linear { from, to, at: [left, RIGHT] }, ticks, zero: None }
            }
            XScale::Log => {
                let has_zero = xs().any(|x| x == 0.0);
                let start = if has_zero { left + ZERO_ROOM } else { left };
                let logs = ends(&mut xs().filter(|x| *x > 0.0).map(f64::log10));
                let [low, high] = logs.unwrap_or([-1.0, 0.0]);
                // At least half a decade, and room for the outermost marks.
                let pad = ((0.5 - (high - low)) / 2.0).max((high - low) * 0.03).max(0.05);
                let (from, to) = (low - pad, high + pad);
                let ticks = scale::decades(from, to, 10);
                let zero = has_zero.then_some(left + 18.0);
                Self { scale: XScale::Log, linear: Linear { from, to, at: [start, RIGHT] }, ticks, zero }
            }
        }
    }

    fn position(&self, x: f64) -> f64 {
        match (self.scale, self.zero) {
            (XScale::Log, Some(zero)) if x == 0.0 => zero,
            (XScale::Log, _) => self.linear.position(x.max(f64::MIN_POSITIVE).log10()),
            (XScale::Linear, _) => self.linear.position(x),
        }
    }
}

/// The vertical axis, whose bottom is 0 unless the caller says otherwise or values are negative.
fn y_axis(curve: &Curve) -> (f64, f64, Vec<Tick>) {
    if let Some([from, to]) = curve.y_range {
        return (from, to, scale::inside(from, to, 6, curve.y_unit));
    }
    let points = curve.series.iter().flat_map(|series| &series.points);
    let values = points.flat_map(|point| [Some(point.y), point.low, point.high].into_iter().flatten());
    let values = values.chain(curve.references.iter().map(|reference| reference.y));
    let (low, high) = values.fold((0f64, 0f64), |(low, high), value| (low.min(value), high.max(value)));
    let (from, to, ticks) = scale::nice(low, high, 6, curve.y_unit);
    // A share has no more than all.
    if curve.y_unit == Unit::Percent && high <= 1.0 && to > 1.0 {
        return (from, 1.0, scale::inside(from, 1.0, 6, curve.y_unit));
    }
    (from, to, ticks)
}

/// Draws the picture.
pub(crate) fn draw(curve: &Curve) -> String {
    let (from, to, y_ticks) = y_axis(curve);
    let tick_width = y_ticks.iter().map(|tick| width_of(&tick.label)).fold(0.0, f64::max);
    let left = 34.0 + tick_width;
    let y_axis = Linear { from, to, at: [BOTTOM, TOP] };
    let x_axis = XAxis::new(curve, left);
    let mut svg = Svg::new(WIDTH, HEIGHT);

    for tick in &y_ticks {
        let y = y_axis.position(tick.value);
        svg.line("grid", [left, y], [RIGHT, y]);
        svg.text("tick", [left - 7.0, y + 4.0], Anchor::End, &tick.label);
    }
    for tick in &x_axis.ticks {
        let x = x_axis.linear.position(tick.value);
        if tick.label.is_empty() {
            svg.line("axis", [x, BOTTOM], [x, BOTTOM + 3.0]);
        } else {
            svg.line("grid", [x, TOP], [x, BOTTOM]);
            svg.line("axis", [x, BOTTOM], [x, BOTTOM + 6.0]);
            svg.text("tick", [x, BOTTOM + 19.0], Anchor::Middle, &tick.label);
        }
    }
    draw_axis_line(&mut svg, &x_axis, left);
    svg.text("axis-title", [(left + RIGHT) / 2.0, HEIGHT - 10.0], Anchor::Middle, &curve.x_title);
    svg.upright("axis-title", [15.0, (TOP + BOTTOM) / 2.0], Anchor::Middle, &curve.y_title);

    draw_references(&mut svg, curve, &x_axis, &y_axis, left);
    let middle = (curve.series.len().saturating_sub(1)) as f64 / 2.0;
    for (number, series) in curve.series.iter().enumerate() {
        let shift = (number as f64 - middle) * DODGE.min(24.0 / curve.series.len().max(1) as f64);
        draw_series(
            &mut svg,
            curve,
            series,
            number,
            |point| [x_axis.position(point.x) + shift, y_axis.position(point.y)],
            &y_axis,
        );
    }
    svg.finish(&spoken(curve))
}

/// Levels to compare with, named at the end where fewer points lie.
fn draw_references(svg: &mut Svg, curve: &Curve, x_axis: &XAxis, y_axis: &Linear, left: f64) {
    let points = || curve.series.iter().flat_map(|series| &series.points);
    let mut last = f64::NEG_INFINITY;
    let mut references: Vec<_> = curve.references.iter().collect();
    references.sort_by(|a, b| b.y.total_cmp(&a.y));
    for reference in references {
        let y = y_axis.position(reference.y).clamp(TOP, BOTTOM);
        svg.line("reference", [left, y], [RIGHT, y]);
        let text = format!("{} {}", reference.name, number::value(reference.y, curve.y_unit, 3));
        let width = width_of(&text) + 8.0;
        // The label stands above its line, or below where another one or the frame is too near.
        let above = y - 6.0;
        let at = if above - 12.0 < last.max(TOP - 8.0) { (y + 15.0).max(last + 15.0) } else { above };
        let hidden = |from: f64, to: f64| {
            let is_near = |point: &&Point| {
                let (x, y) = (x_axis.position(point.x), y_axis.position(point.y));
                (from - 8.0..=to + 8.0).contains(&x) && (at - 18.0..=at + 10.0).contains(&y)
            };
            points().filter(is_near).count()
        };
        if hidden(left, left + width) < hidden(RIGHT - width, RIGHT) {
            svg.label("reference-label", [left + 5.0, at], Anchor::Start, &text, 60);
        } else {
            svg.label("reference-label", [RIGHT - 4.0, at], Anchor::End, &text, 60);
        }
        last = at;
    }
}

/// The bottom line, with a gap between 0 and the decades.
fn draw_axis_line(svg: &mut Svg, axis: &XAxis, left: f64) {
    let Some(zero) = axis.zero else {
        return svg.line("axis", [left, BOTTOM], [RIGHT, BOTTOM]);
    };
    let [start, _] = axis.linear.at;
    let gap = (zero + start) / 2.0 + 4.0;
    svg.line("axis", [left, BOTTOM], [gap - 3.0, BOTTOM]);
    svg.line("axis", [gap + 3.0, BOTTOM], [RIGHT, BOTTOM]);
    for x in [gap - 3.0, gap + 3.0] {
        svg.line("axis", [x - 3.0, BOTTOM + 6.0], [x + 3.0, BOTTOM - 6.0]);
    }
    svg.line("axis", [zero, BOTTOM], [zero, BOTTOM + 6.0]);
    svg.text("tick", [zero, BOTTOM + 19.0], Anchor::Middle, "0");
}

fn draw_series(
    svg: &mut Svg,
    curve: &Curve,
    series: &Series,
    number: usize,
    at: impl Fn(&Point) -> [f64; 2],
    y_axis: &Linear,
) {
    let mut points = series.points.clone();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    svg.begin(&format!("series c{} dash{}", number % 7, number % 4));
    // 0 is off a logarithmic axis: no line leads there.
    let on_axis = |point: &&Point| curve.x_scale == XScale::Linear || point.x > 0.0;
    let line: Vec<[f64; 2]> = points.iter().filter(on_axis).map(&at).collect();
    svg.polyline("line", &line);
    for point in &points {
        let [x, _] = at(point);
        if let (Some(low), Some(high)) = (point.low, point.high) {
            let [low, high] = [low, high].map(|end| y_axis.position(end).clamp(TOP, BOTTOM));
            svg.line("interval", [x, low], [x, high]);
            svg.line("interval", [x - 4.0, low], [x + 4.0, low]);
            svg.line("interval", [x - 4.0, high], [x + 4.0, high]);
        }
    }
    for point in &points {
        svg.mark(number, at(point), &format!("{}\n{}: {}", series.name, x_text(point.x), y_text(curve, point)));
    }
    svg.end();
}

fn x_text(x: f64) -> String {
    number::significant(x, 4)
}

fn y_text(curve: &Curve, point: &Point) -> String {
    match (point.low, point.high) {
        (Some(low), Some(high)) => number::with_interval([point.y, low, high], curve.y_unit, 4),
        _ => number::value(point.y, curve.y_unit, 4),
    }
}

/// The picture in words.
fn spoken(curve: &Curve) -> String {
    let names: Vec<&str> = curve.series.iter().map(|series| series.name.as_str()).collect();
    format!(
        "{}. Line plot of {} against {}. Lines: {}. All values are in the table below the picture.",
        curve.title,
        curve.y_title,
        curve.x_title,
        names.join(", ")
    )
}

/// The picture's numbers: headings, then rows.
pub(crate) fn numbers(curve: &Curve) -> (Vec<String>, Vec<Vec<String>>) {
    let mut rows = Vec::new();
    for series in &curve.series {
        let mut points = series.points.clone();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        for point in points {
            let end = |end: Option<f64>| end.map_or_else(String::new, |end| number::value(end, curve.y_unit, 5));
            rows.push(vec![
                series.name.clone(),
                number::significant(point.x, 6),
                number::value(point.y, curve.y_unit, 5),
                end(point.low),
                end(point.high),
            ]);
        }
    }
    let columns = ["Line", &curve.x_title, &curve.y_title, "Interval from", "to"];
    (columns.map(str::to_owned).to_vec(), rows)
}
