//! Seeded parameters: a counter-based generator, so that one element depends on nothing but its place.
//!
//! Element `i` of the tensor called `name` is `mix(key(seed, name) + (i + 1) * GOLDEN)`, `mix` being the
//! finaliser of splitmix64. Only integer arithmetic, additions, products and square roots are used, all of
//! them exact or correctly rounded, so the same seed gives the same bytes on every machine.
//!
//! [`Stream::bell`] is the sum of four uniform 16-bit numbers, centred and scaled to variance 1: close to a
//! normal distribution, bounded by `2 * sqrt(3)`, and free of logarithms, which differ between libraries.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The random numbers of one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream(u64);

impl Stream {
    /// The stream of the tensor `name` under `seed`.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let start = mix(seed.wrapping_add(GOLDEN));
        Self(name.bytes().fold(start, |key, byte| mix((key ^ u64::from(byte)).wrapping_add(GOLDEN))))
    }

    fn bits(self, element: u64) -> u64 {
        mix(self.0.wrapping_add(element.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Uniform in [0, 1).
    pub(super) fn uniform(self, element: u64) -> f64 {
        (self.bits(element) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Bell-shaped, mean 0, variance 1.
    pub(super) fn bell(self, element: u64) -> f64 {
        let bits = self.bits(element);
        let sum: u64 = (0..4).map(|quarter| (bits >> (16 * quarter)) & 0xFFFF).sum();
        // Four uniforms on 0..=65535: mean 2 * 65535, variance 4 * (65536^2 - 1) / 12.
        (sum as f64 - 2.0 * 65535.0) / ((65536.0 * 65536.0 - 1.0) / 3.0_f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_the_finaliser_of_splitmix64() {
        // The published generator started at 0 returns these first.
        assert_eq!(mix(GOLDEN), 0xE220_A839_7B1D_CDAF);
        assert_eq!(mix(GOLDEN.wrapping_mul(2)), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn moments_are_those_promised() {
        let stream = Stream::new(3, "layer.weight");
        let n = 200_000;
        let (mut sum, mut squares, mut uniform) = (0.0, 0.0, 0.0);
        for i in 0..n {
            let x = stream.bell(i);
            assert!(x.abs() <= 2.0 * 3.0_f64.sqrt() + 1e-9);
            sum += x;
            squares += x * x;
            uniform += stream.uniform(i);
        }
        let n = n as f64;
        assert!((sum / n).abs() < 0.01, "mean {}", sum / n);
        assert!((squares / n - 1.0).abs() < 0.01, "variance {}", squares / n);
        assert!((uniform / n - 0.5).abs() < 0.005, "uniform mean {}", uniform / n);
    }

    #[test]
    fn seed_and_name_both_matter() {
        let value = |seed, name| Stream::new(seed, name).bits(0);
        assert_ne!(value(0, "a"), value(1, "a"));
        assert_ne!(value(0, "a"), value(0, "b"));
        assert_ne!(value(0, "ab"), value(0, "ba"));
    }
}
