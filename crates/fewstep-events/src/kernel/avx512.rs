//! AVX-512: sixteen f32 in one register, sixteen i16 in half of one.

use std::arch::x86_64::*;

use super::{Block, DenseLine, Isa, Line, Neuron, Rows, Windows};

#[derive(Clone, Copy)]
pub(super) struct Here;

impl Isa for Here {
    type F = __m512;
    type H = __m256i;
    const TILE_UNITS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::F) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn above(a: Self::F, b: Self::F) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn keep(bits: u16, v: Self::F) -> Self::F {
        unsafe { _mm512_maskz_mov_ps(bits, v) }
    }
    #[inline(always)]
    unsafe fn zero16() -> Self::H {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn load8(from: *const i8) -> Self::H {
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn add16(a: Self::H, b: Self::H) -> Self::H {
        unsafe { _mm256_add_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn load16(from: *const i16) -> Self::H {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store16(to: *mut i16, v: Self::H) {
        unsafe { _mm256_storeu_si256(to.cast(), v) }
    }
    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a hint, harmless for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[inline(always)]
    fn prefetch2(at: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[inline(always)]
    unsafe fn to_float(v: Self::H) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(v)) }
    }

    #[inline(always)]
    unsafe fn positions(word: u64, first: u32, to: *mut u32) -> usize {
        let mut n = 0;
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            for quarter in 0..4 {
                let bits = (word >> (16 * quarter)) as u16;
                let codes = _mm512_add_epi32(
                    lanes,
                    _mm512_set1_epi32((first + 16 * quarter).cast_signed()),
                );
                let packed = _mm512_maskz_compress_epi32(bits, codes);
                // At most 16·quarter elements lie before, so 64 are enough room.
                _mm512_storeu_si512(to.add(n).cast(), packed);
                n += bits.count_ones() as usize;
            }
        }
        n
    }
}

macro_rules! compiled {
    ($($name:ident ( $($arg:ident : $type:ty),* ) $(-> $out:ty)?;)*) => {
        $(
            /// # Safety
            /// As the function of this name in the parent, on a processor with these instructions.
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            pub(super) unsafe fn $name($($arg: $type),*) $(-> $out)? {
                unsafe { super::generic::$name::<Here>($($arg),*) }
            }
        )*
    };
}

compiled! {
    gather(units: usize, cold: bool, w: &Windows, block: Block, lines: &[Line], tile: &mut [f32]);
    add_rows(rows: Rows, codes: &[u32], sums: &mut [f32], halves: &mut [i16]);
    dense(units: usize, w: &Windows, block: &[f32], lines: &[DenseLine], tile: &mut [f32]);
    scale(units: usize, scale: &[f32], bias: &[f32], tile: &mut [f32]);
    fire(units: usize, neuron: &Neuron, tile: &[f32], words: &mut [u64]);
    integrate(units: usize, neuron: &Neuron, tile: &[f32], potential: &mut [f32], words: &mut [u64]);
    positions(word: u64, first: u32, codes: *mut u32) -> usize;
}
