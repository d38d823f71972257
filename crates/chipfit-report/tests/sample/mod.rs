//! A report with one of everything, of the size that campaigns have. The numbers are made up.

use chipfit_report::{
    Bar, Bars, Block, Caption, Category, Cell, ColourScale, Curve, Definition, HeatMap, Point, Reference, Report,
    Section, Series, ShareRow, Shares, Table, Tone, Unit, XScale,
};

fn caption(site: &str, flips: &str, note: Option<&str>) -> Caption {
    Caption {
        site: site.to_owned(),
        rate: "probability of a flip per exposed bit (ber); positions drawn without replacement".to_owned(),
        flips: flips.to_owned(),
        note: note.map(str::to_owned),
    }
}

/// A curve that falls from `top` to `floor` around `middle` (in powers of ten).
fn falling(name: &str, middle: f64, rates: &[f64]) -> Series {
    let point = |rate: &f64| {
        let depth = if *rate > 0.0 { 1.0 / (1.0 + 10f64.powf((middle - rate.log10()) * 1.6)) } else { 0.0 };
        let y = 0.1 + 0.653 * (1.0 - depth);
        let half = 1.96 * (y * (1.0 - y) / 2000.0).sqrt();
        Point { x: *rate, y, low: Some((y - half).max(0.0)), high: Some((y + half).min(1.0)) }
    };
    Series { name: name.to_owned(), points: rates.iter().map(point).collect() }
}

fn curves() -> Curve {
    let rates = [0.0, 1e-9, 3e-9, 1e-8, 3e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4];
    Curve {
        title: "Accuracy against the rate of flips".to_owned(),
        x_title: "flips per exposed bit (ber)".to_owned(),
        y_title: "top-1 accuracy".to_owned(),
        x_scale: XScale::Log,
        y_unit: Unit::Percent,
        y_range: Some([0.0, 1.0]),
        series: vec![
            falling("mul + acc", -6.1, &rates),
            falling("out", -4.6, &rates),
            falling("weight", -5.3, &rates),
            falling("mul + acc, layers 1-4 in three copies", -5.6, &rates),
        ],
        references: vec![
            Reference { name: "fp32".to_owned(), y: 0.7553 },
            Reference { name: "int8 without faults".to_owned(), y: 0.7531 },
            Reference { name: "guessing".to_owned(), y: 0.1 },
        ],
        caption: caption(
            "as the legend says",
            "mul + acc: 0 to 59,400; out: 0 to 68.8; weight: 0 to 61.9",
            Some("95% Wilson intervals over 2,000 pictures, one trial each."),
        ),
    }
}

const LAYERS: [&str; 10] = [
    "model/conv2d/Conv2D",
    "model/conv2d_1/Conv2D",
    "model/conv2d_2/Conv2D",
    "model/conv2d_3/Conv2D",
    "model/conv2d_4/Conv2D",
    "model/conv2d_5/Conv2D (shortcut of the second stack)",
    "model/conv2d_6/Conv2D",
    "model/conv2d_7/Conv2D",
    "model/conv2d_8/Conv2D",
    "model/dense/MatMul",
];

fn heat_map(columns: usize, scale: ColourScale, title: &str) -> HeatMap {
    let cell = |row: usize, column: usize| {
        if row == 9 && column > columns - 4 || (row * 7 + column * 13) % 41 == 5 {
            return None;
        }
        let height = column as f64 / columns as f64;
        let value = 0.62 * (height * height * height) * (1.0 - 0.07 * row as f64) + 1e-5 * ((row + column) % 5) as f64;
        Some(Cell { value, low: value * 0.8, high: (value * 1.2 + 0.001).min(1.0), count: 9604 })
    };
    HeatMap {
        title: title.to_owned(),
        x_title: "bit".to_owned(),
        y_title: "layer".to_owned(),
        value_title: "SDC rate, top-1".to_owned(),
        unit: Unit::Percent,
        scale,
        columns: (0..columns).map(|bit| bit.to_string()).collect(),
        rows: LAYERS.iter().map(|layer| (*layer).to_owned()).collect(),
        cells: (0..LAYERS.len()).map(|row| (0..columns).map(|column| cell(row, column)).collect()).collect(),
        caption: caption("acc_out", "exactly 1", Some("One fault per inference; 9,604 trials per cell.")),
    }
}

fn shares() -> Shares {
    let category = |name: &str, tone| Category { name: name.to_owned(), tone: Some(tone) };
    let row = |name: &str, counts: [u64; 5]| ShareRow { name: name.to_owned(), counts: counts.to_vec() };
    Shares {
        title: "What became of the faults".to_owned(),
        categories: vec![
            category("masked", Tone::Neutral),
            category("benign", Tone::Calm),
            category("beneficial", Tone::Good),
            category("SDC top-5", Tone::Warning),
            category("SDC top-1", Tone::Bad),
        ],
        rows: vec![
            row("mul", [61_234, 30_100, 410, 2_100, 6_156]),
            row("acc", [41_000, 33_000, 800, 5_200, 20_000]),
            row("out", [12_345, 70_000, 655, 6_000, 11_000]),
            row("weight", [900, 88_000, 1_100, 4_000, 6_000]),
            row("model/conv2d_5/Conv2D (shortcut of the second stack)", [0, 0, 0, 0, 12]),
            row("nothing yet", [0, 0, 0, 0, 0]),
        ],
        caption: caption("one row per site", "exactly 1", None),
    }
}

fn bars(count: usize) -> Bars {
    let bar = |number: usize| {
        let value = 0.31 / (1.0 + number as f64 * 0.6);
        Bar {
            name: if count > 12 { format!("conv2d_3, channel {number}") } else { LAYERS[number % 10].to_owned() },
            value,
            low: value * 0.85,
            high: value * 1.18,
            count: 16_587,
        }
    };
    Bars {
        title: if count > 12 { "Most vulnerable channels" } else { "Vulnerability of layers" }.to_owned(),
        value_title: "SDC rate, top-1".to_owned(),
        name_title: if count > 12 { "channel" } else { "layer" }.to_owned(),
        unit: Unit::Percent,
        bars: (0..count).map(bar).collect(),
        caption: caption("mul + acc", "exactly 1", None),
    }
}

/// The report.
pub(crate) fn report() -> Report {
    let text = |text: &str| Block::Text { text: text.to_owned() };
    let definition = |term: &str, text: &str| Definition { term: term.to_owned(), text: text.to_owned() };
    let section = |title: &str, blocks| Section { title: title.to_owned(), blocks };
    let table = Table {
        title: "Accuracy".to_owned(),
        columns: ["Model", "Pictures", "Top-1", "Interval", "Images/s"].map(str::to_owned).to_vec(),
        rows: vec![
            ["fp32", "10,000", "75.53%", "74.68% to 76.36%", "2,310"].map(str::to_owned).to_vec(),
            ["int8, no faults", "10,000", "75.31%", "74.46% to 76.15%", "9,870"].map(str::to_owned).to_vec(),
        ],
    };
    let linear = Curve {
        title: "Accuracy against protected work".to_owned(),
        x_title: "penalty: additional MACs of all MACs, percent".to_owned(),
        x_scale: XScale::Linear,
        y_range: None,
        series: vec![Series {
            name: "mul + acc at 1e-6".to_owned(),
            points: [(0.0, 0.42), (25.0, 0.55), (60.0, 0.66), (110.0, 0.71), (200.0, 0.752)]
                .map(|(x, y)| Point { x, y, low: None, high: None })
                .to_vec(),
        }],
        references: Vec::new(),
        ..curves()
    };
    Report {
        title: "ResNet-8 on CIFAR-10 under soft errors".to_owned(),
        command: "chipfit inject resnet8.int8.onnx --data cifar10-jpeg.tar:test --campaign rates.toml -o runs/resnet8"
            .to_owned(),
        seed: 20_261_122,
        version: "0.1.0".to_owned(),
        sections: vec![
            section(
                "Summary",
                vec![
                    text("At 1e-6 flips per exposed bit, the accuracy of the network falls from 75.3% to 42.1%."),
                    Block::Definitions {
                        items: vec![
                            definition("mul + acc", "16 bits per product and 32 bits per update of an accumulator"),
                            definition("ber", "probability of a flip per exposed bit"),
                            definition("SDC top-1", "the first class differs from that of the fault-free run"),
                        ],
                    },
                    Block::Table(table),
                ],
            ),
            section("Rates", vec![Block::Curve(curves()), Block::Curve(linear)]),
            section(
                "Layers and bits",
                vec![
                    Block::HeatMap(heat_map(32, ColourScale::Linear, "Layer by bit")),
                    Block::HeatMap(heat_map(8, ColourScale::Log, "Layer by bit of the stored output")),
                    Block::Bars(bars(10)),
                    Block::Bars(bars(40)),
                ],
            ),
            section("Outcomes", vec![Block::Shares(shares())]),
        ],
    }
}
