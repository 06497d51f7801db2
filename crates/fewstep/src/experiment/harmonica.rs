//! `method = "harmonica"` as a struct.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fewstep_diffusion::{BetaSchedule, Convention, Guidance, SamplerOptions};
use fewstep_harmonica::StackRule;
use fewstep_harmonica::learn::{LearnOptions, Training};
use fewstep_torch::DeviceChoice;
use serde::{Deserialize, Serialize};

use super::{DataSection, Method};

/// `method = "harmonica"`: learns routers and compares policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HarmonicaExperiment {
    /// Name of the run folder.
    pub name: String,
    /// `harmonica`.
    pub method: Method,
    /// Seed of the routers, and of the noise that they are judged on.
    #[serde(default)]
    pub seed: u64,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Threads of libtorch. Default: what libtorch finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// The model.
    pub model: ModelSection,
    /// Images that the model was trained on: for `fd`, and for Learning-to-Cache, the one method that needs images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSection>,
    /// The sampler.
    pub sampler: SamplerOptions,
    /// The guidance.
    #[serde(default)]
    pub guidance: Guidance,
    /// Routers to learn, by name. `harmonica` and `l2c` are the published methods.
    #[serde(default)]
    pub routers: BTreeMap<String, LearnOptions>,
    /// How policies are compared.
    #[serde(default)]
    pub evaluation: Evaluation,
}

/// A trained DiT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A checkpoint in any layout that fewstep reads, or `digits`, the small one that fewstep carries.
    pub checkpoint: String,
    /// Whose conventions the model follows.
    #[serde(default)]
    pub convention: Convention,
    /// The noise schedule that it was trained with.
    #[serde(default)]
    pub noise: BetaSchedule,
}

/// How policies are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Images sampled with each policy, from the same noise.
    pub images: u64,
    /// Images in a batch.
    pub batch_size: u64,
    /// MAC savings (%) at which plans that can be made for any saving are compared, beside those of the learned routers.
    pub mac_savings_percent: Vec<f64>,
    /// Whole-step intervals of FORA.
    pub intervals: Vec<usize>,
    /// More policies: tables written by hand or by an earlier run, windowed intervals, and the rivals in docs/policies.md.
    pub policies: Vec<Policy>,
    /// A classifier whose features `fd` is measured on: a checkpoint of an IIR-SNN run's artificial network, or `digits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classifier: Option<String>,
    /// Measure `fd-resnet56` as well, the Fréchet distance on the features of a published CIFAR-10 network (`fewstep data fetch resnet56`).
    pub fd_resnet56: bool,
    /// Times that each policy's sampling is repeated for its latency; the median counts.
    pub repeats: usize,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            images: 64,
            batch_size: 64,
            mac_savings_percent: vec![],
            intervals: vec![2, 3],
            policies: vec![],
            classifier: None,
            fd_resnet56: false,
            repeats: 3,
        }
    }
}

/// A policy of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Policy {
    /// A saved plan.
    Table {
        /// The file.
        path: PathBuf,
    },
    /// Between two executed steps, both included, every `interval`-th is computed, beginning with the first; outside all are.
    Interval {
        /// The first executed step of the window, from 0.
        first: usize,
        /// The last.
        last: usize,
        /// The distance between computed steps.
        interval: usize,
        /// Order of the forecast at the others; 0 is plain reuse.
        #[serde(default, skip_serializing_if = "is_zero")]
        order: u8,
    },
    /// Every `interval`-th step computed, and a forecast of the others.
    #[serde(rename = "taylorseer")]
    TaylorSeer {
        /// The distance between computed steps.
        interval: usize,
        /// Order of the forecast.
        order: u8,
        /// The first steps, which are computed.
        #[serde(default = "one")]
        warm_up: usize,
    },
    /// All blocks but the first reused while its residual changes little. Without a threshold, it is searched for each of the savings, as
    /// for `dual-block` and `tea`.
    FirstBlock {
        /// Relative distance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        threshold: Option<f64>,
        /// Order of the forecast of what is reused.
        #[serde(default, skip_serializing_if = "is_zero")]
        order: u8,
    },
    /// The same with any number of computed blocks.
    DualBlock {
        /// Computed blocks in front.
        #[serde(default = "one")]
        front: usize,
        /// Computed blocks behind.
        #[serde(default)]
        back: usize,
        /// Relative distance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        threshold: Option<f64>,
        /// The first steps, which are computed.
        #[serde(default)]
        warmup_steps: usize,
        /// The most reused steps in a row.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_continuous_cached_steps: Option<usize>,
        /// Order of the forecast of what is reused.
        #[serde(default, skip_serializing_if = "is_zero")]
        order: u8,
    },
    /// All blocks reused while the modulated input has moved little in sum.
    Tea {
        /// Sum of relative distances.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        threshold: Option<f64>,
        /// Polynomial of a distance, highest power first.
        #[serde(default = "identity")]
        coefficients: Vec<f64>,
        /// Order of the forecast of what is reused.
        #[serde(default, skip_serializing_if = "is_zero")]
        order: u8,
    },
    /// Between every `interval`-th steps, the deviation of rear blocks, later of front blocks, reused.
    Delta {
        /// The distance between computed steps.
        interval: usize,
        /// Skipped blocks.
        blocks: usize,
        /// Share of the steps after which front blocks are skipped.
        #[serde(default = "half")]
        switch: f64,
    },
}

impl Policy {
    /// The rule of a policy that decides from what it sees; at threshold 0 where none is given.
    pub fn rule(&self) -> Option<StackRule> {
        let at = |threshold: &Option<f64>| threshold.unwrap_or(0.);
        Some(match self {
            Self::Table { .. } | Self::Interval { .. } | Self::TaylorSeer { .. } => return None,
            Self::FirstBlock { threshold, order } => StackRule::FirstBlock {
                threshold: at(threshold),
                order: *order,
            },
            Self::DualBlock {
                front,
                back,
                threshold,
                warmup_steps,
                max_continuous_cached_steps,
                order,
            } => StackRule::DualBlock {
                front: *front,
                back: *back,
                threshold: at(threshold),
                warmup_steps: *warmup_steps,
                max_continuous_cached_steps: *max_continuous_cached_steps,
                order: *order,
            },
            Self::Tea {
                threshold,
                coefficients,
                order,
            } => StackRule::Tea {
                threshold: at(threshold),
                coefficients: coefficients.clone(),
                order: *order,
            },
            Self::Delta {
                interval,
                blocks,
                switch,
            } => StackRule::Delta {
                interval: *interval,
                blocks: *blocks,
                switch: *switch,
            },
        })
    }

    /// Whether its threshold is to be searched.
    pub fn lacks_threshold(&self) -> bool {
        matches!(
            self,
            Self::FirstBlock {
                threshold: None,
                ..
            } | Self::DualBlock {
                threshold: None,
                ..
            } | Self::Tea {
                threshold: None,
                ..
            }
        )
    }
}

fn is_zero(order: &u8) -> bool {
    *order == 0
}

fn one() -> usize {
    1
}

fn half() -> f64 {
    0.5
}

fn identity() -> Vec<f64> {
    vec![1., 0.]
}

impl HarmonicaExperiment {
    /// # Errors
    /// The key that is out of range, and a clause that says what was expected and found.
    pub fn validate(&self) -> Result<(), (String, String)> {
        let at = |section: &str, e: Result<(), (&'static str, String)>| {
            e.map_err(|(key, reason)| (format!("{section}.{key}"), reason))
        };
        at("sampler", self.sampler.validate())?;
        at("guidance", self.guidance.validate())?;
        at("model.noise", self.model.noise.validate())?;
        for (name, options) in &self.routers {
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                let reason = "a router's name is made of letters, digits and -".to_owned();
                return Err((format!("routers.{name}"), reason));
            }
            at(&format!("routers.{name}"), options.validate())?;
            if options.training == Training::L2c && self.data.is_none() {
                let reason = "l2c learns from images: expected a [data] table as well";
                return Err((format!("routers.{name}.training"), reason.into()));
            }
        }
        let e = &self.evaluation;
        let positive = [
            ("images", e.images),
            ("batch_size", e.batch_size),
            ("repeats", e.repeats as u64),
        ];
        for (key, value) in positive {
            if value == 0 {
                let reason = "expected at least 1, found 0".to_owned();
                return Err((format!("evaluation.{key}"), reason));
            }
        }
        if let Some(found) = e
            .mac_savings_percent
            .iter()
            .find(|s| !(0. ..100.).contains(*s))
        {
            let reason = format!("expected percentages from 0 to below 100, found {found}");
            return Err(("evaluation.mac_savings_percent".into(), reason));
        }
        if e.intervals.contains(&0) {
            let reason = "expected intervals of at least 1, found 0".to_owned();
            return Err(("evaluation.intervals".into(), reason));
        }
        for policy in &e.policies {
            let Some(rule) = policy.rule() else {
                continue;
            };
            let at = |reason| ("evaluation.policies".to_owned(), reason);
            rule.validate(None)
                .map_err(|(key, reason)| at(format!("{}: {key}: {reason}", rule.name())))?;
            if policy.lacks_threshold() && e.mac_savings_percent.is_empty() {
                let reason =
                    "expected a threshold, or mac_savings_percent to search one for, found neither";
                return Err(at(format!("{}: {reason}", rule.name())));
            }
        }
        for (key, wanted) in [
            ("classifier", e.classifier.is_some()),
            ("fd_resnet56", e.fd_resnet56),
        ] {
            if wanted && self.data.is_none() {
                let reason = "samples are compared with images: expected a [data] table as well";
                return Err((format!("evaluation.{key}"), reason.into()));
            }
        }
        Ok(())
    }
}
