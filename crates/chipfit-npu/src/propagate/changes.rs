//! Which bytes of a tensor differ from the golden ones.

use std::ops::Range;

use crate::program::Tensor;

/// The changed elements of one tensor.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    /// How many bytes differ.
    pub(super) count: usize,
    /// Rows that hold them all.
    pub(super) rows: Range<usize>,
    /// Every one, ascending, unless `is_long`.
    pub(super) list: Vec<u32>,
    /// Whether the list was given up.
    pub(super) is_long: bool,
    /// Longer lists give way to a range of rows.
    pub(super) limit: usize,
}

/// How a tensor divides into rows: their number, and bytes of one.
pub(super) fn rows_of(tensor: &Tensor) -> (usize, usize) {
    let elements = tensor.elements();
    match tensor.shape.len() {
        0..=2 => (1, elements),
        _ => (tensor.shape[1], elements / tensor.shape[1].max(1)),
    }
}

/// How many bytes differ in two slices of up to 128.
fn differing(new: &[u8], old: &[u8]) -> u8 {
    new.iter().zip(old).fold(0, |sum, (new, old)| sum + u8::from(new != old))
}

impl Changes {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.rows = 0..0;
        self.list.clear();
        self.is_long = false;
    }

    /// Finds what differs in `rows` of a tensor; `working` and `golden` are whole tensors.
    pub(super) fn compare(&mut self, working: &[u8], golden: &[u8], rows: Range<usize>, row_bytes: usize) {
        self.clear();
        let first = rows.start * row_bytes;
        let end = (rows.end * row_bytes).min(golden.len());
        let (working, golden) = (&working[first..end], &golden[first..end]);
        // Bytes of a block that differ, counted without branches.
        let ((new, new_rest), (old, old_rest)) = (working.as_chunks::<128>(), golden.as_chunks::<128>());
        let blocks = new.iter().zip(old).map(|(new, old)| usize::from(differing(new, old)));
        let count = blocks.sum::<usize>() + usize::from(differing(new_rest, old_rest));
        if count > self.limit {
            (self.count, self.is_long, self.rows) = (count, true, rows);
            return;
        }
        if count > 0 {
            let (new, new_rest) = working.as_chunks::<8>();
            let (old, old_rest) = golden.as_chunks::<8>();
            for (at, (new, old)) in new.iter().zip(old).enumerate() {
                let mut differ = u64::from_le_bytes(*new) ^ u64::from_le_bytes(*old);
                while differ != 0 {
                    let byte = differ.trailing_zeros() / 8;
                    self.push(first + at * 8 + byte as usize);
                    differ &= !(0xff << (8 * byte));
                }
            }
            for (at, (new, old)) in new_rest.iter().zip(old_rest).enumerate() {
                if new != old {
                    self.push(end - new_rest.len() + at);
                }
            }
        }
        self.finish(row_bytes);
        if self.is_long {
            self.rows = rows;
        }
    }

    /// Adds an element; in ascending order.
    pub(super) fn push(&mut self, index: usize) {
        self.count += 1;
        if self.list.len() < self.limit {
            self.list.push(index as u32);
        } else {
            self.is_long = true;
        }
    }

    /// Closes a list: sets the rows from it.
    pub(super) fn finish(&mut self, row_bytes: usize) {
        let row = |index: &u32| *index as usize / row_bytes.max(1);
        self.rows = match (self.list.first(), self.list.last()) {
            (Some(first), Some(last)) => row(first)..row(last) + 1,
            _ => 0..0,
        };
    }
}
