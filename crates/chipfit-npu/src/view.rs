//! Augmentation as a movement of bytes: a picture flipped and shifted after quantisation.
//!
//! Trainer and device apply the same view to the same picture, so that a picture travels once however often it is seen.
//! Pixels that the shift brings in read the input's zero point, which is the real value 0.

use crate::program::Tensor;

/// How a picture is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct View {
    /// Left and right exchanged, before the shift.
    pub flip: bool,
    /// Rows that the picture moves down.
    pub down: i8,
    /// Columns that the picture moves to the right.
    pub right: i8,
}

impl View {
    /// Whether the picture stays as it is.
    pub fn is_identity(self) -> bool {
        self == Self::default()
    }

    /// The bytes of `picture`, one picture of `tensor` in the program's layout, seen this way.
    ///
    /// A tensor that is no map (`[C, H, W]`), and bytes of another length, are returned as they are.
    pub fn apply(self, tensor: &Tensor, picture: &[u8]) -> Vec<u8> {
        let &[channels, height, width] = tensor.shape.as_slice() else { return picture.to_vec() };
        if self.is_identity() || channels == 0 || picture.len() != tensor.elements() {
            return picture.to_vec();
        }
        let mut seen = vec![tensor.zero_point; picture.len()];
        for (position, pixel) in seen.chunks_exact_mut(channels).enumerate() {
            let row = (position / width).checked_add_signed(-isize::from(self.down));
            let column = (position % width).checked_add_signed(-isize::from(self.right));
            let (Some(row), Some(column)) = (row.filter(|&r| r < height), column.filter(|&c| c < width)) else {
                continue;
            };
            let column = if self.flip { width - 1 - column } else { column };
            let from = (row * width + column) * channels;
            pixel.copy_from_slice(&picture[from..from + channels]);
        }
        seen
    }

    /// `pictures`, one after another, each seen its way; `views` is empty (all as they are) or has one per picture.
    pub fn apply_all(views: &[Self], tensor: &Tensor, pictures: &[u8]) -> Vec<u8> {
        let each = tensor.elements().max(1);
        let view = |at: usize| views.get(at).copied().unwrap_or_default();
        pictures.chunks_exact(each).enumerate().flat_map(|(at, picture)| view(at).apply(tensor, picture)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Word;

    /// Two channels, two rows of three.
    fn map() -> Tensor {
        Tensor { name: "x".to_owned(), shape: vec![2, 2, 3], word: Word::Unsigned, scale: 1.0, zero_point: 9 }
    }

    const PICTURE: [u8; 12] = [10, 20, 11, 21, 12, 22, 13, 23, 14, 24, 15, 25];

    #[test]
    fn the_identity_changes_nothing() {
        assert_eq!(View::default().apply(&map(), &PICTURE), PICTURE);
    }

    #[test]
    fn a_flip_exchanges_columns_and_keeps_channels() {
        let flip = View { flip: true, ..View::default() };
        assert_eq!(flip.apply(&map(), &PICTURE), [12, 22, 11, 21, 10, 20, 15, 25, 14, 24, 13, 23]);
        assert_eq!(flip.apply(&map(), &flip.apply(&map(), &PICTURE)), PICTURE);
    }

    #[test]
    fn a_shift_brings_in_the_zero_point() {
        let down = View { down: 1, ..View::default() };
        assert_eq!(down.apply(&map(), &PICTURE), [9, 9, 9, 9, 9, 9, 10, 20, 11, 21, 12, 22]);
        let left = View { right: -1, ..View::default() };
        assert_eq!(left.apply(&map(), &PICTURE), [11, 21, 12, 22, 9, 9, 14, 24, 15, 25, 9, 9]);
        let away = View { down: -100, right: 100, flip: true };
        assert_eq!(away.apply(&map(), &PICTURE), [9; 12]);
    }

    #[test]
    fn several_pictures_are_seen_each_its_way() {
        let both = [PICTURE, PICTURE].concat();
        let flip = View { flip: true, ..View::default() };
        let seen = View::apply_all(&[View::default(), flip], &map(), &both);
        assert_eq!(seen, [PICTURE.to_vec(), flip.apply(&map(), &PICTURE)].concat());
        assert_eq!(View::apply_all(&[], &map(), &both), both);
    }

    #[test]
    fn what_is_no_map_stays() {
        let vector = Tensor { shape: vec![12], ..map() };
        assert_eq!(View { flip: true, down: 1, right: 1 }.apply(&vector, &PICTURE), PICTURE);
    }
}
