//! `fewstep demo`: both methods on the embedded digits, and what they won.

use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;

use crate::commands::ranks::Here;
use crate::commands::run::{Common, follow_any};
use crate::config::ConfigSource;

/// Options of `fewstep demo`.
#[derive(Args, Debug)]
#[command(
    after_help = "Keys that both demos have (seed, device, threads) go to both, others to the one that has them.\n\nExample: fewstep demo --set seed=1"
)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Train the diffusion transformer and the classifier of its samples as well, instead of using those that fewstep carries (half an hour)
    #[arg(long)]
    from_scratch: bool,
}

/// A config that is compiled in.
struct Embedded {
    path: &'static str,
    text: &'static str,
    /// Tables and keys that are its own.
    keys: &'static [&'static str],
}

const IIR: Embedded = Embedded {
    path: "configs/iir/demo.toml",
    text: include_str!("../../../../configs/iir/demo.toml"),
    keys: &[
        "data",
        "network",
        "neuron",
        "ann",
        "calibration",
        "snn",
        "direct",
        "limits",
    ],
};
const HARMONICA: Embedded = Embedded {
    path: "configs/harmonica/demo.toml",
    text: include_str!("../../../../configs/harmonica/demo.toml"),
    keys: &["model", "sampler", "guidance", "routers", "evaluation"],
};
const DIT: Embedded = Embedded {
    path: "configs/harmonica/digits-dit.toml",
    text: include_str!("../../../../configs/harmonica/digits-dit.toml"),
    keys: &["training"],
};
const CLASSIFIER: Embedded = Embedded {
    path: "configs/harmonica/digits-classifier.toml",
    text: include_str!("../../../../configs/harmonica/digits-classifier.toml"),
    keys: &[],
};

impl Embedded {
    /// The overrides that are for this config: its own keys, and those that no other demo has.
    fn overrides(&self, all: &[String]) -> Vec<String> {
        let others = [&IIR, &HARMONICA, &DIT, &CLASSIFIER];
        let elsewhere = |key: &str| {
            !self.keys.contains(&key) && others.iter().any(|other| other.keys.contains(&key))
        };
        let top = |o: &String| {
            o.split(['.', '='])
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        all.iter()
            .filter(|o| !elsewhere(&top(o)))
            .cloned()
            .collect()
    }

    fn run(&self, common: &Common, more: &[String]) -> Result<()> {
        let mut overrides = self.overrides(&common.overrides());
        overrides.extend_from_slice(more);
        follow_any(
            &ConfigSource::parse(self.path, self.text, &overrides)?,
            common,
            &Here::alone(),
        )
    }
}

/// Runs the demos. They start anew each time unless `--resume` is given, which leaves a finished one as it is.
///
/// # Errors
/// As [`run`](super::run::run).
pub fn demo(options: &Options) -> Result<()> {
    if fewstep_torch::Ranks::from_env()?.is_some_and(|ranks| ranks.world > 1) {
        bail!(
            "demo is for one process, and the environment's WORLD_SIZE names several: ranks share run and sample"
        );
    }
    let mut common = options.common.clone();
    common.force = !common.resume;
    let done = |run: &str| common.resume && common.runs.join(run).join("summary.json").exists();
    let folder = |run: &str, file: &str| {
        let path = common.runs.join(run).join(file);
        path.display().to_string()
    };
    for argument in &common.set {
        let top = argument.split(['.', '=']).next().unwrap_or_default();
        if top == "name" {
            bail!("--set {argument}: the demos have names of their own");
        }
        if DIT.keys.contains(&top) && !options.from_scratch {
            bail!("--set {argument}: nothing is trained by it without --from-scratch");
        }
    }
    if !done("demo-iir") {
        heading(&common, "1. A spiking network, down to one timestep");
        IIR.run(&common, &[])?;
    }
    let mut trained = Vec::new();
    if options.from_scratch {
        heading(
            &common,
            "A diffusion transformer, and a classifier to judge it",
        );
        for (embedded, run) in [(&DIT, "digits-dit"), (&CLASSIFIER, "digits-classifier")] {
            if !done(run) {
                embedded.run(&common, &[])?;
            }
        }
        let (dit, classifier) = (
            folder("digits-dit", "dit.safetensors"),
            folder("digits-classifier", ""),
        );
        trained.push(format!("model.checkpoint={}", quoted(&dit)));
        trained.push(format!("evaluation.classifier={}", quoted(&classifier)));
    }
    if !done("demo-harmonica") {
        heading(
            &common,
            "2. A diffusion transformer that learns what to skip",
        );
        HARMONICA.run(&common, &trained)?;
    }
    Ok(())
}

/// As a TOML string.
fn quoted(text: &str) -> String {
    format!("{:?}", Path::new(text).display().to_string())
}

fn heading(common: &Common, words: &str) {
    if !(common.quiet || common.json) {
        super::tell(&format!("\n{words}\n"));
    }
}
