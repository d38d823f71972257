//! What a report shows, as data.

use serde::{Deserialize, Serialize};

/// A whole report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Of the page.
    pub title: String,
    /// The command line that makes the same results again.
    pub command: String,
    /// The seed of all random draws.
    pub seed: u64,
    /// The version that made the results.
    pub version: String,
    /// In reading order.
    pub sections: Vec<Section>,
}

/// A part of a report, with an entry in its contents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// In reading order.
    pub blocks: Vec<Block>,
}

/// One thing in a section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Block {
    /// A paragraph.
    Text {
        /// Plain text.
        text: String,
    },
    /// Terms and what they are.
    Definitions {
        /// In reading order.
        items: Vec<Definition>,
    },
    /// A table.
    Table(Table),
    /// A line plot.
    Curve(Curve),
    /// A heat map.
    HeatMap(HeatMap),
    /// Stacked shares.
    Shares(Shares),
    /// Bars.
    Bars(Bars),
}

/// A term and what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The term.
    pub term: String,
    /// Its value or meaning.
    pub text: String,
}

/// A table of texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Above it.
    pub title: String,
    /// Headings of the columns.
    pub columns: Vec<String>,
    /// Rows of as many cells as there are columns; a column of numbers is set flush right.
    pub rows: Vec<Vec<String>>,
}

/// What stands under every picture, so that its figures can be compared with others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// The fault sites, such as `mul + acc`.
    pub site: String,
    /// What the rate means, in words.
    pub rate: String,
    /// Expected flips per inference, with the range where it varies.
    pub flips: String,
    /// What else must be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// As they are.
    #[default]
    Number,
    /// Shares of 1, written as percentages.
    Percent,
}

/// The horizontal axis of a [`Curve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XScale {
    /// Decades; a point at 0 stands left of a gap in the axis.
    #[default]
    Log,
    /// Even.
    Linear,
}

/// Lines of points with intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Above the picture.
    pub title: String,
    /// Of the horizontal axis.
    pub x_title: String,
    /// Of the vertical axis.
    pub y_title: String,
    /// Horizontal scale.
    #[serde(default)]
    pub x_scale: XScale,
    /// How the vertical values are written.
    #[serde(default)]
    pub y_unit: Unit,
    /// Bottom and top of the vertical axis; found from the values, with 0, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y_range: Option<[f64; 2]>,
    /// The lines.
    pub series: Vec<Series>,
    /// Levels to compare with.
    #[serde(default)]
    pub references: Vec<Reference>,
    /// Under the picture.
    pub caption: Caption,
}

/// One line of a [`Curve`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// In any order; drawn by ascending `x`.
    pub points: Vec<Point>,
}

/// One point of a line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Not negative on a logarithmic axis.
    pub x: f64,
    /// The estimate.
    pub y: f64,
    /// The interval's ends, `low <= y <= high`; both or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// See `low`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
}

/// A level across a [`Curve`], such as the accuracy without faults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Beside the line.
    pub name: String,
    /// The level.
    pub y: f64,
}

/// How values become colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColourScale {
    /// Even steps from 0 to the largest value.
    #[default]
    Linear,
    /// Even factors from the least to the largest positive value; 0 has the first colour.
    Log,
}

/// A table as colours, such as layers by bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeatMap {
    /// Above the picture.
    pub title: String,
    /// What the columns are.
    pub x_title: String,
    /// What the rows are.
    pub y_title: String,
    /// What the values are.
    pub value_title: String,
    /// How values are written.
    #[serde(default)]
    pub unit: Unit,
    /// How values become colours.
    #[serde(default)]
    pub scale: ColourScale,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// For every row, for every column; `None` where nothing was measured.
    pub cells: Vec<Vec<Option<Cell>>>,
    /// Under the picture.
    pub caption: Caption,
}

/// One value of a [`HeatMap`], not negative.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The estimate.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
    /// Trials behind it.
    pub count: u64,
}

/// What a category means for the reader, and so its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tone {
    /// Grey.
    Neutral,
    /// Blue.
    Calm,
    /// Green.
    Good,
    /// Amber.
    Warning,
    /// Red.
    Bad,
}

/// Rows of parts of a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    /// Above the picture.
    pub title: String,
    /// The parts, in the order in which they are stacked.
    pub categories: Vec<Category>,
    /// One bar each.
    pub rows: Vec<ShareRow>,
    /// Under the picture.
    pub caption: Caption,
}

/// One part of [`Shares`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Category {
    /// In the legend.
    pub name: String,
    /// Its colour; by position when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tone: Option<Tone>,
}

/// One bar of [`Shares`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareRow {
    /// Beside the bar.
    pub name: String,
    /// One count per category; the bar shows their shares of the sum.
    pub counts: Vec<u64>,
}

/// Bars with intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bars {
    /// Above the picture.
    pub title: String,
    /// What the values are.
    pub value_title: String,
    /// What each bar stands for, such as `layer`.
    pub name_title: String,
    /// How values are written.
    #[serde(default)]
    pub unit: Unit,
    /// From top to bottom.
    pub bars: Vec<Bar>,
    /// Under the picture.
    pub caption: Caption,
}

/// One bar, not negative.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// Beside it.
    pub name: String,
    /// The estimate.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
    /// Trials behind it.
    pub count: u64,
}
