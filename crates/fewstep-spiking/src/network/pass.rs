//! What goes into a forward pass and what comes out of it.

use tch::Tensor;

/// What enters the network.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Direct encoding: images `[N, C, H, W]`, the same current at every timestep.
    Direct(&'a Tensor),
    /// Encoded images `[T, N, C, H, W]`.
    Encoded(&'a Tensor),
}

/// How the network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As an artificial network with ReLU.
    Analog,
    /// As a spiking network over this many timesteps.
    Spiking {
        /// T, at least 1.
        timesteps: u32,
    },
}

/// Options of one forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forward {
    /// How the network runs.
    pub mode: Mode,
    /// Batch norm uses and updates the statistics of the batch.
    pub train: bool,
    /// Probability that an activation is dropped; one mask for all timesteps. 0 outside training.
    pub dropout: f64,
    /// Also return [`Output::operations`].
    pub operations: bool,
}

impl Forward {
    /// Evaluation in this mode: running statistics, no dropout.
    pub fn evaluation(mode: Mode) -> Self {
        Self {
            mode,
            train: false,
            dropout: 0.,
            operations: false,
        }
    }

    /// Evaluation as a spiking network.
    pub fn spiking(timesteps: u32) -> Self {
        Self::evaluation(Mode::Spiking { timesteps })
    }

    /// Evaluation as an artificial network.
    pub fn analog() -> Self {
        Self::evaluation(Mode::Analog)
    }
}

/// What a forward pass returns.
#[derive(Debug)]
pub struct Output {
    /// `[N, classes]`: the read-out's current, summed over T and not divided by it.
    pub logits: Tensor,
    /// A scalar with gradient: accumulates behind the first layer as a share of its dense MACs, summed over T.
    pub operations: Option<Tensor>,
}
