//! The `wide` crate's vectors: NEON on aarch64, SSE2 on x86-64, simd128 on wasm32 where the build allows it, else arrays.

use wide::{f32x8, i16x16};

use super::Isa;

#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Isa for Portable {
    type F = [f32x8; 2];
    type H = i16x16;
    const TILE_UNITS: usize = 1;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe {
            let from: *const [f32; 8] = from.cast();
            [f32x8::new(*from), f32x8::new(*from.add(1))]
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::F) {
        unsafe {
            let to: *mut [f32; 8] = to.cast();
            *to = v[0].to_array();
            *to.add(1) = v[1].to_array();
        }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        [f32x8::splat(v); 2]
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        [a[0] + b[0], a[1] + b[1]]
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        [a[0] * b[0], a[1] * b[1]]
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1]]
    }
    #[inline(always)]
    unsafe fn above(a: Self::F, b: Self::F) -> u16 {
        let bits = |i: usize| a[i].simd_gt(b[i]).to_bitmask() as u16;
        bits(0) | bits(1) << 8
    }
    #[inline(always)]
    unsafe fn keep(bits: u16, v: Self::F) -> Self::F {
        let half = |i: usize| {
            let mut lanes = v[i].to_array();
            for (lane, value) in lanes.iter_mut().enumerate() {
                if bits >> (8 * i + lane) & 1 == 0 {
                    *value = 0.;
                }
            }
            f32x8::new(lanes)
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    unsafe fn zero16() -> Self::H {
        i16x16::splat(0)
    }
    #[inline(always)]
    unsafe fn load8(from: *const i8) -> Self::H {
        let bytes = unsafe { *from.cast::<[i8; 16]>() };
        i16x16::new(bytes.map(i16::from))
    }
    #[inline(always)]
    unsafe fn add16(a: Self::H, b: Self::H) -> Self::H {
        a + b
    }
    #[inline(always)]
    unsafe fn to_float(v: Self::H) -> Self::F {
        let lanes = v.to_array().map(f32::from);
        unsafe { Self::load(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load16(from: *const i16) -> Self::H {
        i16x16::new(unsafe { *from.cast() })
    }
    #[inline(always)]
    unsafe fn store16(to: *mut i16, v: Self::H) {
        unsafe { *to.cast::<[i16; 16]>() = v.to_array() };
    }
}
