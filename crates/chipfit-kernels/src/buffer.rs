//! Bytes that start on a cache line.

/// One cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

/// Bytes that start on a cache line; their number is a multiple of 64.
#[derive(Clone, Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes())
    }
}

impl Buffer {
    /// At least `bytes` zeros.
    pub(crate) fn zeros(bytes: usize) -> Self {
        Self { lines: vec![Line([0; 64]); bytes.div_ceil(64)] }
    }

    /// Grows to at least `bytes`; what it held may be lost, what is added is zero.
    pub(crate) fn grow(&mut self, bytes: usize) {
        if self.bytes() < bytes {
            *self = Self::zeros(bytes);
        }
    }

    /// How many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * 64
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.lines.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }

    /// All bytes.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        let bytes = self.bytes();
        // SAFETY: the lines are `bytes` initialised bytes, borrowed mutably as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), bytes) }
    }
}
