//! What `inject` prints when it is done.

use anyhow::Result;
use chipfit_campaign::folder::RunFolder;
use chipfit_campaign::results::{Estimate, Shares};
use chipfit_campaign::run::Session;
use chipfit_campaign::statistics::Share;
use chipfit_campaign::{Shard, Summary};

use crate::terminal::{self, Table};

/// Rows of the tables of the worst.
const WORST: usize = 10;

/// Prints the end of a run, as text or as JSON.
pub(super) fn finished(
    wants_json: bool,
    folder: &RunFolder,
    session: Option<&Session>,
    summary: Option<&Summary>,
) -> Result<()> {
    if wants_json {
        let session = session.map(|s| {
            serde_json::json!({
                "made": s.made, "resumed": s.resumed, "seconds": s.seconds,
                "trials_per_second": rate(s), "complete": s.is_complete,
            })
        });
        let document = serde_json::json!({
            "run": folder.path().display().to_string(),
            "shard": folder.manifest.shard.map(|s| s.to_string()),
            "session": session,
            "summary": summary,
        });
        return terminal::print(&format!("{document:#}\n"));
    }
    let mut text = String::new();
    if let Some(session) = session {
        let resumed =
            if session.resumed > 0 { format!(" after {} from before", session.resumed) } else { String::new() };
        text.push_str(&format!("{} trials{resumed}, {:.0} a second\n", session.made, rate(session)));
    }
    match (folder.manifest.shard, summary) {
        (_, Some(summary)) => text.push_str(&of_summary(summary)),
        (Some(Shard { of, .. }), None) => text
            .push_str(&format!("this shard is done; when all {of} are: chipfit inject --merge RUN1 RUN2 ... -o RUN\n")),
        (None, None) => {}
    }
    text.push_str(&format!("run folder: {}\n", terminal::printable(&folder.path().display().to_string())));
    terminal::print(&text)
}

fn rate(session: &Session) -> f64 {
    if session.seconds > 0.0 { session.made as f64 / session.seconds } else { 0.0 }
}

fn percent(value: f64) -> String {
    format!("{:.2} %", 100.0 * value)
}

fn share(share: &Share) -> String {
    interval(share.value, share.low, share.high)
}

fn estimate(estimate: &Estimate) -> String {
    interval(estimate.value, estimate.low, estimate.high)
}

fn interval(value: f64, low: f64, high: f64) -> String {
    format!("{:.3} % [{:.3}, {:.3}]", 100.0 * value, 100.0 * low, 100.0 * high)
}

fn of_summary(summary: &Summary) -> String {
    let pictures = &summary.pictures;
    let mut text = format!(
        "{} pictures, clean model: top-1 {}, top-5 {}\n{} trials, {} intervals\n",
        pictures.count,
        percent(pictures.clean_top1.value),
        percent(pictures.clean_top5.value),
        summary.trials,
        percent(summary.confidence),
    );
    for curve in &summary.curves {
        text.push_str(&format!("\n{}\n", terminal::printable(&curve.name)));
        let mut table =
            Table::new(&["rate", ">expected flips", ">words struck", ">top-1", ">top-5", ">SDC", ">masked", ">trials"]);
        for point in &curve.points {
            table.row(vec![
                point.rate.map_or_else(|| "as the file".to_owned(), |r| format!("{} {r:e}", curve.unit)),
                format!("{:.4}", point.expected_flips),
                point.mean_strikes.map_or("?".to_owned(), |n| format!("{n:.4}")),
                share(&point.top1),
                share(&point.top5),
                percent(point.shares.sdc_top1.value),
                percent(point.shares.masked.value),
                point.trials.to_string(),
            ]);
        }
        text.push_str(&table.render());
        if let Some(point) = curve.points.first() {
            text.push_str(&format!("first point: {}\n", terminal::printable(&point.definition)));
        }
    }
    let Some(single) = &summary.single else { return text };
    text.push('\n');
    let mut table =
        Table::new(&["kind", ">exposed", ">trials", ">SDC top-1", ">SDC top-5", ">masked", ">benign", ">beneficial"]);
    for group in &single.overall {
        let Shares { masked, benign, beneficial, sdc_top1, sdc_top5, .. } = &group.shares;
        table.row(vec![
            group.kind.clone(),
            terminal::count(group.faults),
            group.trials.to_string(),
            estimate(sdc_top1),
            estimate(sdc_top5),
            percent(masked.value),
            percent(benign.value),
            percent(beneficial.value),
        ]);
    }
    text.push_str(&table.render());
    text.push_str("shares of one fault in one inference, drawn uniformly from all exposed bits\n");
    let mut cells: Vec<_> = single.cells.iter().collect();
    cells.sort_by(|a, b| b.shares.sdc_top1.low.total_cmp(&a.shares.sdc_top1.low));
    text.push_str("\nmost vulnerable cells, by the lower bound\n");
    let mut table = Table::new(&["layer", "site", ">bit", "kind", ">trials", ">SDC top-1"]);
    for cell in cells.iter().take(WORST) {
        table.row(vec![
            cell.layer_name.clone().unwrap_or_else(|| "all".to_owned()),
            cell.cell.site.map_or("all", |s| s.name()).to_owned(),
            cell.cell.bit.map_or("all".to_owned(), |b| b.to_string()),
            cell.cell.kind.clone(),
            cell.trials.to_string(),
            share(&cell.shares.sdc_top1),
        ]);
    }
    text.push_str(&table.render());
    text.push_str("\nmost vulnerable channels, by the lower bound\n");
    let mut table = Table::new(&["layer", ">channel", "kind", ">trials", ">SDC top-1"]);
    for channel in single.channels.iter().take(WORST) {
        table.row(vec![
            channel.layer.1.clone(),
            channel.channel.to_string(),
            channel.kind.clone(),
            channel.trials.to_string(),
            estimate(&channel.sdc_top1),
        ]);
    }
    text.push_str(&table.render());
    text.push_str("\nwhere masked faults died\n");
    let mut table = Table::new(&["layer", "why", ">trials", ">of all"]);
    let mut places: Vec<_> = single.masked.iter().collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.share.count));
    for place in places.iter().take(WORST) {
        table.row(vec![
            place.layer.as_ref().map_or("?".to_owned(), |l| l.1.clone()),
            place.by.clone(),
            place.share.count.to_string(),
            percent(place.share.value),
        ]);
    }
    text.push_str(&table.render());
    text
}
