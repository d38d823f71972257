//! The page around the pictures: head, contents, captions, tables.

use std::fmt::Write;

use crate::check::{self, ReportError};
use crate::model::{Block, Caption, Report, Table};
use crate::svg::{Svg, escape};
use crate::{bars, curve, heat_map, shares};

/// The style of page and pictures.
const STYLE: &str = include_str!("style.css");
/// No script, no request: only styles that are in the page.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// What cells without a value are filled with, once for all heat maps.
const HATCH: &str = "<svg width=\"0\" height=\"0\" class=\"off\" aria-hidden=\"true\"><defs>\
    <pattern id=\"unmeasured\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">\
    <path class=\"hatch\" d=\"M0 6L6 0\"/></pattern></defs></svg>\n";

impl Report {
    /// The page, whole: one HTML file.
    ///
    /// # Errors
    /// [`ReportError`] naming the block that cannot be drawn.
    pub fn to_html(&self) -> Result<String, ReportError> {
        check::report(self)?;
        let mut page = Page(String::new());
        let title = escape(&self.title);
        page.add(&format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta name=\"generator\" content=\"chipfit {}\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n",
            escape(&self.version)
        ));
        page.add(&format!(
            "<dl class=\"repeat\">\n<div><dt>Command</dt><dd><code>{}</code></dd></div>\n\
             <div><dt>Seed</dt><dd><code>{}</code></dd></div>\n\
             <div><dt>Version</dt><dd><code>{}</code></dd></div>\n</dl>\n</header>\n",
            escape(&self.command),
            self.seed,
            escape(&self.version)
        ));
        if self.sections.len() > 1 {
            page.add("<nav aria-label=\"Contents\"><ol>\n");
            for (number, section) in self.sections.iter().enumerate() {
                page.add(&format!("<li><a href=\"#s{number}\">{}</a></li>\n", escape(&section.title)));
            }
            page.add("</ol></nav>\n");
        }
        let mut blocks = self.sections.iter().flat_map(|section| &section.blocks);
        if blocks.any(|block| matches!(block, Block::HeatMap(_))) {
            page.add(HATCH);
        }
        page.add("<main>\n");
        for (number, section) in self.sections.iter().enumerate() {
            page.add(&format!("<section id=\"s{number}\">\n<h2>{}</h2>\n", escape(&section.title)));
            section.blocks.iter().for_each(|block| page.block(block));
            page.add("</section>\n");
        }
        page.add("</main>\n</body>\n</html>\n");
        Ok(page.0)
    }
}

/// A page being written.
struct Page(String);

impl Page {
    fn add(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn block(&mut self, block: &Block) {
        match block {
            Block::Text { text } => self.add(&format!("<p>{}</p>\n", escape(text))),
            Block::Definitions { items } => {
                self.add("<dl class=\"definitions\">\n");
                for item in items {
                    let (term, text) = (escape(&item.term), escape(&item.text));
                    self.add(&format!("<div><dt>{term}</dt><dd>{text}</dd></div>\n"));
                }
                self.add("</dl>\n");
            }
            Block::Table(table) => self.table(table),
            Block::Curve(plot) => {
                let names = plot.series.iter().map(|series| series.name.as_str()).enumerate();
                let legend = legend(names.map(|(number, name)| (line_swatch(number), name)));
                self.figure(&plot.title, &legend, &curve::draw(plot), &plot.caption, curve::numbers(plot));
            }
            Block::HeatMap(map) => {
                self.figure(&map.title, "", &heat_map::draw(map), &map.caption, heat_map::numbers(map));
            }
            Block::Shares(stack) => {
                let names = stack.categories.iter().map(|category| category.name.as_str()).enumerate();
                let legend = legend(names.map(|(number, name)| (area_swatch(shares::colour(stack, number)), name)));
                self.figure(&stack.title, &legend, &shares::draw(stack), &stack.caption, shares::numbers(stack));
            }
            Block::Bars(chart) => {
                self.figure(&chart.title, "", &bars::draw(chart), &chart.caption, bars::numbers(chart));
            }
        }
    }

    /// A picture with its heading, legend, caption and numbers.
    fn figure(
        &mut self,
        title: &str,
        legend: &str,
        picture: &str,
        caption: &Caption,
        numbers: (Vec<String>, Vec<Vec<String>>),
    ) {
        let (columns, rows) = numbers;
        self.add(&format!("<figure>\n<h3>{}</h3>\n{legend}<div class=\"picture\">\n{picture}</div>\n", escape(title)));
        self.add(&format!(
            "<figcaption>\n<dl>\n<div><dt>Site</dt><dd>{}</dd></div>\n<div><dt>Rate</dt><dd>{}</dd></div>\n\
             <div><dt>Expected flips per inference</dt><dd>{}</dd></div>\n</dl>\n",
            escape(&caption.site),
            escape(&caption.rate),
            escape(&caption.flips)
        ));
        if let Some(note) = &caption.note {
            self.add(&format!("<p>{}</p>\n", escape(note)));
        }
        self.add("</figcaption>\n<details>\n<summary>Values of this picture</summary>\n");
        self.grid(&columns, &rows);
        self.add("</details>\n</figure>\n");
    }

    fn table(&mut self, table: &Table) {
        self.add(&format!("<div class=\"table\">\n<h3>{}</h3>\n", escape(&table.title)));
        self.grid(&table.columns, &table.rows);
        self.add("</div>\n");
    }

    fn grid(&mut self, columns: &[String], rows: &[Vec<String>]) {
        let is_number: Vec<bool> = (0..columns.len())
            .map(|column| {
                let mut cells =
                    rows.iter().filter_map(|row| row.get(column)).filter(|cell| !cell.is_empty()).peekable();
                cells.peek().is_some() && cells.all(|cell| cell == "–" || begins_like_a_number(cell))
            })
            .collect();
        let class = |column: usize| if is_number.get(column) == Some(&true) { " class=\"number\"" } else { "" };
        self.add("<div class=\"scroll\"><table>\n<thead><tr>");
        for (number, column) in columns.iter().enumerate() {
            self.add(&format!("<th scope=\"col\"{}>{}</th>", class(number), escape(column)));
        }
        self.add("</tr></thead>\n<tbody>\n");
        for row in rows {
            self.add("<tr>");
            for (number, cell) in row.iter().enumerate() {
                self.add(&format!("<td{}>{}</td>", class(number), escape(cell)));
            }
            self.add("</tr>\n");
        }
        self.add("</tbody>\n</table></div>\n");
    }
}

fn begins_like_a_number(text: &str) -> bool {
    let mut symbols = text.chars();
    match symbols.next() {
        Some(first) if first.is_ascii_digit() => true,
        Some('-' | '+' | '−' | '.') => symbols.next().is_some_and(|second| second.is_ascii_digit()),
        _ => false,
    }
}

fn legend<'a>(entries: impl Iterator<Item = (String, &'a str)>) -> String {
    let mut list = "<ul class=\"legend\">\n".to_owned();
    for (swatch, name) in entries {
        // Writing to a string cannot fail.
        let _ = writeln!(list, "<li>{swatch}{}</li>", escape(name));
    }
    list.push_str("</ul>\n");
    list
}

/// A short piece of a line with its mark; it says nothing that its name does not.
fn line_swatch(number: usize) -> String {
    let mut svg = Svg::new(30.0, 14.0);
    svg.begin(&format!("series c{} dash{}", number % 7, number % 4));
    svg.polyline("line", &[[1.0, 7.0], [29.0, 7.0]]);
    svg.mark(number, [15.0, 7.0], "");
    svg.end();
    hidden(svg)
}

fn area_swatch(class: &str) -> String {
    let mut svg = Svg::new(14.0, 14.0);
    svg.rect(&format!("share {class}"), [1.0, 1.0], [12.0, 12.0], "");
    hidden(svg)
}

/// A picture that is left out when the page is read aloud.
fn hidden(svg: Svg) -> String {
    svg.finish("").replacen("role=\"img\" aria-label=\"\"", "aria-hidden=\"true\"", 1).replace('\n', "")
}
