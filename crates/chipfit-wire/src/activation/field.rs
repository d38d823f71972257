//! GF(2^8) with the polynomial `x^8 + x^4 + x^3 + x^2 + 1` (0x11d), whose root `alpha = 2` is primitive.

/// Order of the multiplicative group.
pub(super) const ORDER: usize = 255;
/// Logarithm of 0 in [`Tables::log`]: larger than any other.
pub(super) const LOG_ZERO: u8 = 255;
const REDUCTION: u8 = 0x1d;

/// `alpha * a`. Written for a compiler that turns loops over it into vector code.
#[inline]
pub(super) const fn times_alpha(a: u8) -> u8 {
    // The sign bit, copied into all bits, selects the reduction.
    (a << 1) ^ (REDUCTION & (a.cast_signed() >> 7).cast_unsigned())
}

/// Logarithms and powers of alpha.
#[derive(Debug)]
pub(super) struct Tables {
    /// `log[alpha^i] = i` for `i < 255`; `log[0] = LOG_ZERO`.
    pub(super) log: [u8; 256],
    /// `power[i] = alpha^(i mod 255)` for `i < 510`; two further entries are unused.
    pub(super) power: [u8; 512],
}

pub(super) static TABLES: Tables = Tables::new();

impl Tables {
    const fn new() -> Self {
        let mut log = [LOG_ZERO; 256];
        let mut power = [0; 512];
        let mut value = 1u8;
        let mut i = 0;
        while i < ORDER {
            power[i] = value;
            power[i + ORDER] = value;
            log[value as usize] = i as u8;
            value = times_alpha(value);
            i += 1;
        }
        Self { log, power }
    }

    /// `value * alpha^exponent`; `exponent` below 255.
    pub(super) fn scale(&self, value: u8, exponent: u8) -> u8 {
        match self.log[usize::from(value)] {
            LOG_ZERO => 0,
            log => self.power[usize::from(log) + usize::from(exponent)],
        }
    }

    /// Logarithm of `alpha^log / alpha^exponent`; both below 255.
    pub(super) fn log_quotient(log: u8, exponent: u8) -> u8 {
        // Modulo 255: a borrow of 256 is one too many.
        log.wrapping_sub(exponent).wrapping_sub(u8::from(log < exponent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Schoolbook product of polynomials, then division by 0x11d.
    fn naive_product(a: u8, b: u8) -> u8 {
        let mut product = (0..8).filter(|bit| b >> bit & 1 == 1).fold(0u16, |sum, bit| sum ^ u16::from(a) << bit);
        for bit in (8..16).rev() {
            if product >> bit & 1 == 1 {
                product ^= 0x11d << (bit - 8);
            }
        }
        product as u8
    }

    #[test]
    fn tables_agree_with_polynomial_arithmetic() {
        for a in 0..=255u8 {
            assert_eq!(times_alpha(a), naive_product(a, 2));
            for exponent in 0..255u8 {
                let power = TABLES.power[usize::from(exponent)];
                assert_eq!(TABLES.scale(a, exponent), naive_product(a, power));
                if a != LOG_ZERO {
                    let quotient = Tables::log_quotient(a, exponent);
                    assert_eq!(TABLES.scale(TABLES.power[usize::from(quotient)], exponent), TABLES.power[usize::from(a)]);
                }
            }
        }
        let mut powers = TABLES.power[..ORDER].to_vec();
        powers.sort_unstable();
        assert!(powers.windows(2).all(|w| w[0] != w[1]) && powers[0] == 1, "alpha is primitive");
    }
}
