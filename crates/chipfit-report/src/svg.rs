//! Drawing commands: a growing text of SVG elements with classes from the page's style.

use std::fmt::{Display, Write};

/// Width of a letter of the pictures' text, in units of the picture: an upper estimate for most texts.
pub(crate) const LETTER_WIDTH: f64 = 7.2;

/// Text between tags or in an attribute: markup characters become entities, control characters a replacement mark.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for symbol in text.chars() {
        match symbol {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(symbol),
            // Also the marks that turn the direction of writing around.
            _ if symbol.is_control() || matches!(symbol, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                escaped.push('\u{fffd}');
            }
            _ => escaped.push(symbol),
        }
    }
    escaped
}

/// At most `letters` letters, the middle left out.
pub(crate) fn shorten(text: &str, letters: usize) -> String {
    let count = text.chars().count();
    if count <= letters {
        return text.to_owned();
    }
    let keep = letters.saturating_sub(1);
    let (head, tail) = (keep / 2, keep - keep / 2);
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{start}…{end}")
}

/// The width of a text in a picture.
pub(crate) fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER_WIDTH
}

/// Where a text's position lies in it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// A picture being drawn.
pub(crate) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// A coordinate: two decimals are a hundredth of a pixel.
struct At(f64);

impl Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.2}", self.0);
        let text = text.trim_end_matches('0').trim_end_matches('.');
        f.write_str(if text == "-0" { "0" } else { text })
    }
}

impl Svg {
    pub(crate) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    pub(crate) fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(At);
        self.push(format_args!(r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#));
    }

    /// A rectangle, with a tooltip unless it is empty.
    pub(crate) fn rect(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2], title: &str) {
        let [x, y, width, height] = [x, y, width, height].map(At);
        let rect = format_args!(r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}""#);
        if title.is_empty() {
            self.push(format_args!("{rect}/>"));
        } else {
            self.push(format_args!("{rect}><title>{}</title></rect>", escape(title)));
        }
    }

    pub(crate) fn text(&mut self, class: &str, [x, y]: [f64; 2], anchor: Anchor, text: &str) {
        let (x, y, anchor) = (At(x), At(y), anchor.name());
        let text = escape(text);
        self.push(format_args!(r#"<text class="{class}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>"#));
    }

    /// A text whose whole form, if it is shortened, is its tooltip.
    pub(crate) fn label(&mut self, class: &str, at: [f64; 2], anchor: Anchor, text: &str, letters: usize) {
        let short = shorten(text, letters);
        if short == text {
            return self.text(class, at, anchor, text);
        }
        let [x, y] = at.map(At);
        let (anchor, short, text) = (anchor.name(), escape(&short), escape(text));
        self.push(format_args!(
            r#"<text class="{class}" x="{x}" y="{y}" text-anchor="{anchor}">{short}<title>{text}</title></text>"#
        ));
    }

    /// A text that is turned around its position, counterclockwise by a right angle.
    pub(crate) fn upright(&mut self, class: &str, [x, y]: [f64; 2], anchor: Anchor, text: &str) {
        let (x, y, anchor, text) = (At(x), At(y), anchor.name(), escape(text));
        self.push(format_args!(
            r#"<text class="{class}" transform="translate({x} {y}) rotate(-90)" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    /// A line through all points.
    pub(crate) fn polyline(&mut self, class: &str, points: &[[f64; 2]]) {
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{},{}", At(*x), At(*y))).collect();
        self.push(format_args!(r#"<polyline class="{class}" points="{}"/>"#, points.join(" ")));
    }

    /// The mark of a line's points, a shape for every line, with a tooltip unless it is empty.
    pub(crate) fn mark(&mut self, line: usize, [x, y]: [f64; 2], title: &str) {
        let shape = match line % 4 {
            0 => format!(r#"<circle cx="{}" cy="{}" r="4""#, At(x), At(y)),
            1 => format!(r#"<rect x="{}" y="{}" width="7.6" height="7.6""#, At(x - 3.8), At(y - 3.8)),
            2 => format!(
                r#"<polygon points="{},{} {},{} {},{}""#,
                At(x),
                At(y - 5.2),
                At(x + 4.8),
                At(y + 3.6),
                At(x - 4.8),
                At(y + 3.6)
            ),
            _ => format!(
                r#"<polygon points="{},{} {},{} {},{} {},{}""#,
                At(x),
                At(y - 5.4),
                At(x + 5.4),
                At(y),
                At(x),
                At(y + 5.4),
                At(x - 5.4),
                At(y)
            ),
        };
        let name = shape.split(' ').next().unwrap_or_default().trim_start_matches('<').to_owned();
        if title.is_empty() {
            self.push(format_args!(r#"{shape} class="mark"/>"#));
        } else {
            self.push(format_args!(r#"{shape} class="mark"><title>{}</title></{name}>"#, escape(title)));
        }
    }

    /// What follows belongs to a class, until [`Svg::end`].
    pub(crate) fn begin(&mut self, class: &str) {
        self.push(format_args!(r#"<g class="{class}">"#));
    }

    pub(crate) fn end(&mut self) {
        self.push(format_args!("</g>"));
    }

    /// The whole element; `label` says in words what is seen.
    pub(crate) fn finish(self, label: &str) -> String {
        let (width, height) = (At(self.width), At(self.height));
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
             aria-label=\"{}\">\n{}</svg>\n",
            escape(label),
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_add_markup() {
        assert_eq!(escape("<a href=\"x\">&'\0\u{202e}"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\u{fffd}\u{fffd}");
        assert_eq!(shorten("abcdefgh", 5), "ab…gh");
        assert_eq!(shorten("äöü", 3), "äöü");
    }
}
