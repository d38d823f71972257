//! Sixteen representations of GF(2^8): one for each primitive polynomial of degree 8.
//!
//! Each row of cells computes in one of them. Were it one for all, the factors of two rows would keep nearly constant
//! quotients (rows fill at the same pace), and common values of errors would agree by accident far too often.

use std::sync::LazyLock;

/// Order of the multiplicative group.
pub(super) const ORDER: usize = 255;

/// The primitive polynomials of degree 8 over GF(2), without `x^8`.
const REDUCTIONS: [u8; 16] =
    [0x1d, 0x2b, 0x2d, 0x4d, 0x5f, 0x63, 0x65, 0x69, 0x71, 0x87, 0x8d, 0xa9, 0xc3, 0xcf, 0xe7, 0xf5];

/// The field that row `row` computes in, as its polynomial without `x^8`.
pub(super) fn reduction(row: usize) -> u8 {
    REDUCTIONS[row % REDUCTIONS.len()]
}

/// `alpha * a`, alpha the polynomial `x`. Written for a compiler that turns loops over it into vector code.
#[inline]
pub(super) const fn times_alpha(a: u8, reduction: u8) -> u8 {
    // The sign bit, copied into all bits, selects the reduction.
    (a << 1) ^ (reduction & (a.cast_signed() >> 7).cast_unsigned())
}

/// `a / alpha`: the other way round than [`times_alpha`].
#[inline]
pub(super) const fn divide_by_alpha(a: u8, reduction: u8) -> u8 {
    // A set lowest bit tells that the reduction was added; its own sign bit stands for `x^8`.
    (a >> 1) ^ (((reduction >> 1) | 0x80) & 0u8.wrapping_sub(a & 1))
}

/// All quotients by powers of alpha, in all fields.
#[derive(Debug)]
pub(super) struct Quotients {
    /// `[field][exponent][value] = value / alpha^exponent`.
    tables: Vec<[u8; 256]>,
}

pub(super) static QUOTIENTS: LazyLock<Quotients> = LazyLock::new(|| {
    let mut tables = Vec::with_capacity(REDUCTIONS.len() * ORDER);
    for reduction in REDUCTIONS {
        let mut table: [u8; 256] = std::array::from_fn(|value| value as u8);
        for _ in 0..ORDER {
            tables.push(table);
            table = table.map(|value| divide_by_alpha(value, reduction));
        }
    }
    Quotients { tables }
});

impl Quotients {
    /// `table[value] = value / alpha^exponent` in the field of `row`; `exponent` below 255.
    pub(super) fn by(&self, row: usize, exponent: u8) -> &[u8; 256] {
        &self.tables[row % REDUCTIONS.len() * ORDER + usize::from(exponent)]
    }

    /// `value * alpha^exponent` in the field of `row`; `exponent` below 255.
    pub(super) fn product(&self, row: usize, exponent: u8, value: u8) -> u8 {
        let complement = (ORDER - usize::from(exponent)) % ORDER;
        self.tables[row % REDUCTIONS.len() * ORDER + complement][usize::from(value)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Schoolbook product of polynomials, then division.
    fn naive_product(a: u8, b: u8, reduction: u8) -> u8 {
        let mut product = (0..8).filter(|bit| b >> bit & 1 == 1).fold(0u16, |sum, bit| sum ^ u16::from(a) << bit);
        for bit in (8..16).rev() {
            if product >> bit & 1 == 1 {
                product ^= (0x100 | u16::from(reduction)) << (bit - 8);
            }
        }
        product as u8
    }

    #[test]
    fn tables_agree_with_polynomial_arithmetic() {
        for row in 0..16 {
            let reduction = reduction(row);
            let mut power = 1u8;
            for exponent in 0..255u8 {
                assert!(exponent == 0 || power != 1, "alpha is primitive");
                for a in 0..=255u8 {
                    let product = naive_product(a, power, reduction);
                    assert_eq!(QUOTIENTS.product(row, exponent, a), product);
                    assert_eq!(QUOTIENTS.by(row, exponent)[usize::from(product)], a);
                }
                power = times_alpha(power, reduction);
            }
            assert_eq!(power, 1);
        }
    }
}
