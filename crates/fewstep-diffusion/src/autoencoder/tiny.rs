//! The tiny autoencoder (TAESD, github.com/madebyollin/taesd): latents in the scale of the diffusion model, without a
//! distribution. All its published forms are alike but for the latents' channels and FLUX.2's extra branch.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::layers::{Conv, GroupNorm, Maker, double};
use super::{Autoencoder, decoded_pixels, image_pixels, in_slices};
use crate::random::NoiseSource;
use crate::{Error, Result, load};

/// Images are eight times as high and wide as latents.
const FACTOR: i64 = 8;
/// Groups of the norm in FLUX.2's branch, and how much wider than the rest it is.
const BRANCH: i64 = 4;

/// The shape of a tiny autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TinyConfig {
    /// Channels of latents: 4 for Stable Diffusion 1, 2 and XL, 16 for 3 and FLUX.1, 32 for FLUX.2.
    pub latent_channels: i64,
    /// Channels of all layers between; 64 in the published ones.
    pub width: i64,
    /// FLUX.2's: the blocks of the smallest size have a normalised branch.
    pub branch: bool,
}

#[derive(Debug, Clone, Copy)]
enum Plan {
    Conv { inputs: i64, out: i64 },
    Down,
    Up,
    Squash,
    Relu,
    Double,
    Block { branch: bool },
}

/// The layers in the order of their numbers in the published files.
fn encoder(c: &TinyConfig) -> Vec<Plan> {
    let mut plan = vec![
        Plan::Conv {
            inputs: 3,
            out: c.width,
        },
        Plan::Block { branch: false },
    ];
    for level in 0..3 {
        let branch = c.branch && level == 2;
        plan.push(Plan::Down);
        plan.extend([Plan::Block { branch }; 3]);
    }
    plan.push(Plan::Conv {
        inputs: c.width,
        out: c.latent_channels,
    });
    plan
}

fn decoder(c: &TinyConfig) -> Vec<Plan> {
    let first = Plan::Conv {
        inputs: c.latent_channels,
        out: c.width,
    };
    let mut plan = vec![Plan::Squash, first, Plan::Relu];
    for level in 0..3 {
        let branch = c.branch && level == 0;
        plan.extend([Plan::Block { branch }; 3]);
        plan.extend([Plan::Double, Plan::Up]);
    }
    let last = Plan::Conv {
        inputs: c.width,
        out: 3,
    };
    plan.extend([Plan::Block { branch: false }, last]);
    plan
}

#[derive(Debug)]
enum Layer {
    Conv(Conv),
    Block(Block),
    /// 3·tanh(x / 3), so that no latent is far out.
    Squash,
    Relu,
    Double,
}

#[derive(Debug)]
struct Block {
    convs: [Conv; 3],
    branch: Option<(Conv, GroupNorm, Conv)>,
}

impl Layer {
    fn new(make: &mut Maker, name: &str, width: i64, plan: Plan) -> Result<Self> {
        Ok(match plan {
            Plan::Conv { inputs, out } => Self::Conv(make.conv(name, inputs, out, 3)?),
            Plan::Down => {
                let mut conv = make.conv_without_bias(name, width, width, 3)?;
                conv.stride = 2;
                Self::Conv(conv)
            }
            Plan::Up => Self::Conv(make.conv_without_bias(name, width, width, 3)?),
            Plan::Squash => Self::Squash,
            Plan::Relu => Self::Relu,
            Plan::Double => Self::Double,
            Plan::Block { branch } => Self::Block(Block::new(make, name, width, branch)?),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::Block(block) => block.forward(x),
            Self::Squash => Ok(x.f_div_scalar(3.)?.f_tanh()?.f_mul_scalar(3.)?),
            Self::Relu => Ok(x.f_relu()?),
            Self::Double => double(x),
        }
    }
}

impl Block {
    fn new(make: &mut Maker, name: &str, width: i64, branch: bool) -> Result<Self> {
        let mut conv = |i: i64| make.conv(&format!("{name}.conv.{i}"), width, width, 3);
        let convs = [conv(0)?, conv(2)?, conv(4)?];
        let wide = BRANCH * width;
        let pool = |i: i64| format!("{name}.pool.{i}");
        let branch = match branch {
            true => Some((
                make.conv_without_bias(&pool(0), width, wide, 1)?,
                make.norm(&pool(1), wide, BRANCH, 1e-5)?,
                make.conv_without_bias(&pool(3), wide, width, 1)?,
            )),
            false => None,
        };
        Ok(Self { convs, branch })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = match &self.branch {
            Some((wider, norm, back)) => {
                let h = norm.forward(&wider.forward(x)?)?.f_relu_()?;
                back.forward(&h)?.f_add_(x)?
            }
            None => x.shallow_clone(),
        };
        let [a, b, c] = &self.convs;
        let h = b.forward(&a.forward(&x)?.f_relu_()?)?.f_relu_()?;
        Ok(c.forward(&h)?.f_add_(&x)?.f_relu_()?)
    }
}

/// A tiny autoencoder.
#[derive(Debug)]
pub struct TinyAutoencoder {
    config: TinyConfig,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    tensors: Vec<(String, Tensor)>,
}

impl TinyAutoencoder {
    /// Reads the published pair, such as `taesd_encoder.pth` and `taesd_decoder.pth`, or the same as safetensors.
    ///
    /// # Errors
    /// No such files, or as [`from_tensors`](Self::from_tensors).
    pub fn load(encoder: &Path, decoder: &Path) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (half, path) in [("encoder", encoder), ("decoder", decoder)] {
            let file = load::read(path)?.into_iter();
            tensors.extend(file.map(|(name, t)| (format!("{half}.{name}"), t)));
        }
        let what = format!("{} with {}", encoder.display(), decoder.display());
        Self::from_tensors(tensors, &what)
    }

    /// From tensors under the published names after `encoder.` and `decoder.`, or under those of diffusers' AutoencoderTiny; the
    /// shape is theirs. `what` names their source in errors. float32 on the CPU, whatever the tensors are.
    ///
    /// # Errors
    /// Lists every missing, extra and misshaped tensor.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor>, what: &str) -> Result<Self> {
        let tensors: BTreeMap<_, _> = tensors
            .into_iter()
            .map(|(name, t)| (published_name(name), t))
            .collect();
        let key = "decoder.1.weight";
        let misfit = |reason: String| {
            let reason = format!("{what} does not fit a tiny autoencoder: `{key}` {reason}");
            Error::from(fewstep_torch::Error::Mismatch(reason))
        };
        let first = tensors.get(key);
        let first = first.ok_or_else(|| misfit("is missing".into()))?.size();
        let [width @ 1..=4096, latent_channels @ 1..=4096, 3, 3] = first[..] else {
            let expected = "[width, latent channels, 3, 3]";
            return Err(misfit(format!("is {first:?}, expected {expected}")));
        };
        let config = TinyConfig {
            latent_channels,
            width,
            branch: tensors.keys().any(|name| name.contains(".pool.")),
        };
        Self::filled(&config, &tensors, what, Kind::Float, Device::Cpu)
    }

    fn filled(
        config: &TinyConfig,
        tensors: &BTreeMap<String, Tensor>,
        what: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let mut make = Maker::new(kind, device);
        let mut half = |name: &str, plan: Vec<Plan>| -> Result<Vec<Layer>> {
            let plan = plan.into_iter().enumerate();
            plan.map(|(i, p)| Layer::new(&mut make, &format!("{name}.{i}"), config.width, p))
                .collect()
        };
        Ok(Self {
            encoder: half("encoder", encoder(config))?,
            decoder: half("decoder", decoder(config))?,
            tensors: make.fill(tensors, what)?,
            config: *config,
        })
    }

    /// All tensors under the published names after `encoder.` and `decoder.`. They share memory with the model.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let all = self.tensors.iter();
        all.map(|(n, t)| (n.clone(), t.shallow_clone())).collect()
    }

    /// The shape.
    pub fn config(&self) -> &TinyConfig {
        &self.config
    }

    /// On another device, or with weights and arithmetic of another type.
    ///
    /// # Errors
    /// The device lacks the memory.
    pub fn to(self, device: Device, kind: Kind) -> Result<Self> {
        let tensors = self.tensors.into_iter().collect();
        Self::filled(&self.config, &tensors, "the autoencoder", kind, device)
    }

    fn run(&self, layers: &[Layer], x: &Tensor) -> Result<Tensor> {
        let (_, weight) = &self.tensors[0];
        let mut x = x.f_to_device(weight.device())?.f_to_kind(weight.kind())?;
        for layer in layers {
            x = layer.forward(&x)?;
        }
        Ok(x.f_to_kind(Kind::Float)?)
    }
}

impl Autoencoder for TinyAutoencoder {
    fn encode(&self, images: &Tensor, _: Option<&mut dyn NoiseSource>) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let pixels = image_pixels(images, 3, FACTOR)?;
        // Its own images are from 0 to 1.
        in_slices(images, pixels, |x| {
            self.run(&self.encoder, &x.f_add_scalar(1.)?.f_div_scalar(2.)?)
        })
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let pixels = decoded_pixels(latents, self.config.latent_channels, FACTOR)?;
        in_slices(latents, pixels, |z| {
            let x = self.run(&self.decoder, z)?;
            Ok(x.f_mul_scalar(2.)?.f_sub_scalar(1.)?)
        })
    }

    fn latent_channels(&self) -> i64 {
        self.config.latent_channels
    }

    fn factor(&self) -> i64 {
        FACTOR
    }
}

/// diffusers counts `encoder.layers.` likewise, and `decoder.layers.` without the squashing that comes first.
fn published_name(name: String) -> String {
    if let Some(rest) = name.strip_prefix("encoder.layers.") {
        return format!("encoder.{rest}");
    }
    let decoder = name.strip_prefix("decoder.layers.");
    let place = decoder
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(i, rest)| Some((i.parse::<u16>().ok()?, rest)));
    match place {
        Some((i, rest)) => format!("decoder.{}.{rest}", u32::from(i) + 1),
        None => name,
    }
}
