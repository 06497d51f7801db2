//! The weights of one connection: initialisation, the product with its input, names in checkpoints.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::Share;
use crate::Result;
use crate::plan::Connection;

/// How the weights and activations of convolutions, `[N, C, H, W]`, lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryFormat {
    /// One channel behind the other.
    Contiguous,
    /// The channels of a pixel side by side, as a GPU's tensor cores want them.
    ChannelsLast,
}

/// Weights of one connection, with the batch norm of the artificial network while it is not folded.
#[derive(Debug)]
pub struct Synapse {
    /// Shape and stride.
    pub connection: Connection,
    /// `[out, in, k, k]` or `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// Batch norm behind a convolution.
    pub batch_norm: Option<BatchNorm>,
}

/// Batch norm over channels.
#[derive(Debug)]
pub struct BatchNorm {
    /// γ, `[C]`.
    pub weight: Tensor,
    /// β, `[C]`.
    pub bias: Tensor,
    /// Running mean, `[C]`.
    pub running_mean: Tensor,
    /// Running variance, `[C]`.
    pub running_var: Tensor,
}

impl BatchNorm {
    /// Added to the variance.
    pub const EPS: f64 = 1e-5;
    pub(super) const MOMENTUM: f64 = 0.1;
}

impl Synapse {
    pub(super) fn new(
        connection: Connection,
        bias: bool,
        batch_norm: bool,
        device: Device,
    ) -> Result<Self> {
        let shape = connection.weight_shape();
        let fan = match connection {
            Connection::Conv {
                outputs, kernel, ..
            } => kernel * kernel * outputs,
            Connection::Linear { inputs, .. } => inputs,
        };
        let options = (Kind::Float, device);
        let trained = |t: Tensor| -> Result<Tensor> { Ok(t.f_set_requires_grad(true)?) };
        let n = [connection.outputs()];
        // Drawn on the CPU so that a seed gives the same weights on any device.
        let weight = (Tensor::f_randn(&shape, (Kind::Float, Device::Cpu))?
            * (2. / fan as f64).sqrt())
        .f_to_device(device)?;
        Ok(Self {
            connection,
            weight: trained(weight)?,
            bias: if bias {
                Some(trained(Tensor::f_zeros(n, options)?)?)
            } else {
                None
            },
            batch_norm: if batch_norm {
                Some(BatchNorm {
                    weight: trained(Tensor::f_ones(n, options)?)?,
                    bias: trained(Tensor::f_zeros(n, options)?)?,
                    running_mean: Tensor::f_zeros(n, options)?,
                    running_var: Tensor::f_ones(n, options)?,
                })
            } else {
                None
            },
        })
    }

    pub(super) fn set_memory_format(&mut self, format: MemoryFormat) -> Result<()> {
        if self.weight.dim() == 4 {
            let trained = self.weight.requires_grad();
            let weight = self.weight.f_detach()?;
            let weight = match format {
                MemoryFormat::Contiguous => weight.f_contiguous()?,
                MemoryFormat::ChannelsLast => weight
                    .f_permute([0, 2, 3, 1])?
                    .f_contiguous()?
                    .f_permute([0, 3, 1, 2])?,
            };
            self.weight = weight.f_set_requires_grad(trained)?;
        }
        Ok(())
    }

    pub(super) fn apply(&self, x: &Tensor, train: bool, share: Option<Share>) -> Result<Tensor> {
        let y = match self.connection {
            Connection::Conv {
                stride, padding, ..
            } => x.f_conv2d(
                &self.weight,
                self.bias.as_ref(),
                [stride; 2],
                [padding; 2],
                [1; 2],
                1,
            )?,
            Connection::Linear { .. } => x.f_linear(&self.weight, self.bias.as_ref())?,
        };
        match (&self.batch_norm, share) {
            (None, _) => Ok(y),
            (Some(b), Some(share)) if train => share.batch_norm(b, &y),
            (Some(b), _) => Ok(y.f_batch_norm(
                Some(&b.weight),
                Some(&b.bias),
                Some(&b.running_mean),
                Some(&b.running_var),
                train,
                BatchNorm::MOMENTUM,
                BatchNorm::EPS,
                false,
            )?),
        }
    }

    pub(super) fn named(&self, name: &str, into: &mut Vec<(String, Tensor)>) {
        let mut push =
            |suffix: &str, t: &Tensor| into.push((format!("{name}.{suffix}"), t.shallow_clone()));
        push("weight", &self.weight);
        if let Some(b) = &self.bias {
            push("bias", b);
        }
        if let Some(b) = &self.batch_norm {
            push("batch_norm.weight", &b.weight);
            push("batch_norm.bias", &b.bias);
            push("batch_norm.running_mean", &b.running_mean);
            push("batch_norm.running_var", &b.running_var);
        }
    }
}
