//! Vectors of f32: what the loops of `loops` are written in.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A vector of f32.
///
/// # Safety
/// Every function needs the instruction set it is implemented with, and inlines into a function that enables it.
/// Pointers are valid for the lanes read or written; no alignment is asked for.
pub(super) trait Vector: Copy {
    /// Numbers in it.
    const LANES: usize;
    /// Which lanes to read or write.
    type Mask: Copy;

    /// The first `lanes` lanes, at most all.
    unsafe fn mask(lanes: usize) -> Self::Mask;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Lanes outside the mask are 0 and not read.
    unsafe fn load_some(mask: Self::Mask, from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Lanes outside the mask are not written.
    unsafe fn store_some(self, mask: Self::Mask, to: *mut f32);
    /// One number in every lane.
    unsafe fn splat(from: *const f32) -> Self;
    /// `self * factor + sum`, rounded once.
    unsafe fn fma(self, factor: Self, sum: Self) -> Self;
    /// Fetches the cache line to write to, if it can.
    unsafe fn prefetch(to: *mut f32);
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const LANES: usize = 16;
    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn mask(lanes: usize) -> __mmask16 {
        // At most 16 bits remain.
        ((1_u32 << lanes) - 1) as __mmask16
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promises; so below.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_some(mask: __mmask16, from: *const f32) -> Self {
        // SAFETY: see `zero`; lanes outside the mask are not read.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see `zero`.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, mask: __mmask16, to: *mut f32) {
        // SAFETY: see `zero`; lanes outside the mask are not written.
        unsafe { _mm512_mask_storeu_ps(to, mask, self) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm512_set1_ps(from.read()) }
    }

    #[inline(always)]
    unsafe fn fma(self, factor: Self, sum: Self) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm512_fmadd_ps(self, factor, sum) }
    }

    #[inline(always)]
    unsafe fn prefetch(to: *mut f32) {
        // SAFETY: see `zero`; a prefetch does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast::<i8>()) };
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m256 {
    const LANES: usize = 8;
    type Mask = __m256i;

    #[inline(always)]
    unsafe fn mask(lanes: usize) -> __m256i {
        const ENDS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: eight numbers from 8 - lanes on, lanes being at most 8; the caller's promises.
        unsafe { _mm256_loadu_si256(ENDS.as_ptr().add(8 - lanes).cast()) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promises; so below.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_some(mask: __m256i, from: *const f32) -> Self {
        // SAFETY: see `zero`; lanes outside the mask are not read.
        unsafe { _mm256_maskload_ps(from, mask) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see `zero`.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn store_some(self, mask: __m256i, to: *mut f32) {
        // SAFETY: see `zero`; lanes outside the mask are not written.
        unsafe { _mm256_maskstore_ps(to, mask, self) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm256_set1_ps(from.read()) }
    }

    #[inline(always)]
    unsafe fn fma(self, factor: Self, sum: Self) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm256_fmadd_ps(self, factor, sum) }
    }

    #[inline(always)]
    unsafe fn prefetch(to: *mut f32) {
        // SAFETY: see `zero`; a prefetch does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(to.cast::<i8>()) };
    }
}
