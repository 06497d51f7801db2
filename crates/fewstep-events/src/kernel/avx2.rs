//! AVX2 and FMA: sixteen f32 in two registers, sixteen i16 in one.

use std::arch::x86_64::*;

use super::{Block, DenseLine, Isa, Line, Neuron, Rows, Windows};

#[derive(Clone, Copy)]
pub(super) struct Here;

impl Isa for Here {
    type F = [__m256; 2];
    type H = __m256i;
    const TILE_UNITS: usize = 1;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn above(a: Self::F, b: Self::F) -> u16 {
        unsafe {
            let bits =
                |i: usize| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[i], b[i])) as u16;
            bits(0) | bits(1) << 8
        }
    }
    #[inline(always)]
    unsafe fn keep(bits: u16, v: Self::F) -> Self::F {
        unsafe {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let half = |bits: u16, v: __m256| {
                let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), lane);
                _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)))
            };
            [half(bits & 255, v[0]), half(bits >> 8, v[1])]
        }
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
        unsafe {
            let half = |h: __m128i| _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(h));
            [
                half(_mm256_castsi256_si128(v)),
                half(_mm256_extracti128_si256::<1>(v)),
            ]
        }
    }
}

macro_rules! compiled {
    ($($name:ident ( $($arg:ident : $type:ty),* ) $(-> $out:ty)?;)*) => {
        $(
            /// # Safety
            /// As the function of this name in the parent, on a processor with these instructions.
            #[target_feature(enable = "avx2,fma")]
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
