//! Spikes as bits, and the lists of events that are made of them.

use crate::Result;
use crate::file::BLOCK;
use crate::kernel::{self, Instructions, Line};
use crate::session::grow;
use crate::session::team::Team;

/// Lines of events that a thread makes at a time.
const LINES: usize = 4;

/// The spikes of a layer: a word of 64 channels for each `[block][image·row][timestep][pixel]`.
#[derive(Clone, Copy)]
pub(super) struct Map<'a> {
    pub words: &'a [u64],
    /// `[C, H, W]` before the pool.
    pub shape: [usize; 3],
    pub pool: bool,
    pub images: usize,
    pub timesteps: usize,
}

impl Map<'_> {
    /// `[C, H, W]` behind the pool.
    pub fn output(&self) -> [usize; 3] {
        let [c, h, w] = self.shape;
        match self.pool {
            true => [c, h / 2, w / 2],
            false => [c, h, w],
        }
    }

    /// The words of a row of neurons, one a pixel.
    fn row(&self, block: usize, image: usize, y: usize, t: usize) -> &[u64] {
        let [_, h, w] = self.shape;
        let row = (block * self.images + image) * h + y;
        &self.words[(row * self.timesteps + t) * w..][..w]
    }

    /// The four neurons' words behind output pixel x of a pooled map.
    fn four(&self, block: usize, image: usize, y: usize, t: usize, x: usize) -> [u64; 4] {
        let upper = self.row(block, image, 2 * y, t);
        let lower = self.row(block, image, 2 * y + 1, t);
        [
            upper[2 * x],
            upper[2 * x + 1],
            lower[2 * x],
            lower[2 * x + 1],
        ]
    }

    /// Adds the map's values (0 or 1; behind a pool quarters) at output pixels of a row to a tile of currents.
    pub fn add_to(
        &self,
        block: usize,
        image: usize,
        y: usize,
        t: usize,
        span: usize,
        tile: &mut [f32],
    ) {
        for (x, pixel) in tile.chunks_exact_mut(span).enumerate() {
            let (words, value) = match self.pool {
                true => (self.four(block, image, y, t, x), 0.25),
                false => ([self.row(block, image, y, t)[x], 0, 0, 0], 1.),
            };
            for mut word in words {
                while word != 0 {
                    pixel[word.trailing_zeros() as usize] += value;
                    word &= word - 1;
                }
            }
        }
    }
}

/// Events of a map, one list a row and timestep.
#[derive(Default)]
pub(super) struct Events {
    codes: Vec<u32>,
    starts: Vec<u32>,
    /// `[C, H, W]` of the input that they are events of.
    pub shape: [usize; 3],
    pub timesteps: usize,
    pub images: usize,
    /// Room for the codes of a line.
    room: usize,
}

impl Events {
    pub fn bytes(&self) -> usize {
        4 * (self.codes.capacity() + self.starts.capacity())
    }

    /// Makes the lists anew.
    pub fn decode(&mut self, isa: Instructions, map: &Map, team: &Team) -> Result<()> {
        self.shape = map.output();
        let [c, h, w] = self.shape;
        (self.timesteps, self.images) = (map.timesteps, map.images);
        // What writes a word's places writes up to 64, and what writes those of four up to four too many.
        self.room = w * c * if map.pool { 4 } else { 1 } + 64;
        let (room, lines) = (self.room, self.lines());
        grow(&mut self.codes, lines * room)?;
        grow(&mut self.starts, lines * (w + 1))?;
        let fill = |line: usize, codes: &mut [u32], starts: &mut [u32]| {
            let (row, t) = (line / map.timesteps, line % map.timesteps);
            let (image, y) = (row / h, row % h);
            let mut n = 0;
            for (x, start) in starts[..w].iter_mut().enumerate() {
                *start = n as u32;
                for block in 0..c.div_ceil(BLOCK) {
                    let first = (x * c + block * BLOCK) as u32;
                    if map.pool {
                        n += pooled(map.four(block, image, y, t, x), first, &mut codes[n..]);
                    } else {
                        let word = map.row(block, image, y, t)[x];
                        assert!(codes.len() - n >= 64);
                        // SAFETY: the session chose instructions that are there; there is room for 64.
                        n += unsafe {
                            kernel::positions(isa, word, first, codes.as_mut_ptr().add(n))
                        };
                    }
                }
            }
            starts[w] = n as u32;
        };
        let codes = &mut self.codes[..lines * room];
        let starts = &mut self.starts[..lines * (w + 1)];
        let pieces = codes
            .chunks_mut(LINES * room)
            .zip(starts.chunks_mut(LINES * (w + 1)))
            .enumerate();
        team.share(pieces, |_, (piece, (codes, starts))| {
            let lines = codes
                .chunks_exact_mut(room)
                .zip(starts.chunks_exact_mut(w + 1));
            for (i, (codes, starts)) in lines.enumerate() {
                fill(piece * LINES + i, codes, starts);
            }
        });
        Ok(())
    }

    fn lines(&self) -> usize {
        self.images * self.shape[1] * self.timesteps
    }

    /// Spikes in all.
    pub fn total(&self) -> u64 {
        let w = self.shape[2];
        let ends = self.starts.chunks_exact(w + 1).take(self.lines());
        ends.map(|s| u64::from(s[w])).sum()
    }

    /// Inputs in all.
    pub fn inputs(&self) -> u64 {
        (self.lines() * self.shape[0] * self.shape[2]) as u64
    }

    /// Spikes an input: behind a pool up to four.
    pub fn share(&self) -> f64 {
        self.total() as f64 / self.inputs() as f64
    }

    /// Input row y of an image, as the kernel row that begins at weight row `row` sees it.
    pub fn line(&self, image: usize, y: usize, t: usize, row: usize) -> Line<'_> {
        let [_, h, w] = self.shape;
        let line = (image * h + y) * self.timesteps + t;
        let codes = line * self.room..(line + 1) * self.room;
        Line {
            codes: &self.codes[codes],
            starts: &self.starts[line * (w + 1)..(line + 1) * (w + 1)],
            row,
        }
    }

    /// Spikes at each pixel of a row.
    pub fn at(&self, image: usize, y: usize, t: usize) -> impl Iterator<Item = u64> {
        let line = self.line(image, y, t, 0);
        line.starts.windows(2).map(|s| u64::from(s[1] - s[0]))
    }

    /// The activations `[row][timestep][(W + 2·padding)·C]`.
    pub fn unpack(&self, padding: usize, into: &mut Vec<f32>) -> Result<()> {
        let [c, h, w] = self.shape;
        let width = (w + 2 * padding) * c;
        let n = self.lines() * width;
        grow(into, n)?;
        into[..n].fill(0.);
        for (line, to) in into[..n].chunks_exact_mut(width).enumerate() {
            let row = line / self.timesteps;
            let from = self.line(row / h, row % h, line % self.timesteps, 0);
            let end = from.starts[w] as usize;
            for &code in &from.codes[..end] {
                to[padding * c + code as usize] += 1.;
            }
        }
        Ok(())
    }
}

/// Places of the bits of four words, ascending, as often as they are set.
fn pooled(words: [u64; 4], first: u32, codes: &mut [u32]) -> usize {
    let mut any = words[0] | words[1] | words[2] | words[3];
    let mut n = 0;
    while any != 0 {
        let bit = any.trailing_zeros();
        any &= any - 1;
        let count: u64 = words.iter().map(|w| w >> bit & 1).sum();
        // Without a branch: four are written, and as many stay as there are.
        codes[n..n + 4].fill(first + bit);
        n += count as usize;
    }
    n
}
