//! Runs batches: layer by layer, a group of images at a time, so that a block of weights serves all of them while it is in the cache.

mod events;
mod layer;
mod team;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::counts::LayerCounts;
use crate::file::{BLOCK, UNIT};
use crate::kernel::{self, Instructions};
use crate::model::Inner;
use crate::{Error, Result};

use events::{Events, Map};
use layer::{Scratch, Source, Task};
use team::Team;

/// How a session runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Threads, at least 1. A batch is shared out by images; one image, or fewer than threads, by rows and output channels.
    pub threads: usize,
    /// The instructions; the best that the processor has where `None`.
    pub instructions: Option<Instructions>,
    /// A convolution with float weights and rows of 6 outputs or more runs densely where more than this many spikes an input reach it. 0 to
    /// 4, as up to four do behind a pool; 4 is never.
    pub dense_above: f32,
    /// Images of a batch that one thread takes through a layer together. More need more memory and read weights less often.
    pub group: usize,
    /// Count operations: [`Session::counts`].
    pub count: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 1,
            instructions: None,
            dense_above: 0.6,
            group: 16,
            count: false,
        }
    }
}

/// Images of a batch.
#[derive(Debug, Clone, Copy)]
pub enum Images<'a> {
    /// `[N, H, W, C]` bytes, as image decoders give them.
    Pixels(&'a [u8]),
    /// `[N, C, H, W]` numbers with mean and deviation already applied, as libtorch's tensors have them.
    Normalised(&'a [f32]),
}

impl<'a> Images<'a> {
    fn len(&self) -> usize {
        match self {
            Self::Pixels(p) => p.len(),
            Self::Normalised(p) => p.len(),
        }
    }

    fn part(&self, from: usize, to: usize) -> Images<'a> {
        match self {
            Self::Pixels(p) => Images::Pixels(&p[from..to]),
            Self::Normalised(p) => Images::Normalised(&p[from..to]),
        }
    }
}

/// Buffers for one model. After a first batch of a size, a batch of that size or less needs no new memory (on several threads, rayon's
/// queue and a thread's first piece of a layer may take some).
pub struct Session {
    inner: Arc<Inner>,
    plan: Plan,
    work: Vec<Work>,
    #[cfg(feature = "threads")]
    pool: Option<rayon::ThreadPool>,
}

/// Groups have fewer images than asked for where the buffers of all threads would take more than this.
const GROUP_BYTES: u64 = 4 << 30;

/// What does not change between batches.
struct Plan {
    options: Options,
    instructions: Instructions,
    /// Images that go through a layer together.
    group: usize,
    /// For each channel, what a byte becomes.
    table: Vec<[f32; 256]>,
}

/// The buffers of one group of images.
#[derive(Default)]
struct Work {
    /// The image, `[row][(W + 2·padding)·C]`.
    input: Vec<f32>,
    /// Spikes of each layer.
    maps: Vec<Vec<u64>>,
    events: Events,
    /// Events of a shortcut.
    side: Events,
    /// Activations of a layer that runs densely.
    dense: Vec<f32>,
    /// One for each thread that works on this group.
    scratch: Vec<Mutex<Scratch>>,
    counts: Vec<LayerCounts>,
}

impl Session {
    pub(crate) fn new(inner: Arc<Inner>, options: Options) -> Result<Self> {
        let wrong = |option, expected, found: String| {
            Err(Error::Option {
                option,
                expected,
                found,
            })
        };
        if !(1..=1024).contains(&options.threads) {
            return wrong("threads", "1 to 1024", options.threads.to_string());
        }
        if !(1..=4096).contains(&options.group) {
            return wrong("group", "1 to 4096", options.group.to_string());
        }
        if !(0. ..=4.).contains(&options.dense_above) {
            return wrong("dense_above", "0 to 4", options.dense_above.to_string());
        }
        let instructions = options.instructions.unwrap_or_else(Instructions::best);
        if !Instructions::all().contains(&instructions) {
            let expected = "instructions that this processor has";
            return wrong("instructions", expected, format!("{instructions:?}"));
        }
        #[cfg(not(feature = "threads"))]
        if options.threads > 1 {
            let expected = "1, as this build has no feature `threads`";
            return wrong("threads", expected, options.threads.to_string());
        }
        #[cfg(feature = "threads")]
        let pool = match options.threads {
            1 => None,
            threads => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .map_err(|e| Error::Memory(format!("{threads} threads ({e})")))?,
            ),
        };
        let spec = &inner.spec;
        let row = |(&mean, &std): (&f32, &f32)| {
            std::array::from_fn(|byte| (byte as f32 / 255. - mean) / std)
        };
        let table = spec.mean.iter().zip(&spec.std).map(row).collect();
        let layers = spec.layers.len();
        let work = (0..options.threads)
            .map(|i| Work {
                maps: vec![Vec::new(); layers - 1],
                // Only the first ever has help of others.
                scratch: (0..if i == 0 { options.threads } else { 1 })
                    .map(|_| Mutex::default())
                    .collect(),
                counts: vec![LayerCounts::default(); layers],
                ..Work::default()
            })
            .collect();
        let one = inner.spec.image_bytes(&inner.shapes);
        let most = GROUP_BYTES / options.threads as u64 / one;
        let group = options.group.min(most as usize).max(1);
        Ok(Self {
            inner,
            plan: Plan {
                options,
                instructions,
                group,
                table,
            },
            work,
            #[cfg(feature = "threads")]
            pool,
        })
    }

    /// Scores `[N, classes]` of a batch.
    ///
    /// # Errors
    /// Images of another size, a place for another number of scores, or not enough memory.
    pub fn run(&mut self, images: Images, scores: &mut [f32]) -> Result<()> {
        let size: usize = self.inner.spec.input.iter().product();
        let classes = self.inner.classes();
        let n = images.len() / size;
        if !images.len().is_multiple_of(size) || n == 0 {
            let [c, h, w] = self.inner.spec.input;
            return Err(Error::Image {
                expected: format!("{size} values ({w}×{h} pixels, {c} channels)"),
                found: format!("{} values in all", images.len()),
            });
        }
        if scores.len() != n * classes {
            return Err(Error::Image {
                expected: format!("room for {classes} scores"),
                found: format!("room for {} scores of {n} images", scores.len()),
            });
        }
        let (inner, plan) = (&*self.inner, &self.plan);
        let groups = |work: &mut Work, images: Images, scores: &mut [f32], team: &Team| {
            let group = plan.group;
            for (i, scores) in scores.chunks_mut(group * classes).enumerate() {
                let (from, count) = (i * group * size, scores.len() / classes);
                let part = images.part(from, from + count * size);
                work.run(inner, plan, part, count, scores, team)?;
            }
            Ok(())
        };
        #[cfg(feature = "threads")]
        if let Some(pool) = &self.pool {
            use rayon::prelude::*;
            let threads = plan.options.threads;
            if n < threads {
                let work = &mut self.work[0];
                return Team::gather(pool, threads, |team| groups(work, images, scores, team));
            }
            let share = n.div_ceil(threads);
            return pool.install(|| {
                self.work
                    .par_iter_mut()
                    .zip(scores.par_chunks_mut(share * classes))
                    .enumerate()
                    .map(|(i, (work, scores))| {
                        let from = i * share * size;
                        let part = images.part(from, from + scores.len() / classes * size);
                        groups(work, part, scores, &Team::default())
                    })
                    .collect()
            });
        }
        groups(&mut self.work[0], images, scores, &Team::default())
    }

    /// What each layer did since the session began, where [`Options::count`] is set; else zeros.
    pub fn counts(&self) -> Vec<LayerCounts> {
        let layers = self.inner.spec.layers.len();
        let mut all = vec![LayerCounts::default(); layers];
        for work in &self.work {
            for (sum, each) in all.iter_mut().zip(&work.counts) {
                sum.add(each);
            }
        }
        all
    }

    /// The instructions that it uses.
    pub fn instructions(&self) -> Instructions {
        self.plan.instructions
    }

    /// Bytes of its buffers, without those that hold a few rows for each thread.
    pub fn bytes(&self) -> usize {
        self.work.iter().map(Work::bytes).sum()
    }
}

impl Work {
    fn bytes(&self) -> usize {
        let words: usize = self.maps.iter().map(|m| 8 * m.capacity()).sum();
        let floats = 4 * (self.input.capacity() + self.dense.capacity());
        words + floats + self.events.bytes() + self.side.bytes()
    }

    /// Takes a group of `n` images through all layers.
    fn run(
        &mut self,
        inner: &Inner,
        plan: &Plan,
        images: Images,
        n: usize,
        scores: &mut [f32],
        team: &Team,
    ) -> Result<()> {
        let timesteps = inner.spec.timesteps;
        let first = inner.shapes[0].main;
        grow(
            &mut self.input,
            n * first.input[1] * (first.input[2] + 2 * first.padding) * first.input[0],
        )?;
        write_input(&mut self.input, plan, &first, images);
        let readout = inner.layers.len() - 1;
        for place in 0..=readout {
            let start = plan.options.count.then(Instant::now);
            let mut counting = Duration::ZERO;
            let shape = &inner.shapes[place];
            let geometry = shape.main;
            let view = inner.view(&inner.layers[place].main, &geometry);
            let (done, rest) = self.maps.split_at_mut(place);
            let map = |layer: usize| Map {
                words: &done[layer],
                shape: inner.shapes[layer].main.output,
                pool: inner.spec.layers[layer].pool,
                images: n,
                timesteps,
            };
            let float = matches!(view.matrix, kernel::Block::Float32(_));
            let mut share = 1.;
            let source = if place == 0 {
                Source::Dense(&self.input)
            } else {
                let before = map(place - 1);
                self.events.decode(plan.instructions, &before, team)?;
                share = self.events.share();
                let wide = geometry.output[2] >= layer::DENSE_PIXELS;
                if float && wide && share > f64::from(plan.options.dense_above) {
                    self.events.unpack(geometry.padding, &mut self.dense)?;
                    Source::Dense(&self.dense)
                } else {
                    Source::Events(&self.events)
                }
            };
            let shortcut = inner.spec.layers[place].shortcut;
            let identity = shortcut
                .filter(|s| s.projection.is_none())
                .map(|s| map(s.from));
            let projection = match (&inner.layers[place].projection, shape.projection, shortcut) {
                (Some(weights), Some(geometry), Some(s)) => {
                    self.side.decode(plan.instructions, &map(s.from), team)?;
                    Some((geometry, inner.view(weights, &geometry), &self.side))
                }
                _ => None,
            };
            if plan.options.count {
                let start = Instant::now();
                let counts = &mut self.counts[place];
                counts.count(
                    &geometry,
                    &view,
                    &source,
                    (place > 0).then_some(&self.events),
                    n,
                );
                if let Some((geometry, view, side)) = &projection {
                    counts.count(geometry, view, &Source::Events(side), Some(side), 0);
                }
                counting = start.elapsed();
            }
            let task = Task {
                instructions: plan.instructions,
                geometry,
                view,
                source,
                identity,
                projection,
                timesteps,
                constant: place == 0,
                images: n,
                share,
                team,
            };
            let done = |counts: &mut Vec<LayerCounts>| {
                if let Some(start) = start {
                    counts[place].nanoseconds += (start.elapsed() - counting).as_nanos() as u64;
                }
            };
            if place == readout {
                task.read_out(scores, &self.scratch[0]);
                done(&mut self.counts);
                return Ok(());
            }
            let [channels, h, w] = geometry.output;
            let words = channels.div_ceil(BLOCK) * n * h * timesteps * w;
            grow(&mut rest[0], words)?;
            let reset = inner.spec.reset;
            let neurons = |block: usize| inner.neuron(&inner.layers[place], block);
            task.run(&mut rest[0][..words], &neurons, reset, &self.scratch);
            done(&mut self.counts);
        }
        Ok(())
    }
}

/// Makes room for `n` elements.
fn grow<T: Copy + Default>(buffer: &mut Vec<T>, n: usize) -> Result<()> {
    if buffer.len() < n {
        buffer
            .try_reserve_exact(n - buffer.len())
            .map_err(|_| Error::Memory(format!("a buffer of {} bytes", n * size_of::<T>())))?;
        buffer.resize(n, T::default());
    }
    Ok(())
}

/// Channels last, normalised, with a border of zeros left and right.
fn write_input(input: &mut [f32], plan: &Plan, first: &crate::network::Geometry, images: Images) {
    let [c, h, w] = first.input;
    let row = (w + 2 * first.padding) * c;
    let border = first.padding * c;
    match images {
        Images::Pixels(pixels) => {
            for (to, from) in input.chunks_exact_mut(row).zip(pixels.chunks_exact(w * c)) {
                let to = to[border..].chunks_exact_mut(c);
                for (to, from) in to.zip(from.chunks_exact(c)) {
                    for ((to, &byte), table) in to.iter_mut().zip(from).zip(&plan.table) {
                        *to = table[usize::from(byte)];
                    }
                }
            }
        }
        Images::Normalised(values) => {
            for (i, to) in input
                .chunks_exact_mut(row)
                .take(values.len() / (w * c))
                .enumerate()
            {
                let (image, y) = (i / h, i % h);
                for channel in 0..c {
                    let from = ((image * c + channel) * h + y) * w;
                    for (x, &v) in values[from..from + w].iter().enumerate() {
                        to[border + x * c + channel] = v;
                    }
                }
            }
        }
    }
}

/// Elements of a pixel in a tile of a block of `units` units.
fn span(units: usize) -> usize {
    units * UNIT
}
