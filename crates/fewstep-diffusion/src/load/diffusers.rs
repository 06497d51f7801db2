//! Folders of diffusers: `transformer/`, `scheduler/` and `vae/`, each with a JSON file beside its weights.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use super::official::layout;
use super::{LoadOptions, file_error, misfit, read, weights_in};
use crate::autoencoder::kl::todays_name;
use crate::noise::{Respacing, TRAIN_TIMESTEPS};
use crate::sampler::Prediction;
use crate::{BetaSchedule, Convention, Dit, DitConfig, Error, Result};

/// `config.json` of a DiTTransformer2DModel, or of a Transformer2DModel before diffusers 0.28.
#[derive(Deserialize)]
struct TransformerConfig {
    num_attention_heads: i64,
    attention_head_dim: i64,
    in_channels: i64,
    out_channels: Option<i64>,
    num_layers: i64,
    sample_size: i64,
    patch_size: i64,
    num_embeds_ada_norm: i64,
    #[serde(default = "tanh_gelu")]
    activation_fn: String,
    #[serde(default = "ada_norm_zero")]
    norm_type: String,
    #[serde(default = "block_norm_eps")]
    norm_eps: f64,
}

fn tanh_gelu() -> String {
    "gelu-approximate".into()
}
fn ada_norm_zero() -> String {
    "ada_norm_zero".into()
}
fn block_norm_eps() -> f64 {
    1e-5
}

impl TransformerConfig {
    fn shape(&self, options: &LoadOptions, path: &Path) -> Result<DitConfig> {
        let expect =
            |key: &str, expected: &str, found: &dyn std::fmt::Display, fits: bool| match fits {
                true => Ok(()),
                false => Err(file_error(
                    path,
                    format!("`{key}`: expected {expected}, found {found}"),
                )),
            };
        let activation = &self.activation_fn;
        expect(
            "activation_fn",
            "gelu-approximate",
            activation,
            *activation == tanh_gelu(),
        )?;
        let norm = &self.norm_type;
        expect("norm_type", "ada_norm_zero", norm, *norm == ada_norm_zero())?;
        let same_eps = options.convention == Convention::Original || self.norm_eps == 1e-5;
        expect("norm_eps", "1e-5", &self.norm_eps, same_eps)?;
        let channels = self.in_channels;
        let out = self.out_channels.unwrap_or(channels);
        let doubled = channels.checked_mul(2) == Some(out);
        expect(
            "out_channels",
            "in_channels or twice as many",
            &out,
            doubled || out == channels,
        )?;
        let width = self
            .num_attention_heads
            .checked_mul(self.attention_head_dim);
        Ok(DitConfig {
            input_size: options.input_size.unwrap_or(self.sample_size),
            channels,
            patch: self.patch_size,
            depth: self.num_layers,
            width: width.unwrap_or(0),
            heads: options.heads.unwrap_or(self.num_attention_heads),
            mlp_ratio: 4.,
            classes: options.classes.unwrap_or(self.num_embeds_ada_norm),
            class_dropout: 0.1,
            learned_variance: doubled,
            convention: options.convention,
        })
    }
}

/// From a file of weights and the config beside it.
pub(super) fn dit(weights: &Path, config: &Path, options: &LoadOptions) -> Result<Dit> {
    from_tensors(read(weights)?, weights, config, options)
}

/// From the tensors of a file.
pub(super) fn from_tensors(
    tensors: BTreeMap<String, Tensor>,
    weights: &Path,
    config: &Path,
    options: &LoadOptions,
) -> Result<Dit> {
    let config = match &options.config {
        Some(config) => config.clone(),
        None => json::<TransformerConfig>(config)?.shape(options, config)?,
    };
    config.validate().map_err(Error::setting)?;
    let what = weights.display().to_string();
    let tensors = to_official(&config, tensors, &what)?;
    Dit::from_tensors(&config, tensors, &what)
}

/// Where the numbers of an official tensor are in diffusers' layout: pieces to put one below the other, and of each the names
/// of its copies.
fn places(official: &str, depth: i64) -> Vec<Vec<String>> {
    let Some((name, end)) = official.rsplit_once('.') else {
        return Vec::new();
    };
    let one = |name: &str| vec![vec![format!("{name}.{end}")]];
    let in_every_block = |name: &str| {
        let copy = |i| format!("transformer_blocks.{i}.norm1.emb.{name}.{end}");
        vec![(0..depth).map(copy).collect()]
    };
    match name {
        "x_embedder.proj" => one("pos_embed.proj"),
        "t_embedder.mlp.0" => in_every_block("timestep_embedder.linear_1"),
        "t_embedder.mlp.2" => in_every_block("timestep_embedder.linear_2"),
        "y_embedder.embedding_table" => in_every_block("class_embedder.embedding_table"),
        "final_layer.adaLN_modulation.1" => one("proj_out_1"),
        "final_layer.linear" => one("proj_out_2"),
        _ => {
            let mut parts = name.splitn(3, '.').skip(1);
            let (block, inner) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            let at = |inner: &str| vec![format!("transformer_blocks.{block}.{inner}.{end}")];
            match inner {
                "adaLN_modulation.1" => vec![at("norm1.linear")],
                "attn.qkv" => ["attn1.to_q", "attn1.to_k", "attn1.to_v"].map(at).into(),
                "attn.proj" => vec![at("attn1.to_out.0")],
                "mlp.fc1" => vec![at("ff.net.0.proj")],
                "mlp.fc2" => vec![at("ff.net.2")],
                _ => Vec::new(),
            }
        }
    }
}

/// The same weights under official names.
fn to_official(
    config: &DitConfig,
    mut tensors: BTreeMap<String, Tensor>,
    what: &str,
) -> Result<BTreeMap<String, Tensor>> {
    let mut wrong = Vec::new();
    let mut all = BTreeMap::new();
    for (official, shape) in layout(config) {
        let places = places(&official, config.depth);
        let mut shape = shape;
        shape[0] /= places.len().max(1) as i64;
        let mut pieces = Vec::new();
        for copies in &places {
            let mut first: Option<Tensor> = None;
            for name in copies {
                let Some(t) = tensors.remove(name) else {
                    wrong.push(format!("`{name}` (officially `{official}`) is missing"));
                    continue;
                };
                if t.size() != shape {
                    let found = t.size();
                    wrong.push(format!(
                        "`{name}` (officially `{official}`) is {found:?}, expected {shape:?}"
                    ));
                    continue;
                }
                match &first {
                    None => first = Some(t),
                    Some(first) if first.f_equal(&t)? => {}
                    Some(_) => wrong.push(format!(
                        "`{name}` differs from its copy in another block, and there is one `{official}` for all"
                    )),
                }
            }
            pieces.extend(first);
        }
        if pieces.len() == places.len() {
            let whole = match pieces.as_slice() {
                [one] => one.shallow_clone(),
                pieces => Tensor::f_cat(pieces, 0)?,
            };
            all.insert(official, whole);
        }
    }
    // A buffer that some versions save; it is compared like the official one.
    if let Some(t) = tensors.remove("pos_embed.pos_embed") {
        all.insert("pos_embed".into(), t);
    }
    wrong.extend(
        tensors
            .keys()
            .map(|name| format!("`{name}` is not expected")),
    );
    match wrong.is_empty() {
        true => Ok(all),
        false => Err(misfit(what, &wrong)),
    }
}

/// The weights of a model under diffusers' names, as `transformer/` wants them.
///
/// # Errors
/// libtorch refuses, for want of memory.
pub fn to_diffusers(dit: &Dit) -> Result<BTreeMap<String, Tensor>> {
    let config = dit.config();
    let official: BTreeMap<_, _> = dit.parameters().into_iter().collect();
    let mut all = BTreeMap::new();
    for (name, shape) in layout(config) {
        let Some(t) = official.get(&name) else {
            continue;
        };
        let places = places(&name, config.depth);
        // The patch embedding is a matrix here and a convolution there.
        let pieces = t
            .f_detach()?
            .f_reshape(&shape)?
            .f_chunk(places.len() as i64, 0)?;
        for (copies, piece) in places.into_iter().zip(pieces) {
            all.extend(copies.into_iter().map(|name| (name, piece.shallow_clone())));
        }
    }
    Ok(all)
}

/// What a `scheduler/scheduler_config.json` says that fewstep's schedules and samplers understand.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// The betas of training.
    pub betas: BetaSchedule,
    /// What the model predicts.
    pub prediction: Prediction,
    /// Which timesteps diffusers visits.
    pub respacing: Respacing,
    /// Whether predicted x₀ is clamped to −1 … 1.
    pub clip_denoised: bool,
}

#[derive(Deserialize)]
struct SchedulerJson {
    #[serde(rename = "_class_name", default)]
    class: String,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_schedule: Option<String>,
    num_train_timesteps: Option<usize>,
    prediction_type: Option<String>,
    timestep_spacing: Option<String>,
    #[serde(default)]
    steps_offset: i64,
    clip_sample: Option<bool>,
    trained_betas: Option<serde_json::Value>,
}

/// Reads `scheduler/scheduler_config.json` of a folder of diffusers, with diffusers' defaults for what it leaves out.
///
/// # Errors
/// The file is absent or no JSON, or asks for what fewstep does not have; the message names the key.
pub fn scheduler(folder: &Path) -> Result<SchedulerConfig> {
    let path = folder.join("scheduler").join("scheduler_config.json");
    let json = json::<SchedulerJson>(&path)?;
    let wrong = |key: &str, expected: &str, found: &dyn std::fmt::Display| {
        file_error(
            &path,
            format!("`{key}`: expected {expected}, found {found}"),
        )
    };
    let steps = json.num_train_timesteps.unwrap_or(TRAIN_TIMESTEPS);
    if steps != TRAIN_TIMESTEPS {
        return Err(wrong("num_train_timesteps", "1000", &steps));
    }
    if json.trained_betas.is_some() {
        return Err(wrong("trained_betas", "null", &"a list"));
    }
    if json.steps_offset != 0 {
        return Err(wrong("steps_offset", "0", &json.steps_offset));
    }
    let (start, end) = (
        json.beta_start.unwrap_or(1e-4),
        json.beta_end.unwrap_or(0.02),
    );
    let betas = match json.beta_schedule.as_deref().unwrap_or("linear") {
        "linear" => BetaSchedule::Linear { start, end },
        "scaled_linear" => BetaSchedule::ScaledLinear { start, end },
        "squaredcos_cap_v2" => BetaSchedule::cosine(),
        other => {
            let expected = "linear, scaled_linear or squaredcos_cap_v2";
            return Err(wrong("beta_schedule", expected, &other));
        }
    };
    betas
        .validate()
        .map_err(|(key, reason)| file_error(&path, format!("`beta_{key}`: {reason}")))?;
    let prediction = match json.prediction_type.as_deref().unwrap_or("epsilon") {
        "epsilon" => Prediction::Epsilon,
        "v_prediction" => Prediction::V,
        "sample" => Prediction::Sample,
        other => {
            let expected = "epsilon, v_prediction or sample";
            return Err(wrong("prediction_type", expected, &other));
        }
    };
    let first = ["DDIMScheduler", "DDPMScheduler"].contains(&json.class.as_str());
    let spacing = if first { "leading" } else { "linspace" };
    let respacing = match json.timestep_spacing.as_deref().unwrap_or(spacing) {
        "leading" => Respacing::Leading,
        "trailing" => Respacing::Trailing,
        "linspace" => Respacing::Linspace,
        other => {
            let expected = "leading, trailing or linspace";
            return Err(wrong("timestep_spacing", expected, &other));
        }
    };
    Ok(SchedulerConfig {
        betas,
        prediction,
        respacing,
        clip_denoised: json.clip_sample.unwrap_or(first),
    })
}

/// The weights and figures of a `vae/`, as the autoencoders want them.
#[derive(Debug)]
pub struct Vae {
    /// Tensors under the names of today's diffusers (`mid_block.attentions.0.to_q`, where older files say `query`).
    pub tensors: BTreeMap<String, Tensor>,
    /// Latents of the transformer are those of the encoder times this; 0.18215 for Stable Diffusion's.
    pub scaling_factor: f64,
}

#[derive(Deserialize)]
struct VaeJson {
    #[serde(default = "scaling_factor")]
    scaling_factor: f64,
}

fn scaling_factor() -> f64 {
    0.18215
}

/// Reads `vae/` of a folder of diffusers, or that folder itself.
///
/// # Errors
/// No such folder or files, or files that can't be read.
pub fn vae(folder: &Path) -> Result<Vae> {
    let inner = folder.join("vae");
    let folder = if inner.is_dir() { &inner } else { folder };
    let config = json::<VaeJson>(&folder.join("config.json"))?;
    let tensors = read(&weights_in(folder)?)?
        .into_iter()
        .map(|(name, t)| todays_name(name, t))
        .collect::<Result<_>>()?;
    Ok(Vae {
        tensors,
        scaling_factor: config.scaling_factor,
    })
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| file_error(path, e.to_string()))?;
    serde_json::from_str(&text)
        .map_err(|e| file_error(path, format!("expected a config of diffusers: {e}")))
}
