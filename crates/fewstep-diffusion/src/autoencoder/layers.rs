//! The layers that autoencoders are built of.

use std::collections::BTreeMap;

use fewstep_torch::checkpoint;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Makes layers of zeros and keeps their tensors by name.
pub(super) struct Maker {
    options: (Kind, Device),
    named: Vec<(String, Tensor)>,
}

impl Maker {
    pub(super) fn new(kind: Kind, device: Device) -> Self {
        Self {
            options: (kind, device),
            named: Vec::new(),
        }
    }

    fn tensor(&mut self, name: &str, end: &str, shape: &[i64]) -> Result<Tensor> {
        let t = Tensor::f_zeros(shape, self.options)?;
        self.named
            .push((format!("{name}.{end}"), t.shallow_clone()));
        Ok(t)
    }

    /// A square convolution that keeps the size; of stride 1, with a bias.
    pub(super) fn conv(&mut self, name: &str, inputs: i64, out: i64, kernel: i64) -> Result<Conv> {
        let mut conv = self.conv_without_bias(name, inputs, out, kernel)?;
        conv.bias = Some(self.tensor(name, "bias", &[out])?);
        Ok(conv)
    }

    pub(super) fn conv_without_bias(
        &mut self,
        name: &str,
        inputs: i64,
        out: i64,
        kernel: i64,
    ) -> Result<Conv> {
        Ok(Conv {
            weight: self.tensor(name, "weight", &[out, inputs, kernel, kernel])?,
            bias: None,
            stride: 1,
            padding: kernel / 2,
        })
    }

    pub(super) fn linear(&mut self, name: &str, width: i64) -> Result<Linear> {
        Ok(Linear {
            weight: self.tensor(name, "weight", &[width, width])?,
            bias: self.tensor(name, "bias", &[width])?,
        })
    }

    pub(super) fn norm(
        &mut self,
        name: &str,
        channels: i64,
        groups: i64,
        eps: f64,
    ) -> Result<GroupNorm> {
        Ok(GroupNorm {
            weight: self.tensor(name, "weight", &[channels])?,
            bias: self.tensor(name, "bias", &[channels])?,
            groups,
            eps,
        })
    }

    /// Fills all layers from `tensors` and hands out their names; errors of [`checkpoint::copy_into`].
    pub(super) fn fill(
        self,
        tensors: &BTreeMap<String, Tensor>,
        what: &str,
    ) -> Result<Vec<(String, Tensor)>> {
        checkpoint::copy_into(&self.named, tensors, what)?;
        Ok(self.named)
    }
}

#[derive(Debug)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    pub(super) stride: i64,
    pub(super) padding: i64,
}

impl Conv {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(x.f_conv2d(&self.weight, self.bias.as_ref(), stride, padding, [1, 1], 1)?)
    }
}

#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}

#[derive(Debug)]
pub(super) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        Ok(x.f_group_norm(self.groups, weight, bias, self.eps, true)?)
    }
}

/// Each pixel becomes four.
pub(super) fn double(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.size4()?;
    Ok(x.f_upsample_nearest2d([2 * h, 2 * w], None, None)?)
}
