//! A model that is ready to run.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bytes::Bytes;
use crate::file::{self, BLOCK, Contents, LayerData, Matrix, UNIT, Weights, block_width, padded};
use crate::kernel::Block;
use crate::network::{Network, NetworkSpec, Precision, Shape};
use crate::session::{Options, Session};
use crate::{Error, Images, Result};

/// A trained network on its file, ready to run on any number of threads.
///
/// It is cheap to clone: clones share the file.
pub struct Model {
    inner: Arc<Inner>,
    /// Sessions that [`Model::run`] made and uses again.
    idle: Mutex<Vec<Session>>,
}

pub(crate) struct Inner {
    bytes: Bytes,
    pub spec: NetworkSpec,
    pub shapes: Vec<Shape>,
    pub layers: Vec<LayerData>,
}

/// A matrix and what belongs to its outputs, as slices.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub matrix: Block<'a>,
    /// The scale of each output; empty for float weights.
    pub scale: &'a [f32],
    pub bias: &'a [f32],
    /// Outputs of a block, but for the last.
    pub width: usize,
    rows: usize,
    outputs: usize,
}

impl<'a> View<'a> {
    /// Units of 16 outputs in a block.
    pub fn units(&self, block: usize) -> usize {
        (padded(self.outputs) - block * self.width).min(self.width) / UNIT
    }

    /// The weights of a block, its scales (empty for float weights) and its biases.
    pub fn block(&self, block: usize) -> (Block<'a>, &'a [f32], &'a [f32]) {
        let width = self.units(block) * UNIT;
        let first = block * self.width;
        let of = |all: &'a [f32]| all.get(first..first + width).unwrap_or(&[]);
        let begin = self.rows * first;
        let range = begin..begin + self.rows * width;
        let weights = match self.matrix {
            Block::Float32(all) => Block::Float32(&all[range]),
            Block::Int8(all) => Block::Int8(&all[range]),
        };
        (weights, of(self.scale), of(self.bias))
    }
}

impl Inner {
    fn floats(&self, range: &std::ops::Range<usize>) -> &[f32] {
        // The file was checked: the range lies in it and begins at a multiple of four.
        bytemuck::cast_slice(&self.bytes[range.clone()])
    }

    pub fn view(&self, weights: &Weights, shape: &crate::network::Geometry) -> View<'_> {
        let (matrix, scale) = match &weights.matrix {
            Matrix::Float32(range) => (Block::Float32(self.floats(range)), &[][..]),
            Matrix::Int8(range, scale) => (
                Block::Int8(bytemuck::cast_slice(&self.bytes[range.clone()])),
                self.floats(scale),
            ),
        };
        let bytes = if scale.is_empty() { 4 } else { 1 };
        View {
            matrix,
            scale,
            width: block_width(shape, bytes),
            bias: self.floats(&weights.bias),
            rows: shape.rows(),
            outputs: shape.output[0],
        }
    }

    /// θ and λ of a block's outputs.
    pub fn neuron(&self, layer: &LayerData, block: usize) -> Option<[&[f32]; 2]> {
        let [threshold, leak] = layer.neuron.as_ref()?;
        let of = |range| {
            let all = self.floats(range);
            &all[block * BLOCK..all.len().min((block + 1) * BLOCK)]
        };
        Some([of(threshold), of(leak)])
    }

    pub fn classes(&self) -> usize {
        self.shapes.last().map_or(0, |s| s.main.output[0])
    }
}

impl Model {
    /// Opens a model file. It is mapped, not read, so that opening is quick and processes share its pages; it must not be changed while it
    /// is open (replace it by renaming a new one over it).
    ///
    /// # Errors
    /// The file can't be opened, is not a model, is cut off or damaged (its checksum is verified), or is of another version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(Bytes::open(path)?, path)
    }

    /// A model from a file's bytes, which are copied.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::new(Bytes::copy(bytes)?, Path::new("<memory>"))
    }

    /// A model of a network, without a file.
    ///
    /// # Errors
    /// A network that can't be.
    pub fn from_network(network: &Network, precision: Precision) -> Result<Self> {
        Self::from_bytes(&file::encode(network, precision)?)
    }

    fn new(bytes: Bytes, path: &Path) -> Result<Self> {
        let Contents {
            spec,
            shapes,
            layers,
        } = file::decode(&bytes, path)?;
        Ok(Self {
            inner: Arc::new(Inner {
                bytes,
                spec,
                shapes,
                layers,
            }),
            idle: Mutex::default(),
        })
    }

    /// Scores of one image on one thread: `[H, W, C]` bytes, as image decoders give them.
    ///
    /// # Errors
    /// An image of another size.
    pub fn run(&self, image: &[u8]) -> Result<Scores> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let mut session = match taken {
            Some(session) => session,
            None => self.session(Options::default())?,
        };
        let mut values = vec![0.; self.inner.classes()];
        let done = session.run(Images::Pixels(image), &mut values);
        idle().push(session);
        done.map(|()| Scores { values })
    }

    /// What runs batches and uses threads: buffers for this model.
    ///
    /// # Errors
    /// Options out of range, or not enough memory.
    pub fn session(&self, options: Options) -> Result<Session> {
        Session::new(self.inner.clone(), options)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.spec.name
    }

    /// `[C, H, W]` of an image.
    pub fn input(&self) -> [usize; 3] {
        self.inner.spec.input
    }

    /// T.
    pub fn timesteps(&self) -> usize {
        self.inner.spec.timesteps
    }

    /// Number format of the weights behind the first layer.
    pub fn precision(&self) -> Precision {
        self.inner.spec.precision
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.inner.classes()
    }

    /// Names of the classes; empty where the file has none.
    pub fn class_names(&self) -> &[String] {
        &self.inner.spec.classes
    }

    /// Where it comes from.
    pub fn provenance(&self) -> &[(String, String)] {
        &self.inner.spec.provenance
    }

    /// Names of the layers, front to back, and their dense multiply-accumulates (padding and projections included).
    pub fn layers(&self) -> impl Iterator<Item = (&str, u64)> {
        let inner = &self.inner;
        inner.spec.layers.iter().zip(&inner.shapes).map(|(l, s)| {
            let projection = s.projection.map_or(0, |p| p.macs());
            (l.name.as_str(), s.main.macs() + projection)
        })
    }
}

impl Clone for Model {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            idle: Mutex::default(),
        }
    }
}

impl Network {
    /// Writes the model file of this network, aside and renamed, and returns its size in bytes.
    ///
    /// # Errors
    /// A network that can't be, or a folder that can't be written.
    pub fn save(&self, path: impl AsRef<Path>, precision: Precision) -> Result<u64> {
        let path = path.as_ref();
        let bytes = file::encode(self, precision)?;
        let io = |source| Error::Io {
            path: path.into(),
            source,
        };
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".writing-{}", std::process::id()));
        std::fs::write(&aside, &bytes)
            .and_then(|()| std::fs::rename(&aside, path))
            .inspect_err(|_| {
                let _ = std::fs::remove_file(&aside);
            })
            .map_err(io)?;
        Ok(bytes.len() as u64)
    }

    /// The bytes of the model file.
    ///
    /// # Errors
    /// A network that can't be.
    pub fn to_bytes(&self, precision: Precision) -> Result<Vec<u8>> {
        file::encode(self, precision)
    }
}

/// What the read-out says of one image: its current, summed over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    values: Vec<f32>,
}

impl Scores {
    /// The class of the highest score; the first one among equals.
    pub fn class(&self) -> usize {
        best(&self.values)
    }

    /// One score a class.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// The place of the highest score, the first one among equals.
pub fn best(scores: &[f32]) -> usize {
    let mut place = 0;
    for (i, v) in scores.iter().enumerate() {
        if *v > scores[place] {
            place = i;
        }
    }
    place
}
