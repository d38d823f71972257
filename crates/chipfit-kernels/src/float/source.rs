//! What a chunk of a pass reads: in place where no target reads outside the map, else a padded copy.

use std::ops::Range;

use super::axis::Axis;
use super::scratch::{Floats, LINE};

/// How the sources of a pass lie in memory.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Rows, columns and channels of a map.
    pub(super) map: [usize; 3],
    /// The map is read where it is.
    pub(super) in_place: bool,
    /// First column of a copied row; columns.
    first_column: isize,
    columns: usize,
    /// From one row to the next.
    pub(super) pitch: usize,
}

/// The sources of some targets.
pub(super) struct Source<'a> {
    /// From the first source on.
    pub(super) values: &'a [f32],
    /// From one picture to the next.
    pub(super) picture_pitch: usize,
}

impl Layout {
    /// `copied` asks for a copy even of what could be read in place.
    pub(super) fn new(map: [usize; 3], rows: &Axis, columns: &Axis, copied: bool) -> Self {
        let in_place = rows.inside && columns.inside && !copied;
        let (first_column, wide) = columns.sources(0..columns.count());
        let pitch = if in_place { map[1] * map[2] } else { (wide * map[2]).next_multiple_of(LINE) };
        Self { map, in_place, first_column, columns: wide, pitch }
    }

    /// Elements that the sources of so many pictures and rows take.
    pub(super) fn elements(&self, pictures: usize, rows: usize) -> usize {
        pictures * rows * self.pitch
    }

    /// The sources of targets `range` (rows, in steps of their part) of some pictures, of which `input` is all.
    ///
    /// A copy has room for a few vectors to be read beyond its end.
    pub(super) fn source<'a>(
        &self,
        copy: &'a mut Floats,
        rows: &Axis,
        input: &'a [f32],
        pictures: Range<usize>,
        range: Range<usize>,
    ) -> Source<'a> {
        let [height, width, channels] = self.map;
        let picture = height * width * channels;
        let (first_row, n_rows) = rows.sources(range);
        if self.in_place {
            // Not negative: every tap of every part lies inside.
            let start = usize::try_from(first_row).unwrap_or(0) * self.pitch
                + usize::try_from(self.first_column).unwrap_or(0) * channels;
            let values = &input[pictures.start * picture..pictures.end * picture];
            return Source { values: &values[start.min(values.len())..], picture_pitch: picture };
        }
        let picture_pitch = n_rows * self.pitch;
        let copy = copy.room(pictures.len() * picture_pitch + 4 * LINE);
        // Columns of a row: zeros, a piece of the map, zeros.
        let left = usize::try_from(-self.first_column).unwrap_or(0).min(self.columns);
        let skipped = usize::try_from(self.first_column).unwrap_or(0).min(width);
        let taken = (self.columns - left).min(width - skipped);
        let rows_of = input.chunks_exact(picture).skip(pictures.start);
        for (from, to) in rows_of.zip(copy.chunks_exact_mut(picture_pitch.max(1)).take(pictures.len())) {
            for (row, to) in to.chunks_exact_mut(self.pitch.max(1)).enumerate() {
                let at = first_row + row.cast_signed();
                let Some(at) = usize::try_from(at).ok().filter(|&at| at < height) else {
                    to.fill(0.0);
                    continue;
                };
                let from = &from[(at * width + skipped) * channels..][..taken * channels];
                let (before, rest) = to.split_at_mut(left * channels);
                let (inner, after) = rest.split_at_mut(from.len());
                before.fill(0.0);
                inner.copy_from_slice(from);
                after.fill(0.0);
            }
        }
        Source { values: copy, picture_pitch }
    }

    /// Where offset `[row, column]` of the taps lies from a target's source on.
    pub(super) fn offset(&self, rows: &Axis, columns: &Axis, offset: [isize; 2]) -> usize {
        // Not negative: the axes' lowest offsets are subtracted.
        let [row, column] = [offset[0] - rows.low, offset[1] - columns.low].map(|from| from.unsigned_abs());
        row * self.pitch + column * self.map[2]
    }
}
