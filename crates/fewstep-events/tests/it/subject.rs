//! Any network that bytes can choose, and what must hold of whatever loads. Shared with the fuzz targets.

use fewstep_events::{
    Connection, Dense, Images, Instructions, Layer, Model, Network, Options, Precision, Reset,
    Shortcut,
};

use super::forge::Parts;

/// Choices that bytes make; zeros when they are used up.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    /// 0 to `n` - 1; mostly the small ones.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    /// Mostly plain, at times any f32 that there is.
    fn number(&mut self) -> f32 {
        match self.byte() {
            255 => f32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
            b => (f32::from(b) - 100.) / 64.,
        }
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        // Long lists repeat: a file's size shall not decide what a fuzzer can say.
        let few: Vec<f32> = (0..n.min(7)).map(|_| self.number()).collect();
        (0..n).map(|i| few[i % few.len()]).collect()
    }

    /// Outputs of a layer; few where each has many weights, so that a fuzzer gets through many networks.
    fn width(&mut self, rows: usize) -> usize {
        let width = [1, 2, 3, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65, 80, 130, 600][self.below(16)];
        width.min(20_000 / rows.max(1)).max(1)
    }

    fn dense(&mut self, rows: usize, outputs: usize) -> Dense {
        Dense {
            weight: self.numbers(rows * outputs),
            bias: if self.below(2) == 0 {
                vec![]
            } else {
                self.numbers(outputs)
            },
        }
    }

    /// A network that is most often valid.
    pub fn network(&mut self) -> Network {
        let side = |size: usize, kernel: usize, stride: usize, padding: usize| {
            (size + 2 * padding)
                .checked_sub(kernel)
                .map_or(0, |room| room / stride + 1)
        };
        let input = [1 + self.below(4), 1 + self.below(12), 1 + self.below(12)];
        let mut shape = input;
        let mut outputs: Vec<[usize; 3]> = Vec::new();
        let mut layers = Vec::new();
        for i in 0..1 + self.below(5) {
            let connection = match self.below(5) {
                0 => Connection::Linear,
                _ => {
                    let kernel = [1, 2, 3, 3, 5, 9, 11][self.below(7)];
                    Connection::Conv {
                        kernel,
                        stride: 1 + self.below(4),
                        padding: self.below(kernel + 1).min(kernel),
                    }
                }
            };
            let (rows, [h, w]) = match connection {
                Connection::Linear => (shape.iter().product(), [1, 1]),
                Connection::Conv {
                    kernel,
                    stride,
                    padding,
                } => {
                    let reach = |size| side(size, kernel, stride, padding);
                    (
                        kernel * kernel * shape[0],
                        [reach(shape[1]), reach(shape[2])],
                    )
                }
            };
            let mut width = self.width(rows);
            let mut next = [width, h, w];
            let mut shortcut = None;
            if i > 0 && self.below(2) == 0 {
                let from = self.below(i + 1);
                let source = outputs.get(from).copied().unwrap_or([1; 3]);
                let projection = (self.below(2) == 0).then(|| 1 + self.below(3));
                if projection.is_none() && self.below(4) > 0 {
                    (width, next[0]) = (source[0], source[0]);
                }
                shortcut = Some(Shortcut {
                    from,
                    projection: projection.map(|stride| (stride, self.dense(source[0], width))),
                });
            }
            let pool = self.below(3) == 0;
            layers.push(Layer {
                name: format!("l{i}"),
                connection,
                outputs: width,
                dense: self.dense(rows, width),
                threshold: match self.below(3) {
                    0 => self.numbers(width),
                    _ => vec![self.number()],
                },
                leak: vec![self.number()],
                pool,
                shortcut,
            });
            if pool {
                next = [next[0], next[1] / 2, next[2] / 2];
            }
            outputs.push(next);
            shape = next;
        }
        let classes = self.width(shape.iter().product());
        layers.push(Layer {
            name: "readout".into(),
            connection: Connection::Linear,
            outputs: classes,
            dense: self.dense(shape.iter().product(), classes),
            threshold: vec![],
            leak: vec![],
            pool: false,
            shortcut: None,
        });
        Network {
            name: "chosen".into(),
            input,
            mean: vec![0.5; input[0]],
            std: vec![0.25; input[0]],
            timesteps: [1, 1, 2, 3, 5, 64][self.below(6)],
            reset: [Reset::Soft, Reset::Hard, Reset::None][self.below(3)],
            layers,
            ..Network::default()
        }
    }

    pub fn precision(&mut self) -> Precision {
        [Precision::Float32, Precision::Int8][self.below(2)]
    }

    /// Changes bytes of tensors, the last of them in ways that training never would: NaN, infinities, weights of -128.
    pub fn spoil(&mut self, file: &[u8]) -> Vec<u8> {
        let Some(mut parts) = Parts::of(file) else {
            return file.to_vec();
        };
        for _ in 0..self.below(4) {
            let n = parts.tensors.len();
            let bytes = &mut parts.tensors[self.below(n)].bytes;
            let value = match self.below(4) {
                0 => [0, 0, 0xc0, 0x7f],
                1 => [0, 0, 0x80, 0xff],
                2 => [0x80; 4],
                _ => [self.byte(), self.byte(), self.byte(), self.byte()],
            };
            let every = 1 + self.below(8);
            for four in bytes.chunks_exact_mut(4).step_by(every) {
                four.copy_from_slice(&value);
            }
        }
        parts.file(true)
    }
}

/// Runs what loads, if an image takes less than a moment: whatever the file says, scores or an error come back, the same ones for a batch
/// as for each of its images.
pub fn run_what_loads(file: &[u8], choices: &mut Choices) {
    let Ok(model) = Model::from_bytes(file) else {
        return;
    };
    let work: u64 = model.layers().map(|(_, macs)| macs).sum();
    let size: usize = model.input().iter().product();
    if work * model.timesteps() as u64 > 1_000_000 || size > 4096 {
        return;
    }
    let n = 1 + choices.below(3);
    let mut pixels: Vec<u8> = (0..size * n).map(|i| (i * 37) as u8).collect();
    for p in pixels.iter_mut().take(64) {
        *p = choices.byte();
    }
    let all = Instructions::all();
    let options = Options {
        threads: 1,
        instructions: Some(all[choices.below(all.len())]),
        dense_above: [4., 0., 0.6][choices.below(3)],
        group: 1 + choices.below(3),
        count: choices.below(2) == 0,
    };
    let Ok(mut session) = model.session(options) else {
        return;
    };
    let classes = model.classes();
    let mut scores = vec![0.; n * classes];
    if session.run(Images::Pixels(&pixels), &mut scores).is_err() {
        return;
    }
    if options.dense_above == 4. {
        let mut again = vec![0.; classes];
        for (image, scores) in pixels.chunks(size).zip(scores.chunks(classes)) {
            session
                .run(Images::Pixels(image), &mut again)
                .expect("a smaller batch than before");
            let same = scores
                .iter()
                .zip(&again)
                .all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
            assert!(same, "{scores:?} in a batch, {again:?} alone");
        }
    }
}
