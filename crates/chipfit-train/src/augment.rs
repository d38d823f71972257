//! The order of the pictures and how each is seen: functions of (seed, epoch, picture), never of the order of work.

use chipfit_npu::View;
use chipfit_npu::faults::generator::Key;
use serde::{Deserialize, Serialize};

/// Purposes of keys: this crate's draws never meet those of faults.
const ORDER: u64 = 0x0D_0001;
const VIEW: u64 = 0x0D_0002;

/// What may happen to a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Left and right exchanged for half of the pictures.
    pub flip: bool,
    /// Most pixels that a picture moves in each direction, as a crop of the padded picture would; 0 to 127.
    pub shift: u8,
}

impl Augmentation {
    /// Whether every picture is seen as it is.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// How the picture of this identity is seen in this epoch.
    pub fn view(self, seed: u64, epoch: u64, picture: u64) -> View {
        let mut stream = Key::new(VIEW).with(seed).with(epoch).with(picture).stream();
        let flip = stream.bits() & 1 == 1;
        let shift = i64::from(self.shift.min(127));
        let mut move_by = || {
            let steps = stream.below(2 * shift.cast_unsigned() + 1).cast_signed() - shift;
            i8::try_from(steps).unwrap_or_default()
        };
        let (down, right) = (move_by(), move_by());
        View { flip: self.flip && flip, down, right }
    }
}

/// A permutation of `0..length` for one epoch.
pub fn order(seed: u64, epoch: u64, length: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0u32..).take(length).collect();
    let mut stream = Key::new(ORDER).with(seed).with(epoch).stream();
    for at in (1..order.len()).rev() {
        let other = stream.below(at as u64 + 1);
        order.swap(at, usize::try_from(other).unwrap_or(at));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_and_every_epoch_has_its_own() {
        let first = order(7, 0, 100);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<u32>>());
        assert_ne!(first, order(7, 1, 100));
        assert_ne!(first, order(8, 0, 100));
        assert_eq!(first, order(7, 0, 100));
        assert!(order(7, 0, 0).is_empty());
    }

    #[test]
    fn views_cover_their_range_and_nothing_else() {
        let augmentation = Augmentation { flip: true, shift: 2 };
        let views: Vec<View> = (0..2000).map(|picture| augmentation.view(1, 2, picture)).collect();
        for value in -2..=2 {
            let count = views.iter().filter(|view| view.down == value).count();
            // 400 expected, deviation 18: six of them.
            assert!((290..510).contains(&count), "{value}: {count}");
        }
        assert!(views.iter().all(|view| view.right.abs() <= 2));
        let flipped = views.iter().filter(|view| view.flip).count();
        assert!((865..1135).contains(&flipped), "{flipped}");
        assert!((0..50).all(|picture| Augmentation::default().view(1, 2, picture).is_identity()));
    }
}
