//! Optional loss: small changes wait on the sender's side until they have grown.
//!
//! Nothing is forgotten. The trainer's master weights are fp32 and the difference is taken between what they quantise to
//! and what the device holds, so a change that is held back is part of every later difference until it is sent: that *is*
//! error feedback, with no residual to store. Forward passes meanwhile use the device's weights, on both ends alike.
//!
//! Sources: Seide et al., 1-bit SGD, Interspeech 2014 (error feedback); Aji and Heafield, arXiv 1704.05021 (top share).

/// Which changes are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// All: no loss.
    All,
    /// Those of at least this magnitude, in quantisation steps; 0 and 1 are all.
    AtLeast(u8),
    /// The largest, at most this share (0 to 1) of the weights; among equals the first ones.
    Share(f64),
}

/// What the device shall hold next: `wanted` where the rule sends the change, `held` elsewhere.
///
/// Slices of one length; the longer one's tail is ignored. Magnitude is `|wanted - held|`, 0 to 255, not modulo 256.
pub fn hold_back(held: &[i8], wanted: &[i8], rule: Rule) -> Vec<i8> {
    let magnitude = |held: i8, wanted: i8| wanted.abs_diff(held);
    let pairs = || held.iter().copied().zip(wanted.iter().copied());
    match rule {
        Rule::All => pairs().map(|(_, wanted)| wanted).collect(),
        Rule::AtLeast(least) => {
            pairs().map(|(held, wanted)| if magnitude(held, wanted) >= least { wanted } else { held }).collect()
        }
        Rule::Share(share) => {
            let mut counts = [0usize; 256];
            for (held, wanted) in pairs() {
                counts[usize::from(magnitude(held, wanted))] += 1;
            }
            let n = held.len().min(wanted.len());
            // A float to integer cast saturates and takes no number for 0.
            let mut left = ((share * n as f64) as usize).min(n);
            // Magnitudes above the cut are all sent, of the cut itself the first `left`.
            let mut cut = 255u8;
            while cut > 0 && counts[usize::from(cut)] <= left {
                left -= counts[usize::from(cut)];
                cut -= 1;
            }
            let mut send = |size: u8| {
                if size == cut && left > 0 && cut > 0 {
                    left -= 1;
                    return true;
                }
                size > cut
            };
            pairs().map(|(held, wanted)| if send(magnitude(held, wanted)) { wanted } else { held }).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(held: &[i8], next: &[i8]) -> usize {
        held.iter().zip(next).filter(|(held, next)| held != next).count()
    }

    #[test]
    fn largest_changes_go_first_and_earlier_ones_among_equals() {
        let (held, wanted) = ([0, 0, 0, 0, 0, -128], [1, -3, 1, 0, 3, 127]);
        assert_eq!(hold_back(&held, &wanted, Rule::Share(0.2)), [0, 0, 0, 0, 0, 127]);
        assert_eq!(hold_back(&held, &wanted, Rule::Share(0.34)), [0, -3, 0, 0, 0, 127]);
        assert_eq!(hold_back(&held, &wanted, Rule::Share(0.7)), [1, -3, 0, 0, 3, 127]);
        assert_eq!(hold_back(&held, &wanted, Rule::Share(1.0)), wanted);
        assert_eq!(hold_back(&held, &wanted, Rule::Share(f64::NAN)), held);
        assert_eq!(hold_back(&held, &wanted, Rule::Share(f64::INFINITY)), wanted);
        assert_eq!(hold_back(&held, &wanted, Rule::AtLeast(3)), [0, -3, 0, 0, 3, 127]);
    }

    #[test]
    fn what_is_held_back_arrives_when_it_has_grown() {
        // A master that drifts by 0.4 steps a round: its quantised value moves by 1 at a time, the device's by 2.
        let mut device = vec![0i8];
        let mut seen = Vec::new();
        for round in 1..=10 {
            let wanted = [(0.4 * f64::from(round)).round() as i8];
            device = hold_back(&device, &wanted, Rule::AtLeast(2));
            seen.push(device[0]);
        }
        assert_eq!(seen, [0, 0, 0, 2, 2, 2, 2, 2, 4, 4]);
    }

    proptest! {
        #[test]
        fn every_element_is_held_or_wanted(
            pairs in prop::collection::vec(any::<(i8, i8)>(), 0..60), share in 0.0f64..1.2, least: u8,
        ) {
            let (held, wanted): (Vec<i8>, Vec<i8>) = pairs.iter().copied().unzip();
            prop_assert_eq!(&hold_back(&held, &wanted, Rule::All), &wanted);
            prop_assert_eq!(&hold_back(&held, &wanted, Rule::AtLeast(1)), &wanted);
            let next = hold_back(&held, &wanted, Rule::AtLeast(least));
            for ((held, wanted), next) in pairs.iter().zip(&next) {
                prop_assert_eq!(next, if wanted.abs_diff(*held) >= least { wanted } else { held });
            }
            let next = hold_back(&held, &wanted, Rule::Share(share));
            let budget = ((share * pairs.len() as f64) as usize).min(pairs.len());
            prop_assert_eq!(sent(&held, &next), budget.min(sent(&held, &wanted)));
            let size = |(held, wanted): &(i8, i8)| wanted.abs_diff(*held);
            let smallest_sent = pairs.iter().zip(&next).filter(|(p, n)| p.0 != **n).map(|(p, _)| size(p)).min();
            let largest_held = pairs.iter().zip(&next).filter(|(p, n)| p.1 != **n).map(|(p, _)| size(p)).max();
            prop_assert!(smallest_sent.unwrap_or(255) >= largest_held.unwrap_or(0));
        }
    }
}
