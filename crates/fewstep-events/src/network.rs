//! A trained network as plain numbers: what is exported, and the shapes that a model file is checked against.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a spike does to the membrane potential, in the same timestep. At one timestep it makes no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reset {
    /// The threshold is subtracted.
    #[default]
    Soft,
    /// The potential becomes zero.
    Hard,
    /// Nothing happens.
    None,
}

/// Number format of the weights behind the first layer. The first layer, which reads pixels and not spikes, is always in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// As trained.
    #[default]
    Float32,
    /// Eight bits with one scale for each output channel, symmetric.
    Int8,
}

/// Weights in PyTorch's order with their bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// `[out, in, kernel, kernel]` of a convolution, `[out, in]` of a fully connected layer.
    pub weight: Vec<f32>,
    /// `[out]`; empty for none.
    pub bias: Vec<f32>,
}

/// How a layer is connected to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Connection {
    /// A square convolution.
    Conv {
        /// Side of the kernel.
        kernel: usize,
        /// Stride.
        stride: usize,
        /// Zero padding on each side.
        padding: usize,
    },
    /// Everything with everything; a map is flattened as `[C, H, W]`.
    Linear,
}

/// What a layer adds to its current: the output of an earlier one, as it is or through a 1×1 convolution.
#[derive(Debug, Clone, PartialEq)]
pub struct Shortcut {
    /// The number of the layer whose output (behind its pool) it is.
    pub from: usize,
    /// Stride and weights of the convolution, where there is one.
    pub projection: Option<(usize, Dense)>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Its name in reports and messages.
    pub name: String,
    /// How it is connected.
    pub connection: Connection,
    /// Its output channels.
    pub outputs: usize,
    /// Its weights.
    pub dense: Dense,
    /// θ, one or one for each output channel; empty for the read-out, which is the last layer and has no neurons.
    pub threshold: Vec<f32>,
    /// λ, as θ.
    pub leak: Vec<f32>,
    /// 2×2 average pooling with stride 2 behind the neurons.
    pub pool: bool,
    /// Its shortcut.
    pub shortcut: Option<Shortcut>,
}

/// A trained network. The first layer reads the image (direct encoding), the last one is the read-out, whose current is summed over time.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// For reports.
    pub name: String,
    /// `[C, H, W]` of an image.
    pub input: [usize; 3],
    /// Subtracted from a pixel scaled to 0..1, for each channel.
    pub mean: Vec<f32>,
    /// Divides it then.
    pub std: Vec<f32>,
    /// T, at least 1.
    pub timesteps: usize,
    /// The reset.
    pub reset: Reset,
    /// Names of the classes; empty where they are not known.
    pub classes: Vec<String>,
    /// Where it comes from, for people: run, stage, data set, accuracy.
    pub provenance: Vec<(String, String)>,
    /// The layers, front to back.
    pub layers: Vec<Layer>,
}

/// The part of a layer that needs no weights; a model file holds it as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerSpec {
    pub name: String,
    pub connection: Connection,
    pub outputs: usize,
    pub pool: bool,
    pub shortcut: Option<ShortcutSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShortcutSpec {
    pub from: usize,
    /// Stride of the projection.
    pub projection: Option<usize>,
}

/// The part of a network that needs no weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkSpec {
    pub name: String,
    pub input: [usize; 3],
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    pub timesteps: usize,
    pub reset: Reset,
    pub precision: Precision,
    pub classes: Vec<String>,
    pub provenance: Vec<(String, String)>,
    pub layers: Vec<LayerSpec>,
}

/// A layer's geometry. A fully connected layer is a convolution whose kernel is the whole map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// `[C, H, W]`.
    pub input: [usize; 3],
    /// `[C, H, W]` before pooling.
    pub output: [usize; 3],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: usize,
    /// Whether its weight matrix comes in wide blocks: of layers that read spikes and have few outputs for each weight.
    pub wide: bool,
}

impl Geometry {
    /// Rows of the weight matrix: inputs of one output.
    pub fn rows(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.input[0]
    }

    /// Multiply-accumulates of a dense pass, padding included.
    pub fn macs(&self) -> u64 {
        self.rows() as u64 * self.output.iter().product::<usize>() as u64
    }
}

/// The geometry of a layer and of its projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub main: Geometry,
    pub projection: Option<Geometry>,
}

/// Buffers for one image may take at most this.
const MOST_BYTES: u64 = 2 << 30;

/// Output pixels up to which a weight is used so rarely that memory decides.
const WIDE_PIXELS: usize = 4;

/// Above this a map or a weight matrix is a damaged file rather than a network.
const MOST: usize = 1 << 28;

impl NetworkSpec {
    /// # Errors
    /// The first thing that can't be.
    pub fn shapes(&self) -> Result<Vec<Shape>> {
        let wrong = |reason: String| Err(Error::Network(reason));
        let [c, h, w] = self.input;
        if [c, h, w].contains(&0) || product(&self.input).is_none() || c > 4096 {
            return wrong(format!(
                "expected an input [C, H, W] of at most 4096 channels and {MOST} elements, found {:?}",
                self.input
            ));
        }
        if self.mean.len() != c || self.std.len() != c {
            return wrong(format!(
                "expected {c} numbers in mean and std, found {} and {}",
                self.mean.len(),
                self.std.len()
            ));
        }
        let finite = self.mean.iter().chain(&self.std).all(|v| v.is_finite());
        if !finite || self.std.iter().any(|&s| s <= 0.) {
            return wrong("expected finite means and standard deviations above 0".into());
        }
        if !(1..=64).contains(&self.timesteps) {
            let found = self.timesteps;
            return wrong(format!("expected 1 to 64 timesteps, found {found}"));
        }
        if !(2..=1024).contains(&self.layers.len()) {
            let found = self.layers.len();
            return wrong(format!("expected 2 to 1024 layers, found {found}"));
        }
        let mut shapes: Vec<Shape> = Vec::with_capacity(self.layers.len());
        let mut names = HashSet::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let of_projection = layer.name.strip_suffix(".projection");
            let own = format!("{}.projection", layer.name);
            if !names.insert(layer.name.as_str())
                || of_projection.is_some_and(|n| names.contains(n))
                || names.contains(own.as_str())
            {
                return layer.wrong(
                    "expected another name, found a layer or projection that has it already".into(),
                );
            }
            let input = match i {
                0 => self.input,
                _ => pooled(&self.layers[i - 1], shapes[i - 1].main.output),
            };
            let shape = layer.shape(i, input, |from| {
                pooled(&self.layers[from], shapes[from].main.output)
            })?;
            shapes.push(shape);
        }
        let (last, shape) = (
            &self.layers[self.layers.len() - 1],
            shapes[shapes.len() - 1],
        );
        if shape.main.output[1..] != [1, 1] || last.pool || last.shortcut.is_some() {
            return last
                .wrong("expected a read-out: one output a class, no pool, no shortcut".into());
        }
        if !self.classes.is_empty() && self.classes.len() != last.outputs {
            return wrong(format!(
                "expected names of {} classes, found {}",
                last.outputs,
                self.classes.len()
            ));
        }
        let bytes = self.image_bytes(&shapes);
        if bytes > MOST_BYTES {
            return wrong(format!(
                "expected to need at most {MOST_BYTES} bytes of buffers for an image, found {bytes}"
            ));
        }
        Ok(shapes)
    }

    /// Bytes of buffers that one image needs at most, in a session that takes it through all layers.
    pub fn image_bytes(&self, shapes: &[Shape]) -> u64 {
        let times = self.timesteps as u64;
        let (mut maps, mut most) = (0u64, 0u64);
        for shape in shapes {
            let [c, h, w] = shape.main.output.map(|n| n as u64);
            maps = maps.saturating_add(c.div_ceil(64) * h * w * times * 8);
            for g in std::iter::once(&shape.main).chain(&shape.projection) {
                let [c, h, w] = g.input.map(|n| n as u64);
                // Events and floats, and a row of currents.
                // Behind a pool an input may come four times.
                let events = h * ((w + 2 * g.padding as u64) * c + 64) * times * 20;
                let tile = g.output[2] as u64 * 64 * times * 12;
                most = most.max(events.saturating_add(tile));
            }
        }
        // Events of a layer and of its shortcut.
        maps.saturating_add(most.saturating_mul(2))
    }
}

/// The shape behind a layer's pool.
fn pooled(layer: &LayerSpec, [c, h, w]: [usize; 3]) -> [usize; 3] {
    match layer.pool {
        true => [c, h / 2, w / 2],
        false => [c, h, w],
    }
}

fn product(of: &[usize]) -> Option<usize> {
    of.iter()
        .try_fold(1usize, |p, &n| p.checked_mul(n))
        .filter(|&p| p <= MOST)
}

impl LayerSpec {
    fn wrong<T>(&self, reason: String) -> Result<T> {
        Err(Error::Layer {
            layer: self.name.clone(),
            reason,
        })
    }

    fn shape(
        &self,
        place: usize,
        input: [usize; 3],
        output_of: impl Fn(usize) -> [usize; 3],
    ) -> Result<Shape> {
        let main = self.geometry(place, self.connection, input)?;
        let [_, h, w] = main.output;
        if self.pool && (h < 2 || w < 2) {
            return self.wrong(format!("no room for a 2×2 pool on a map of {h}×{w}"));
        }
        let mut projection = None;
        if let Some(shortcut) = self.shortcut {
            if self.connection == Connection::Linear {
                return self.wrong("a fully connected layer can't have a shortcut".into());
            }
            if place == 0 || shortcut.from >= place {
                let from = shortcut.from;
                return self.wrong(format!(
                    "expected a shortcut from an earlier layer, found {from}"
                ));
            }
            let source = output_of(shortcut.from);
            let reached = match shortcut.projection {
                Some(stride) => {
                    let connection = Connection::Conv {
                        kernel: 1,
                        stride,
                        padding: 0,
                    };
                    let geometry = self.geometry(place, connection, source)?;
                    projection = Some(geometry);
                    geometry.output
                }
                None => source,
            };
            if reached != main.output {
                return self.wrong(format!(
                    "expected a shortcut of shape {:?}, found {reached:?}",
                    main.output
                ));
            }
        }
        Ok(Shape { main, projection })
    }

    fn geometry(
        &self,
        place: usize,
        connection: Connection,
        input: [usize; 3],
    ) -> Result<Geometry> {
        let [_, h, w] = input;
        let (kernel, stride, padding) = match connection {
            Connection::Conv {
                kernel,
                stride,
                padding,
            } => ([kernel; 2], stride, padding),
            Connection::Linear => ([h, w], 1, 0),
        };
        let conv = matches!(connection, Connection::Conv { .. });
        if conv && (kernel[0] > 64 || !(1..=64).contains(&stride) || padding > 64) {
            return self.wrong("expected kernel, stride and padding of at most 64".into());
        }
        let side = |size: usize, k: usize| {
            let room = (size + 2 * padding).checked_sub(k)?;
            (k > 0 && padding < k).then_some(room / stride + 1)
        };
        let (Some(oh), Some(ow)) = (side(h, kernel[0]), side(w, kernel[1])) else {
            return self.wrong(format!(
                "a kernel of {kernel:?} does not fit a map of {h}×{w}"
            ));
        };
        let geometry = Geometry {
            input,
            output: [self.outputs, oh, ow],
            kernel,
            stride,
            padding,
            wide: place > 0 && (!conv || self.shortcut.is_none() && oh * ow <= WIDE_PIXELS),
        };
        let outputs = self
            .outputs
            .checked_next_multiple_of(16)
            .unwrap_or(usize::MAX);
        let sizes = [
            product(&geometry.output),
            product(&[kernel[0], kernel[1], input[0], outputs]),
        ];
        if self.outputs == 0 || sizes.contains(&None) {
            return self.wrong(format!(
                "expected 1 output or more and at most {MOST} elements in maps and weights, found an output of {:?}",
                geometry.output
            ));
        }
        Ok(geometry)
    }
}

impl Default for Network {
    /// Nothing yet: no layers, one timestep, soft reset.
    fn default() -> Self {
        Self {
            name: String::new(),
            input: [0; 3],
            mean: Vec::new(),
            std: Vec::new(),
            timesteps: 1,
            reset: Reset::default(),
            classes: Vec::new(),
            provenance: Vec::new(),
            layers: Vec::new(),
        }
    }
}

impl Network {
    pub(crate) fn spec(&self, precision: Precision) -> NetworkSpec {
        NetworkSpec {
            name: self.name.clone(),
            input: self.input,
            mean: self.mean.clone(),
            std: self.std.clone(),
            timesteps: self.timesteps,
            reset: self.reset,
            precision,
            classes: self.classes.clone(),
            provenance: self.provenance.clone(),
            layers: self
                .layers
                .iter()
                .map(|l| LayerSpec {
                    name: l.name.clone(),
                    connection: l.connection,
                    outputs: l.outputs,
                    pool: l.pool,
                    shortcut: l.shortcut.as_ref().map(|s| ShortcutSpec {
                        from: s.from,
                        projection: s.projection.as_ref().map(|(stride, _)| *stride),
                    }),
                })
                .collect(),
        }
    }
}
