//! The InceptionV3 of FID: TensorFlow's graph of 2015-12-05, in the weights that pytorch-fid and torch-fidelity publish (the
//! same file, with torchvision's names).
//!
//! It differs from torchvision's network in its weights, in 1008 classes, in average pools that do not count the padding,
//! and in a max pool in the last block. Sources: mseitzer/pytorch-fid `inception.py`, toshas/torch-fidelity
//! `feature_extractor_inceptionv3.py` and `utils/util_convert_inception_weights.py` (the names in TensorFlow's graph),
//! openai/guided-diffusion `evaluations/evaluator.py` (which tensors ADM takes).

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::ArrayView4;
use tch::{Device, Kind, Tensor};

use crate::weights::{Conv, Place, Weights};
use crate::{FeatureNetwork, Features, Metric, Result, Widths, pixels};

/// Sides of what the network sees.
const SIDE: i64 = 299;
/// Channels of the spatial features.
const SPATIAL_CHANNELS: i64 = 7;
const EPS: f64 = 1e-3;

/// How images come to 299×299 pixels in −1..1. The two differ by half a pixel, and so do the figures: say which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resize {
    /// As TensorFlow 1 does: pixel i of the result lies at i·height/299; then (x − 128)/128. ADM, torch-fidelity and the
    /// original FID.
    #[default]
    TensorFlow,
    /// As PyTorch does: centres of pixels on centres; then 2·x/255 − 1. pytorch-fid.
    Torch,
}

/// FID's InceptionV3.
///
/// | features | |
/// | --- | --- |
/// | pooled, 2048 | the last average pool (`pool_3` in TensorFlow): FID, KID, precision, recall |
/// | spatial, 2023 | the first 7 channels of `mixed_6/conv`, which is the 1×1 branch of `Mixed_6d` behind its ReLU: 17 rows × 17 columns × 7 channels, in this order: sFID |
/// | logits, 1008 | the pooled features times the classifier's matrix **without its bias**, as ADM and torch-fidelity do: Inception Score |
pub struct Inception {
    stem: Vec<Step>,
    before_spatial: Vec<Block>,
    /// `Mixed_6d` and what follows.
    after: Vec<Block>,
    classifier: Tensor,
    bias: Tensor,
    resize: Resize,
    device: Device,
}

/// Branches side by side; their outputs are joined along the channels.
type Block = Vec<Vec<Step>>;

enum Step {
    /// With ReLU.
    Conv(Conv),
    /// 3×3, stride 1, the padding not counted.
    Average,
    /// 3×3, stride 1, padded.
    Max,
    /// 3×3, stride 2.
    MaxHalf,
    /// Two convolutions of the same input, joined.
    Both(Conv, Conv),
}

impl Step {
    fn run(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Conv(conv) => conv.run_relu(x)?,
            Self::Average => x.f_avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None)?,
            Self::Max => x.f_max_pool2d([3, 3], [1, 1], [1, 1], [1, 1], false)?,
            Self::MaxHalf => x.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)?,
            Self::Both(a, b) => Tensor::f_cat(&[a.run_relu(x)?, b.run_relu(x)?], 1)?,
        })
    }
}

fn run_steps(steps: &[Step], x: &Tensor) -> Result<Tensor> {
    let mut x = x.shallow_clone();
    for step in steps {
        x = step.run(&x)?;
    }
    Ok(x)
}

fn run_block(block: &Block, x: &Tensor) -> Result<Vec<Tensor>> {
    block.iter().map(|branch| run_steps(branch, x)).collect()
}

impl Inception {
    /// Reads `pt_inception-2015-12-05-6726825d.pth` (`fewstep data fetch inception` gets it), or torch-fidelity's
    /// `weights-inception-2015-12-05-6726825d.pth`, which is the same file.
    ///
    /// # Errors
    /// The file can't be read; the error for another network's weights names every tensor that is missing, extra or of
    /// another shape.
    pub fn load(path: &Path, resize: Resize, device: Device) -> Result<Self> {
        Self::build(Weights::read(path, device)?, path, resize, device)
    }

    /// From tensors by torchvision's names (`Conv2d_1a_3x3.conv.weight`, …, `fc.bias`).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_tensors(
        tensors: BTreeMap<String, Tensor>,
        resize: Resize,
        device: Device,
    ) -> Result<Self> {
        let path = Path::new("the tensors");
        Self::build(Weights::new(tensors, device), path, resize, device)
    }

    /// With pseudo-random weights, the same on every machine: to compare devices and to measure speed, without a download.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn random(resize: Resize, device: Device) -> Result<Self> {
        let path = Path::new("random weights");
        Self::build(Weights::random(device), path, resize, device)
    }

    fn build(mut weights: Weights, path: &Path, resize: Resize, device: Device) -> Result<Self> {
        let w = &mut weights;
        let stem = vec![
            conv(w, "Conv2d_1a_3x3", [3, 32], [3, 3], 2, [0, 0])?,
            conv(w, "Conv2d_2a_3x3", [32, 32], [3, 3], 1, [0, 0])?,
            conv(w, "Conv2d_2b_3x3", [32, 64], [3, 3], 1, [1, 1])?,
            Step::MaxHalf,
            conv(w, "Conv2d_3b_1x1", [64, 80], [1, 1], 1, [0, 0])?,
            conv(w, "Conv2d_4a_3x3", [80, 192], [3, 3], 1, [0, 0])?,
            Step::MaxHalf,
        ];
        let before_spatial = vec![
            block_5(w, "Mixed_5b", 192, 32)?,
            block_5(w, "Mixed_5c", 256, 64)?,
            block_5(w, "Mixed_5d", 288, 64)?,
            block_6a(w, "Mixed_6a")?,
            block_6(w, "Mixed_6b", 128)?,
            block_6(w, "Mixed_6c", 160)?,
        ];
        let after = vec![
            block_6(w, "Mixed_6d", 160)?,
            block_6(w, "Mixed_6e", 192)?,
            block_7a(w, "Mixed_7a")?,
            block_7(w, "Mixed_7b", 1280, Step::Average)?,
            block_7(w, "Mixed_7c", 2048, Step::Max)?,
        ];
        let classifier = w.take("fc.weight", &[1008, 2048])?;
        let bias = w.take("fc.bias", &[1008])?;
        weights.finish("FID's InceptionV3 (pt_inception-2015-12-05)", path)?;
        Ok(Self {
            stem,
            before_spatial,
            after,
            classifier,
            bias,
            resize,
            device,
        })
    }

    /// The classifier's bias, `[1008]`: what [`Features::logits`] lack to be the answers of the whole network.
    ///
    /// # Errors
    /// libtorch fails.
    pub fn bias(&self) -> Result<Vec<f32>> {
        pixels::rows(&self.bias)
    }

    /// [N, 3, 299, 299] in about −1..1, of f32 in 0..=255.
    fn prepared(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.resize {
            Resize::TensorFlow => resized_like_tensorflow(x)?
                .f_sub_scalar(128.0)?
                .f_div_scalar(128.0)?,
            Resize::Torch => x
                .f_div_scalar(255.0)?
                .f_upsample_bilinear2d([SIDE, SIDE], false, None, None)?
                .f_mul_scalar(2.0)?
                .f_sub_scalar(1.0)?,
        })
    }
}

impl FeatureNetwork for Inception {
    fn distance_name(&self) -> &'static str {
        Metric::Fid.name()
    }

    fn metrics(&self) -> &'static [Metric] {
        &Metric::ALL
    }

    fn widths(&self) -> Widths {
        Widths {
            pooled: 2048,
            spatial: 17 * 17 * SPATIAL_CHANNELS as usize,
            logits: 1008,
        }
    }

    fn features(&self, images: ArrayView4<'_, u8>) -> Result<Features> {
        let _guard = tch::no_grad_guard();
        let mut x = self.prepared(&pixels::tensor(images, self.device)?)?;
        x = run_steps(&self.stem, &x)?;
        for block in &self.before_spatial {
            x = Tensor::f_cat(&run_block(block, &x)?, 1)?;
        }
        let mut spatial = None;
        for block in &self.after {
            let branches = run_block(block, &x)?;
            // The first branch of Mixed_6d.
            if spatial.is_none() {
                let narrow = branches[0].f_narrow(1, 0, SPATIAL_CHANNELS)?;
                spatial = Some(narrow.f_permute([0, 2, 3, 1])?);
            }
            x = Tensor::f_cat(&branches, 1)?;
        }
        let pooled = x.f_mean_dim([2, 3].as_slice(), false, Kind::Float)?;
        let logits = pooled.f_matmul(&self.classifier.f_tr()?)?;
        Ok(Features {
            pooled: pixels::rows(&pooled)?,
            spatial: spatial.as_ref().map_or(Ok(Vec::new()), pixels::rows)?,
            logits: pixels::rows(&logits)?,
        })
    }
}

/// TensorFlow 1's bilinear resize to 299×299 without `align_corners`, in its own order of operations.
fn resized_like_tensorflow(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.size4()?;
    let across = blended(x, 3, width)?;
    blended(&across, 2, height)
}

/// Along one dimension: neighbours ⌊i·scale⌋ and the next, blended by what i·scale is above the first.
fn blended(x: &Tensor, dim: i64, size: i64) -> Result<Tensor> {
    let scale = (size as f64 / SIDE as f64) as f32;
    let places: Vec<f32> = (0..SIDE).map(|i| i as f32 * scale).collect();
    let low: Vec<i64> = places.iter().map(|&p| p as i64).collect();
    let high: Vec<i64> = low.iter().map(|&i| (i + 1).min(size - 1)).collect();
    let share: Vec<f32> = places
        .iter()
        .zip(&low)
        .map(|(p, &i)| p - i as f32)
        .collect();
    let at = |places: &[i64]| -> Result<Tensor> {
        let places = Tensor::f_from_slice(places)?.f_to_device(x.device())?;
        Ok(x.f_index_select(dim, &places)?)
    };
    let mut shape = [1_i64; 4];
    shape[dim as usize] = SIDE;
    let share = Tensor::f_from_slice(&share)?
        .f_view(shape)?
        .f_to_device(x.device())?;
    let low = at(&low)?;
    Ok(low.f_add(&at(&high)?.f_sub(&low)?.f_mul(&share)?)?)
}

fn plain(
    w: &mut Weights,
    name: &str,
    channels: [i64; 2],
    kernel: [i64; 2],
    stride: i64,
    padding: [i64; 2],
) -> Result<Conv> {
    let place = Place {
        stride,
        padding,
        eps: EPS,
    };
    let names = [format!("{name}.conv"), format!("{name}.bn")];
    w.conv([&names[0], &names[1]], channels, kernel, place)
}

fn conv(
    w: &mut Weights,
    name: &str,
    channels: [i64; 2],
    kernel: [i64; 2],
    stride: i64,
    padding: [i64; 2],
) -> Result<Step> {
    Ok(Step::Conv(plain(
        w, name, channels, kernel, stride, padding,
    )?))
}

/// A convolution that keeps height and width.
fn same(w: &mut Weights, name: &str, channels: [i64; 2], kernel: [i64; 2]) -> Result<Step> {
    conv(w, name, channels, kernel, 1, kernel.map(|k| k / 2))
}

fn block_5(w: &mut Weights, name: &str, inside: i64, pool: i64) -> Result<Block> {
    let at = |part: &str| format!("{name}.{part}");
    Ok(vec![
        vec![same(w, &at("branch1x1"), [inside, 64], [1, 1])?],
        vec![
            same(w, &at("branch5x5_1"), [inside, 48], [1, 1])?,
            same(w, &at("branch5x5_2"), [48, 64], [5, 5])?,
        ],
        vec![
            same(w, &at("branch3x3dbl_1"), [inside, 64], [1, 1])?,
            same(w, &at("branch3x3dbl_2"), [64, 96], [3, 3])?,
            same(w, &at("branch3x3dbl_3"), [96, 96], [3, 3])?,
        ],
        vec![
            Step::Average,
            same(w, &at("branch_pool"), [inside, pool], [1, 1])?,
        ],
    ])
}

fn block_6a(w: &mut Weights, name: &str) -> Result<Block> {
    let at = |part: &str| format!("{name}.{part}");
    Ok(vec![
        vec![conv(w, &at("branch3x3"), [288, 384], [3, 3], 2, [0, 0])?],
        vec![
            same(w, &at("branch3x3dbl_1"), [288, 64], [1, 1])?,
            same(w, &at("branch3x3dbl_2"), [64, 96], [3, 3])?,
            conv(w, &at("branch3x3dbl_3"), [96, 96], [3, 3], 2, [0, 0])?,
        ],
        vec![Step::MaxHalf],
    ])
}

fn block_6(w: &mut Weights, name: &str, c: i64) -> Result<Block> {
    let at = |part: &str| format!("{name}.{part}");
    Ok(vec![
        vec![same(w, &at("branch1x1"), [768, 192], [1, 1])?],
        vec![
            same(w, &at("branch7x7_1"), [768, c], [1, 1])?,
            same(w, &at("branch7x7_2"), [c, c], [1, 7])?,
            same(w, &at("branch7x7_3"), [c, 192], [7, 1])?,
        ],
        vec![
            same(w, &at("branch7x7dbl_1"), [768, c], [1, 1])?,
            same(w, &at("branch7x7dbl_2"), [c, c], [7, 1])?,
            same(w, &at("branch7x7dbl_3"), [c, c], [1, 7])?,
            same(w, &at("branch7x7dbl_4"), [c, c], [7, 1])?,
            same(w, &at("branch7x7dbl_5"), [c, 192], [1, 7])?,
        ],
        vec![
            Step::Average,
            same(w, &at("branch_pool"), [768, 192], [1, 1])?,
        ],
    ])
}

fn block_7a(w: &mut Weights, name: &str) -> Result<Block> {
    let at = |part: &str| format!("{name}.{part}");
    Ok(vec![
        vec![
            same(w, &at("branch3x3_1"), [768, 192], [1, 1])?,
            conv(w, &at("branch3x3_2"), [192, 320], [3, 3], 2, [0, 0])?,
        ],
        vec![
            same(w, &at("branch7x7x3_1"), [768, 192], [1, 1])?,
            same(w, &at("branch7x7x3_2"), [192, 192], [1, 7])?,
            same(w, &at("branch7x7x3_3"), [192, 192], [7, 1])?,
            conv(w, &at("branch7x7x3_4"), [192, 192], [3, 3], 2, [0, 0])?,
        ],
        vec![Step::MaxHalf],
    ])
}

fn block_7(w: &mut Weights, name: &str, inside: i64, pool: Step) -> Result<Block> {
    let at = |part: &str| format!("{name}.{part}");
    let both = |w: &mut Weights, a: &str, b: &str| -> Result<Step> {
        Ok(Step::Both(
            plain(w, &at(a), [384, 384], [1, 3], 1, [0, 1])?,
            plain(w, &at(b), [384, 384], [3, 1], 1, [1, 0])?,
        ))
    };
    Ok(vec![
        vec![same(w, &at("branch1x1"), [inside, 320], [1, 1])?],
        vec![
            same(w, &at("branch3x3_1"), [inside, 384], [1, 1])?,
            both(w, "branch3x3_2a", "branch3x3_2b")?,
        ],
        vec![
            same(w, &at("branch3x3dbl_1"), [inside, 448], [1, 1])?,
            same(w, &at("branch3x3dbl_2"), [448, 384], [3, 3])?,
            both(w, "branch3x3dbl_3a", "branch3x3dbl_3b")?,
        ],
        vec![pool, same(w, &at("branch_pool"), [inside, 192], [1, 1])?],
    ])
}
