//! One layer of a group of images.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::events::{Events, Map};
use super::span;
use super::team::Team;
use crate::Reset;
use crate::counts::LayerCounts;
use crate::file::{BLOCK, UNIT, padded};
use crate::kernel::{self, Block, DenseLine, Instructions, Line, Neuron, Rows, Windows};
use crate::model::View;
use crate::network::Geometry;

/// Pixels of an output row from which on the dense kernel has enough to do.
pub(super) const DENSE_PIXELS: usize = 6;

/// Above this many bytes a block of weights is taken one kernel row at a time, so that it stays in the second-level cache.
const BLOCK_BYTES: usize = 640 << 10;

/// Above this many bytes it is so too where it is brought from memory.
const STREAM_BYTES: usize = 128 << 10;

/// Where more than this share of a block's rows will be read, all of it is brought in order; memory gives it four times as fast.
const STREAM_SHARE: f64 = 0.5;

/// Bytes of a wide block that images share before they go on to its next rows.
const SHARED_BYTES: usize = 256 << 10;

/// A tile that keeps its currents between kernel rows takes at most this many bytes.
const TILE_BYTES: usize = 256 << 10;

/// Pieces of a layer for each thread that shares it, at least.
const PIECES: usize = 4;

/// What a layer reads.
pub(super) enum Source<'a> {
    Events(&'a Events),
    /// `[row][timestep][(W + 2·padding)·C]`.
    Dense(&'a [f32]),
}

/// The currents of some rows, and the potentials of one.
#[derive(Default)]
pub(super) struct Scratch {
    tile: Vec<f32>,
    side: Vec<f32>,
    potential: Vec<f32>,
    halves: Vec<i16>,
}

/// A layer and what enters it.
pub(super) struct Task<'a> {
    pub instructions: Instructions,
    pub geometry: Geometry,
    pub view: View<'a>,
    pub source: Source<'a>,
    pub identity: Option<Map<'a>>,
    pub projection: Option<(Geometry, View<'a>, &'a Events)>,
    pub timesteps: usize,
    /// The same current at every timestep: of the first layer.
    pub constant: bool,
    pub images: usize,
    /// Spikes an input.
    pub share: f64,
    /// Who shares the layer.
    pub team: &'a Team,
}

/// θ and λ of a block's outputs; none for the read-out.
pub(super) type Constants<'a> = &'a (dyn Fn(usize) -> Option<[&'a [f32]; 2]> + Sync);

/// The neurons of a block.
type Neurons<'a> = &'a (dyn Fn(usize) -> Option<Neuron<'a>> + Sync);

impl Task<'_> {
    /// Writes the spikes of all rows, `[block][image·row][timestep][pixel]`.
    pub fn run(
        &self,
        words: &mut [u64],
        neurons: Constants,
        reset: Reset,
        scratch: &[Mutex<Scratch>],
    ) {
        let channels = self.geometry.output[0];
        let neuron = |block: usize| {
            let [threshold, leak] = neurons(block)?;
            let existing = (channels - block * BLOCK).min(BLOCK);
            Some(Neuron {
                threshold,
                leak,
                reset,
                mask: u64::MAX >> (BLOCK - existing),
            })
        };
        match (&self.source, self.geometry.wide) {
            (Source::Events(events), true) => self.run_wide(events, words, &neuron, scratch),
            _ => self.run_blocks(words, &neuron, scratch),
        }
    }

    fn run_blocks(&self, words: &mut [u64], neuron: Neurons, scratch: &[Mutex<Scratch>]) {
        let [channels, h, w] = self.geometry.output;
        let rows = self.images * h;
        let row = self.timesteps * w;
        let blocks = channels.div_ceil(BLOCK);
        let threads = self.team.threads();
        let bands = match threads {
            1 => 1,
            // A few pieces a thread, so that none waits long for another.
            _ => (PIECES * threads).div_ceil(blocks).min(rows),
        };
        let band = rows.div_ceil(bands);
        let pieces = words.chunks_mut(rows * row).enumerate();
        let pieces = pieces.flat_map(|(block, words)| {
            let bands = words.chunks_mut(band * row).enumerate();
            bands.map(move |(i, words)| (block, i * band, words))
        });
        self.team.share(pieces, |me, (block, first, words)| {
            if let Some(neuron) = neuron(block) {
                self.rows(block, first, words, &neuron, &mut lock(&scratch[me]));
            }
        });
    }

    /// A layer of wide blocks, some columns of them at a time.
    fn run_wide(
        &self,
        events: &Events,
        words: &mut [u64],
        neuron: Neurons,
        scratch: &[Mutex<Scratch>],
    ) {
        let [channels, h, w] = self.geometry.output;
        let of_block = self.images * self.timesteps * h * w;
        let threads = self.team.threads();
        // Pixels of one image read other rows of the weights; those of several read the same, together.
        let alone = self.images * self.timesteps == 1;
        let at_once = if alone { 1 } else { of_block };
        let mut columns = self.view.width;
        // Memory gives long rows faster, so that they are cut only where a thread would have nothing to do.
        while columns > 2 * BLOCK && of_block / at_once * channels.div_ceil(columns) < threads {
            columns /= 2;
        }
        let mut all = std::mem::take(&mut lock(&scratch[0]).tile);
        let sums = sized(&mut all, of_block * padded(channels));
        let parts = sums.chunks_mut(of_block * columns).enumerate();
        let pieces = parts.flat_map(|(part, sums)| {
            let n = sums.len() / of_block;
            let pieces = sums.chunks_mut(at_once * n).enumerate();
            pieces.map(move |(i, sums)| (part * columns, n, i, sums))
        });
        self.team.share(pieces, |me, (from, n, first, sums)| {
            self.wide(events, from, n, first, sums, &mut lock(&scratch[me]).halves);
        });
        let Scratch {
            tile, potential, ..
        } = &mut *lock(&scratch[0]);
        let parts = sums.chunks(of_block * columns);
        for (part, (sums, words)) in parts
            .zip(words.chunks_mut(columns / BLOCK * of_block))
            .enumerate()
        {
            let n = sums.len() / of_block;
            for (b, words) in words.chunks_mut(of_block).enumerate() {
                if let Some(neuron) = neuron(part * columns / BLOCK + b) {
                    self.fire(&neuron, sums, n, b * BLOCK, words, potential);
                }
            }
        }
        *tile = all;
    }

    /// Spikes `[image·row][timestep][pixel]` of the block that begins at column `at` of currents `[image][timestep][row][pixel][n]`.
    fn fire(
        &self,
        neuron: &Neuron,
        sums: &[f32],
        n: usize,
        at: usize,
        words: &mut [u64],
        potential: &mut Vec<f32>,
    ) {
        let [_, h, w] = self.geometry.output;
        let width = BLOCK.min(n - at);
        let units = width / UNIT;
        let potential = sized(potential, width);
        for (row, words) in words.chunks_mut(self.timesteps * w).enumerate() {
            let (image, y) = (row / h, row % h);
            for x in 0..w {
                potential.fill(0.);
                for t in 0..self.timesteps {
                    let pixel = ((image * self.timesteps + t) * h + y) * w + x;
                    let current = &sums[pixel * n + at..][..width];
                    let word = &mut words[t * w + x..][..1];
                    // SAFETY: the session checked the instructions; sizes follow from the model's shapes.
                    unsafe {
                        match self.timesteps {
                            1 => kernel::fire(self.instructions, units, neuron, current, word),
                            _ => kernel::integrate(
                                self.instructions,
                                units,
                                neuron,
                                current,
                                potential,
                                word,
                            ),
                        }
                    }
                }
            }
        }
    }

    /// Currents of `n` outputs from output `from` on, which lie in one wide block, `[image][timestep][row][pixel][n]`: of all pixels, or, of
    /// one image at one timestep, of those from `pixel` on that there is room for.
    fn wide(
        &self,
        events: &Events,
        from: usize,
        n: usize,
        pixel: usize,
        sums: &mut [f32],
        halves: &mut Vec<i16>,
    ) {
        let g = &self.geometry;
        let [channels, ih, iw] = g.input;
        let [_, h, w] = g.output;
        let block = from / self.view.width;
        let (weights, scale, bias) = self.view.block(block);
        let offset = from - block * self.view.width;
        let stride = self.view.units(block) * UNIT;
        if halves.len() < n {
            halves.resize(n, 0);
        }
        let halves = &mut halves[..n];
        fill(
            sums,
            if scale.is_empty() {
                &bias[offset..offset + n]
            } else {
                &[]
            },
        );
        // Adds the rows of some codes of an input row; `first` is the weight row of code 0, before the matrix where the window is cut off.
        let mut add = |codes: &[u32], first: isize, sums: &mut [f32]| {
            let place = first * stride as isize + offset as isize;
            let rows = match weights {
                Block::Float32(all) => Rows::Float32(all.as_ptr().wrapping_offset(place), stride),
                Block::Int8(all) => Rows::Int8(all.as_ptr().wrapping_offset(place), stride),
            };
            // SAFETY: the session checked the instructions; a code of a window lies `first` behind a row of the matrix.
            unsafe { kernel::add_rows(self.instructions, rows, codes, sums, halves) };
        };
        let corner = |o: usize| (o * g.stride) as isize - g.padding as isize;
        if self.images * self.timesteps == 1 {
            for (i, sums) in sums.chunks_exact_mut(n).enumerate() {
                let (y, x) = (corner((pixel + i) / w), corner((pixel + i) % w));
                let columns = x.max(0) as usize..((x + g.kernel[1] as isize) as usize).min(iw);
                for k in 0..g.kernel[0] {
                    let Some(y) = y
                        .checked_add_unsigned(k)
                        .filter(|y| (0..ih as isize).contains(y))
                    else {
                        continue;
                    };
                    let line = events.line(0, y as usize, 0, 0);
                    let window =
                        line.starts[columns.start] as usize..line.starts[columns.end] as usize;
                    let first = (k * g.kernel[1]) as isize - x;
                    add(&line.codes[window], first * channels as isize, sums);
                }
            }
        } else {
            // All images take some rows before any takes the next.
            let bytes = if scale.is_empty() { 4 } else { 1 };
            let shared = (SHARED_BYTES / (n * bytes)).max(16);
            for tap in 0..g.kernel[0] * g.kernel[1] {
                let (ky, kx) = (tap / g.kernel[1], tap % g.kernel[1]);
                for begin in (0..channels).step_by(shared) {
                    let end = (begin + shared).min(channels);
                    for (pixel, sums) in sums.chunks_exact_mut(n).enumerate() {
                        let (line, pixel) = (pixel / (h * w), pixel % (h * w));
                        let (y, x) = (
                            corner(pixel / w) + ky as isize,
                            corner(pixel % w) + kx as isize,
                        );
                        if !(0..ih as isize).contains(&y) || !(0..iw as isize).contains(&x) {
                            continue;
                        }
                        let x = x as usize;
                        let line = events.line(
                            line / self.timesteps,
                            y as usize,
                            line % self.timesteps,
                            0,
                        );
                        let codes =
                            &line.codes[line.starts[x] as usize..line.starts[x + 1] as usize];
                        let place = |c: usize| {
                            codes.partition_point(|&code| (code as usize) < x * channels + c)
                        };
                        let range = if shared >= channels {
                            0..codes.len()
                        } else {
                            place(begin)..place(end)
                        };
                        add(
                            &codes[range],
                            (tap as isize - x as isize) * channels as isize,
                            sums,
                        );
                    }
                }
            }
        }
        if !scale.is_empty() {
            let (scale, bias) = (&scale[offset..offset + n], &bias[offset..offset + n]);
            // SAFETY: the session checked the instructions; scale and bias have n elements.
            unsafe { kernel::scale(self.instructions, n / UNIT, scale, bias, sums) };
        }
    }

    /// The rows from `first` on that `words` has room for.
    fn rows(
        &self,
        block: usize,
        first: usize,
        words: &mut [u64],
        neuron: &Neuron,
        scratch: &mut Scratch,
    ) {
        let [_, h, w] = self.geometry.output;
        let span = span(self.view.units(block));
        let times = if self.constant { 1 } else { self.timesteps };
        let (row, count) = (self.timesteps * w, words.len() / (self.timesteps * w));
        let split = self.split(block);
        let at_once = match split {
            true => (TILE_BYTES / (times * w * span * 4)).clamp(1, count),
            false => 1,
        };
        let Scratch {
            tile,
            side,
            potential,
            ..
        } = scratch;
        for (i, words) in words.chunks_mut(at_once * row).enumerate() {
            let first = first + i * at_once;
            let rows = words.len() / row;
            let tile = sized(tile, rows * times * w * span);
            self.currents(block, first, split, tile, side);
            for (r, words) in words.chunks_mut(row).enumerate() {
                let (image, y) = ((first + r) / h, (first + r) % h);
                let tile = &mut tile[r * times * w * span..][..times * w * span];
                if let Some(map) = &self.identity {
                    for (t, tile) in tile.chunks_mut(w * span).enumerate() {
                        map.add_to(block, image, y, t, span, tile);
                    }
                }
                let units = self.view.units(block);
                if self.timesteps == 1 {
                    // SAFETY: the session checked the instructions; sizes follow from the model's shapes.
                    unsafe { kernel::fire(self.instructions, units, neuron, tile, words) };
                    continue;
                }
                let potential = sized(potential, w * span);
                potential.fill(0.);
                for (t, words) in words.chunks_mut(w).enumerate() {
                    let tile = &tile[(t % times) * w * span..][..w * span];
                    // SAFETY: as above.
                    unsafe {
                        kernel::integrate(self.instructions, units, neuron, tile, potential, words)
                    };
                }
            }
        }
    }

    /// Whether most of a block's rows will be read.
    fn streams(&self) -> bool {
        let [_, h, w] = self.geometry.output;
        let pixels = self.images * h * w * self.timesteps;
        1. - (1. - self.share.min(1.)).powi(pixels.min(1 << 20) as i32) > STREAM_SHARE
    }

    /// Whether a block is taken one kernel row at a time.
    fn split(&self, block: usize) -> bool {
        let (weights, ..) = self.view.block(block);
        let bytes = match weights {
            Block::Float32(w) => 4 * w.len(),
            Block::Int8(w) => w.len(),
        };
        let most = if self.streams() {
            STREAM_BYTES
        } else {
            BLOCK_BYTES
        };
        bytes > most && self.geometry.kernel[0] > 1 && matches!(self.source, Source::Events(_))
    }

    /// Currents of some rows, `[row][timestep][pixel][16·units]`, without what an identity shortcut adds.
    fn currents(
        &self,
        block: usize,
        first: usize,
        split: bool,
        tile: &mut [f32],
        side: &mut Vec<f32>,
    ) {
        let isa = self.instructions;
        let units = self.view.units(block);
        let (_, scale, bias) = self.view.block(block);
        let times = if self.constant { 1 } else { self.timesteps };
        fill(tile, if scale.is_empty() { bias } else { &[] });
        let kernel_rows = self.geometry.kernel[0];
        let per_row = self.geometry.rows() / kernel_rows;
        let step = if split { 1 } else { kernel_rows };
        let streams = self.streams() && matches!(self.source, Source::Events(_));
        for row in (0..kernel_rows).step_by(step) {
            if streams {
                let range = row * per_row * units * UNIT..(row + step) * per_row * units * UNIT;
                match self.view.block(block).0 {
                    Block::Float32(all) => kernel::bring(&all[range]),
                    Block::Int8(all) => kernel::bring(&all[range]),
                }
            }
            let pass = Pass {
                cold: !streams,
                isa,
                geometry: &self.geometry,
                view: &self.view,
                rows: row..row + step,
                times,
            };
            match &self.source {
                Source::Events(events) => pass.events(block, first, events, tile),
                Source::Dense(values) => pass.dense(block, first, values, tile),
            }
        }
        if !scale.is_empty() {
            // SAFETY: the session checked the instructions; scale and bias are a block's.
            unsafe { kernel::scale(isa, units, scale, bias, tile) };
        }
        if let Some((geometry, view, events)) = &self.projection {
            let (_, scale, bias) = view.block(block);
            let pass = Pass {
                cold: false,
                isa,
                geometry,
                view,
                rows: 0..1,
                times,
            };
            let side = sized(side, tile.len());
            fill(side, if scale.is_empty() { bias } else { &[] });
            pass.events(block, first, events, side);
            if !scale.is_empty() {
                // SAFETY: as above.
                unsafe { kernel::scale(isa, units, scale, bias, side) };
            }
            for (sum, add) in tile.iter_mut().zip(side) {
                *sum += *add;
            }
        }
    }

    /// Scores `[image, class]`, summed over time.
    pub fn read_out(&self, scores: &mut [f32], scratch: &Mutex<Scratch>) {
        let classes = self.geometry.output[0];
        let Scratch {
            tile, side, halves, ..
        } = &mut *lock(scratch);
        let Source::Events(events) = &self.source else {
            return;
        };
        for from in (0..classes).step_by(self.view.width) {
            let n = self.view.width.min(padded(classes) - from);
            let currents = sized(tile, self.images * self.timesteps * n);
            self.wide(events, from, n, 0, currents, halves);
            let (_, _, bias) = self.view.block(from / self.view.width);
            let outputs = n.min(classes - from);
            let sums = sized(side, n);
            for (scores, currents) in scores
                .chunks_mut(classes)
                .zip(currents.chunks(self.timesteps * n))
            {
                sums.copy_from_slice(&currents[..n]);
                for current in currents.chunks(n).skip(1) {
                    // The bias enters once, not at every timestep.
                    for ((sum, current), bias) in sums.iter_mut().zip(current).zip(bias) {
                        *sum += current - bias;
                    }
                }
                scores[from..][..outputs].copy_from_slice(&sums[..outputs]);
            }
        }
    }
}

/// A run over the rows of a tile with some rows of a kernel.
struct Pass<'a> {
    isa: Instructions,
    geometry: &'a Geometry,
    view: &'a View<'a>,
    /// Rows of the kernel that take part.
    rows: Range<usize>,
    /// Timesteps in the tile.
    times: usize,
    /// Weights come from memory, row by row.
    cold: bool,
}

impl Pass<'_> {
    fn windows(&self) -> Windows {
        let g = self.geometry;
        Windows {
            width: g.input[2],
            outputs: g.output[2],
            kernel: g.kernel[1],
            stride: g.stride,
            padding: g.padding,
            channels: g.input[0],
        }
    }

    /// The kernel rows that meet an input row, with it and with their first weight row.
    fn meets(&self, y: usize) -> impl Iterator<Item = (usize, usize)> {
        let g = *self.geometry;
        let per_row = g.kernel[1] * g.input[0];
        self.rows.clone().filter_map(move |k| {
            let row = (y * g.stride + k).checked_sub(g.padding)?;
            (row < g.input[1]).then_some((row, k * per_row))
        })
    }

    fn events(&self, block: usize, first: usize, events: &Events, tile: &mut [f32]) {
        let (windows, units) = (self.windows(), self.view.units(block));
        let (weights, ..) = self.view.block(block);
        let [_, h, w] = self.geometry.output;
        let empty = Line {
            codes: &[],
            starts: &[],
            row: 0,
        };
        for (i, tile) in tile.chunks_mut(w * span(units)).enumerate() {
            let (row, t) = (first + i / self.times, i % self.times);
            let (image, y) = (row / h, row % h);
            let mut lines = [empty; 8];
            let mut n = 0;
            let mut gather = |lines: &[Line]| {
                // SAFETY: the session checked the instructions; codes were made for this input, and sizes follow from the model's shapes.
                unsafe {
                    kernel::gather(self.isa, units, self.cold, &windows, weights, lines, tile)
                };
            };
            for (y, row) in self.meets(y) {
                lines[n] = events.line(image, y, t, row);
                n += 1;
                if n == lines.len() {
                    gather(&lines);
                    n = 0;
                }
            }
            gather(&lines[..n]);
        }
    }

    fn dense(&self, block: usize, first: usize, values: &[f32], tile: &mut [f32]) {
        let (windows, units) = (self.windows(), self.view.units(block));
        let (Block::Float32(weights), ..) = self.view.block(block) else {
            return;
        };
        let [_, h, w] = self.geometry.output;
        let width = (windows.width + 2 * windows.padding) * windows.channels;
        for (i, tile) in tile.chunks_mut(w * span(units)).enumerate() {
            let (row, t) = (first + i / self.times, i % self.times);
            let (image, y) = (row / h, row % h);
            let mut lines = [DenseLine {
                values: &[],
                row: 0,
            }; 8];
            let mut n = 0;
            let mut dense = |lines: &[DenseLine]| {
                // SAFETY: as above.
                unsafe { kernel::dense(self.isa, units, &windows, weights, lines, tile) };
            };
            for (y, row) in self.meets(y) {
                let line = (image * self.geometry.input[1] + y) * self.times + t;
                let values = &values[line * width..(line + 1) * width];
                lines[n] = DenseLine { values, row };
                n += 1;
                if n == lines.len() {
                    dense(&lines);
                    n = 0;
                }
            }
            dense(&lines[..n]);
        }
    }
}

/// A thread's buffers.
fn lock(scratch: &Mutex<Scratch>) -> MutexGuard<'_, Scratch> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first `n` elements of a buffer that grows where it is too small.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.);
    }
    &mut buffer[..n]
}

/// Every pixel becomes `value`, or zero where that is empty.
fn fill(tile: &mut [f32], value: &[f32]) {
    match value {
        [] => tile.fill(0.),
        _ => tile
            .chunks_exact_mut(value.len())
            .for_each(|pixel| pixel.copy_from_slice(value)),
    }
}

impl LayerCounts {
    /// Counts a layer that is about to run. `images` is 0 for a projection, whose images are its layer's.
    pub(super) fn count(
        &mut self,
        geometry: &Geometry,
        view: &View,
        source: &Source,
        events: Option<&Events>,
        images: usize,
    ) {
        let outputs = geometry.output[0] as u64;
        let bytes = match view.matrix {
            Block::Float32(_) => 4,
            Block::Int8(_) => 1,
        };
        let dense = matches!(source, Source::Dense(_));
        if dense {
            let pixels = geometry.output[2];
            // Every window of the padded rows, without the kernel rows above and below the map.
            let kernel_rows: usize = (0..geometry.output[1])
                .map(|y| {
                    let met = |k: &usize| {
                        (y * geometry.stride + k)
                            .checked_sub(geometry.padding)
                            .is_some_and(|r| r < geometry.input[1])
                    };
                    (0..geometry.kernel[0]).filter(met).count()
                })
                .sum();
            let each = kernel_rows * pixels * geometry.kernel[1] * geometry.input[0];
            let macs = (each * images) as u64 * outputs * events.map_or(1, |e| e.timesteps as u64);
            self.additions += macs;
            self.multiplications += macs;
            self.weight_bytes += macs * bytes / DENSE_PIXELS as u64;
            self.dense_images += images as u64;
        }
        let Some(events) = events else {
            self.inputs += (images * geometry.input.iter().product::<usize>()) as u64;
            return;
        };
        if images > 0 {
            self.inputs += events.inputs();
            self.spikes += events.total();
        }
        let reached = |place: usize, size: usize, kernel: usize| {
            (0..size)
                .filter(|o| {
                    let from = o * geometry.stride;
                    (from..from + kernel).contains(&(place + geometry.padding))
                })
                .count() as u64
        };
        let [_, h, w] = geometry.input;
        let [_, oh, ow] = geometry.output;
        let columns: Vec<u64> = (0..w).map(|x| reached(x, ow, geometry.kernel[1])).collect();
        for y in 0..h {
            let rows = reached(y, oh, geometry.kernel[0]);
            for image in 0..events.images {
                for t in 0..events.timesteps {
                    for (spikes, columns) in events.at(image, y, t).zip(&columns) {
                        let additions = spikes * rows * columns * outputs;
                        self.spike_additions += additions;
                        if !dense {
                            self.additions += additions;
                            self.weight_bytes += additions * bytes;
                        }
                    }
                }
            }
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.inputs += other.inputs;
        self.spikes += other.spikes;
        self.additions += other.additions;
        self.multiplications += other.multiplications;
        self.spike_additions += other.spike_additions;
        self.weight_bytes += other.weight_bytes;
        self.dense_images += other.dense_images;
        self.nanoseconds += other.nanoseconds;
    }
}
