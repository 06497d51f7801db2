//! Published weights, each tensor taken by its name and shape, and convolutions with their batch norm folded in.

use std::collections::BTreeMap;
use std::path::Path;

use fewstep_torch::torch_file;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Tensors by name. What is missing or of another shape is noted and replaced by zeros, so that
/// [`finish`](Self::finish) can name all of it in one error.
pub(crate) struct Weights {
    tensors: BTreeMap<String, Tensor>,
    wrong: Vec<String>,
    device: Device,
    /// Whatever is asked for is made by [`random`], of any shape.
    random: bool,
}

impl Weights {
    /// Of a file of `torch.save`: a state dict, or a checkpoint that has one as `state_dict`.
    pub(crate) fn read(path: &Path, device: Device) -> Result<Self> {
        let tensors = torch_file::load_tensors(path, &["state_dict", ""])?;
        Ok(Self::new(tensors, device))
    }

    pub(crate) fn new(tensors: BTreeMap<String, Tensor>, device: Device) -> Self {
        // `module.` is what DataParallel puts before every name; the counters serve training only.
        let tensors = tensors
            .into_iter()
            .map(|(name, t)| (name.strip_prefix("module.").unwrap_or(&name).to_owned(), t))
            .filter(|(name, _)| !name.ends_with(".num_batches_tracked"))
            .collect();
        Self {
            tensors,
            wrong: Vec::new(),
            device,
            random: false,
        }
    }

    /// Pseudo-random ones.
    pub(crate) fn random(device: Device) -> Self {
        Self {
            random: true,
            ..Self::new(BTreeMap::new(), device)
        }
    }

    /// f64 on the CPU.
    fn take_double(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        if self.random {
            return Ok(random(name, shape)?.f_to_kind(Kind::Double)?);
        }
        let wrong = match self.tensors.remove(name) {
            Some(tensor) if tensor.size() == shape && tensor.is_floating_point() => {
                return Ok(tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?);
            }
            Some(tensor) => {
                let (found, kind) = (tensor.size(), tensor.kind());
                format!("`{name}` is {kind:?} {found:?} instead of floats {shape:?}")
            }
            None => format!("`{name}` is missing"),
        };
        self.wrong.push(wrong);
        Ok(Tensor::f_zeros(shape, (Kind::Double, Device::Cpu))?)
    }

    /// f32 on the device.
    pub(crate) fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.take_double(name, shape)?;
        self.ready(&tensor)
    }

    fn ready(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor
            .f_to_kind(Kind::Float)?
            .f_to_device(self.device)?
            .f_contiguous()?)
    }

    /// The convolution `conv` without bias, followed by the batch norm `norm`.
    pub(crate) fn conv(
        &mut self,
        [conv, norm]: [&str; 2],
        channels: [i64; 2],
        kernel: [i64; 2],
        place: Place,
    ) -> Result<Conv> {
        let [inside, outside] = channels;
        let shape = [outside, inside, kernel[0], kernel[1]];
        let weight = self.take_double(&format!("{conv}.weight"), &shape)?;
        let mut of_norm = |part: &str| self.take_double(&format!("{norm}.{part}"), &[outside]);
        let (gamma, beta) = (of_norm("weight")?, of_norm("bias")?);
        let (mean, variance) = (of_norm("running_mean")?, of_norm("running_var")?);
        let scale = gamma.f_div(&variance.f_add_scalar(place.eps)?.f_sqrt()?)?;
        let weight = weight.f_mul(&scale.f_view([-1, 1, 1, 1])?)?;
        let bias = beta.f_sub(&mean.f_mul(&scale)?)?;
        Ok(Conv {
            weight: self.ready(&weight)?,
            bias: self.ready(&bias)?,
            stride: place.stride,
            padding: place.padding,
        })
    }

    /// # Errors
    /// Anything was missing or of another shape, or is left over.
    pub(crate) fn finish(mut self, network: &'static str, path: &Path) -> Result<()> {
        let extra = self.tensors.keys().map(|name| format!("`{name}` is extra"));
        self.wrong.extend(extra);
        if self.wrong.is_empty() {
            return Ok(());
        }
        Err(Error::Weights {
            path: path.to_owned(),
            network,
            reason: self.wrong.join(", "),
        })
    }
}

/// Pseudo-random weights, the same on every machine: those of tests/parity/inception.py.
pub(crate) fn random(name: &str, shape: &[i64]) -> Result<Tensor> {
    let seed = name.bytes().fold(0x811C_9DC5_u32, |h, byte| {
        (h ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let count: i64 = shape.iter().product();
    let scale = |u: f64| match name {
        "fc.weight" => u * 0.8,
        _ if shape.len() == 4 => u * (6.0 / (count / shape[0]) as f64).sqrt(),
        _ if name.ends_with("running_var") => 1.0 + 0.3 * u,
        _ if name.ends_with(".weight") && shape.len() == 1 => 1.0 + 0.2 * u,
        _ => 0.1 * u,
    };
    let values: Vec<f32> = (0..count as u32)
        .map(|i| scale(f64::from(mixed(i.wrapping_add(seed))) / 2f64.powi(31) - 1.0) as f32)
        .collect();
    Ok(Tensor::f_from_slice(&values)?.f_view(shape)?)
}

/// The finaliser of MurmurHash3.
pub(crate) fn mixed(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85EB_CA6B);
    x ^= x >> 13;
    x = x.wrapping_mul(0xC2B2_AE35);
    x ^ (x >> 16)
}

/// How a convolution moves over its input, and its batch norm's ε.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) stride: i64,
    pub(crate) padding: [i64; 2],
    pub(crate) eps: f64,
}

/// A convolution with bias.
pub(crate) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: [i64; 2],
}

impl Conv {
    pub(crate) fn run(&self, x: &Tensor) -> Result<Tensor> {
        let stride = [self.stride; 2];
        Ok(x.f_conv2d(
            &self.weight,
            Some(&self.bias),
            stride,
            self.padding,
            [1, 1],
            1,
        )?)
    }

    pub(crate) fn run_relu(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.run(x)?.f_relu_()?)
    }

    pub(crate) fn device(&self) -> Device {
        self.weight.device()
    }
}
