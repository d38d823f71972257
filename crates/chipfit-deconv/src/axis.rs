//! The phase algebra of one spatial axis.
//!
//! Symbols, as in docs/split-deconvolution.md: input length `n`, kernel `k`, stride `s`, dilation `d`, begin pad
//! `p`, output length `O`; output `o` gathers the taps `j` and inputs `i` with `o + p = s*i + d*j`. `O - s*n` does
//! not depend on `n`, so everything here holds for a dynamic length too.
//!
//! An axis is cut into [`Piece`]s: each is one stride-1 convolution that computes some of the `s` phases of the
//! output, `rows` values each. `tight` makes one piece a phase, with no zero tap; `fused` makes one piece of all
//! phases, over the union of their offsets. Read [`Axis`], then [`Axis::tight`], then [`Axis::fused`].

/// The longest kernel, stride, dilation or pad that is accepted: products of a few stay far inside an i64.
pub const MAX_EXTENT: i64 = 1 << 20;

/// One spatial axis of a transposed convolution, pads and output length resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Input length; `None`: dynamic.
    pub n: Option<i64>,
    /// Kernel length.
    pub k: i64,
    /// Stride.
    pub s: i64,
    /// Dilation.
    pub d: i64,
    /// Begin pad; may be negative.
    pub p: i64,
    /// `O - s*n`.
    pub c: i64,
}

/// One convolution along an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which taps of the original kernel each phase reads at each position of this kernel; `None`: a zero tap.
    /// All rows have the same length; length 0 means that the piece is the bias alone.
    pub taps: Vec<Vec<Option<usize>>>,
    /// Dilation of this convolution.
    pub dilation: i64,
    /// Zeros before the input; negative: inputs to drop.
    pub pad_begin: i64,
    /// Zeros behind the input; negative: inputs to drop.
    pub pad_end: i64,
}

impl Piece {
    /// Length of this kernel; 0: the bias alone.
    pub fn kernel(&self) -> usize {
        self.taps.first().map_or(0, Vec::len)
    }
}

/// An axis as pieces, and how their outputs make the whole.
///
/// Output `f*m + phase - crop_begin` is value `m` of that phase, phases counted through the pieces in order and
/// `f` their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AxisPlan {
    /// The convolutions.
    pub pieces: Vec<Piece>,
    /// Number of phases, over all pieces.
    pub phases: usize,
    /// Values per phase, less the input length.
    pub rows_extra: i64,
    /// Outputs to drop at the begin.
    pub crop_begin: i64,
    /// Outputs to drop at the end.
    pub crop_end: i64,
}

impl AxisPlan {
    /// Values per phase for an input of length `n`.
    pub fn rows(&self, n: i64) -> i64 {
        n + self.rows_extra
    }
    /// Phases per piece: the same for all pieces.
    pub fn phases_per_piece(&self) -> usize {
        self.pieces.first().map_or(1, |p| p.taps.len())
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

fn ceil_div(a: i64, b: i64) -> i64 {
    -(-a).div_euclid(b)
}

impl Axis {
    /// Output length for an input of length `n`.
    pub fn output(&self, n: i64) -> i64 {
        self.s * n + self.c
    }

    /// One piece a phase, with exactly the taps that the phase has. Rows: `ceil(O/s)`.
    pub fn tight(&self) -> AxisPlan {
        let Self { k, s, d, p, c, .. } = *self;
        let g = gcd(s, d);
        let (step, dilation) = (s / g, d / g);
        let rows_extra = ceil_div(c, s);
        let piece = |rho: i64| {
            let q = rho + p;
            let (e, r) = (q.div_euclid(s), q.rem_euclid(s));
            let first = (0..k.min(step)).find(|j| (d * j - r).rem_euclid(s) == 0);
            let Some(j0) = first.filter(|_| r % g == 0) else { return bias_alone(1) };
            let taps = ceil_div(k - j0, step);
            let lo = e + (r - d * j0) / s - (taps - 1) * dilation;
            let at = |u: i64| usize::try_from(j0 + (taps - 1 - u) * step).ok();
            let piece = Piece {
                taps: vec![(0..taps).map(at).collect()],
                dilation: if taps == 1 { 1 } else { dilation },
                pad_begin: -lo,
                pad_end: rows_extra + lo + (taps - 1) * dilation,
            };
            self.or_bias_alone(piece)
        };
        AxisPlan {
            pieces: (0..s).map(piece).collect(),
            phases: usize::try_from(s).unwrap_or(1),
            rows_extra,
            crop_begin: 0,
            crop_end: s * rows_extra - c,
        }
    }

    /// One piece for all phases, shifted by `delta` in `0..s`: outputs are `Q = o + p + delta = s*M + phase`.
    pub fn fused_at(&self, delta: i64) -> AxisPlan {
        let Self { k, s, d, p, c, .. } = *self;
        // Offset of tap j for a phase: (phase - delta - d*j)/s, where that is whole.
        let offset = |phase: i64, j: i64| {
            let x = phase - delta - d * j;
            (x.rem_euclid(s) == 0).then_some(x.div_euclid(s))
        };
        // Each tap belongs to exactly one phase, that of (delta + d*j) mod s.
        let home = |j: i64| (delta + d * j).rem_euclid(s);
        let offsets: Vec<i64> = (0..k).filter_map(|j| offset(home(j), j)).collect();
        let (low, high) = (offsets.iter().min().copied().unwrap_or(0), offsets.iter().max().copied().unwrap_or(0));
        let dilation = offsets.iter().fold(0, |a, &u| gcd(a, u - low)).max(1);
        let length = usize::try_from((high - low) / dilation + 1).unwrap_or(1);
        let mut taps = vec![vec![None; length]; usize::try_from(s).unwrap_or(1)];
        for j in 0..k {
            let phase = home(j);
            let place = offset(phase, j).map(|u| (u - low) / dilation);
            let row = usize::try_from(phase).ok().and_then(|i| taps.get_mut(i));
            if let (Some(row), Some(v)) = (row, place.and_then(|v| usize::try_from(v).ok()))
                && let Some(tap) = row.get_mut(v)
            {
                *tap = usize::try_from(j).ok();
            }
        }
        let first = (p + delta).div_euclid(s);
        let last_less_n = (p + delta + c - 1).div_euclid(s);
        let piece = Piece { taps, dilation, pad_begin: -(first + low), pad_end: last_less_n + high + 1 };
        AxisPlan {
            pieces: vec![self.or_bias_alone(piece)],
            phases: usize::try_from(s).unwrap_or(1),
            rows_extra: last_less_n - first + 1,
            crop_begin: p + delta - s * first,
            crop_end: s * (last_less_n + 1) - (p + delta + c),
        }
    }

    /// The fused form with the best `delta`: least kernel times rows, then least crop. With `aligned`, only
    /// among those that crop nothing at the begin.
    pub fn fused(&self, aligned: bool) -> AxisPlan {
        let cost = |plan: &AxisPlan| {
            let kernel = plan.pieces.first().map_or(0, Piece::kernel) as i64;
            // For a dynamic length the kernel decides: a row more or less is nothing.
            let work = kernel * self.n.map_or(1 << 20, |n| n).saturating_add(plan.rows_extra);
            (work, plan.crop_begin + plan.crop_end, plan.crop_begin)
        };
        let plans = (0..self.s).map(|delta| self.fused_at(delta));
        let best = plans.filter(|plan| !aligned || plan.crop_begin == 0).min_by_key(cost);
        best.unwrap_or_else(|| self.fused_at(0))
    }

    /// The piece, or the bias alone where every tap of every row lies outside the input.
    fn or_bias_alone(&self, piece: Piece) -> Piece {
        let outside = self.n.is_some_and(|n| -piece.pad_begin >= n || -piece.pad_end >= n);
        if outside { bias_alone(piece.taps.len()) } else { piece }
    }
}

fn bias_alone(phases: usize) -> Piece {
    Piece { taps: vec![Vec::new(); phases], dilation: 1, pad_begin: 0, pad_end: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, element by element: for every output the (input, tap) pairs that reach it.
    fn scatter(axis: &Axis, n: i64) -> Vec<Vec<(i64, usize)>> {
        let mut out = vec![Vec::new(); usize::try_from(axis.output(n)).unwrap()];
        for i in 0..n {
            for j in 0..axis.k {
                let o = axis.s * i + axis.d * j - axis.p;
                if 0 <= o && o < axis.output(n) {
                    out[o as usize].push((i, j as usize));
                }
            }
        }
        out.iter_mut().for_each(|terms| terms.sort_unstable());
        out
    }

    /// What the pieces compute, as stride-1 convolutions would.
    fn gather(plan: &AxisPlan, axis: &Axis, n: i64) -> Vec<Vec<(i64, usize)>> {
        let rows = plan.rows(n);
        let mut woven = vec![Vec::new(); (rows * plan.phases as i64) as usize];
        let mut first_phase = 0;
        for piece in &plan.pieces {
            if piece.kernel() > 0 {
                let span = (piece.kernel() as i64 - 1) * piece.dilation + 1;
                assert_eq!(n + piece.pad_begin + piece.pad_end - span + 1, rows, "{axis:?} {piece:?}");
            }
            for (phase, taps) in piece.taps.iter().enumerate() {
                for m in 0..rows {
                    for (u, tap) in taps.iter().enumerate() {
                        let i = m - piece.pad_begin + u as i64 * piece.dilation;
                        if let (Some(j), true) = (tap, 0 <= i && i < n) {
                            woven[m as usize * plan.phases + first_phase + phase].push((i, *j));
                        }
                    }
                }
            }
            first_phase += piece.taps.len();
        }
        let end = woven.len() - plan.crop_end as usize;
        let mut out = woven[plan.crop_begin as usize..end].to_vec();
        out.iter_mut().for_each(|terms| terms.sort_unstable());
        out
    }

    fn settings() -> impl Iterator<Item = (Axis, i64)> {
        let mut all = Vec::new();
        for n in 1..5 {
            for k in 1..6 {
                for s in 1..6 {
                    for d in 1..5 {
                        for p in -1..6 {
                            for c in -7..9 {
                                if s * n + c >= 1 {
                                    all.push((Axis { n: Some(n), k, s, d, p, c }, n));
                                }
                            }
                        }
                    }
                }
            }
        }
        all.into_iter()
    }

    #[test]
    fn tight_pieces_gather_what_the_definition_scatters() {
        for (axis, n) in settings() {
            assert_eq!(gather(&axis.tight(), &axis, n), scatter(&axis, n), "{axis:?}");
        }
    }

    #[test]
    fn fused_pieces_gather_what_the_definition_scatters_for_every_delta() {
        for (axis, n) in settings() {
            let expected = scatter(&axis, n);
            for delta in 0..axis.s {
                assert_eq!(gather(&axis.fused_at(delta), &axis, n), expected, "{axis:?} delta {delta}");
            }
        }
    }

    #[test]
    fn tight_has_no_zero_tap_and_every_tap_once() {
        for (axis, _) in settings() {
            let plan = Axis { n: None, ..axis }.tight();
            let mut taps: Vec<usize> =
                plan.pieces.iter().flat_map(|p| &p.taps[0]).map(|t| t.expect("a zero tap")).collect();
            taps.sort_unstable();
            assert_eq!(taps, (0..axis.k as usize).collect::<Vec<_>>(), "{axis:?}");
        }
    }

    #[test]
    fn aligned_crops_nothing_at_the_begin() {
        for (axis, _) in settings() {
            assert_eq!(axis.fused(true).crop_begin, 0, "{axis:?}");
        }
    }

    #[test]
    fn fused_is_never_longer_than_the_demo_of_the_authors() {
        for (axis, _) in settings().filter(|(a, _)| a.d == 1) {
            let demo = axis.fused_at((ceil_div(axis.k, axis.s) * axis.s - axis.k).rem_euclid(axis.s));
            let work = |p: &AxisPlan| p.pieces[0].kernel() as i64 * p.rows(axis.n.unwrap());
            assert!(work(&axis.fused(false)) <= work(&demo), "{axis:?}");
        }
    }
}
