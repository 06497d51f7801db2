//! AutoencoderKL of Stable Diffusion (arXiv 2112.10752, section 3.1), with the tensor names of diffusers.

mod config;

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::layers::{Conv, GroupNorm, Linear, Maker, double};
use super::{Autoencoder, config_file, decoded_pixels, image_pixels, in_slices};
use crate::random::NoiseSource;
use crate::{Error, Result, load};

pub use config::KlConfig;

/// Added to the variance in every norm.
const NORM_EPS: f64 = 1e-6;

/// What the encoder says of latents, before the scaling factor: a normal distribution.
#[derive(Debug)]
pub struct Posterior {
    /// `[N, C, H, W]`, float32.
    pub mean: Tensor,
    /// Logarithm of the variance, from −30 to 20, `[N, C, H, W]`, float32.
    pub logvar: Tensor,
}

impl Posterior {
    /// A sample by this standard normal noise, shaped like the mean.
    ///
    /// # Errors
    /// Noise of another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let deviation = self.logvar.f_mul_scalar(0.5)?.f_exp()?;
        Ok(self.mean.f_addcmul(&deviation, noise)?)
    }
}

#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl Resnet {
    fn new(make: &mut Maker, name: &str, inputs: i64, out: i64, groups: i64) -> Result<Self> {
        let shortcut = (inputs != out)
            .then(|| make.conv(&format!("{name}.conv_shortcut"), inputs, out, 1))
            .transpose()?;
        Ok(Self {
            norm1: make.norm(&format!("{name}.norm1"), inputs, groups, NORM_EPS)?,
            conv1: make.conv(&format!("{name}.conv1"), inputs, out, 3)?,
            norm2: make.norm(&format!("{name}.norm2"), out, groups, NORM_EPS)?,
            conv2: make.conv(&format!("{name}.conv2"), out, out, 3)?,
            shortcut,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward(x)?.f_silu_()?)?;
        let mut h = self.conv2.forward(&self.norm2.forward(&h)?.f_silu_()?)?;
        Ok(match &self.shortcut {
            Some(conv) => h.f_add_(&conv.forward(x)?)?,
            None => h.f_add_(x)?,
        })
    }
}

/// Attention between all pixels, with one head.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl Attention {
    fn new(make: &mut Maker, name: &str, width: i64, groups: i64) -> Result<Self> {
        Ok(Self {
            norm: make.norm(&format!("{name}.group_norm"), width, groups, NORM_EPS)?,
            q: make.linear(&format!("{name}.to_q"), width)?,
            k: make.linear(&format!("{name}.to_k"), width)?,
            v: make.linear(&format!("{name}.to_v"), width)?,
            out: make.linear(&format!("{name}.to_out.0"), width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.norm.forward(x)?.f_flatten(2, 3)?.f_transpose(1, 2)?;
        // One head: [N, 1, pixels, width].
        let head = |l: &Linear| Ok::<_, Error>(l.forward(&h)?.f_unsqueeze(1)?);
        let (q, k, v) = (head(&self.q)?, head(&self.k)?, head(&self.v)?);
        let none = None::<Tensor>;
        let out = Tensor::f_scaled_dot_product_attention(&q, &k, &v, none, 0., false, None, false)?;
        let out = self.out.forward(&out.f_squeeze_dim(1)?)?;
        Ok(out.f_transpose(1, 2)?.f_reshape(x.size())?.f_add_(x)?)
    }
}

#[derive(Debug)]
struct Middle {
    first: Resnet,
    attention: Option<Attention>,
    second: Resnet,
}

impl Middle {
    fn new(make: &mut Maker, name: &str, width: i64, config: &KlConfig) -> Result<Self> {
        let groups = config.norm_num_groups;
        let attention = config
            .mid_block_add_attention
            .then(|| Attention::new(make, &format!("{name}.attentions.0"), width, groups))
            .transpose()?;
        let mut resnet =
            |i: i64| Resnet::new(make, &format!("{name}.resnets.{i}"), width, width, groups);
        Ok(Self {
            first: resnet(0)?,
            attention,
            second: resnet(1)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x)
    }
}

/// Residual blocks of one size; `resample` leads to the next size.
#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    resample: Option<Conv>,
}

impl Level {
    fn new(
        make: &mut Maker,
        name: &str,
        (inputs, out): (i64, i64),
        blocks: i64,
        resample: Option<&str>,
        groups: i64,
    ) -> Result<Self> {
        let resnets = (0..blocks)
            .map(|j| {
                let inputs = if j == 0 { inputs } else { out };
                Resnet::new(make, &format!("{name}.resnets.{j}"), inputs, out, groups)
            })
            .collect::<Result<_>>()?;
        let resample = resample
            .map(|r| make.conv(&format!("{name}.{r}.0.conv"), out, out, 3))
            .transpose()?;
        Ok(Self { resnets, resample })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        for resnet in &self.resnets {
            x = resnet.forward(&x)?;
        }
        Ok(x)
    }
}

/// The encoder, or the decoder.
#[derive(Debug)]
struct Half {
    first: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm: GroupNorm,
    last: Conv,
}

impl Half {
    fn encoder(make: &mut Maker, config: &KlConfig) -> Result<Self> {
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (outer, inner) = (widths[0], widths[widths.len() - 1]);
        let levels = (0..widths.len())
            .map(|i| {
                let ends = (widths[i.saturating_sub(1)], widths[i]);
                let name = format!("encoder.down_blocks.{i}");
                let resample = (i + 1 < widths.len()).then_some("downsamplers");
                let mut level =
                    Level::new(make, &name, ends, config.layers_per_block, resample, groups)?;
                if let Some(conv) = &mut level.resample {
                    // One row and column of zeros after the last: `encode` adds them.
                    (conv.stride, conv.padding) = (2, 0);
                }
                Ok(level)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            first: make.conv("encoder.conv_in", config.channels, outer, 3)?,
            levels,
            middle: Middle::new(make, "encoder.mid_block", inner, config)?,
            norm: make.norm("encoder.conv_norm_out", inner, groups, NORM_EPS)?,
            last: make.conv("encoder.conv_out", inner, 2 * config.latent_channels, 3)?,
        })
    }

    fn decoder(make: &mut Maker, config: &KlConfig) -> Result<Self> {
        let widths: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let groups = config.norm_num_groups;
        let (inner, outer) = (widths[0], widths[widths.len() - 1]);
        let levels = (0..widths.len())
            .map(|i| {
                let ends = (widths[i.saturating_sub(1)], widths[i]);
                let name = format!("decoder.up_blocks.{i}");
                let resample = (i + 1 < widths.len()).then_some("upsamplers");
                let blocks = config.layers_per_block + 1;
                Level::new(make, &name, ends, blocks, resample, groups)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            first: make.conv("decoder.conv_in", config.latent_channels, inner, 3)?,
            levels,
            middle: Middle::new(make, "decoder.mid_block", inner, config)?,
            norm: make.norm("decoder.conv_norm_out", outer, groups, NORM_EPS)?,
            last: make.conv("decoder.conv_out", outer, config.channels, 3)?,
        })
    }

    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x)?;
        for level in &self.levels {
            x = level.forward(&x)?;
            if let Some(down) = &level.resample {
                x = down.forward(&x.f_constant_pad_nd([0, 1, 0, 1])?)?;
            }
        }
        self.end(&self.middle.forward(&x)?)
    }

    fn decode(&self, z: &Tensor) -> Result<Tensor> {
        let mut x = self.middle.forward(&self.first.forward(z)?)?;
        for level in &self.levels {
            x = level.forward(&x)?;
            if let Some(up) = &level.resample {
                x = up.forward(&double(&x)?)?;
            }
        }
        self.end(&x)
    }

    fn end(&self, x: &Tensor) -> Result<Tensor> {
        self.last.forward(&self.norm.forward(x)?.f_silu_()?)
    }
}

/// Stable Diffusion's autoencoder.
#[derive(Debug)]
pub struct AutoencoderKl {
    config: KlConfig,
    encoder: Half,
    quant: Option<Conv>,
    post_quant: Option<Conv>,
    decoder: Half,
    tensors: Vec<(String, Tensor)>,
}

impl AutoencoderKl {
    /// From tensors under diffusers' names, those of today or those of the released files (`query`, `key`, `value`, `proj_attn`);
    /// `what` names their source in errors. float32 on the CPU, whatever the tensors are.
    ///
    /// # Errors
    /// Lists every missing, extra and misshaped tensor; or an option of `config` is out of range.
    pub fn from_tensors(
        config: &KlConfig,
        tensors: BTreeMap<String, Tensor>,
        what: &str,
    ) -> Result<Self> {
        let tensors = tensors
            .into_iter()
            .map(|(name, t)| todays_name(name, t))
            .collect::<Result<_>>()?;
        Self::filled(config, &tensors, what, Kind::Float, Device::Cpu)
    }

    fn filled(
        config: &KlConfig,
        tensors: &BTreeMap<String, Tensor>,
        what: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        config.validate().map_err(Error::setting)?;
        let mut make = Maker::new(kind, device);
        let z = config.latent_channels;
        let encoder = Half::encoder(&mut make, config)?;
        let mut square = |name: &str, width: i64, wanted: bool| {
            wanted.then(|| make.conv(name, width, width, 1)).transpose()
        };
        Ok(Self {
            encoder,
            quant: square("quant_conv", 2 * z, config.use_quant_conv)?,
            post_quant: square("post_quant_conv", z, config.use_post_quant_conv)?,
            decoder: Half::decoder(&mut make, config)?,
            tensors: make.fill(tensors, what)?,
            config: config.clone(),
        })
    }

    /// Reads a folder of diffusers: its `vae/`, or that folder itself.
    ///
    /// # Errors
    /// No such files, another kind of autoencoder, or as [`from_tensors`](Self::from_tensors).
    pub fn load(folder: &Path) -> Result<Self> {
        let config = KlConfig::read(&config_file(folder))?;
        let tensors = load::vae(folder)?.tensors;
        Self::from_tensors(&config, tensors, &folder.display().to_string())
    }

    /// All tensors under diffusers' names of today, in a fixed order. They share memory with the model.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let all = self.tensors.iter();
        all.map(|(n, t)| (n.clone(), t.shallow_clone())).collect()
    }

    /// The shape.
    pub fn config(&self) -> &KlConfig {
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

    /// The distribution of the latents of images `[N, 3, H, W]` from −1 to 1.
    ///
    /// # Errors
    /// Images of another shape, or libtorch refuses.
    pub fn posterior(&self, images: &Tensor) -> Result<Posterior> {
        let _guard = tch::no_grad_guard();
        let pixels = image_pixels(images, self.config.channels, self.factor())?;
        let moments = in_slices(images, pixels, |x| {
            let h = self.encoder.encode(&self.near(x)?)?;
            let h = match &self.quant {
                Some(conv) => conv.forward(&h)?,
                None => h,
            };
            Ok(h.f_to_kind(Kind::Float)?)
        })?;
        let z = self.config.latent_channels;
        Ok(Posterior {
            mean: moments.f_narrow(1, 0, z)?,
            logvar: moments.f_narrow(1, z, z)?.f_clamp(-30., 20.)?,
        })
    }

    /// Where the weights are, in their type.
    fn near(&self, x: &Tensor) -> Result<Tensor> {
        let (_, weight) = &self.tensors[0];
        Ok(x.f_to_device(weight.device())?.f_to_kind(weight.kind())?)
    }
}

impl Autoencoder for AutoencoderKl {
    fn encode(&self, images: &Tensor, noise: Option<&mut dyn NoiseSource>) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let posterior = self.posterior(images)?;
        let z = match noise {
            Some(source) => posterior.sample(&source.noise(0, &posterior.mean)?)?,
            None => posterior.mean,
        };
        Ok(z.f_sub_scalar(self.config.shift_factor)?
            .f_mul_scalar(self.config.scaling_factor)?)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let pixels = decoded_pixels(latents, self.config.latent_channels, self.factor())?;
        in_slices(latents, pixels, |z| {
            let z = z
                .f_div_scalar(self.config.scaling_factor)?
                .f_add_scalar(self.config.shift_factor)?;
            let z = self.near(&z)?;
            let z = match &self.post_quant {
                Some(conv) => conv.forward(&z)?,
                None => z,
            };
            Ok(self.decoder.decode(&z)?.f_to_kind(Kind::Float)?)
        })
    }

    fn latent_channels(&self) -> i64 {
        self.config.latent_channels
    }

    fn factor(&self) -> i64 {
        self.config.factor()
    }
}

/// A tensor of attention under the name that diffusers has given it since 0.15. Some of the older ones are 1×1 convolutions.
pub(crate) fn todays_name(name: String, t: Tensor) -> Result<(String, Tensor)> {
    let renamed = [
        (".query.", ".to_q."),
        (".key.", ".to_k."),
        (".value.", ".to_v."),
        (".proj_attn.", ".to_out.0."),
    ]
    .into_iter()
    .find(|(old, _)| name.contains(".attentions.") && name.contains(old));
    let Some((old, new)) = renamed else {
        return Ok((name, t));
    };
    let t = match t.size()[..] {
        [out, inputs, 1, 1] => t.f_reshape([out, inputs])?,
        _ => t,
    };
    Ok((name.replace(old, new), t))
}
