//! Published checkpoints as a [`Dit`]: what a path holds is found out by looking into it.
//!
//! - the official `.pt` of DiT and SiT, also inside a training checkpoint `{model, ema, opt, args}` (then `ema`);
//! - a folder of diffusers (`transformer/`, with `vae/` and `scheduler/` beside it), or that `transformer/` itself;
//! - safetensors with official names, with diffusers' (config.json beside them), or written by fewstep.
//!
//! Nothing in a `.pt` is run. Weights from diffusers follow the *original* conventions unless [`LoadOptions::convention`] says
//! otherwise; [`Convention`] names the differences.

mod diffusers;
mod official;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use fewstep_torch::{Checkpoint, torch_file};
use tch::Tensor;

use crate::{Convention, Dit, DitConfig, Error, Result};

pub use diffusers::{SchedulerConfig, Vae, scheduler, to_diffusers, vae};

/// What a file of weights does not say by itself. None of it is needed for the published checkpoints, and none of it counts for
/// a file that fewstep wrote, which says everything.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The whole shape: nothing is read from tensors or config.json then, and the other options do not count.
    pub config: Option<DitConfig>,
    /// Attention heads; by default those of the published shape of this depth and width, or of config.json.
    pub heads: Option<i64>,
    /// Height and width of the input; by default that of the file's `pos_embed`, or of config.json.
    pub input_size: Option<i64>,
    /// Classes; by default one less than the label table has rows, its last row being the null class.
    pub classes: Option<i64>,
    /// Whose arithmetic the weights are used with. Default: original.
    pub convention: Convention,
}

/// Reads a DiT or SiT as float32 on the CPU.
///
/// # Errors
/// Nothing of the kind is at `path`; the file leaves open what `options` does not say; or tensors are missing, extra or
/// misshaped (all are listed), differ between blocks where they are copies, or `pos_embed` is not the sine-cosine one.
pub fn dit(path: &Path, options: &LoadOptions) -> Result<Dit> {
    let folder = [path.join("transformer"), path.to_owned()]
        .into_iter()
        .find(|f| f.join("config.json").is_file());
    if path.is_dir() {
        let folder = folder.ok_or_else(|| {
            file_error(
                path,
                "expected a folder of diffusers with transformer/config.json or config.json, found neither",
            )
        })?;
        return diffusers::dit(&weights_in(&folder)?, &folder.join("config.json"), options);
    }
    if !is_torch_file(path)? {
        let file = Checkpoint::load(path)?;
        if file.string("dit").is_some() {
            let averaged = !file.section("ema/").is_empty();
            return Dit::from_checkpoint(&file, if averaged { "ema/" } else { "" }, path);
        }
    }
    let tensors = read(path)?;
    if tensors.contains_key("pos_embed.proj.weight") {
        let config = path.with_file_name("config.json");
        return diffusers::from_tensors(tensors, path, &config, options);
    }
    let what = path.display().to_string();
    let config = match &options.config {
        Some(config) => config.clone(),
        None => official::infer(&tensors, options, &what)?,
    };
    Dit::from_tensors(&config, tensors, &what)
}

/// The tensors of a file of torch.save or of safetensors. Wrappers around a model leave their mark on every name; it is taken
/// off.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = if is_torch_file(path)? {
        torch_file::load_tensors(path, &["ema", "model", "state_dict", ""])?
    } else {
        Checkpoint::load(path)?.section("")
    };
    for wrapper in ["module.", "_orig_mod."] {
        if tensors.keys().all(|name| name.starts_with(wrapper)) {
            tensors = tensors
                .into_iter()
                .map(|(name, t)| (name[wrapper.len()..].to_owned(), t))
                .collect();
        }
    }
    Ok(tensors)
}

/// By its first bytes: a zip archive or a pickle; safetensors begin with the length of their header.
fn is_torch_file(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|f| f.take(4).read_to_end(&mut start))
        .map_err(|e| file_error(path, e.to_string()))?;
    Ok(start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02"))
}

/// The file of weights in a folder of diffusers.
fn weights_in(folder: &Path) -> Result<std::path::PathBuf> {
    let names = [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.bin",
    ];
    let found = names
        .map(|n| folder.join(n))
        .into_iter()
        .find(|p| p.is_file());
    found.ok_or_else(|| {
        file_error(
            folder,
            "expected diffusion_pytorch_model.safetensors or .bin in the folder, found neither",
        )
    })
}

fn file_error(path: &Path, reason: impl Into<String>) -> Error {
    Error::File {
        path: path.into(),
        reason: reason.into(),
    }
}

/// One error for all that does not fit.
fn misfit(what: &str, wrong: &[String]) -> Error {
    let reason = format!("{what} does not fit: {}", wrong.join("; "));
    fewstep_torch::Error::Mismatch(reason).into()
}
