//! The page as text: whole, deterministic, escaped, self-contained; and reports that cannot be drawn.

mod sample;

use chipfit_report::{
    Block, Caption, Cell, Curve, Point, Reference, Report, ReportError, Section, Series, Unit, XScale,
};
use proptest::prelude::*;
use serde_json::Value;

/// Values of an attribute anywhere in the page.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    page.split(&format!(" {name}=\"")).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

fn one(block: Block) -> Report {
    let sections = vec![Section { title: "only".to_owned(), blocks: vec![block] }];
    Report { sections, ..sample::report() }
}

#[test]
fn everything_is_there_once_and_nothing_from_outside() {
    let report = sample::report();
    let page = report.to_html().unwrap();
    assert_eq!(page, report.to_html().unwrap());
    assert_eq!(page.matches("role=\"img\"").count(), 7);
    assert_eq!(page.matches("<figure>").count(), 7);
    assert_eq!(page.matches("<details>").count(), 7);
    assert_eq!(page.matches("Expected flips per inference").count(), 7);
    for text in ["runs/resnet8", "20261122", "Layer by bit of the stored output", "one row per site", "no trials"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(attributes(&page, "src").is_empty());
    assert!(attributes(&page, "href").iter().all(|target| target.starts_with("#s")));
    assert!(!page.contains("<script") && !page.contains("@import") && !page.contains("http:"));
    assert!(attributes(&page, "aria-label").iter().all(|label| !label.is_empty()));
    // Every element that is opened is closed.
    for name in ["section", "figure", "figcaption", "dl", "div", "table", "tr", "svg", "g", "text", "ul", "li", "title"]
    {
        let opened = page.matches(&format!("<{name}>")).count() + page.matches(&format!("<{name} ")).count();
        assert_eq!(opened, page.matches(&format!("</{name}>")).count(), "{name}");
    }
}

/// Equal, but for the last bit of a number, which the reader of JSON may miss.
fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(name, one)| other.get(name).is_some_and(|o| alike(one, o)))
        }
        (Value::Number(one), Value::Number(other)) => {
            let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
            (one - other).abs() <= other.abs() * f64::EPSILON
        }
        _ => one == other,
    }
}

#[test]
fn a_report_is_data() {
    let report = sample::report();
    let text = serde_json::to_string(&report).unwrap();
    let read: Report = serde_json::from_str(&text).unwrap();
    assert!(alike(&serde_json::to_value(&read).unwrap(), &serde_json::to_value(&report).unwrap()));
    let unknown = text.replacen("\"seed\"", "\"sede\"", 1);
    assert!(serde_json::from_str::<Report>(&unknown).unwrap_err().to_string().contains("sede"));
}

#[test]
fn numbers_that_cannot_be_drawn_are_errors() {
    let sample = sample::report();
    let blocks = || sample.sections.iter().flat_map(|section| section.blocks.clone());
    let curve = blocks().find_map(|block| if let Block::Curve(curve) = block { Some(curve) } else { None }).unwrap();
    let map = blocks().find_map(|block| if let Block::HeatMap(map) = block { Some(map) } else { None }).unwrap();
    let shares =
        blocks().find_map(|block| if let Block::Shares(shares) = block { Some(shares) } else { None }).unwrap();
    let bars = blocks().find_map(|block| if let Block::Bars(bars) = block { Some(bars) } else { None }).unwrap();
    let table = blocks().find_map(|block| if let Block::Table(table) = block { Some(table) } else { None }).unwrap();

    let with_point = |point: Point| {
        let mut curve = curve.clone();
        curve.series[0].points[3] = point;
        one(Block::Curve(curve)).to_html()
    };
    let good = curve.series[0].points[3];
    assert!(with_point(good).is_ok());
    for bad in [
        Point { x: f64::NAN, ..good },
        Point { x: -1.0, ..good },
        Point { y: f64::INFINITY, ..good },
        Point { y: 1e300, ..good },
    ] {
        let error = with_point(bad).unwrap_err();
        assert!(matches!(&error, ReportError::Number { what, .. } if what.contains("point 3")), "{error}");
    }
    assert!(matches!(with_point(Point { low: Some(0.9), ..good }), Err(ReportError::Interval { .. })));
    assert!(matches!(with_point(Point { low: None, ..good }), Err(ReportError::HalfInterval { .. })));
    let flat = Curve { y_range: Some([1.0, 1.0]), ..curve.clone() };
    assert!(matches!(one(Block::Curve(flat)).to_html(), Err(ReportError::Number { .. })));
    let none = Curve { series: Vec::new(), ..curve };
    assert!(matches!(one(Block::Curve(none)).to_html(), Err(ReportError::Empty { .. })));

    let mut short = map.clone();
    short.cells[2].pop();
    assert!(matches!(
        one(Block::HeatMap(short)).to_html(),
        Err(ReportError::Length { row: 2, found: 31, wanted: 32, .. })
    ));
    let mut missing = map.clone();
    missing.cells.pop();
    assert!(matches!(one(Block::HeatMap(missing)).to_html(), Err(ReportError::Length { row: 9, .. })));
    let mut outside = map;
    outside.cells[0][0] = Some(Cell { value: 0.5, low: 0.6, high: 0.7, count: 1 });
    let error = one(Block::HeatMap(outside)).to_html().unwrap_err().to_string();
    assert!(error.contains("Layer by bit") && error.contains("Conv2D") && error.contains("0.6"), "{error}");

    let mut uneven = shares;
    uneven.rows[1].counts.push(1);
    assert!(matches!(one(Block::Shares(uneven)).to_html(), Err(ReportError::Length { row: 1, found: 6, .. })));
    let mut negative = bars;
    negative.bars[0].low = -0.1;
    assert!(matches!(one(Block::Bars(negative)).to_html(), Err(ReportError::Number { .. })));
    let mut ragged = table;
    ragged.rows[0].clear();
    assert!(matches!(one(Block::Table(ragged)).to_html(), Err(ReportError::Length { row: 0, found: 0, .. })));
}

#[test]
fn counts_of_any_size_are_drawn() {
    let mut report = sample::report();
    for section in &mut report.sections {
        for block in &mut section.blocks {
            if let Block::Shares(shares) = block {
                shares.rows[0].counts = vec![u64::MAX, u64::MAX, 1, 0, u64::MAX];
            }
        }
    }
    assert!(drawable(&report.to_html().unwrap()));
}

/// No coordinate is missing or far outside of the widest picture.
fn drawable(page: &str) -> bool {
    let names = ["x", "y", "x1", "x2", "y1", "y2", "cx", "cy"];
    let mut coordinates = names.iter().flat_map(|name| attributes(page, name));
    let points = attributes(page, "points");
    let mut points = points.iter().flat_map(|points| points.split([' ', ',']).filter(|number| !number.is_empty()));
    let is_near = |number: &str| number.parse::<f64>().is_ok_and(|number| (-20.0..=1400.0).contains(&number));
    let sizes = attributes(page, "width").into_iter().chain(attributes(page, "height"));
    coordinates.all(is_near)
        && points.all(is_near)
        && sizes.filter(|size| *size != "0").all(|size| size.parse::<f64>().is_ok_and(|size| size > 0.0))
}

proptest! {
    #[test]
    fn any_curve_can_be_drawn(
        points in proptest::collection::vec((-300f64..140.0, -1e6f64..1e6, 0f64..10.0, any::<bool>()), 1..20),
        is_log in any::<bool>(),
        reference in -1e6f64..1e6,
        scale in prop_oneof![Just(1e-9), Just(1e-3), Just(1.0), Just(1e100)],
    ) {
        let x_scale = if is_log { XScale::Log } else { XScale::Linear };
        let points: Vec<Point> = points
            .iter()
            .map(|(log, y, half, has_interval)| {
                let x = if !is_log { *log } else if *log > 139.0 { 0.0 } else { 10f64.powf(*log) };
                let y = *y * scale;
                let half = half * scale;
                Point { x, y, low: has_interval.then_some(y - half), high: has_interval.then_some(y + half) }
            })
            .collect();
        let curve = Curve {
            title: "t".to_owned(),
            x_title: "x".to_owned(),
            y_title: "y".to_owned(),
            x_scale,
            y_unit: if reference > 0.0 { Unit::Percent } else { Unit::Number },
            y_range: None,
            series: vec![Series { name: "s".to_owned(), points }],
            references: vec![Reference { name: "r".to_owned(), y: reference * scale }],
            caption: Caption { site: "s".into(), rate: "r".into(), flips: "f".into(), note: None },
        };
        let page = one(Block::Curve(curve)).to_html().unwrap();
        prop_assert!(drawable(&page), "{page}");
        prop_assert!(!page.contains("NaN"), "{page}");
    }

    #[test]
    fn no_text_adds_markup(text in any::<String>()) {
        let mut report = sample::report();
        report.title.clone_from(&text);
        report.command.clone_from(&text);
        report.sections[0].title.clone_from(&text);
        let plain = sample::report().to_html().unwrap();
        let page = report.to_html().unwrap();
        prop_assert_eq!(page.matches('<').count(), plain.matches('<').count());
        prop_assert_eq!(page.matches('"').count(), plain.matches('"').count());
    }
}
