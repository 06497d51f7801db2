//! The CIFAR-10 ResNet-56 that akamaster/pytorch_resnet_cifar10 publishes (BSD), a network which nobody here trained: 64
//! pooled features for a Fréchet distance on CIFAR-sized images. It is not FID; call it `fd-resnet56`.

use std::path::Path;

use ndarray::ArrayView4;
use tch::{Device, Kind, Tensor};

use crate::weights::{Conv, Place, Weights};
use crate::{FeatureNetwork, Features, Metric, Result, Widths, pixels};

/// That repository normalises by ImageNet's figures, in 0..1.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Blocks in a stage: 6·9 + 2 = 56 layers.
const BLOCKS: usize = 9;
const EPS: f64 = 1e-5;

/// The published ResNet-56. Pooled features: 64, the average over what the last stage gives, 0 or more. Images are taken in
/// their own size: 32×32 is what it was trained on.
pub struct ResNet56 {
    stem: Conv,
    blocks: Vec<Block>,
    mean: Tensor,
    std: Tensor,
}

struct Block {
    first: Conv,
    second: Conv,
    /// Zero channels on either side of the shortcut (option A), which then takes every second pixel.
    widen: i64,
}

impl ResNet56 {
    /// Reads `resnet56-4bfd9763.th` (`fewstep data fetch resnet56` gets it).
    ///
    /// # Errors
    /// The file can't be read; the error for another network's weights names every tensor that is missing, extra or of
    /// another shape.
    pub fn load(path: &Path, device: Device) -> Result<Self> {
        Self::build(Weights::read(path, device)?, path, device)
    }

    /// With pseudo-random weights, the same on every machine: to compare devices and to measure speed, without a download.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn random(device: Device) -> Result<Self> {
        Self::build(Weights::random(device), Path::new("random weights"), device)
    }

    fn build(mut weights: Weights, path: &Path, device: Device) -> Result<Self> {
        let w = &mut weights;
        let conv = |w: &mut Weights, name: &str, number: &str, channels, stride| {
            let (conv, norm) = (format!("{name}conv{number}"), format!("{name}bn{number}"));
            let place = Place {
                stride,
                padding: [1, 1],
                eps: EPS,
            };
            w.conv([&conv, &norm], channels, [3, 3], place)
        };
        let stem = conv(w, "", "1", [3, 16], 1)?;
        let mut blocks = Vec::new();
        let mut inside = 16;
        for (stage, outside) in [16, 32, 64].into_iter().enumerate() {
            for index in 0..BLOCKS {
                let name = format!("layer{}.{index}.", stage + 1);
                let widens = inside != outside;
                let stride = if widens { 2 } else { 1 };
                blocks.push(Block {
                    first: conv(w, &name, "1", [inside, outside], stride)?,
                    second: conv(w, &name, "2", [outside, outside], 1)?,
                    widen: if widens { outside / 4 } else { 0 },
                });
                inside = outside;
            }
        }
        // The classifier is not used, but a file without it is of another network.
        let _ = w.take("linear.weight", &[10, 64])?;
        let _ = w.take("linear.bias", &[10])?;
        weights.finish(
            "the CIFAR-10 ResNet-56 of akamaster/pytorch_resnet_cifar10",
            path,
        )?;
        let column = |values: &[f32]| -> Result<Tensor> {
            let column = Tensor::f_from_slice(values)?.f_view([1, 3, 1, 1])?;
            Ok(column.f_to_device(device)?)
        };
        Ok(Self {
            stem,
            blocks,
            mean: column(&MEAN)?,
            std: column(&STD)?,
        })
    }
}

impl Block {
    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.second.run(&self.first.run_relu(x)?)?;
        let sum = if self.widen == 0 {
            y.f_add(x)?
        } else {
            let every_second = x
                .f_slice(2, None, None, 2)?
                .f_slice(3, None, None, 2)?
                .f_constant_pad_nd([0, 0, 0, 0, self.widen, self.widen])?;
            y.f_add(&every_second)?
        };
        Ok(sum.f_relu()?)
    }
}

impl FeatureNetwork for ResNet56 {
    fn distance_name(&self) -> &'static str {
        "fd-resnet56"
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric::Fid]
    }

    fn widths(&self) -> Widths {
        Widths {
            pooled: 64,
            spatial: 0,
            logits: 0,
        }
    }

    fn features(&self, images: ArrayView4<'_, u8>) -> Result<Features> {
        let _guard = tch::no_grad_guard();
        let x = pixels::tensor(images, self.stem.device())?
            .f_div_scalar(255.0)?
            .f_sub(&self.mean)?
            .f_div(&self.std)?;
        let mut x = self.stem.run_relu(&x)?;
        for block in &self.blocks {
            x = block.run(&x)?;
        }
        let pooled = x.f_mean_dim([2, 3].as_slice(), false, Kind::Float)?;
        Ok(Features {
            pooled: pixels::rows(&pooled)?,
            ..Features::default()
        })
    }
}
