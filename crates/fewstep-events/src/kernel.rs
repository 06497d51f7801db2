//! The inner loops. Written once over [`Isa`], a vector of 16 outputs; compiled for AVX-512, AVX2 and, by the `wide` crate, for NEON, SSE
//! and plain arrays; chosen at run time.
//!
//! An output row is made pixel by pixel: the events in a pixel's window are one run for each kernel row, because an event's code is its
//! place in the input row, channels last, and the weight rows lie in the same order. So code + constant = weight row.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::Reset;
use crate::file::UNIT;

/// Sixteen outputs in one or more registers.
///
/// # Safety
/// Every function may only be called where the processor has the instructions, with pointers good for 16 elements.
pub(crate) trait Isa: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i16.
    type H: Copy;
    /// Units in a dense tile of six pixels: as many as the registers hold, 1 or 4.
    const TILE_UNITS: usize;

    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, v: Self::F);
    unsafe fn splat(v: f32) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c, rounded once where the processor can.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// A bit where a > b.
    unsafe fn above(a: Self::F, b: Self::F) -> u16;
    /// `v` where the bit is set, else 0.
    unsafe fn keep(bits: u16, v: Self::F) -> Self::F;

    unsafe fn zero16() -> Self::H;
    /// Widens 16 eight-bit weights.
    unsafe fn load8(from: *const i8) -> Self::H;
    unsafe fn add16(a: Self::H, b: Self::H) -> Self::H;
    unsafe fn to_float(v: Self::H) -> Self::F;
    unsafe fn load16(from: *const i16) -> Self::H;
    unsafe fn store16(to: *mut i16, v: Self::H);

    /// Asks for the cache line of an address, which may be any.
    #[inline(always)]
    fn prefetch(_at: *const u8) {}
    /// As `prefetch`, into the second-level cache.
    #[inline(always)]
    fn prefetch2(_at: *const u8) {}

    /// Writes `first`, `first + 1`, … for the bits set, and returns how many. Writes up to 64 elements.
    unsafe fn positions(word: u64, first: u32, to: *mut u32) -> usize {
        let (mut rest, mut n) = (word, 0);
        while rest != 0 {
            unsafe { *to.add(n) = first + rest.trailing_zeros() };
            rest &= rest - 1;
            n += 1;
        }
        n
    }
}

/// The instructions that a session uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Instructions {
    /// What every processor of the target has: NEON on aarch64, SSE2 on x86-64.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
}

impl Instructions {
    /// The best that this processor has.
    pub fn best() -> Self {
        Self::all().last().copied().unwrap_or(Self::Portable)
    }

    /// All that this processor has, best last.
    pub fn all() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match (avx2, avx512) {
                (_, true) => &[Self::Portable, Self::Avx2, Self::Avx512],
                (true, false) => &[Self::Portable, Self::Avx2],
                _ => &[Self::Portable],
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        &[Self::Portable]
    }
}

/// What the windows of an output row look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows {
    /// Pixels of an input row.
    pub width: usize,
    /// Pixels of an output row.
    pub outputs: usize,
    /// Width of the kernel.
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    /// Input channels.
    pub channels: usize,
}

/// The events of one input row, as one kernel row sees them.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    /// Places in the row, channels last, ascending; behind a pool up to four times the same.
    pub codes: &'a [u32],
    /// Where each pixel's codes begin; one more than pixels.
    pub starts: &'a [u32],
    /// The first weight row of this kernel row.
    pub row: usize,
}

/// One block of a weight matrix.
#[derive(Clone, Copy)]
pub(crate) enum Block<'a> {
    Float32(&'a [f32]),
    Int8(&'a [i8]),
}

/// Where the weight row of code 0 begins, and the distance between rows in elements.
#[derive(Clone, Copy)]
pub(crate) enum Rows {
    Float32(*const f32, usize),
    Int8(*const i8, usize),
}

/// A padded row of activations, as one kernel row sees it.
#[derive(Clone, Copy)]
pub(crate) struct DenseLine<'a> {
    /// `[width + 2·padding][channels]`.
    pub values: &'a [f32],
    /// The first weight row of this kernel row.
    pub row: usize,
}

/// Thresholds, leaks and what they do.
#[derive(Clone, Copy)]
pub(crate) struct Neuron<'a> {
    /// θ of each output.
    pub threshold: &'a [f32],
    /// λ of each output.
    pub leak: &'a [f32],
    pub reset: Reset,
    /// The outputs that exist.
    pub mask: u64,
}

macro_rules! dispatch {
    ($isa:expr, $name:ident ( $($arg:expr),* )) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => avx512::$name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => avx2::$name($($arg),*),
            _ => generic::$name::<portable::Portable>($($arg),*),
        }
    };
}

/// Adds to a tile of currents `[pixel][16·units]` the weight rows of the events in each pixel's window. For int8 the sums are of the
/// weights as they are, without scale. `cold`: the rows come from memory, and each is asked for some events before.
///
/// # Safety
/// The processor has `isa`; `units` is 1 to 4; every code is below `width · channels`; `starts` has `width + 1` elements and ascends to at
/// most the number of codes; the block has `rows · 16 · units` elements with every line's
/// `row + kernel · channels` at most `rows`; the tile has `outputs · 16 · units` elements.
pub(crate) unsafe fn gather(
    isa: Instructions,
    units: usize,
    cold: bool,
    w: &Windows,
    block: Block,
    lines: &[Line],
    tile: &mut [f32],
) {
    unsafe { dispatch!(isa, gather(units, cold, w, block, lines, tile)) }
}

/// Adds weight rows to currents, whole rows at a time: of a fully connected layer, whose rows are read once and far apart.
///
/// # Safety
/// The processor has `isa`; `weights` is good for `sums.len()` elements from each `code · stride` on;
/// `sums.len()` is a multiple of 16, and there are as many halves.
pub(crate) unsafe fn add_rows(
    isa: Instructions,
    rows: Rows,
    codes: &[u32],
    sums: &mut [f32],
    halves: &mut [i16],
) {
    unsafe { dispatch!(isa, add_rows(rows, codes, sums, halves)) }
}

/// Adds to a tile of currents the products of all activations in each pixel's window.
///
/// # Safety
/// As [`gather`], with lines of `(width + 2·padding) · channels` values.
pub(crate) unsafe fn dense(
    isa: Instructions,
    units: usize,
    w: &Windows,
    block: &[f32],
    lines: &[DenseLine],
    tile: &mut [f32],
) {
    unsafe { dispatch!(isa, dense(units, w, block, lines, tile)) }
}

/// tile · scale + bias, by output.
///
/// # Safety
/// The processor has `isa`; scale and bias have 16·units elements, the tile a multiple of it.
pub(crate) unsafe fn scale(
    isa: Instructions,
    units: usize,
    scale: &[f32],
    bias: &[f32],
    tile: &mut [f32],
) {
    unsafe { dispatch!(isa, scale(units, scale, bias, tile)) }
}

/// Spikes of neurons that start from rest: a bit where the current is above θ.
///
/// # Safety
/// As [`scale`]; the tile has `words.len() · 16 · units` elements.
pub(crate) unsafe fn fire(
    isa: Instructions,
    units: usize,
    neuron: &Neuron,
    tile: &[f32],
    words: &mut [u64],
) {
    unsafe { dispatch!(isa, fire(units, neuron, tile, words)) }
}

/// One timestep of neurons with a past: u ← λ·u + current, a spike where it is above θ, and the reset.
///
/// # Safety
/// As [`fire`]; there are as many potentials as currents.
pub(crate) unsafe fn integrate(
    isa: Instructions,
    units: usize,
    neuron: &Neuron,
    tile: &[f32],
    potential: &mut [f32],
    words: &mut [u64],
) {
    unsafe { dispatch!(isa, integrate(units, neuron, tile, potential, words)) }
}

/// Writes the places of the set bits, counted from `first`, and returns how many.
///
/// # Safety
/// The processor has `isa`; there is room for 64 elements at `codes`.
pub(crate) unsafe fn positions(isa: Instructions, word: u64, first: u32, codes: *mut u32) -> usize {
    unsafe { dispatch!(isa, positions(word, first, codes)) }
}

/// The kernels over any [`Isa`]; `inline(always)`, so that each is compiled for the instructions of the function that calls it.
#[allow(clippy::needless_range_loop)]
mod generic {
    use super::*;

    /// How many events ahead a weight row is asked for.
    const AHEAD: usize = 12;

    /// Asks for the row of a later event of the same line.
    #[inline(always)]
    unsafe fn ahead<I: Isa, T>(codes: &[u32], k: usize, base: *const T, span: usize) {
        if let Some(&code) = codes.get(k + AHEAD) {
            let row: *const u8 = base.wrapping_add(code as usize * span).cast();
            for line in (0..span * size_of::<T>()).step_by(64) {
                I::prefetch(row.wrapping_add(line));
            }
        }
    }

    /// Float weights of a line are summed in parts of this many, and the parts then: shorter sums round less.
    const PART: usize = 48;

    /// Sums of this many eight-bit weights fit 16 bits.
    const SUMS: usize = i16::MAX as usize / 128;

    #[inline(always)]
    pub unsafe fn gather<I: Isa>(
        units: usize,
        cold: bool,
        w: &Windows,
        block: Block,
        lines: &[Line],
        tile: &mut [f32],
    ) {
        unsafe {
            match (block, units, cold) {
                (Block::Float32(b), 1, false) => float32::<I, 1, false>(w, b, lines, tile),
                (Block::Float32(b), 2, false) => float32::<I, 2, false>(w, b, lines, tile),
                (Block::Float32(b), 3, false) => float32::<I, 3, false>(w, b, lines, tile),
                (Block::Float32(b), _, false) => float32::<I, 4, false>(w, b, lines, tile),
                (Block::Float32(b), 1, true) => float32::<I, 1, true>(w, b, lines, tile),
                (Block::Float32(b), 2, true) => float32::<I, 2, true>(w, b, lines, tile),
                (Block::Float32(b), 3, true) => float32::<I, 3, true>(w, b, lines, tile),
                (Block::Float32(b), _, true) => float32::<I, 4, true>(w, b, lines, tile),
                (Block::Int8(b), 1, false) => int8::<I, 1, false>(w, b, lines, tile),
                (Block::Int8(b), 2, false) => int8::<I, 2, false>(w, b, lines, tile),
                (Block::Int8(b), 3, false) => int8::<I, 3, false>(w, b, lines, tile),
                (Block::Int8(b), _, false) => int8::<I, 4, false>(w, b, lines, tile),
                (Block::Int8(b), 1, true) => int8::<I, 1, true>(w, b, lines, tile),
                (Block::Int8(b), 2, true) => int8::<I, 2, true>(w, b, lines, tile),
                (Block::Int8(b), 3, true) => int8::<I, 3, true>(w, b, lines, tile),
                (Block::Int8(b), _, true) => int8::<I, 4, true>(w, b, lines, tile),
            }
        }
    }

    /// First pixel of a window, possibly in the padding, and the pixels of it that exist.
    #[inline(always)]
    fn window(w: &Windows, x: usize) -> (isize, usize, usize) {
        let from = (x * w.stride) as isize - w.padding as isize;
        let to = (from + w.kernel as isize) as usize;
        (from, from.max(0) as usize, to.min(w.width))
    }

    /// Of one line: the weight row of code 0 (in the padding it lies before the matrix) and the window's codes.
    #[inline(always)]
    unsafe fn run(
        w: &Windows,
        line: &Line,
        (from, lo, hi): (isize, usize, usize),
    ) -> (isize, usize, usize) {
        let first = line.row as isize - from * w.channels as isize;
        unsafe {
            let begin = *line.starts.get_unchecked(lo) as usize;
            (first, begin, *line.starts.get_unchecked(hi) as usize)
        }
    }

    #[inline(always)]
    unsafe fn float32<I: Isa, const U: usize, const COLD: bool>(
        w: &Windows,
        block: &[f32],
        lines: &[Line],
        tile: &mut [f32],
    ) {
        let span = UNIT * U;
        let (weights, tile) = (block.as_ptr(), tile.as_mut_ptr());
        for x in 0..w.outputs {
            let window = window(w, x);
            unsafe {
                let at = tile.add(x * span);
                for line in lines {
                    let (first, mut begin, end) = run(w, line, window);
                    debug_assert!(begin <= end && end <= line.codes.len());
                    let base = weights.wrapping_offset(first * span as isize);
                    while begin < end {
                        let stop = end.min(begin + PART);
                        let mut sum = [I::splat(0.); U];
                        for k in begin..stop {
                            if COLD {
                                ahead::<I, f32>(line.codes, k, base, span);
                            }
                            let code = *line.codes.get_unchecked(k) as usize;
                            debug_assert!(
                                first.wrapping_add_unsigned(code).cast_unsigned()
                                    < block.len() / span
                            );
                            let row = base.wrapping_add(code * span);
                            for u in 0..U {
                                sum[u] = I::add(sum[u], I::load(row.add(u * UNIT)));
                            }
                        }
                        for u in 0..U {
                            let at = at.add(u * UNIT);
                            I::store(at, I::add(I::load(at), sum[u]));
                        }
                        begin = stop;
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn int8<I: Isa, const U: usize, const COLD: bool>(
        w: &Windows,
        block: &[i8],
        lines: &[Line],
        tile: &mut [f32],
    ) {
        let span = UNIT * U;
        let (weights, tile) = (block.as_ptr(), tile.as_mut_ptr());
        for x in 0..w.outputs {
            let window = window(w, x);
            unsafe {
                let at = tile.add(x * span);
                let mut sum = [I::zero16(); U];
                let mut room = SUMS;
                for line in lines {
                    let (first, mut begin, end) = run(w, line, window);
                    debug_assert!(begin <= end && end <= line.codes.len());
                    let base = weights.wrapping_offset(first * span as isize);
                    while begin < end {
                        let stop = end.min(begin + room);
                        room -= stop - begin;
                        for k in begin..stop {
                            if COLD {
                                ahead::<I, i8>(line.codes, k, base, span);
                            }
                            let code = *line.codes.get_unchecked(k) as usize;
                            debug_assert!(
                                first.wrapping_add_unsigned(code).cast_unsigned()
                                    < block.len() / span
                            );
                            let row = base.wrapping_add(code * span);
                            for u in 0..U {
                                sum[u] = I::add16(sum[u], I::load8(row.add(u * UNIT)));
                            }
                        }
                        begin = stop;
                        if room == 0 {
                            flush::<I, U>(&mut sum, at);
                            room = SUMS;
                        }
                    }
                }
                flush::<I, U>(&mut sum, at);
            }
        }
    }

    /// Adds the 16-bit sums to the tile and begins anew.
    #[inline(always)]
    unsafe fn flush<I: Isa, const U: usize>(sum: &mut [I::H; U], at: *mut f32) {
        for u in 0..U {
            unsafe {
                let at = at.add(u * UNIT);
                I::store(at, I::add(I::load(at), I::to_float(sum[u])));
                sum[u] = I::zero16();
            }
        }
    }

    /// Rows ahead that [`add_rows`] asks for.
    const ROWS_AHEAD: usize = 4;

    #[inline(always)]
    pub unsafe fn add_rows<I: Isa>(
        rows: Rows,
        codes: &[u32],
        sums: &mut [f32],
        halves: &mut [i16],
    ) {
        let n = sums.len();
        let sums = sums.as_mut_ptr();
        match rows {
            // One sum from front to back: images come in pieces that depend on the batch, and scores must not.
            Rows::Float32(first, stride) => {
                for (k, &code) in codes.iter().enumerate() {
                    let row = first.wrapping_add(code as usize * stride);
                    let later = codes.get(k + ROWS_AHEAD).copied().unwrap_or(code);
                    let later = first.wrapping_add(later as usize * stride);
                    for i in (0..n).step_by(UNIT) {
                        I::prefetch2(later.wrapping_add(i).cast());
                        unsafe {
                            let at = sums.add(i);
                            I::store(at, I::add(I::load(at), I::load(row.add(i))));
                        }
                    }
                }
            }
            Rows::Int8(first, stride) => {
                let halves = halves.as_mut_ptr();
                for from in (0..codes.len()).step_by(SUMS) {
                    for i in (0..n).step_by(UNIT) {
                        unsafe { I::store16(halves.add(i), I::zero16()) };
                    }
                    for k in from..codes.len().min(from + SUMS) {
                        let row = first.wrapping_add(codes[k] as usize * stride);
                        let later = codes.get(k + ROWS_AHEAD).copied().unwrap_or(codes[k]);
                        let later = first.wrapping_add(later as usize * stride);
                        for i in (0..n).step_by(UNIT) {
                            if i % 64 == 0 {
                                I::prefetch2(later.wrapping_add(i).cast());
                            }
                            unsafe {
                                let at = halves.add(i);
                                I::store16(at, I::add16(I::load16(at), I::load8(row.add(i))));
                            }
                        }
                    }
                    for i in (0..n).step_by(UNIT) {
                        unsafe {
                            let at = sums.add(i);
                            I::store(
                                at,
                                I::add(I::load(at), I::to_float(I::load16(halves.add(i)))),
                            );
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    pub unsafe fn dense<I: Isa>(
        units: usize,
        w: &Windows,
        block: &[f32],
        lines: &[DenseLine],
        tile: &mut [f32],
    ) {
        unsafe {
            if I::TILE_UNITS == 4 && units == 4 {
                dense_columns::<I, 4, 6>(units, 0, w, block, lines, tile);
            } else {
                for unit in 0..units {
                    dense_columns::<I, 1, 6>(units, unit, w, block, lines, tile);
                }
            }
        }
    }

    /// The outputs of `U` units from `unit` on, `P` pixels at a time.
    #[inline(always)]
    unsafe fn dense_columns<I: Isa, const U: usize, const P: usize>(
        units: usize,
        unit: usize,
        w: &Windows,
        block: &[f32],
        lines: &[DenseLine],
        tile: &mut [f32],
    ) {
        let mut x = 0;
        unsafe {
            while x + P <= w.outputs {
                dense_tile::<I, U, P>(units, unit, w, block, lines, tile, x);
                x += P;
            }
            while x < w.outputs {
                dense_tile::<I, U, 1>(units, unit, w, block, lines, tile, x);
                x += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn dense_tile<I: Isa, const U: usize, const P: usize>(
        units: usize,
        unit: usize,
        w: &Windows,
        block: &[f32],
        lines: &[DenseLine],
        tile: &mut [f32],
        x: usize,
    ) {
        let span = UNIT * units;
        unsafe {
            let at = tile.as_mut_ptr().add(x * span + unit * UNIT);
            let mut sum = [[I::splat(0.); U]; P];
            for p in 0..P {
                for u in 0..U {
                    sum[p][u] = I::load(at.add(p * span + u * UNIT));
                }
            }
            let step = w.stride * w.channels;
            let window = w.kernel * w.channels;
            for line in lines {
                debug_assert!((line.row + window) * span <= block.len());
                debug_assert!((x + P - 1) * step + window <= line.values.len());
                let values = line.values.as_ptr().add(x * step);
                let rows = block.as_ptr().add(line.row * span + unit * UNIT);
                for k in 0..window {
                    let row = rows.add(k * span);
                    let mut weights = [I::splat(0.); U];
                    for u in 0..U {
                        weights[u] = I::load(row.add(u * UNIT));
                    }
                    for p in 0..P {
                        let v = I::splat(*values.add(p * step + k));
                        for u in 0..U {
                            sum[p][u] = I::mul_add(v, weights[u], sum[p][u]);
                        }
                    }
                }
            }
            for p in 0..P {
                for u in 0..U {
                    I::store(at.add(p * span + u * UNIT), sum[p][u]);
                }
            }
        }
    }

    #[inline(always)]
    pub unsafe fn scale<I: Isa>(units: usize, scale: &[f32], bias: &[f32], tile: &mut [f32]) {
        for pixel in tile.chunks_exact_mut(UNIT * units) {
            for u in 0..units {
                unsafe {
                    let at = pixel.as_mut_ptr().add(u * UNIT);
                    let product = I::mul(I::load(at), I::load(scale.as_ptr().add(u * UNIT)));
                    I::store(at, I::add(product, I::load(bias.as_ptr().add(u * UNIT))));
                }
            }
        }
    }

    #[inline(always)]
    pub unsafe fn fire<I: Isa>(units: usize, neuron: &Neuron, tile: &[f32], words: &mut [u64]) {
        for (word, pixel) in words.iter_mut().zip(tile.chunks_exact(UNIT * units)) {
            let mut bits = 0;
            for u in 0..units {
                unsafe {
                    let current = I::load(pixel.as_ptr().add(u * UNIT));
                    let above = I::above(current, I::load(neuron.threshold.as_ptr().add(u * UNIT)));
                    bits |= u64::from(above) << (u * UNIT);
                }
            }
            *word = bits & neuron.mask;
        }
    }

    #[inline(always)]
    pub unsafe fn integrate<I: Isa>(
        units: usize,
        neuron: &Neuron,
        tile: &[f32],
        potential: &mut [f32],
        words: &mut [u64],
    ) {
        let span = UNIT * units;
        let pixels = tile
            .chunks_exact(span)
            .zip(potential.chunks_exact_mut(span));
        for (word, (pixel, past)) in words.iter_mut().zip(pixels) {
            let mut bits = 0;
            for u in 0..units {
                unsafe {
                    let threshold = I::load(neuron.threshold.as_ptr().add(u * UNIT));
                    let leak = I::load(neuron.leak.as_ptr().add(u * UNIT));
                    let at = past.as_mut_ptr().add(u * UNIT);
                    // Two roundings, as in training.
                    let m = I::add(
                        I::mul(leak, I::load(at)),
                        I::load(pixel.as_ptr().add(u * UNIT)),
                    );
                    let above = I::above(m, threshold);
                    let left = match neuron.reset {
                        Reset::Soft => I::add(m, I::keep(above, I::mul(threshold, I::splat(-1.)))),
                        Reset::Hard => I::keep(!above, m),
                        Reset::None => m,
                    };
                    I::store(at, left);
                    bits |= u64::from(above) << (u * UNIT);
                }
            }
            *word = bits & neuron.mask;
        }
    }

    #[inline(always)]
    pub unsafe fn positions<I: Isa>(word: u64, first: u32, codes: *mut u32) -> usize {
        unsafe { I::positions(word, first, codes) }
    }
}

/// Brings weights into the second-level cache, in order, as memory gives them fastest. Reads and not hints: hints are dropped when many
/// are under way.
pub(crate) fn bring<T>(weights: &[T]) {
    for line in weights.chunks(64 / size_of::<T>()) {
        // SAFETY: of a slice.
        unsafe { std::ptr::read_volatile(line.as_ptr().cast::<u8>()) };
    }
}
