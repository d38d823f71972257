//! The choice of units under a budget of MACs: a 0/1 knapsack, solved exactly by dynamic programming.
//!
//! Costs are divided by their greatest common divisor. When the budget still has more than [`CELLS`] steps, costs are
//! rounded up to multiples of `grain = ceil(budget / CELLS)`: the choice then stays within the budget, and its value is
//! at least the optimum of a budget that is smaller by `units * grain`, at most a share `units / CELLS` of it. What is
//! left after the rounding is filled by value per MAC.

/// Most cells of the table; one byte and eight bits a unit and cell.
pub const CELLS: u64 = 1 << 16;

/// Which units a budget buys.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// One flag per unit.
    pub chosen: Vec<bool>,
    /// Sum of the chosen values, in the units' order.
    pub value: f64,
    /// Sum of the chosen costs, at most the budget.
    pub cost: u64,
    /// How much smaller the budget is whose optimum is guaranteed; 0 when the choice is optimal.
    pub slack: u64,
}

/// The best choice of units with these values and costs within `budget`; of equal ones the cheapest.
///
/// Values that are not above 0 (NaN included) are never chosen, whatever their cost. `values` and `costs` have one
/// length; what one of them has more is ignored.
pub fn select(values: &[f64], costs: &[u64], budget: u64) -> Choice {
    let units: Vec<(f64, u64)> = values.iter().copied().zip(costs.iter().copied()).collect();
    let mut chosen: Vec<bool> = units.iter().map(|&(value, cost)| value > 0.0 && cost == 0).collect();
    let open: Vec<usize> =
        (0..units.len()).filter(|&at| units[at].0 > 0.0 && (1..=budget).contains(&units[at].1)).collect();
    let all = open.iter().fold(0u64, |sum, &at| sum.saturating_add(units[at].1));
    let mut slack = 0;
    if all <= budget {
        open.iter().for_each(|&at| chosen[at] = true);
    } else {
        let divisor = open.iter().fold(0, |divisor, &at| gcd(divisor, units[at].1)).max(1);
        let grain = if budget / divisor <= CELLS { divisor } else { budget.div_ceil(CELLS) };
        if grain != divisor {
            slack = grain.saturating_mul(open.len() as u64).min(budget);
        }
        let items: Vec<(f64, usize)> =
            open.iter().map(|&at| (units[at].0, units[at].1.div_ceil(grain) as usize)).collect();
        for (item, &at) in best(&items, (budget / grain) as usize).into_iter().zip(&open) {
            chosen[at] = item;
        }
        if slack > 0 {
            fill(&units, &mut chosen, budget);
        }
    }
    let sums = units.iter().zip(&chosen).filter(|(_, on)| **on);
    let (value, cost) = sums.fold((0.0, 0), |(value, cost), (unit, _)| (value + unit.0, cost + unit.1));
    Choice { chosen, value, cost, slack }
}

/// Fills what is left of a budget by value per cost, the best first.
pub(super) fn fill(units: &[(f64, u64)], chosen: &mut [bool], budget: u64) {
    let mut left =
        units.iter().zip(&*chosen).filter(|(_, on)| **on).fold(budget, |left, (unit, _)| left.saturating_sub(unit.1));
    let mut order: Vec<usize> = (0..units.len()).filter(|&at| !chosen[at] && units[at].0 > 0.0).collect();
    let density = |at: usize| units[at].0 / units[at].1.max(1) as f64;
    order.sort_by(|&a, &b| density(b).total_cmp(&density(a)).then(a.cmp(&b)));
    for at in order {
        if units[at].1 <= left {
            left -= units[at].1;
            chosen[at] = true;
        }
    }
}

/// Dynamic programming over whole costs: which items give the highest value within `capacity`.
fn best(items: &[(f64, usize)], capacity: usize) -> Vec<bool> {
    let width = capacity + 1;
    let mut value = vec![0.0f64; width];
    let mut taken = vec![0u64; items.len() * width.div_ceil(64)];
    let row = width.div_ceil(64);
    for (at, &(gain, cost)) in items.iter().enumerate() {
        for room in (cost..width).rev() {
            let with = value[room - cost] + gain;
            if with > value[room] {
                value[room] = with;
                taken[at * row + room / 64] |= 1 << (room % 64);
            }
        }
    }
    let most = value.iter().copied().fold(0.0, f64::max);
    let mut room = value.iter().position(|&v| v >= most).unwrap_or(0);
    let mut chosen = vec![false; items.len()];
    for (at, &(_, cost)) in items.iter().enumerate().rev() {
        if taken[at * row + room / 64] >> (room % 64) & 1 == 1 {
            chosen[at] = true;
            room -= cost;
        }
    }
    chosen
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
