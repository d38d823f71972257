//! Instruction sets, and which of them this processor and its operating system offer.
//!
//! Detection runs once per process. AMX needs four answers: CPUID names the tiles and their int8 product, XCR0 says the
//! operating system saves them, and the kernel grants this process the state (`arch_prctl`); a refusal is remembered and
//! the next instruction set is taken.

use std::sync::OnceLock;

/// An instruction set that the inner loops are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain loops: the specification.
    Scalar,
    /// x86 AVX2: bytes widened to 16 bits, `vpmaddwd`.
    Avx2,
    /// x86 AVX-VNNI: `vpdpbusd` on 256 bits.
    AvxVnni,
    /// x86 AVX-512 VNNI: `vpdpbusd` on 512 bits.
    Avx512Vnni,
    /// x86 AMX: `tdpbusd` on tiles of 16 rows by 64 bytes.
    AmxInt8,
    /// AArch64 dot product: `sdot` on 128 bits.
    NeonDot,
}

impl Isa {
    /// Every instruction set, in ascending speed order within an architecture.
    const ALL: [Self; 6] = [Self::Scalar, Self::NeonDot, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni, Self::AmxInt8];

    /// The fastest that this machine offers.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Scalar)
    }

    /// Those that this machine offers, in ascending speed order; [`Isa::Scalar`] is always the first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine offers it.
    pub fn is_available(self) -> bool {
        let offered = offered();
        match self {
            Self::Scalar => true,
            Self::Avx2 => offered.avx2,
            Self::AvxVnni => offered.avx_vnni,
            Self::Avx512Vnni => offered.avx512_vnni,
            Self::AmxInt8 => offered.amx_int8,
            Self::NeonDot => offered.neon_dot,
        }
    }

    /// The name that [`Isa::parse`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
            Self::AmxInt8 => "amx-int8",
            Self::NeonDot => "neon-dot",
        }
    }

    /// The instruction set of a name, whether this machine offers it or not; `None` for an unknown name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether AVX-512 loops for bytes may run beside this instruction set.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn uses_avx512(self) -> bool {
        matches!(self, Self::Avx512Vnni | Self::AmxInt8) && self.is_available()
    }

    /// Whether AVX2 loops may run beside this instruction set.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn uses_avx2(self) -> bool {
        self != Self::Scalar && self.is_available()
    }

    /// Whether byte permutations over two AVX-512 registers may run beside this instruction set.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn uses_vbmi(self) -> bool {
        self.uses_avx512() && offered().avx512_vbmi
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Offered {
    avx2: bool,
    avx_vnni: bool,
    avx512_vnni: bool,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "a feature of x86"))]
    avx512_vbmi: bool,
    amx_int8: bool,
    neon_dot: bool,
}

fn offered() -> Offered {
    static OFFERED: OnceLock<Offered> = OnceLock::new();
    *OFFERED.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Offered {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512_vnni = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    Offered {
        avx2,
        avx_vnni: avx2 && is_x86_feature_detected!("avxvnni"),
        avx512_vnni,
        avx512_vbmi: is_x86_feature_detected!("avx512vbmi"),
        // What surrounds the tiles is written in AVX-512.
        amx_int8: avx512_vnni && amx::is_granted(),
        neon_dot: false,
    }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Offered {
    Offered { neon_dot: std::arch::is_aarch64_feature_detected!("dotprod"), ..Offered::default() }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Offered {
    Offered::default()
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _xgetbv};

    /// CPUID leaf 7, EDX: tiles and their int8 product.
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    /// XCR0: tile configuration (17) and tile data (18).
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;

    /// Whether processor, operating system and this process's permission allow int8 tiles; asks for the permission.
    pub(super) fn is_granted() -> bool {
        let leaves = __cpuid_count(0, 0).eax;
        if leaves < 7 || __cpuid_count(7, 0).edx & TILE_AND_INT8 != TILE_AND_INT8 {
            return false;
        }
        // Palette 1 as it is documented: 8 tiles of 16 rows by 64 bytes. Some hypervisors hide the leaf that tells.
        if leaves >= 0x1d {
            let palette = __cpuid_count(0x1d, 1);
            if palette.ebx != (8 << 16 | 64) || palette.ecx & 0xffff != 16 {
                return false;
            }
        }
        if !is_x86_feature_detected!("xsave") {
            return false;
        }
        // SAFETY: `xsave` was detected, which implies that the operating system has enabled XGETBV.
        if unsafe { xcr0() } & TILE_STATE != TILE_STATE {
            return false;
        }
        request_permission()
    }

    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: register 0 exists wherever XGETBV does.
        unsafe { _xgetbv(0) }
    }

    fn request_permission() -> bool {
        let result: i64;
        // SAFETY: a system call that reads two integers, writes no memory of ours, and clobbers rcx and r11 only.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
mod amx {
    /// How other systems grant tiles is not known to this crate.
    pub(super) fn is_granted() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for isa in Isa::ALL {
            assert_eq!(Isa::parse(isa.name()), Some(isa));
        }
        assert_eq!(Isa::parse("mmx"), None);
    }

    #[test]
    fn scalar_is_the_first_and_best_the_last() {
        let available = Isa::available();
        assert_eq!(available.first(), Some(&Isa::Scalar));
        assert_eq!(available.last(), Some(&Isa::best()));
    }
}
