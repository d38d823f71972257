//! Reports as one HTML file: plots with intervals, heat maps, shares, bars and tables.
//!
//! A [`Report`] is plain data (serde) that says what is shown; [`Report::to_html`] makes the page. The page takes
//! nothing from outside and runs no script: styles are inline, pictures are SVG, tooltips are `<title>` elements, and
//! its content policy forbids every request. Colours follow the reader's light or dark scheme; on paper it is light.
//!
//! Promises: the same report gives the same bytes; every text is escaped, so that no model, layer or file name can add
//! markup; every picture has its numbers in a table below it and says which site, rate and flips it shows
//! ([`Caption`]); numbers that cannot be drawn are a [`ReportError`], never a broken picture.
//!
//! Read [`Report`] for what can be shown, `page` for the frame, `curve`, `heat_map`, `shares` and `bars` for the
//! pictures, `scale` for axes, `svg` for the drawing commands.
#![forbid(unsafe_code)]

mod bars;
mod check;
mod curve;
mod heat_map;
mod model;
mod number;
mod page;
mod scale;
mod shares;
mod svg;

pub use check::ReportError;
pub use model::{
    Bar, Bars, Block, Caption, Category, Cell, ColourScale, Curve, Definition, HeatMap, Point, Reference, Report,
    Section, Series, ShareRow, Shares, Table, Tone, Unit, XScale,
};
