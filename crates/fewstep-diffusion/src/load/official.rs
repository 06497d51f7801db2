//! The layout of the official code, which SiT shares.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{LoadOptions, misfit};
use crate::{DitConfig, Error, Result};

/// Width of the timestep embedding.
const FREQUENCIES: i64 = 256;

/// Every tensor of a model under its official name, the fixed `pos_embed` left out.
pub(super) fn layout(config: &DitConfig) -> Vec<(String, Vec<i64>)> {
    let (d, h, p, c) = (config.width, config.hidden(), config.patch, config.channels);
    let mut all = vec![
        ("x_embedder.proj.weight".to_owned(), vec![d, c, p, p]),
        ("x_embedder.proj.bias".to_owned(), vec![d]),
        (
            "y_embedder.embedding_table.weight".to_owned(),
            vec![config.label_rows(), d],
        ),
    ];
    let mut linear = |name: String, out: i64, inputs: i64| {
        all.push((format!("{name}.weight"), vec![out, inputs]));
        all.push((format!("{name}.bias"), vec![out]));
    };
    linear("t_embedder.mlp.0".into(), d, FREQUENCIES);
    linear("t_embedder.mlp.2".into(), d, d);
    for i in 0..config.depth {
        linear(format!("blocks.{i}.adaLN_modulation.1"), 6 * d, d);
        linear(format!("blocks.{i}.attn.qkv"), 3 * d, d);
        linear(format!("blocks.{i}.attn.proj"), d, d);
        linear(format!("blocks.{i}.mlp.fc1"), h, d);
        linear(format!("blocks.{i}.mlp.fc2"), d, h);
    }
    linear("final_layer.adaLN_modulation.1".into(), 2 * d, d);
    linear(
        "final_layer.linear".into(),
        p * p * config.output_channels(),
        d,
    );
    all
}

/// The shape of the model whose tensors these are.
pub(super) fn infer(
    tensors: &BTreeMap<String, Tensor>,
    options: &LoadOptions,
    what: &str,
) -> Result<DitConfig> {
    let mut wrong = Vec::new();
    let mut size = |name: &str, dims: usize| match tensors.get(name).map(Tensor::size) {
        Some(size) if size.len() == dims => size,
        Some(size) => {
            wrong.push(format!("`{name}` is {size:?}, expected {dims} dimensions"));
            vec![1; dims]
        }
        None => {
            wrong.push(format!("`{name}` is missing"));
            vec![1; dims]
        }
    };
    let patches = size("x_embedder.proj.weight", 4);
    let labels = size("y_embedder.embedding_table.weight", 2);
    let hidden = size("blocks.0.mlp.fc1.weight", 2)[0];
    let last = size("final_layer.linear.weight", 2)[0];
    if !wrong.is_empty() {
        return Err(misfit(what, &wrong));
    }
    let (width, channels, patch) = (patches[0], patches[1], patches[3]);
    let per_token = patch * patch * channels;
    let learned_variance = match last {
        n if n == 2 * per_token => true,
        n if n == per_token => false,
        n => {
            return Err(misfit(
                what,
                &[format!(
                    "`final_layer.linear.weight` has {n} rows, expected {per_token} or {} for patches of {patch} and \
                     {channels} channels",
                    2 * per_token
                )],
            ));
        }
    };
    let block = |name: &str| -> Option<i64> {
        name.strip_prefix("blocks.")?
            .split_once('.')?
            .0
            .parse()
            .ok()
    };
    // A stray number in a name is no reason to make so many blocks.
    let depth = tensors
        .keys()
        .filter_map(|name| block(name))
        .filter(|i| (0..tensors.len() as i64).contains(i))
        .max()
        .map_or(0, |i| i + 1);
    let heads = options
        .heads
        .or(match (depth, width) {
            (12, 384) => Some(6),
            (12, 768) => Some(12),
            (24, 1024) | (28, 1152) => Some(16),
            _ => None,
        })
        .ok_or_else(|| Error::Option {
            option: "heads",
            expected: "the number of attention heads, which no tensor tells".into(),
            found: format!(
                "none, and {what} is none of the published shapes (depth {depth}, width {width})"
            ),
        })?;
    let tokens = tensors
        .get("pos_embed")
        .and_then(|t| t.size().get(1).copied());
    let input_size = options
        .input_size
        .or(tokens.map(|n| n.isqrt() * patch))
        .ok_or_else(|| Error::Option {
            option: "input_size",
            expected: "height and width of the input, which only pos_embed would tell".into(),
            found: format!("none, and {what} has no pos_embed"),
        })?;
    let rows = labels[0];
    let classes = options.classes.unwrap_or(rows - 1);
    let mlp_ratio = hidden as f64 / width as f64;
    let config = DitConfig {
        input_size,
        channels,
        patch,
        depth,
        width,
        heads,
        mlp_ratio,
        classes,
        class_dropout: if rows > classes { 0.1 } else { 0. },
        learned_variance,
        convention: options.convention,
    };
    // width · (hidden / width) may fall just short of hidden.
    Ok(match config.hidden() == hidden {
        true => config,
        false => DitConfig {
            mlp_ratio: (hidden as f64 + 0.5) / width as f64,
            ..config
        },
    })
}
