//! `chipfit report`: the results of a run folder as one HTML page.
//!
//! Only arranges what `summary.json` says: every figure on the page stands there. Under each picture: the sites, the
//! definition of the rate, the expected flips per inference; at the top: the command and the seed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use chipfit_campaign::Summary;
use chipfit_campaign::file::{Mode, Single};
use chipfit_campaign::folder::RunFolder;
use chipfit_campaign::results::{CellSummary, CurveSummary, Group, PointSummary, SingleSummary};
use chipfit_campaign::statistics::Share;
use chipfit_model::onnx::write_atomically;
use chipfit_report::{
    Bar, Bars, Block, Caption, Category, Cell, Curve, Definition, HeatMap, Point, Reference, Report, Section, Series,
    ShareRow, Shares, Table, Tone, Unit, XScale,
};
use clap::Args;

use crate::failure::usage;
use crate::inject::{command_line, summary_of};
use crate::{retrain, terminal};

/// Bars of the most vulnerable channels and of the places of masking.
const WORST: usize = 30;

/// Make one HTML page of the results of a campaign or a retraining run.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The run folder of a finished campaign or retraining run
    run: PathBuf,
    /// The page to write; never overwritten without --force
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the page where it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// Writes the page.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let output = &arguments.output;
    if output.exists() && !arguments.force {
        return Err(usage(format!("-o '{}' exists; it is only replaced with --force", output.display())));
    }
    let html = if retrain::folder::Folder::is_one(&arguments.run) {
        retrain::report(&arguments.run)?.to_html()?
    } else {
        let folder = RunFolder::open(&arguments.run)?;
        let summary = summary_of(&folder)?;
        page(&folder, &summary).to_html()?
    };
    write_atomically(output, html.as_bytes()).with_context(|| format!("cannot write '{}'", output.display()))?;
    if arguments.json {
        let document = serde_json::json!({ "output": output.display().to_string(), "bytes": html.len() });
        return terminal::print(&format!("{document:#}\n"));
    }
    terminal::print(&format!("{} written\n", terminal::printable(&output.display().to_string())))
}

fn page(folder: &RunFolder, summary: &Summary) -> Report {
    let mut sections = vec![Section { title: "Run".to_owned(), blocks: vec![about(folder, summary)] }];
    if !summary.curves.is_empty() {
        sections.extend(rate_sections(summary));
    }
    if let (Some(single), Mode::Single(faults)) = (&summary.single, &folder.campaign.mode) {
        sections.extend(single_sections(summary, single, faults));
    }
    Report {
        title: "Fault campaign".to_owned(),
        command: command_line(&folder.manifest.command),
        seed: folder.campaign.seed,
        version: summary.identity.version.clone(),
        sections,
    }
}

fn percent(value: f64) -> String {
    format!("{:.3} %", 100.0 * value)
}

fn with_interval(share: &Share) -> String {
    format!(
        "{} ({} of {}; {} to {})",
        percent(share.value),
        share.count,
        share.of,
        percent(share.low),
        percent(share.high)
    )
}

fn about(folder: &RunFolder, summary: &Summary) -> Block {
    let identity = &summary.identity;
    let item = |term: &str, text: String| Definition { term: term.to_owned(), text };
    let mut items = vec![
        item("Model (SHA-256)", identity.model.clone()),
        item("Data (fingerprint)", identity.data.clone()),
        item("Preprocessing", identity.preprocessing.lines().collect::<Vec<_>>().join("; ")),
        item("Processor", identity.processor.clone()),
        item("Pictures", summary.pictures.count.to_string()),
        item("Clean top-1", with_interval(&summary.pictures.clean_top1)),
        item("Clean top-5", with_interval(&summary.pictures.clean_top5)),
        item("Trials", summary.trials.to_string()),
        item("Intervals", format!("{} confidence", percent(summary.confidence))),
    ];
    items.extend(identity.inputs.iter().map(|(name, hash)| item(&format!("File {name} (SHA-256)"), hash.clone())));
    if let Some(plan) = &folder.campaign.tmr {
        items.push(item("Triple modular redundancy", plan.display().to_string()));
    }
    Block::Definitions { items }
}

/// What a number on the axis of a curve means.
fn unit_words(unit: &str) -> &'static str {
    match unit {
        "ber" => "probability per exposed bit (per word for kinds that replace it) and inference",
        "count" => "exactly so many faults per inference",
        "rate" => "the preset's own rate",
        _ => "as the faults file says",
    }
}

fn flips_of<'a>(points: impl Iterator<Item = &'a PointSummary>) -> String {
    let (low, high) = points.fold((f64::INFINITY, 0.0f64), |(low, high), point| {
        (low.min(point.expected_flips), high.max(point.expected_flips))
    });
    if low >= high { format!("{high:.4}") } else { format!("{low:.4} to {high:.4}") }
}

fn rate_sections(summary: &Summary) -> Vec<Section> {
    let mut by_unit: BTreeMap<&str, Vec<&CurveSummary>> = BTreeMap::new();
    for curve in &summary.curves {
        by_unit.entry(&curve.unit).or_default().push(curve);
    }
    let mut accuracy = Vec::new();
    for (unit, curves) in by_unit.iter().filter(|(unit, _)| **unit != "file") {
        for (name, clean, of) in [
            ("top-1", summary.pictures.clean_top1, (|p| p.top1) as fn(&PointSummary) -> Share),
            ("top-5", summary.pictures.clean_top5, |p| p.top5),
        ] {
            accuracy.push(Block::Curve(Curve {
                title: format!("Accuracy {name} over {unit}"),
                x_title: (*unit).to_owned(),
                y_title: format!("{name} accuracy"),
                x_scale: XScale::Log,
                y_unit: Unit::Percent,
                y_range: Some([0.0, 1.0]),
                series: curves.iter().map(|curve| series(curve, of)).collect(),
                references: vec![Reference { name: "no faults".to_owned(), y: clean.value }],
                caption: Caption {
                    site: curves.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join("; "),
                    rate: format!("{unit}: {}", unit_words(unit)),
                    flips: curves
                        .iter()
                        .map(|c| format!("{}: {}", c.name, flips_of(c.points.iter())))
                        .collect::<Vec<_>>()
                        .join("; "),
                    note: Some("Wilson intervals over all inferences (pictures x repeats).".to_owned()),
                },
            }));
        }
    }
    let mut rows = Vec::new();
    for curve in &summary.curves {
        rows.extend(curve.points.iter().map(|point| {
            vec![
                curve.name.clone(),
                point.rate.map_or(String::new(), |r| format!("{} {r:e}", curve.unit)),
                point.definition.clone(),
                format!("{:.4}", point.expected_flips),
                point.mean_strikes.map_or("?".to_owned(), |n| format!("{n:.4}")),
                point.trials.to_string(),
                with_interval(&point.top1),
                with_interval(&point.top5),
            ]
        }));
    }
    accuracy.push(Block::Table(Table {
        title: "All points".to_owned(),
        columns: ["curve", "rate", "definition", "expected flips", "words struck", "inferences", "top-1", "top-5"]
            .map(str::to_owned)
            .to_vec(),
        rows,
    }));
    let outcomes = summary.curves.iter().map(|curve| {
        Block::Shares(Shares {
            title: format!("Outcomes of {}", curve.name),
            categories: categories(),
            rows: curve
                .points
                .iter()
                .map(|point| ShareRow {
                    name: point.rate.map_or("file".to_owned(), |r| format!("{} {r:e}", curve.unit)),
                    counts: outcome_counts(&point.shares.map(|s| s.count)),
                })
                .collect(),
            caption: Caption {
                site: curve.name.clone(),
                rate: format!("{}: {}", curve.unit, unit_words(&curve.unit)),
                flips: flips_of(curve.points.iter()),
                note: None,
            },
        })
    });
    vec![
        Section { title: "Accuracy over the rate".to_owned(), blocks: accuracy },
        Section { title: "Outcomes".to_owned(), blocks: outcomes.collect() },
    ]
}

fn series(curve: &CurveSummary, of: fn(&PointSummary) -> Share) -> Series {
    let points = curve.points.iter().filter_map(|point| {
        let share = of(point);
        Some(Point { x: point.rate?, y: share.value, low: Some(share.low), high: Some(share.high) })
    });
    Series { name: curve.name.clone(), points: points.collect() }
}

fn categories() -> Vec<Category> {
    [
        ("masked", Tone::Neutral),
        ("benign", Tone::Calm),
        ("beneficial", Tone::Good),
        ("SDC top-1 only", Tone::Warning),
        ("SDC top-5", Tone::Bad),
    ]
    .map(|(name, tone)| Category { name: name.to_owned(), tone: Some(tone) })
    .to_vec()
}

fn outcome_counts(shares: &chipfit_campaign::results::Shares<u64>) -> Vec<u64> {
    let top1_only = shares.sdc_top1.saturating_sub(shares.sdc_top5);
    vec![shares.masked, shares.benign, shares.beneficial, top1_only, shares.sdc_top5]
}

/// What stands under every picture of a single-fault campaign.
fn one_fault(site: impl Into<String>, note: impl Into<String>) -> Caption {
    Caption {
        site: site.into(),
        rate: "one fault in one inference; fault and picture drawn uniformly from all that a cell has".to_owned(),
        flips: "exactly one fault".to_owned(),
        note: Some(note.into()),
    }
}

fn single_sections(summary: &Summary, single: &SingleSummary, faults: &Single) -> Vec<Section> {
    let sites = faults.sites.iter().map(|s| s.name()).collect::<Vec<_>>().join(" + ");
    let weighted = "Cells are weighed with their numbers of exposed bits.";
    let kinds: Vec<String> = single.overall.iter().map(|group| group.kind.clone()).collect();
    let outcome_rows = kinds.iter().map(|kind| {
        let mut counts = vec![0u64; categories().len()];
        for cell in single.cells.iter().filter(|c| c.cell.kind == *kind) {
            let own = outcome_counts(&cell.shares.map(|s| s.count));
            counts.iter_mut().zip(own).for_each(|(sum, n)| *sum += n);
        }
        ShareRow { name: kind.clone(), counts }
    });
    let overall = vec![
        Block::Shares(Shares {
            title: "Outcomes of all trials".to_owned(),
            categories: categories(),
            rows: outcome_rows.collect(),
            caption: one_fault(sites.clone(), "Counts of trials, not weighed."),
        }),
        Block::Table(group_table("Over all exposed bits", &single.overall)),
    ];
    let mut maps = Vec::new();
    let mut tables: BTreeMap<(String, String), Vec<&CellSummary>> = BTreeMap::new();
    for cell in single.cells.iter().filter(|c| c.cell.layer.is_some() && c.cell.bit.is_some()) {
        let site = cell.cell.site.map_or_else(|| sites.clone(), |s| s.name().to_owned());
        tables.entry((cell.cell.kind.clone(), site)).or_default().push(cell);
    }
    for ((kind, site), cells) in tables {
        maps.push(Block::HeatMap(heat_map(&kind, &site, &cells)));
    }
    let mut vulnerable = Vec::new();
    for kind in &kinds {
        let own = |groups: &[Group]| groups.iter().filter(|g| g.kind == *kind).cloned().collect::<Vec<_>>();
        vulnerable.push(Block::Bars(bars(
            &format!("SDC top-1 per layer ({kind})"),
            "layer",
            own(&single.layers).iter().map(|g| (layer_name(g), g)),
            one_fault(sites.clone(), weighted),
        )));
        vulnerable.push(Block::Bars(bars(
            &format!("SDC top-1 per bit ({kind})"),
            "bit",
            own(&single.bits).iter().map(|g| (bit_name(g), g)),
            one_fault(sites.clone(), weighted),
        )));
        let channels = single.channels.iter().filter(|c| c.kind == *kind).take(WORST);
        vulnerable.push(Block::Bars(Bars {
            title: format!("Most vulnerable channels ({kind}), by the lower bound"),
            value_title: "SDC top-1".to_owned(),
            name_title: "layer and output channel".to_owned(),
            unit: Unit::Percent,
            bars: channels
                .map(|c| Bar {
                    name: format!("{} #{}", c.layer.1, c.channel),
                    value: c.sdc_top1.value,
                    low: c.sdc_top1.low,
                    high: c.sdc_top1.high,
                    count: c.trials,
                })
                .collect(),
            caption: one_fault(
                sites.clone(),
                "The worst of many are named: expect some of them to be worse by chance.",
            ),
        }));
    }
    let mut places: Vec<_> = single.masked.iter().collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.share.count));
    let masked = Block::Bars(Bars {
        title: "Where masked faults died".to_owned(),
        value_title: "share of all trials".to_owned(),
        name_title: "layer and reason".to_owned(),
        unit: Unit::Percent,
        bars: places
            .iter()
            .take(WORST)
            .map(|place| Bar {
                name: format!("{}: {}", place.layer.as_ref().map_or("?", |l| l.1.as_str()), place.by),
                value: place.share.value,
                low: place.share.low,
                high: place.share.high,
                count: place.share.count,
            })
            .collect(),
        caption: one_fault(sites, format!("Of {} trials; counts of trials, not weighed.", summary.trials)),
    });
    let section = |title: &str, blocks| Section { title: title.to_owned(), blocks };
    let mut sections = vec![section("Outcomes", overall)];
    if !maps.is_empty() {
        sections.push(section("Layer by bit", maps));
    }
    sections.push(section("Vulnerability", vulnerable));
    sections.push(section("Masking", vec![masked]));
    sections
}

fn layer_name(group: &Group) -> String {
    group.layer.as_ref().map_or("all".to_owned(), |(step, name)| format!("{step} {name}"))
}

fn bit_name(group: &Group) -> String {
    let site = group.site.map_or("all", |s| s.name());
    group.bit.map_or_else(|| site.to_owned(), |bit| format!("{site} bit {bit}"))
}

fn bars<'a>(title: &str, what: &str, groups: impl Iterator<Item = (String, &'a Group)>, caption: Caption) -> Bars {
    Bars {
        title: title.to_owned(),
        value_title: "SDC top-1".to_owned(),
        name_title: what.to_owned(),
        unit: Unit::Percent,
        bars: groups
            .map(|(name, group)| {
                let sdc = &group.shares.sdc_top1;
                Bar { name, value: sdc.value, low: sdc.low, high: sdc.high, count: group.trials }
            })
            .collect(),
        caption,
    }
}

fn heat_map(kind: &str, site: &str, cells: &[&CellSummary]) -> HeatMap {
    let mut layers: Vec<(usize, String)> =
        cells.iter().filter_map(|c| Some((c.cell.layer?, c.layer_name.clone().unwrap_or_default()))).collect();
    layers.sort();
    layers.dedup();
    let mut bits: Vec<u32> = cells.iter().filter_map(|c| c.cell.bit).collect();
    bits.sort_unstable();
    bits.dedup();
    let known: BTreeMap<(usize, u32), Cell> = cells
        .iter()
        .filter_map(|c| {
            let sdc = &c.shares.sdc_top1;
            Some((
                (c.cell.layer?, c.cell.bit?),
                Cell { value: sdc.value, low: sdc.low, high: sdc.high, count: c.trials },
            ))
        })
        .collect();
    HeatMap {
        title: format!("SDC top-1 of one {kind} at {site}"),
        x_title: "bit".to_owned(),
        y_title: "layer".to_owned(),
        value_title: "SDC top-1".to_owned(),
        unit: Unit::Percent,
        scale: chipfit_report::ColourScale::Log,
        columns: bits.iter().map(u32::to_string).collect(),
        rows: layers.iter().map(|(step, name)| format!("{step} {name}")).collect(),
        cells: layers
            .iter()
            .map(|(layer, _)| bits.iter().map(|bit| known.get(&(*layer, *bit)).copied()).collect())
            .collect(),
        caption: one_fault(site, "Wilson intervals in the tooltips and in the table."),
    }
}

fn group_table(title: &str, groups: &[Group]) -> Table {
    let cell = |e: &chipfit_campaign::results::Estimate| {
        format!("{} ({} to {})", percent(e.value), percent(e.low), percent(e.high))
    };
    Table {
        title: title.to_owned(),
        columns: [
            "kind",
            "exposed bits",
            "trials",
            "SDC top-1",
            "SDC top-5",
            "harmful",
            "masked",
            "benign",
            "beneficial",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: groups
            .iter()
            .map(|g| {
                let s = &g.shares;
                let mut row = vec![g.kind.clone(), g.faults.to_string(), g.trials.to_string()];
                row.extend([&s.sdc_top1, &s.sdc_top5, &s.harmful, &s.masked, &s.benign, &s.beneficial].map(cell));
                row
            })
            .collect(),
    }
}
