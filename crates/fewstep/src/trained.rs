//! A trained network out of its run folder, or out of the folder of an import, for whoever wants to run it or write it in another form.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use fewstep_iir::{Data, PhaseKind, fold_batch_norm};
use fewstep_interchange::{Imported, Notes, checkpoint};
use fewstep_spiking::{Mode, Network};
use fewstep_torch::Checkpoint;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tch::Device;

use crate::config::ConfigSource;
use crate::experiment::{Experiment, Method, MethodOnly};

/// What `fewstep import` writes into its folder.
pub const IMPORTED: &str = "network.safetensors";

/// A network with the best weights of one phase of a run, batch norm folded; or one that was imported.
#[derive(Debug)]
pub struct Trained {
    /// The network; with neurons unless it is the artificial one.
    pub network: Network,
    /// The phase: `ann`, `t5`, …, `direct-carried`; `imported` of a network that was.
    pub stage: String,
    /// How it was trained to run.
    pub mode: Mode,
    /// T of that mode; 1 for the artificial network.
    pub timesteps: u32,
    /// What enters and what leaves it.
    pub images: Images,
    /// The run's config. Of an imported network: its folder's name, its data set's name, its neurons, and published values.
    pub experiment: Experiment,
    /// On the test split, once the phase is finished.
    pub test_accuracy: Option<f64>,
    /// Where it comes from: run, seed, stage, accuracy; or what an imported file says.
    origin: Notes,
}

/// How images become a network's input, and what its outputs are called.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// The data set.
    pub data: String,
    /// Of each channel, of pixels from 0 to 1. The network's input is (pixel − mean) / deviation.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub std: Vec<f32>,
    /// One name an output.
    pub classes: Vec<String>,
}

impl Trained {
    /// Where the network comes from and what its images are, for a file's metadata.
    pub fn notes(&self) -> Notes {
        let images = &self.images;
        let mut notes = self.origin.clone();
        notes.extend([
            ("fewstep".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("data".to_owned(), images.data.clone()),
            ("mean".to_owned(), json!(images.mean).to_string()),
            ("std".to_owned(), json!(images.std).to_string()),
            ("classes".to_owned(), json!(images.classes).to_string()),
        ]);
        notes
    }

    /// An imported network. What its file does not say about images is: any pixels from 0 to 1 as they are, classes by number.
    fn imported(imported: Imported, folder: &Path) -> Result<Self> {
        let Imported {
            network,
            timesteps,
            notes,
        } = imported;
        let (channels, classes) = (network.plan().input[0], network.plan().classes());
        let images = Images {
            data: notes.get("data").cloned().unwrap_or_default(),
            mean: list(&notes, "mean", channels).unwrap_or_else(|| vec![0.; channels as usize]),
            std: list(&notes, "std", channels).unwrap_or_else(|| vec![1.; channels as usize]),
            classes: list(&notes, "classes", classes)
                .unwrap_or_else(|| (0..classes).map(|c| c.to_string()).collect()),
        };
        let neuron = network.units().iter().find_map(|u| u.neuron.as_ref());
        let experiment = serde_json::from_value(json!({
            "name": folder.file_name().map(|n| n.to_string_lossy()).unwrap_or_default(),
            "data": {"name": images.data},
            "neuron": neuron.map(|n| json!({"reset": n.reset(), "surrogate": n.surrogate()})),
        }))?;
        Ok(Self {
            network,
            stage: "imported".into(),
            mode: Mode::Spiking { timesteps },
            timesteps,
            images,
            experiment,
            test_accuracy: notes.get("test_accuracy").and_then(|a| a.parse().ok()),
            origin: notes,
        })
    }
}

/// A note that is a list of as many entries as are wanted.
fn list<T: DeserializeOwned>(notes: &Notes, key: &str, wanted: i64) -> Option<Vec<T>> {
    let found: Vec<T> = serde_json::from_str(notes.get(key)?).ok()?;
    (found.len() as i64 == wanted).then_some(found)
}

/// The part of `result.json` that is wanted here.
#[derive(Deserialize)]
struct Finished {
    test_accuracy: f64,
}

/// Opens the network of an IIR-SNN run or of an import. `stage` is a phase of the run, `ann` for the artificial network; without it, the
/// last stage that is finished. A stage that is named may still be in training: its best weights so far are taken.
///
/// # Errors
/// No such run or stage, a damaged checkpoint, or the run's data set is not there (its shape and its pixels' mean and deviation are
/// needed).
pub fn open(run: &Path, stage: Option<&str>, device: Device) -> Result<Trained> {
    let imported = run.join(IMPORTED);
    if imported.exists() {
        if let Some(stage) = stage {
            bail!(
                "{} holds an imported network: it has no stage `{stage}`",
                run.display()
            );
        }
        return Trained::imported(checkpoint::load(&imported, device)?, run);
    }
    open_with_data(run, stage, device).map(|(trained, _)| trained)
}

/// As [`open`], with the run's data beside it. An imported network has none.
///
/// # Errors
/// As [`open`].
pub fn open_with_data(run: &Path, stage: Option<&str>, device: Device) -> Result<(Trained, Data)> {
    let config = run.join("config.toml");
    if !config.exists() {
        bail!(
            "expected the folder of a run, found {} without config.toml",
            run.display()
        );
    }
    let source = ConfigSource::read(&config, &[])?;
    let method = source.deserialize::<MethodOnly>()?.method;
    if method != Method::IirSnn {
        bail!(
            "{}: expected a run of method iir-snn, found {}",
            config.display(),
            serde_json::to_value(method)?.as_str().unwrap_or_default()
        );
    }
    let experiment: Experiment = source.deserialize()?;
    let phases = experiment.recipe().phases()?;
    let folder = |name: &str| run.join("checkpoints").join(name);
    let phase = match stage {
        Some(name) => phases.iter().find(|p| p.name == name).ok_or_else(|| {
            let names: Vec<_> = phases.iter().map(|p| p.name.as_str()).collect();
            anyhow!(
                "{} has no stage `{name}`; it has {}",
                run.display(),
                names.join(", ")
            )
        })?,
        None => phases
            .iter()
            .rfind(|p| {
                matches!(p.kind, PhaseKind::Stage(_))
                    && folder(&p.name).join("result.json").exists()
            })
            .ok_or_else(|| anyhow!("{}: no stage is finished yet", run.display()))?,
    };
    let best = folder(&phase.name).join("best.safetensors");
    if !best.exists() {
        bail!(
            "{}: stage `{}` has no weights yet ({} is not there)",
            run.display(),
            phase.name,
            best.display()
        );
    }
    let section = &experiment.data;
    let data = Data::open_with(&section.spec(), &section.options(), experiment.seed)
        .map_err(|e| anyhow!("the data set of {}: {e}", run.display()))?;
    let shape = data.shape();
    let input = [shape.channels, shape.height, shape.width].map(|d| d as i64);
    let plan = experiment
        .network
        .plan(input, data.class_names().len() as i64)?;
    let mut network = Network::new(plan, device)?;
    let values = Checkpoint::load(&best)?.section("");
    let what = best.display().to_string();
    let mode = match phase.kind {
        PhaseKind::Ann => Mode::Analog,
        PhaseKind::Stage(timesteps) => Mode::Spiking { timesteps },
        PhaseKind::Direct(_) => Mode::Spiking { timesteps: 1 },
    };
    // The artificial network is saved with its batch norm, a spiking one is folded before its first epoch.
    let timesteps = if let Mode::Spiking { timesteps } = mode {
        fold_batch_norm(&mut network)?;
        network.add_neurons(&experiment.neuron)?;
        network.load(&values, &what)?;
        timesteps
    } else {
        network.load(&values, &what)?;
        fold_batch_norm(&mut network)?;
        1
    };
    let statistics = data.statistics();
    let images = Images {
        data: data.name().to_owned(),
        mean: statistics.mean.to_vec(),
        std: statistics.std.to_vec(),
        classes: data.class_names().to_vec(),
    };
    let test_accuracy = std::fs::read(folder(&phase.name).join("result.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Finished>(&bytes).ok())
        .map(|f| f.test_accuracy);
    let mut origin = Notes::from([
        ("run".to_owned(), experiment.name.clone()),
        ("seed".to_owned(), experiment.seed.to_string()),
        ("stage".to_owned(), phase.name.clone()),
    ]);
    origin.extend(test_accuracy.map(|a| ("test_accuracy".to_owned(), a.to_string())));
    let trained = Trained {
        network,
        stage: phase.name.clone(),
        mode,
        timesteps,
        images,
        experiment,
        test_accuracy,
        origin,
    };
    Ok((trained, data))
}
