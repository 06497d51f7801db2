//! A network as data: which layers, of which shapes, joined how. Counting needs no tensor, and one plan serves the artificial and the
//! spiking network.

use fewstep_metrics::{LayerKind, LayerOps};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The connections of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connection {
    /// A convolution over `[in, H, W]`.
    Conv {
        /// Input channels.
        inputs: i64,
        /// Output channels.
        outputs: i64,
        /// Side of the kernel.
        kernel: i64,
        /// Stride.
        stride: i64,
        /// Zero padding on each side.
        padding: i64,
    },
    /// A fully connected layer.
    Linear {
        /// Input features.
        inputs: i64,
        /// Output features.
        outputs: i64,
    },
}

impl Connection {
    /// Shape of the weight.
    pub fn weight_shape(self) -> Vec<i64> {
        match self {
            Self::Conv {
                inputs,
                outputs,
                kernel,
                ..
            } => vec![outputs, inputs, kernel, kernel],
            Self::Linear { inputs, outputs } => vec![outputs, inputs],
        }
    }

    /// Channels or features that leave it.
    pub fn outputs(self) -> i64 {
        match self {
            Self::Conv { outputs, .. } | Self::Linear { outputs, .. } => outputs,
        }
    }

    /// Shape that leaves it: `[C, H, W]`, or `[C, 1, 1]` of a fully connected layer.
    pub fn output_shape(self, [_, h, w]: [i64; 3]) -> [i64; 3] {
        match self {
            Self::Conv {
                outputs,
                kernel,
                stride,
                padding,
                ..
            } => {
                let side = |s: i64| (s + 2 * padding - kernel) / stride + 1;
                [outputs, side(h), side(w)]
            }
            Self::Linear { outputs, .. } => [outputs, 1, 1],
        }
    }

    fn macs(self, output: [i64; 3]) -> i64 {
        self.weight_shape().iter().skip(1).product::<i64>() * output.iter().product::<i64>()
    }
}

/// What a unit adds to its own current: the output of an earlier unit, as it is or through a 1×1 convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortcut {
    /// The number of the unit whose output it is.
    pub from: usize,
    /// The convolution, where the shapes differ.
    pub projection: Option<Connection>,
}

/// One layer: connections, an activation (ReLU or spiking neurons; none for the read-out), and what follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitPlan {
    /// Its name in checkpoints and reports.
    pub name: String,
    /// The weights.
    pub connection: Connection,
    /// Whether a batch norm follows the convolution in the artificial network.
    pub batch_norm: bool,
    /// Whether the connections have a bias of their own.
    pub bias: bool,
    /// The shortcut that enters its current.
    pub shortcut: Option<Shortcut>,
    /// Whether it is activated; only the read-out is not.
    pub active: bool,
    /// 2×2 average pooling with stride 2 after the activation.
    pub pool: bool,
    /// Dropout after the activation.
    pub dropout: bool,
    /// Shape before pooling, `[C, H, W]`.
    pub output: [i64; 3],
}

impl UnitPlan {
    /// Multiply-accumulates for one image, the projection of its shortcut included.
    pub fn macs(&self) -> i64 {
        let projection = self
            .shortcut
            .and_then(|s| s.projection)
            .map_or(0, |p| p.macs(self.output));
        self.connection.macs(self.output) + projection
    }

    /// Neurons: elements of its output before pooling.
    pub fn neurons(&self) -> i64 {
        self.output.iter().product()
    }
}

/// A feed-forward network from an image to logits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// For reports: `vgg16`, `resnet20`, or the layer string.
    pub name: String,
    /// Shape of one image, `[C, H, W]`.
    pub input: [i64; 3],
    /// The units in order; the last one is the read-out.
    pub units: Vec<UnitPlan>,
}

impl Plan {
    /// Classes: outputs of the read-out.
    pub fn classes(&self) -> i64 {
        self.units.last().map_or(0, |u| u.connection.outputs())
    }

    /// Trained weights, biases and batch-norm parameters. Thresholds and leaks are not counted.
    pub fn parameters(&self) -> i64 {
        let each = |c: Connection, u: &UnitPlan| {
            let per_channel = i64::from(u.bias) + 2 * i64::from(u.batch_norm);
            c.weight_shape().iter().product::<i64>() + per_channel * c.outputs()
        };
        self.units
            .iter()
            .map(|u| {
                each(u.connection, u)
                    + u.shortcut
                        .and_then(|s| s.projection)
                        .map_or(0, |p| each(p, u))
            })
            .sum()
    }

    /// Multiply-accumulates of one dense pass over one image.
    pub fn macs(&self) -> i64 {
        self.units.iter().map(UnitPlan::macs).sum()
    }

    /// The operation counts that the energy model wants, each with the number of the unit whose spikes enter it (none for the first,
    /// which reads the image). A projection is an entry of its own, behind its unit.
    pub fn operations(&self) -> Vec<(LayerOps, Option<usize>)> {
        let mut all = Vec::new();
        for (i, u) in self.units.iter().enumerate() {
            let mut push =
                |name: String, connection: Connection, neurons: i64, source: Option<usize>| {
                    let kind = match connection {
                        Connection::Conv { .. } => LayerKind::Conv,
                        Connection::Linear { .. } => LayerKind::Linear,
                    };
                    let input_pool_area = if source.is_some_and(|s| self.units[s].pool) {
                        4
                    } else {
                        1
                    };
                    let macs = connection.macs(u.output).unsigned_abs();
                    all.push((
                        LayerOps {
                            name,
                            kind,
                            macs,
                            neurons: neurons.unsigned_abs(),
                            input_pool_area,
                        },
                        source,
                    ));
                };
            push(
                u.name.clone(),
                u.connection,
                if u.active { u.neurons() } else { 0 },
                i.checked_sub(1),
            );
            if let Some(Shortcut {
                from,
                projection: Some(p),
            }) = u.shortcut
            {
                push(format!("{}.projection", u.name), p, 0, Some(from));
            }
        }
        all
    }
}

/// Builds a plan unit by unit and keeps the running shape.
pub(crate) struct Builder {
    plan: Plan,
    shape: [i64; 3],
    batch_norm: bool,
}

impl Builder {
    pub(crate) fn new(name: impl Into<String>, input: [i64; 3], batch_norm: bool) -> Result<Self> {
        if input.iter().any(|&d| d < 1) {
            return Err(Error::Plan(format!(
                "expected an input of positive size, found {input:?}"
            )));
        }
        Ok(Self {
            plan: Plan {
                name: name.into(),
                input,
                units: Vec::new(),
            },
            shape: input,
            batch_norm,
        })
    }

    /// Number of the last unit.
    pub(crate) fn last(&self) -> usize {
        self.plan.units.len() - 1
    }

    pub(crate) fn shape(&self) -> [i64; 3] {
        self.shape
    }

    pub(crate) fn conv(
        &mut self,
        name: String,
        outputs: i64,
        kernel: i64,
        stride: i64,
    ) -> Result<&mut UnitPlan> {
        let connection = Connection::Conv {
            inputs: self.shape[0],
            outputs,
            kernel,
            stride,
            padding: kernel / 2,
        };
        self.push(name, connection, self.batch_norm, true)
    }

    pub(crate) fn linear(
        &mut self,
        name: String,
        outputs: i64,
        active: bool,
    ) -> Result<&mut UnitPlan> {
        let connection = Connection::Linear {
            inputs: self.shape.iter().product(),
            outputs,
        };
        self.push(name, connection, false, active)
    }

    fn push(
        &mut self,
        name: String,
        connection: Connection,
        batch_norm: bool,
        active: bool,
    ) -> Result<&mut UnitPlan> {
        let output = connection.output_shape(self.shape);
        if output.iter().any(|&d| d < 1) {
            return Err(Error::Plan(format!(
                "`{name}` would have an output of shape {output:?}; the input is too small"
            )));
        }
        self.shape = output;
        let unit = UnitPlan {
            name,
            connection,
            batch_norm,
            bias: false,
            shortcut: None,
            active,
            pool: false,
            dropout: active,
            output,
        };
        self.plan.units.push(unit);
        let last = self.last();
        Ok(&mut self.plan.units[last])
    }

    /// Average pooling after the last unit; it takes the place of its dropout.
    pub(crate) fn pool(&mut self) -> Result<()> {
        let [c, h, w] = self.shape;
        let Some(unit) = self.plan.units.last_mut().filter(|u| !u.pool) else {
            return Err(Error::Plan("a pool (A) must follow a convolution".into()));
        };
        if h < 2 || w < 2 {
            return Err(Error::Plan(format!(
                "no room for a 2×2 pool after `{}`, whose output is {h}×{w}",
                unit.name
            )));
        }
        unit.pool = true;
        unit.dropout = false;
        self.shape = [c, h / 2, w / 2];
        Ok(())
    }

    pub(crate) fn finish(self) -> Plan {
        self.plan
    }
}
