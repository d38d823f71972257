//! Bit strings, least significant bit first: written forward, read forward or from the end backward.
//!
//! A coder puts its words at the front of a section and its raw bits, in reversed byte order, at the section's end:
//! both are then found without a length field. [`BackwardBits`] reads such a tail.

use super::CodingError;

/// Most bits of one `put` or `get`.
pub const MAX_BITS: u32 = 32;

/// Collects bits.
#[derive(Clone, Debug, Default)]
pub struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    n_pending: u32,
}

impl BitWriter {
    /// Nothing written.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the low `n` bits of `value`; bits above them must be 0.
    ///
    /// # Panics
    /// In debug builds when `n` exceeds [`MAX_BITS`] or `value` has more bits.
    #[inline]
    pub fn put(&mut self, value: u32, n: u32) {
        debug_assert!(n <= MAX_BITS && u64::from(value) >> n == 0);
        self.pending |= u64::from(value) << self.n_pending;
        self.n_pending += n;
        if self.n_pending >= 32 {
            let [a, b, c, d, ..] = self.pending.to_le_bytes();
            self.bytes.extend_from_slice(&[a, b, c, d]);
            self.pending >>= 32;
            self.n_pending -= 32;
        }
    }

    /// Appends the low `n` bits of `value`, at most 56; bits above them must be 0.
    #[inline]
    pub fn put_long(&mut self, value: u64, n: u32) {
        if n > 24 {
            self.put((value & 0xff_ffff) as u32, 24);
            self.put((value >> 24) as u32, n - 24);
        } else {
            self.put(value as u32, n);
        }
    }

    /// Elias' gamma code of `value`, at least 1: as many zeros as it has bits after the first, then the bits.
    pub fn put_gamma(&mut self, value: u32) {
        debug_assert!(value > 0);
        let n = value.max(1).ilog2();
        self.put(0, n);
        self.put(1, 1);
        self.put(value & !(1 << n), n);
    }

    /// Rice code: `value >> parameter` zeros, a one, the low `parameter` bits.
    pub fn put_rice(&mut self, value: u32, parameter: u32) {
        let mut zeros = value >> parameter;
        while zeros > 0 {
            let n = zeros.min(MAX_BITS);
            self.put(0, n);
            zeros -= n;
        }
        self.put(1, 1);
        self.put(value & ((1 << parameter) - 1), parameter);
    }

    /// Bits written so far.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64 * 8 + u64::from(self.n_pending)
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, the last one filled with zeros.
    pub fn into_bytes(mut self) -> Vec<u8> {
        let n = self.n_pending.div_ceil(8) as usize;
        self.bytes.extend(self.pending.to_le_bytes().iter().take(n));
        self.bytes
    }

    /// The bytes in reversed order, for the end of a section ([`BackwardBits`]).
    pub fn into_reversed_bytes(self) -> Vec<u8> {
        let mut bytes = self.into_bytes();
        bytes.reverse();
        bytes
    }
}

/// Reads bits from the front; for headers, not for speed.
#[derive(Clone, Debug)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    /// Reads `bytes` from their first bit.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `n` bits, at most [`MAX_BITS`].
    ///
    /// # Errors
    /// [`CodingError::Truncated`].
    pub fn get(&mut self, n: u32) -> Result<u32, CodingError> {
        let mut value = 0u32;
        for bit in 0..n.min(MAX_BITS) {
            let byte = self.bytes.get(self.at / 8).ok_or(CodingError::Truncated)?;
            value |= u32::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Ok(value)
    }

    fn zeros(&mut self, limit: u32) -> Result<u32, CodingError> {
        let mut zeros = 0;
        while self.get(1)? == 0 {
            zeros += 1;
            if zeros > limit {
                return Err(CodingError::Table("a run of zeros is too long"));
            }
        }
        Ok(zeros)
    }

    /// Inverse of [`BitWriter::put_gamma`].
    ///
    /// # Errors
    /// [`CodingError::Truncated`], or [`CodingError::Table`] above 31 bits.
    pub fn get_gamma(&mut self) -> Result<u32, CodingError> {
        let n = self.zeros(31)?;
        Ok(1 << n | self.get(n)?)
    }

    /// Inverse of [`BitWriter::put_rice`] for values of at most `limit << parameter`.
    ///
    /// # Errors
    /// [`CodingError::Truncated`], or [`CodingError::Table`] above the limit. `parameter` is at most 8, `limit` 65535.
    pub fn get_rice(&mut self, parameter: u32, limit: u16) -> Result<u32, CodingError> {
        let high = self.zeros(u32::from(limit))?;
        Ok(high << parameter.min(8) | self.get(parameter.min(8))?)
    }

    /// Skips to the next byte; the bits between must be 0. Returns the bytes after it.
    ///
    /// # Errors
    /// [`CodingError::Trailing`].
    pub fn into_rest(mut self) -> Result<&'a [u8], CodingError> {
        while !self.at.is_multiple_of(8) {
            if self.get(1)? != 0 {
                return Err(CodingError::Trailing);
            }
        }
        self.bytes.get(self.at / 8..).ok_or(CodingError::Truncated)
    }
}

/// Reads what [`BitWriter::into_reversed_bytes`] put at the end of `bytes`; zeros follow the last byte.
#[derive(Clone, Debug)]
pub struct BackwardBits<'a> {
    bytes: &'a [u8],
    /// Bytes not yet loaded.
    left: usize,
    /// Zero bytes supplied after the first byte of `bytes` had been loaded.
    missing: usize,
    loaded: u64,
    n_loaded: u32,
}

impl<'a> BackwardBits<'a> {
    /// Reads from the last byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, left: bytes.len(), missing: 0, loaded: 0, n_loaded: 0 }
    }

    /// Makes at least 56 bits available to `take`.
    #[inline]
    pub fn refill(&mut self) {
        let start = self.left.wrapping_sub(8);
        let eight: Option<[u8; 8]> = self.bytes.get(start..self.left).and_then(|eight| eight.try_into().ok());
        if let Some(eight) = eight {
            self.loaded |= u64::from_be_bytes(eight) << self.n_loaded;
            self.left -= ((63 - self.n_loaded) / 8) as usize;
            self.n_loaded |= 56;
        } else {
            self.refill_slowly();
        }
    }

    #[cold]
    fn refill_slowly(&mut self) {
        while self.n_loaded < 56 {
            let byte = match self.left.checked_sub(1) {
                Some(last) => {
                    self.left = last;
                    self.bytes.get(last).copied().unwrap_or(0)
                }
                None => {
                    self.missing += 1;
                    0
                }
            };
            self.loaded |= u64::from(byte) << self.n_loaded;
            self.n_loaded += 8;
        }
    }

    /// The next `n` bits; the takes between two refills must stay within 56 bits and one within [`MAX_BITS`].
    #[inline]
    pub fn take(&mut self, n: u32) -> u32 {
        debug_assert!(n <= MAX_BITS && n <= self.n_loaded);
        let value = self.loaded & ((1 << (n & 63)) - 1);
        self.loaded >>= n & 63;
        self.n_loaded = self.n_loaded.wrapping_sub(n);
        value as u32
    }

    /// Checks that reading used up exactly the bytes from `front` on, with zeros in the last byte's rest.
    ///
    /// # Errors
    /// [`CodingError::Truncated`] when more was read, [`CodingError::Trailing`] when less.
    pub fn finish(self, front: usize) -> Result<(), CodingError> {
        let read = (self.bytes.len() - self.left + self.missing) * 8 - self.n_loaded as usize;
        let whole = read.div_ceil(8);
        let available = self.bytes.len().checked_sub(front).ok_or(CodingError::Truncated)?;
        if whole > available {
            return Err(CodingError::Truncated);
        }
        let padding = (whole * 8 - read) as u32;
        if whole < available || self.loaded & ((1 << padding) - 1) != 0 {
            return Err(CodingError::Trailing);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_come_back_from_either_end(
            items in prop::collection::vec((any::<u32>(), 0u32..=28), 0..60),
            front in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let mut writer = BitWriter::new();
            let items: Vec<(u32, u32)> = items.iter().map(|&(value, n)| (value & ((1 << n) - 1), n)).collect();
            for &(value, n) in &items {
                writer.put(value, n);
            }
            prop_assert_eq!(writer.len(), items.iter().map(|item| u64::from(item.1)).sum::<u64>());
            let forward = writer.clone().into_bytes();
            let mut reader = BitReader::new(&forward);
            for &(value, n) in &items {
                prop_assert_eq!(reader.get(n)?, value);
            }
            prop_assert_eq!(reader.into_rest()?, &[] as &[u8]);
            let bytes = [front.clone(), writer.into_reversed_bytes()].concat();
            let mut reader = BackwardBits::new(&bytes);
            for &(value, n) in &items {
                reader.refill();
                prop_assert_eq!(reader.take(n), value);
            }
            prop_assert_eq!(reader.clone().finish(front.len()), Ok(()));
            if !front.is_empty() {
                prop_assert_eq!(reader.clone().finish(front.len() - 1), Err(CodingError::Trailing));
            }
            if !forward.is_empty() {
                prop_assert_eq!(reader.finish(front.len() + 1), Err(CodingError::Truncated));
            }
        }

        #[test]
        fn gamma_and_rice_come_back(values in prop::collection::vec((1u32..=u32::MAX, 0u32..400, 0u32..8), 0..40)) {
            let mut writer = BitWriter::new();
            for &(gamma, rice, parameter) in &values {
                writer.put_gamma(gamma);
                writer.put_rice(rice, parameter);
            }
            let bytes = writer.into_bytes();
            let mut reader = BitReader::new(&bytes);
            for &(gamma, rice, parameter) in &values {
                prop_assert_eq!(reader.get_gamma()?, gamma);
                prop_assert_eq!(reader.get_rice(parameter, 400)?, rice);
            }
        }
    }

    #[test]
    fn reading_past_the_start_is_noticed() {
        let mut reader = BackwardBits::new(&[0xff]);
        reader.refill();
        assert_eq!(reader.take(12), 0xff);
        assert_eq!(reader.finish(0), Err(CodingError::Truncated));
        assert_eq!(BitReader::new(&[0]).get_gamma(), Err(CodingError::Truncated));
        assert!(matches!(BitReader::new(&[0; 5]).get_gamma(), Err(CodingError::Table(_))));
        assert!(matches!(BitReader::new(&[0; 5]).get_rice(0, 3), Err(CodingError::Table(_))));
    }
}
