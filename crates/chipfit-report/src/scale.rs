//! Axes: from values to positions, and where the ticks are.

use crate::model::Unit;
use crate::number;

/// Even positions between two values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear {
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Position of `from` and of `to`.
    pub(crate) at: [f64; 2],
}

impl Linear {
    pub(crate) fn position(&self, value: f64) -> f64 {
        let [start, end] = self.at;
        let share = if self.to > self.from { (value - self.from) / (self.to - self.from) } else { 0.5 };
        start + (end - start) * share
    }
}

/// A tick and its label; a label may be empty.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    pub(crate) value: f64,
    pub(crate) label: String,
}

/// A step of 1, 2 or 5 times a power of ten that cuts `span` into at most `most` parts.
fn step(span: f64, most: usize) -> f64 {
    let rough = span / most.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999_999).unwrap_or(10.0);
    factor * power
}

/// An even axis that holds `low..=high`, widened to whole steps, and its ticks.
pub(crate) fn nice(low: f64, high: f64, most: usize, unit: Unit) -> (f64, f64, Vec<Tick>) {
    let high = if high > low { high } else { low + if low == 0.0 { 1.0 } else { low.abs() } };
    let step = step(high - low, most);
    let (from, to) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
    (from, to, ticks(from, to, step, unit))
}

/// The ticks of an even axis with fixed ends.
pub(crate) fn inside(from: f64, to: f64, most: usize, unit: Unit) -> Vec<Tick> {
    ticks(from, to, step(to - from, most), unit)
}

fn ticks(from: f64, to: f64, step: f64, unit: Unit) -> Vec<Tick> {
    let (first, last) = ((from / step - 1e-9).ceil(), (to / step + 1e-9).floor());
    // `as` saturates, and both are small: an axis has a dozen ticks.
    let count = (last - first).clamp(0.0, 1000.0) as usize + 1;
    let shown_step = if unit == Unit::Percent { step * 100.0 } else { step };
    let decimals = usize::try_from(-(shown_step.log10() + 1e-9).floor() as i64).unwrap_or(0);
    let label = |value: f64| {
        if shown_step < 1e-4 || value.abs() >= 1e7 {
            return number::value(value, unit, 3);
        }
        match unit {
            Unit::Number => format!("{value:.decimals$}"),
            Unit::Percent => format!("{:.decimals$}%", value * 100.0),
        }
    };
    (0..count)
        .map(|position| {
            let value = (first + position as f64) * step;
            // No "-0".
            let value = if value.abs() < step * 1e-9 { 0.0 } else { value };
            Tick { value, label: label(value) }
        })
        .collect()
}

/// The ticks of a logarithmic axis from `from` to `to`, both in powers of ten: decades labelled, at most `most` of
/// them, and the steps between; where less than two decades are seen, 2 and 5 are labelled too.
pub(crate) fn decades(from: f64, to: f64, most: usize) -> Vec<Tick> {
    let (first, last) = (from.floor() as i32, to.ceil() as i32);
    let whole = (first..=last).filter(|exponent| (from..=to).contains(&f64::from(*exponent))).count();
    let every = i32::try_from(whole.div_ceil(most.max(1))).unwrap_or(1).max(1);
    let mut ticks = Vec::new();
    for exponent in first..=last {
        for factor in 1..10 {
            let log = f64::from(exponent) + f64::from(factor).log10();
            if !(from - 1e-9..=to + 1e-9).contains(&log) {
                continue;
            }
            let label = match factor {
                1 if exponent.rem_euclid(every) == 0 => number::power_of_ten(exponent),
                2 | 5 if whole < 2 => format!("{factor}·{}", number::power_of_ten(exponent)),
                _ => String::new(),
            };
            if factor == 1 || every == 1 {
                ticks.push(Tick { value: log, label });
            }
        }
    }
    ticks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.label.as_str()).filter(|label| !label.is_empty()).collect()
    }

    #[test]
    fn ticks_are_round() {
        let (from, to, ticks) = nice(0.0, 0.93, 6, Unit::Percent);
        assert_eq!((from, to), (0.0, 1.0));
        assert_eq!(labels(&ticks), ["0%", "20%", "40%", "60%", "80%", "100%"]);
        let (_, to, ticks) = nice(0.0, 0.0123, 5, Unit::Percent);
        assert!((to - 0.015).abs() < 1e-12);
        assert_eq!(labels(&ticks), ["0.0%", "0.5%", "1.0%", "1.5%"]);
        assert_eq!(labels(&nice(0.0, 0.0, 5, Unit::Number).2), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&nice(0.0, 2e-5, 4, Unit::Number).2), ["0", "5.00e-6", "1.00e-5", "1.50e-5", "2.00e-5"]);
        assert_eq!(labels(&inside(0.1, 0.9, 5, Unit::Number)), ["0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(labels(&decades(-9.1, -3.9, 10)), ["10⁻⁹", "10⁻⁸", "10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴"]);
        assert_eq!(labels(&decades(-9.1, -3.9, 3)), ["10⁻⁸", "10⁻⁶", "10⁻⁴"]);
        assert_eq!(labels(&decades(-6.2, -5.6, 10)), ["10⁻⁶", "2·10⁻⁶"]);
    }

    proptest! {
        #[test]
        fn an_axis_holds_its_values(low in -1e6f64..1e6, span in 1e-6f64..1e6, most in 2usize..12) {
            let (from, to, ticks) = nice(low, low + span, most, Unit::Number);
            prop_assert!(from <= low + span * 1e-6 && low + span <= to + span * 1e-6);
            prop_assert!(ticks.len() >= 2 && ticks.len() <= most + 3, "{}", ticks.len());
            prop_assert!(ticks.is_sorted_by(|a, b| a.value < b.value));
        }
    }
}
