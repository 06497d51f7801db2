use serde::{Deserialize, Serialize};

use super::{SubModule, SubModuleKind, embed};

/// Whose conventions a model follows where the two programs that people call "DiT-XL/2" differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convention {
    /// The authors' code: frequencies over half the dimension, every norm with 1e-6, guidance on three channels, learned variance.
    #[default]
    Original,
    /// diffusers' DiTPipeline: frequencies over half the dimension less one, 1e-5 in the norm before the MLP, guidance on all
    /// channels, learned variance discarded.
    Diffusers,
}

/// The shape of a DiT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitConfig {
    /// Height and width of the latents or pixels.
    pub input_size: i64,
    /// Channels of the latents or pixels.
    pub channels: i64,
    /// Height and width of a patch, a divisor of the input size.
    pub patch: i64,
    /// Blocks.
    pub depth: i64,
    /// Width of a token.
    pub width: i64,
    /// Attention heads, a divisor of the width.
    pub heads: i64,
    /// Width of the MLP over that of a token. Default: 4.
    #[serde(default = "mlp_ratio")]
    pub mlp_ratio: f64,
    /// Classes. Default: 1000.
    #[serde(default = "classes")]
    pub classes: i64,
    /// Share of labels dropped in training, from 0 to below 1; above 0 there is a null class for guidance. Default: 0.1.
    #[serde(default = "class_dropout")]
    pub class_dropout: f64,
    /// Whether there is a second half of output channels for the variance. Default: true.
    #[serde(default = "yes")]
    pub learned_variance: bool,
    /// Whose conventions. Default: original.
    #[serde(default)]
    pub convention: Convention,
}

fn mlp_ratio() -> f64 {
    4.
}
fn classes() -> i64 {
    1000
}
fn class_dropout() -> f64 {
    0.1
}
fn yes() -> bool {
    true
}

/// Multiply-accumulate operations of one forward pass for one sample (guidance doubles them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Macs {
    /// One attention sub-module with its projections.
    pub attention: u64,
    /// One MLP.
    pub mlp: u64,
    /// All that is never skipped: embeddings, modulations, the last layer.
    pub rest: u64,
    /// Blocks.
    pub depth: u64,
}

impl Macs {
    /// Of a sub-module.
    pub fn of(&self, module: SubModule) -> u64 {
        match module.kind {
            SubModuleKind::Attention => self.attention,
            SubModuleKind::Mlp => self.mlp,
        }
    }

    /// Of a forward pass that computes everything.
    pub fn total(&self) -> u64 {
        self.rest + self.depth * (self.attention + self.mlp)
    }
}

impl DitConfig {
    /// One of the published shapes by name (`DiT-XL/2`, `S/8`, …; SiT's are the same) for an input `[channels, size, size]`.
    pub fn named(name: &str, input_size: i64, channels: i64) -> Option<Self> {
        let name = name.trim_start_matches("DiT-").trim_start_matches("SiT-");
        let (size, patch) = name.split_once('/')?;
        let (depth, width, heads) = match size {
            "S" => (12, 384, 6),
            "B" => (12, 768, 12),
            "L" => (24, 1024, 16),
            "XL" => (28, 1152, 16),
            _ => return None,
        };
        let patch = match patch {
            "2" => 2,
            "4" => 4,
            "8" => 8,
            _ => return None,
        };
        Some(Self {
            input_size,
            channels,
            patch,
            depth,
            width,
            heads,
            mlp_ratio: mlp_ratio(),
            classes: classes(),
            class_dropout: class_dropout(),
            learned_variance: true,
            convention: Convention::Original,
        })
    }

    /// # Errors
    /// The option that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let positive = [
            ("input_size", self.input_size),
            ("channels", self.channels),
            ("patch", self.patch),
            ("depth", self.depth),
            ("width", self.width),
            ("heads", self.heads),
            ("classes", self.classes),
        ];
        for (key, value) in positive {
            if !(1..=1 << 20).contains(&value) {
                return Err((key, format!("expected 1 to 1048576, found {value}")));
            }
        }
        let divides = |key, of: i64, what: &str, by: i64| match of % by {
            0 => Ok(()),
            _ => Err((
                key,
                format!("expected a divisor of the {what} {of}, found {by}"),
            )),
        };
        divides("patch", self.input_size, "input size", self.patch)?;
        divides("heads", self.width, "width", self.heads)?;
        if self.width % 4 != 0 {
            let found = self.width;
            return Err(("width", format!("expected a multiple of 4, found {found}")));
        }
        if !(self.mlp_ratio > 0. && self.mlp_ratio <= 64.) {
            let found = self.mlp_ratio;
            return Err((
                "mlp_ratio",
                format!("expected above 0 to 64, found {found}"),
            ));
        }
        if !(0. ..1.).contains(&self.class_dropout) {
            let found = self.class_dropout;
            return Err((
                "class_dropout",
                format!("expected 0 to below 1, found {found}"),
            ));
        }
        Ok(())
    }

    /// Tokens of a sample.
    pub fn tokens(&self) -> i64 {
        (self.input_size / self.patch).pow(2)
    }

    /// Sub-modules: two a block.
    pub fn sub_modules(&self) -> usize {
        2 * self.depth as usize
    }

    /// Width of the MLP.
    pub fn hidden(&self) -> i64 {
        (self.width as f64 * self.mlp_ratio) as i64
    }

    /// Channels of the output.
    pub fn output_channels(&self) -> i64 {
        self.channels * if self.learned_variance { 2 } else { 1 }
    }

    /// Rows of the label table: classes, and the null class where labels are dropped in training.
    pub fn label_rows(&self) -> i64 {
        self.classes + i64::from(self.class_dropout > 0.)
    }

    /// Parameters, the fixed position embedding not counted.
    pub fn parameters(&self) -> i64 {
        let (d, h) = (self.width, self.hidden());
        let linear = |out: i64, inputs: i64| out * (inputs + 1);
        linear(d, self.channels * self.patch * self.patch)
            + linear(d, embed::FREQUENCIES)
            + linear(d, d)
            + self.label_rows() * d
            + self.depth
                * (linear(6 * d, d) + linear(3 * d, d) + linear(d, d) + linear(h, d) + linear(d, h))
            + linear(2 * d, d)
            + linear(self.patch * self.patch * self.output_channels(), d)
    }

    /// Operations of a forward pass.
    pub fn macs(&self) -> Macs {
        let (n, d, h) = (self.tokens(), self.width, self.hidden());
        let p2 = self.patch * self.patch;
        let rest = n * d * p2 * (self.channels + self.output_channels())
            + d * (embed::FREQUENCIES + d)
            + 6 * d * d * self.depth
            + 2 * d * d;
        Macs {
            attention: (4 * n * d * d + 2 * n * n * d) as u64,
            mlp: (2 * n * d * h) as u64,
            rest: rest as u64,
            depth: self.depth as u64,
        }
    }

    /// Added to the variance in a block's norm.
    pub(super) fn block_norm_eps(&self, kind: SubModuleKind) -> f64 {
        match (self.convention, kind) {
            (Convention::Diffusers, SubModuleKind::Mlp) => 1e-5,
            _ => embed::NORM_EPS,
        }
    }
}
