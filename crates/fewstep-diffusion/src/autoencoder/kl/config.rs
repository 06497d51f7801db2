use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

/// The shape of an AutoencoderKL; reads diffusers' `vae/config.json`, with diffusers' defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "KlJson")]
pub struct KlConfig {
    /// Channels of images.
    pub channels: i64,
    /// Channels of latents.
    pub latent_channels: i64,
    /// Width of each level, from the image's size down; each halves the size of the one before.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub layers_per_block: i64,
    /// Groups of each norm, a divisor of all widths.
    pub norm_num_groups: i64,
    /// The diffusion model's latents are (encoded − `shift_factor`) · `scaling_factor`.
    pub scaling_factor: f64,
    /// See `scaling_factor`; 0 for Stable Diffusion 1 and 2.
    pub shift_factor: f64,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether there is attention between the two middle blocks.
    pub mid_block_add_attention: bool,
}

/// config.json as it is. What only training and tiling read is left out.
#[derive(Deserialize)]
#[serde(default)]
struct KlJson {
    #[serde(rename = "_class_name")]
    class: String,
    in_channels: i64,
    out_channels: i64,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    block_out_channels: Vec<i64>,
    layers_per_block: i64,
    act_fn: String,
    latent_channels: i64,
    norm_num_groups: i64,
    scaling_factor: f64,
    shift_factor: Option<f64>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    mid_block_add_attention: bool,
}

impl Default for KlJson {
    fn default() -> Self {
        Self {
            class: "AutoencoderKL".into(),
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec!["DownEncoderBlock2D".into()],
            up_block_types: vec!["UpDecoderBlock2D".into()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".into(),
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl TryFrom<KlJson> for KlConfig {
    type Error = String;

    fn try_from(json: KlJson) -> std::result::Result<Self, String> {
        let only = |key: &str, expected: &str, found: &str| match found == expected {
            true => Ok(()),
            false => Err(format!("`{key}`: expected {expected}, found {found}")),
        };
        only("_class_name", "AutoencoderKL", &json.class)?;
        only("act_fn", "silu", &json.act_fn)?;
        for (key, expected, types) in [
            (
                "down_block_types",
                "DownEncoderBlock2D",
                &json.down_block_types,
            ),
            ("up_block_types", "UpDecoderBlock2D", &json.up_block_types),
        ] {
            types.iter().try_for_each(|t| only(key, expected, t))?;
            let (found, levels) = (types.len(), json.block_out_channels.len());
            if found != levels {
                return Err(format!(
                    "`{key}`: expected as many as block_out_channels has ({levels}), found {found}"
                ));
            }
        }
        if json.latents_mean.is_some() || json.latents_std.is_some() {
            return Err("`latents_mean` and `latents_std`: expected null, found lists".into());
        }
        let (inputs, out) = (json.in_channels, json.out_channels);
        if inputs != out {
            return Err(format!(
                "`out_channels`: expected in_channels ({inputs}), found {out}"
            ));
        }
        Ok(Self {
            channels: inputs,
            latent_channels: json.latent_channels,
            block_out_channels: json.block_out_channels,
            layers_per_block: json.layers_per_block,
            norm_num_groups: json.norm_num_groups,
            scaling_factor: json.scaling_factor,
            shift_factor: json.shift_factor.unwrap_or(0.),
            use_quant_conv: json.use_quant_conv,
            use_post_quant_conv: json.use_post_quant_conv,
            mid_block_add_attention: json.mid_block_add_attention,
        })
    }
}

impl KlConfig {
    /// Stable Diffusion's, which the published DiTs use (`sd-vae-ft-ema` and `-mse`).
    pub fn stable_diffusion() -> Self {
        Self {
            channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: 0.,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }

    /// Reads diffusers' config.json.
    ///
    /// # Errors
    /// The file is absent, or describes another autoencoder; the message names the key.
    pub fn read(path: &Path) -> Result<Self> {
        let error = |reason: String| Error::File {
            path: path.into(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
        let config: Self = serde_json::from_str(&text)
            .map_err(|e| error(format!("expected a config of AutoencoderKL: {e}")))?;
        config
            .validate()
            .map_err(|(key, reason)| error(format!("`{key}`: {reason}")))?;
        Ok(config)
    }

    /// # Errors
    /// The option that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> std::result::Result<(), (&'static str, String)> {
        for (key, value, most) in [
            ("channels", self.channels, 1 << 10),
            ("latent_channels", self.latent_channels, 1 << 10),
            ("layers_per_block", self.layers_per_block, 1 << 6),
            ("norm_num_groups", self.norm_num_groups, 1 << 10),
        ] {
            if !(1..=most).contains(&value) {
                return Err((key, format!("expected 1 to {most}, found {value}")));
            }
        }
        let (widths, groups) = (&self.block_out_channels, self.norm_num_groups);
        let fits = |w: &i64| (1..=1 << 14).contains(w) && w % groups == 0;
        if !(1..=8).contains(&widths.len()) || !widths.iter().all(fits) {
            return Err((
                "block_out_channels",
                format!("expected 1 to 8 multiples of {groups} up to 16384, found {widths:?}"),
            ));
        }
        let (scale, shift) = (self.scaling_factor, self.shift_factor);
        if !(scale > 0. && scale.is_finite()) {
            let message = format!("expected a number above 0, found {scale}");
            return Err(("scaling_factor", message));
        }
        if !shift.is_finite() {
            return Err(("shift_factor", format!("expected a number, found {shift}")));
        }
        Ok(())
    }

    pub(super) fn factor(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }
}
