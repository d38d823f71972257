//! Weaves phases into the output: DepthToSpace, or Reshape-Transpose-Reshape, or Concat and Reshape alone.
//!
//! The parts are the outputs of the pieces' convolutions, pieces in row-major order over the axes. Channels of a
//! part are phase-major (`DCR`, as DepthToSpace calls it) or channel-major (`CRD`, which keeps groups together).

use crate::emit::{Emitter, Target};
use crate::rewrite::Interleave;

/// How one axis is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WovenAxis {
    /// Number of phases.
    pub phases: usize,
    /// Whether one part holds all of them (else each part holds one).
    pub fused: bool,
    /// Values per phase; `None`: dynamic.
    pub rows: Option<i64>,
}

/// What is woven.
#[derive(Clone, Debug)]
pub(crate) struct Weave {
    pub axes: Vec<WovenAxis>,
    /// Output channels.
    pub channels: usize,
    /// Whether the channels of a part are channel-major.
    pub channel_major: bool,
}

/// Place of the channels among the digits of the concatenated channel axis.
const CHANNELS: usize = usize::MAX;

impl Weave {
    /// Phases per part.
    fn phases_per_part(&self) -> usize {
        self.axes.iter().filter(|a| a.fused).map(|a| a.phases).product()
    }

    /// The digits that make up the channel axis once all parts are concatenated, most significant first.
    fn digits(&self) -> Vec<usize> {
        let some =
            |fused: bool| (0..self.axes.len()).filter(move |&a| self.axes[a].fused == fused && self.axes[a].phases > 1);
        let mut digits: Vec<usize> = some(false).collect();
        if self.channel_major {
            digits.push(CHANNELS);
            digits.extend(some(true));
        } else {
            digits.extend(some(true));
            digits.push(CHANNELS);
        }
        digits
    }

    /// Whether one DepthToSpace does it, and in which mode.
    fn depth_to_space(&self, opset: i64) -> Option<(i64, bool)> {
        let [y, x] = self.axes[..] else { return None };
        if y.phases != x.phases || y.phases < 2 {
            return None;
        }
        let block = i64::try_from(y.phases).ok()?;
        match self.digits()[..] {
            [0, 1, CHANNELS] => Some((block, false)),
            [CHANNELS, 0, 1] if opset >= 11 => Some((block, true)),
            _ => None,
        }
    }

    /// Whether there is nothing to weave.
    pub(crate) fn is_trivial(&self) -> bool {
        self.axes.iter().all(|a| a.phases == 1)
    }

    /// Emits the interleave of `parts`, `wanted` or the nearest that the opset and the shapes allow; gives the
    /// value's name and what was used.
    ///
    /// # Errors
    /// The reason, where no form can be written under this opset.
    pub(crate) fn emit(
        &self,
        e: &mut Emitter<'_>,
        parts: &[String],
        wanted: Option<Interleave>,
    ) -> Result<(String, Interleave), String> {
        let block = self.depth_to_space(e.opset);
        if let (Some((block, channel_major)), None | Some(Interleave::DepthToSpace)) = (block, wanted) {
            let all = e.concat(parts, 1);
            return Ok((e.depth_to_space(&all, block, channel_major), Interleave::DepthToSpace));
        }
        let splittable = !self.channel_major || self.phases_per_part() == 1 || e.opset >= 10;
        let dynamic = self.axes.iter().filter(|a| a.rows.is_none()).count();
        if wanted == Some(Interleave::Concat) && splittable && (dynamic < 2 || e.opset >= 7) {
            return Ok((self.by_concat(e, parts), Interleave::Concat));
        }
        if dynamic >= 2 && e.opset < 7 {
            return Err("weaving several dynamic axes without DepthToSpace needs opset 7".into());
        }
        let all = e.concat(parts, 1);
        Ok((self.by_transpose(e, &all), Interleave::Reshape))
    }

    /// The entry of a Reshape target for `factor` times the rows of `axis` of the value `of`, where `of` has
    /// them at place `2 + axis`.
    fn length(&self, of: &str, axis: usize, factor: usize, dynamic: usize) -> Target {
        let factor = factor as i64;
        match self.axes[axis].rows {
            Some(rows) => Target::Fixed(rows * factor),
            None if dynamic == 1 => Target::Fixed(-1),
            None => Target::Times { of: of.to_owned(), axis: 2 + axis, factor },
        }
    }

    fn by_transpose(&self, e: &mut Emitter<'_>, all: &str) -> String {
        let digits = self.digits();
        let dynamic = self.axes.iter().filter(|a| a.rows.is_none()).count();
        let size = |digit: usize| if digit == CHANNELS { self.channels } else { self.axes[digit].phases } as i64;
        let spatial = 0..self.axes.len();
        let mut target = vec![Target::Fixed(0)];
        target.extend(digits.iter().map(|&d| Target::Fixed(size(d))));
        target.extend(spatial.clone().map(|a| self.length(all, a, 1, dynamic)));
        let apart = e.reshape(all, &target);
        let place = |digit: usize| digits.iter().position(|&d| d == digit).map(|i| i as i64 + 1);
        let mut permutation = vec![0];
        permutation.extend(place(CHANNELS));
        for a in spatial.clone() {
            permutation.push((1 + digits.len() + a) as i64);
            permutation.extend(place(a));
        }
        let ordered = e.transpose(&apart, &permutation);
        let mut target = vec![Target::Fixed(0), Target::Fixed(self.channels as i64)];
        target.extend(spatial.map(|a| self.length(all, a, self.axes[a].phases, dynamic)));
        e.reshape(&ordered, &target)
    }

    fn by_concat(&self, e: &mut Emitter<'_>, parts: &[String]) -> String {
        let mut phases = self.separate(e, parts);
        for axis in (0..self.axes.len()).rev() {
            let count = self.axes[axis].phases;
            if count == 1 {
                continue;
            }
            let mut next = Vec::with_capacity(phases.len() / count);
            for group in phases.chunks(count) {
                next.push(if axis + 1 == self.axes.len() {
                    self.weave_last(e, group)
                } else {
                    self.weave_inner(e, group, axis)
                });
            }
            phases = next;
        }
        phases.swap_remove(0)
    }

    /// One value per phase, in row-major order of the phases.
    fn separate(&self, e: &mut Emitter<'_>, parts: &[String]) -> Vec<String> {
        let count = self.phases_per_part();
        let split: Vec<Vec<String>> = parts
            .iter()
            .map(|part| match count {
                1 => vec![part.clone()],
                _ if self.channel_major => (0..count).map(|i| e.every(part, 1, i as i64, count as i64)).collect(),
                _ => e.split(part, 1, count, self.channels),
            })
            .collect();
        let total: usize = self.axes.iter().map(|a| a.phases).product();
        (0..total)
            .map(|mut index| {
                // Mixed-radix digits of the phase, least significant axis last.
                let (mut part, mut inside, mut part_radix, mut inside_radix) = (0, 0, 1, 1);
                for axis in self.axes.iter().rev() {
                    let digit = index % axis.phases;
                    index /= axis.phases;
                    if axis.fused {
                        inside += digit * inside_radix;
                        inside_radix *= axis.phases;
                    } else {
                        part += digit * part_radix;
                        part_radix *= axis.phases;
                    }
                }
                split[part][inside].clone()
            })
            .collect()
    }

    /// `[.., rows]` each -> `[.., rows, phases]` -> `[.., rows*phases]`.
    fn weave_last(&self, e: &mut Emitter<'_>, group: &[String]) -> String {
        let rank = self.axes.len() + 2;
        let columns: Vec<String> = group.iter().map(|g| e.unsqueeze(g, rank)).collect();
        let all = e.concat(&columns, rank);
        let mut target = vec![Target::Fixed(0); rank - 1];
        target.push(Target::Fixed(-1));
        e.reshape(&all, &target)
    }

    /// Rows side by side on the next axis, then a Reshape: no Transpose.
    fn weave_inner(&self, e: &mut Emitter<'_>, group: &[String], axis: usize) -> String {
        let all = e.concat(group, 2 + axis + 1);
        let later = axis + 1..self.axes.len();
        let dynamic = (axis..self.axes.len()).filter(|&a| self.axes[a].rows.is_none()).count();
        let mut target = vec![Target::Fixed(0); 2 + axis];
        target.push(match (self.axes[axis].rows, dynamic) {
            (Some(rows), _) => Target::Fixed(rows * self.axes[axis].phases as i64),
            (None, _) => Target::Fixed(-1),
        });
        let rest_fixed = self.axes[axis].rows.is_some();
        for a in later {
            target.push(match self.axes[a].rows {
                Some(rows) => Target::Fixed(rows * self.axes[a].phases as i64),
                None if rest_fixed && dynamic == 1 => Target::Fixed(-1),
                None => Target::Times { of: group[0].clone(), axis: 2 + a, factor: 1 },
            });
        }
        e.reshape(&all, &target)
    }
}
