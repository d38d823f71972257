//! Numbers as people read them.

use crate::model::Unit;

/// `value` with at most so many significant digits, without trailing zeros; powers of ten for the very small and large.
pub(crate) fn significant(value: f64, digits: usize) -> String {
    let text = rounded(value, digits);
    match text.split_once('e') {
        Some((mantissa, exponent)) if mantissa.contains('.') => format!("{}e{exponent}", trim(mantissa)),
        None if text.contains('.') => trim(&text).to_owned(),
        _ => text,
    }
}

/// `value` with exactly so many significant digits, so that numbers below each other can be compared; 0 is short.
fn rounded(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{value:.*e}", digits.saturating_sub(1));
    // After rounding: 99.96 has the exponent of 100.
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-3..=9).contains(&exponent) {
        let decimals = usize::try_from(i32::try_from(digits).unwrap_or(0) - 1 - exponent).unwrap_or(0);
        return format!("{value:.decimals$}");
    }
    format!("{mantissa}e{exponent}")
}

/// Without zeros at the end of the fraction.
fn trim(text: &str) -> &str {
    text.trim_end_matches('0').trim_end_matches('.')
}

/// A value in its unit.
pub(crate) fn value(value: f64, unit: Unit, digits: usize) -> String {
    match unit {
        Unit::Number => rounded(value, digits),
        Unit::Percent => format!("{}%", rounded(value * 100.0, digits)),
    }
}

/// `72.3% [71.4%, 73.2%]`.
pub(crate) fn with_interval([estimate, low, high]: [f64; 3], unit: Unit, digits: usize) -> String {
    let text = |number| value(number, unit, digits);
    format!("{} [{}, {}]", text(estimate), text(low), text(high))
}

/// `12,345`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `10⁻⁶`.
pub(crate) fn power_of_ten(exponent: i32) -> String {
    let superscript = |symbol| match symbol {
        '-' => '⁻',
        '0' => '⁰',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '4' => '⁴',
        '5' => '⁵',
        '6' => '⁶',
        '7' => '⁷',
        '8' => '⁸',
        '9' => '⁹',
        other => other,
    };
    let exponent: String = exponent.to_string().chars().map(superscript).collect();
    format!("10{exponent}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_enough() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (100.0, "100"),
            (12_345.0, "12345"),
            (0.012_34, "0.0123"),
            (99.96, "100"),
            (72.349, "72.3"),
            (1e-6, "1e-6"),
            (2.5e-9, "2.5e-9"),
            (-0.5, "-0.5"),
            (1e12, "1e12"),
            (150.0, "150"),
        ];
        for (number, text) in cases {
            assert_eq!(significant(number, 3), text, "{number}");
        }
        assert_eq!(value(0.7553, Unit::Percent, 4), "75.53%");
        assert_eq!(with_interval([0.5, 0.0, 1.0], Unit::Percent, 3), "50.0% [0%, 100%]");
        assert_eq!((value(0.25, Unit::Number, 3), value(2e-7, Unit::Percent, 2)), ("0.250".into(), "2.0e-5%".into()));
        assert_eq!((grouped(0), grouped(999), grouped(1000)), ("0".into(), "999".into(), "1,000".into()));
        assert_eq!(grouped(12_345_678), "12,345,678");
        assert_eq!((power_of_ten(-10), power_of_ten(3)), ("10⁻¹⁰".into(), "10³".into()));
    }
}
