//! The whole run: artificial network, conversion, stages, ablations.

use std::path::Path;

use fewstep_datasets::Shard;
use fewstep_metrics::{EnergyReport, LatencySummary};
use fewstep_spiking::{Mode, Monitor, Network};
use fewstep_torch::checkpoint::{remove_torn, write_atomically};
use fewstep_torch::{Checkpoint, Group, Resident, seed};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tch::{Device, Tensor};

use crate::calibrate::calibrate;
use crate::data::{Data, Split, to_tensors};
use crate::evaluate::{energy, evaluate, latency, mean_rate, probe};
use crate::fold::fold_batch_norm;
use crate::phase::{Trainer, load, mode};
use crate::{
    Arm, Calibrated, Error, Event, LayerRates, Observer, PhaseKind, PhasePlan, Recipe, Result,
};

/// What a run found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The artificial network.
    pub ann: AnnResult,
    /// The stages, T descending.
    pub stages: Vec<StageResult>,
    /// The ablations.
    pub direct: Vec<StageResult>,
    /// Thresholds that calibration gave the first stage.
    pub calibrated: Vec<Calibrated>,
    /// Parameters of the artificial network.
    pub parameters: i64,
    /// Multiply-accumulates of one image.
    pub macs: i64,
}

/// The artificial network's figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnnResult {
    /// On the validation split, weights best there.
    pub val_accuracy: f64,
    /// On the test split, the same weights.
    pub test_accuracy: f64,
    /// On the validation split after the last epoch.
    pub val_accuracy_last: f64,
    /// On the test split, with batch norm folded: the network that the spiking one starts from.
    pub test_accuracy_folded: f64,
    /// Epochs trained.
    pub epochs: u32,
    /// The epoch that was best on validation.
    pub best_epoch: u32,
    /// Training alone.
    pub train_seconds: f64,
    /// Wall-clock time per image at batch 1, folded.
    pub latency_ms: LatencySummary,
}

/// One spiking stage, or one ablation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageResult {
    /// `t5`, …, `direct-carried`.
    pub name: String,
    /// T.
    pub timesteps: u32,
    /// On the validation split, weights best there.
    pub val_accuracy: f64,
    /// On the test split, the same weights.
    pub test_accuracy: f64,
    /// On the validation split after the last epoch.
    pub val_accuracy_last: f64,
    /// Spikes per neuron and image over all T, on the test split.
    pub spike_rate_mean: f64,
    /// The same, layer by layer.
    pub spike_rate_per_layer: Vec<f64>,
    /// Rates by layer and timestep, silent channels.
    pub layers: Vec<LayerRates>,
    /// Energy of the artificial network over that of the spiking one.
    pub energy_ratio: f64,
    /// Operations and energy, layer by layer.
    pub energy: EnergyReport,
    /// Epochs trained.
    pub epochs: u32,
    /// The epoch that was best on validation.
    pub best_epoch: u32,
    /// Training alone.
    pub train_seconds: f64,
    /// Wall-clock time per image at batch 1.
    pub latency_ms: LatencySummary,
    /// Thresholds after the stage, mean over channels.
    pub thresholds: Vec<f64>,
    /// Leaks after the stage, mean over channels.
    pub leaks: Vec<f64>,
    /// Layers that were dead, dying or saturated.
    pub warnings: Vec<String>,
}

/// Follows a recipe. `folder` takes the checkpoints: what is complete there is not trained again, what is half done goes on.
///
/// Each rank of `group` must be given the same recipe and data. They share every batch (batch norm and dropout are those of the whole), so
/// that the weights are those of one process but for the order of sums, as with another number of threads: the last bit of float32, until a
/// spike flips. Only rank 0 touches the folder, and a run may go on with another number of ranks.
///
/// # Errors
/// An impossible recipe, damaged data or checkpoints, a loss that is no number, a dead network, a full disk, a lost rank.
pub fn run(
    recipe: &Recipe,
    data: &Data,
    folder: &Path,
    device: Device,
    group: &Group,
    observer: &mut dyn Observer,
) -> Result<Report> {
    let phases = recipe.phases()?;
    recipe.validate_with(data)?;
    Pipeline {
        resident: recipe.performance.resident(data, device)?,
        recipe,
        data,
        folder,
        device,
        group,
        phases: &phases,
    }
    .run(observer)
}

struct Pipeline<'a> {
    recipe: &'a Recipe,
    data: &'a Data,
    folder: &'a Path,
    device: Device,
    group: &'a Group,
    phases: &'a [PhasePlan],
    /// The training images, where they lie on the device.
    resident: Option<Resident>,
}

impl Pipeline<'_> {
    fn run(&self, observer: &mut dyn Observer) -> Result<Report> {
        let (mut stages, mut direct) = (Vec::new(), Vec::new());
        let (ann, teacher, converted) = self.ann(&self.phases[0], observer)?;
        let mut network = self.copy(&converted)?;
        let calibrated =
            self.calibrated(&mut network, "t-first", self.recipe.calibration.timesteps())?;
        observer.event(&Event::Calibrated {
            phase: &self.phases[1].name,
            thresholds: &calibrated,
        })?;
        let carried = self.copy(&network)?;
        for phase in &self.phases[1..] {
            match phase.kind {
                PhaseKind::Ann => {}
                PhaseKind::Stage(_) => {
                    stages.push(self.stage(phase, &mut network, &teacher, observer)?)
                }
                PhaseKind::Direct(arm) => {
                    let mut start = match arm {
                        Arm::Carried => self.copy(&carried)?,
                        Arm::Calibrated => self.copy(&converted)?,
                        Arm::Scratch => {
                            seed::set_libtorch(seed::derive(self.recipe.seed, &[0, phase.number]));
                            self.fresh()?
                        }
                    };
                    if arm == Arm::Calibrated {
                        let thresholds = self.calibrated(&mut start, &phase.name, 1)?;
                        observer.event(&Event::Calibrated {
                            phase: &phase.name,
                            thresholds: &thresholds,
                        })?;
                    }
                    direct.push(self.stage(phase, &mut start, &teacher, observer)?);
                }
            }
        }
        let plan = self.plan()?;
        Ok(Report {
            ann,
            stages,
            direct,
            calibrated,
            parameters: plan.parameters(),
            macs: plan.macs(),
        })
    }

    fn plan(&self) -> Result<fewstep_spiking::Plan> {
        let shape = self.data.shape();
        let input = [
            shape.channels as i64,
            shape.height as i64,
            shape.width as i64,
        ];
        self.recipe
            .network
            .plan(input, self.data.class_names().len() as i64)
    }

    /// An artificial network with fresh weights.
    fn network(&self) -> Result<Network> {
        let mut network = Network::new(self.plan()?, self.device)?;
        network.set_memory_format(self.recipe.performance.memory_format(self.device))?;
        Ok(network)
    }

    fn trainer<'a>(&'a self, phase: &'a PhasePlan, teacher: Option<&'a Network>) -> Trainer<'a> {
        let (phases, data, seed) = (self.phases.len(), self.data, self.recipe.seed);
        let limit = self.recipe.limits.batches;
        Trainer {
            phase,
            phases,
            data,
            seed,
            limit,
            folder: self.folder.join(&phase.name),
            group: self.group,
            teacher,
            performance: &self.recipe.performance,
            resident: self.resident.as_ref(),
        }
    }

    /// Trains the artificial network; returns its figures, itself, and the network with folded batch norm and neurons.
    fn ann(
        &self,
        phase: &PhasePlan,
        observer: &mut dyn Observer,
    ) -> Result<(AnnResult, Network, Network)> {
        seed::set_libtorch(seed::derive(self.recipe.seed, &[0, 0]));
        let mut network = self.network()?;
        let trainer = self.trainer(phase, None);
        let result = trainer.folder.join("result.json");
        let before = self.result_before::<AnnResult>(&result)?;
        let progress = match before {
            Some(_) => {
                trainer.load_best(&mut network)?;
                None
            }
            None => Some(trainer.train(&mut network, observer)?),
        };
        let mut converted = self.network()?;
        let values = network.tensors().into_iter().collect();
        converted.load(&values, "the artificial network")?;
        fold_batch_norm(&mut converted)?;
        converted.add_neurons(&self.recipe.neuron)?;
        let found = match (before, progress) {
            (Some(found), _) => found,
            (None, progress) => {
                let progress = progress.unwrap_or_default();
                let limit = self.recipe.limits.batches;
                let test = |n| {
                    evaluate(
                        n,
                        Mode::Analog,
                        self.data,
                        Split::Test,
                        limit,
                        self.group,
                        None,
                    )
                };
                let found = AnnResult {
                    val_accuracy: progress.best.map_or(0., |b| b.accuracy),
                    test_accuracy: test(&network)?.accuracy,
                    val_accuracy_last: progress.last.map_or(0., |b| b.accuracy),
                    test_accuracy_folded: test(&converted)?.accuracy,
                    epochs: progress.epochs_done,
                    best_epoch: progress.best_epoch,
                    train_seconds: progress.train_seconds,
                    latency_ms: self.latency(&converted, Mode::Analog)?,
                };
                self.write_result(&result, &found)?;
                found
            }
        };
        observer.event(&Event::PhaseEnded {
            phase: &phase.name,
            val_accuracy: found.val_accuracy,
            test_accuracy: found.test_accuracy,
        })?;
        Ok((found, network, converted))
    }

    /// Calibrates, or takes the thresholds that an earlier start of this run found: the very same images are used, but it can take long.
    fn calibrated(
        &self,
        network: &mut Network,
        name: &str,
        timesteps: u32,
    ) -> Result<Vec<Calibrated>> {
        let path = self.folder.join(format!("calibrated-{name}.safetensors"));
        let what = "the thresholds";
        let before: Option<Vec<Calibrated>> = self.group.told(what, || {
            if !path.exists() {
                return Ok(None);
            }
            let saved = load(&path)?;
            network.load(&saved.section("network."), &path.display().to_string())?;
            serde_json::from_str(saved.string("thresholds").unwrap_or_default())
                .map_err(|e| Error::Checkpoint(format!("{}: {e}", path.display())))
        })?;
        if let Some(before) = before {
            self.group.spread(what, network.tensors())?;
            return Ok(before);
        }
        let setting = &self.recipe.calibration;
        let (images, timesteps) = match self.recipe.limits.batches {
            // A quick look should not spend its time here.
            Some(_) => (setting.images().min(16), timesteps.min(5)),
            None => (setting.images(), timesteps),
        };
        let loader = self.data.training(
            images.min(self.data.counts().0),
            seed::derive(self.recipe.seed, &[3]),
            Shard::default(),
        )?;
        let batch = loader.epoch(0).next().ok_or_else(|| {
            Error::Checkpoint("there are no training images to calibrate on".into())
        })??;
        // A percentile has no parts to sum: every rank looks at all of these images, and takes the thresholds of rank 0.
        let images = to_tensors(&batch, self.device)?.0;
        let found = calibrate(network, &images, setting, timesteps)?;
        self.group.spread(what, network.tensors())?;
        let found = self.group.told(what, || Ok::<_, Error>(found))?;
        if !self.group.leads() {
            return Ok(found);
        }
        let text = serde_json::to_string(&found).map_err(|e| Error::Checkpoint(e.to_string()))?;
        std::fs::create_dir_all(self.folder)
            .map_err(|e| Error::Checkpoint(format!("{}: {e}", self.folder.display())))?;
        let _ = remove_torn(self.folder);
        Checkpoint::new()
            .with_all("network.", network.tensors())
            .with_string("thresholds", text)
            .save(&path)?;
        Ok(found)
    }

    fn stage(
        &self,
        phase: &PhasePlan,
        network: &mut Network,
        teacher: &Network,
        observer: &mut dyn Observer,
    ) -> Result<StageResult> {
        let trainer = self.trainer(phase, phase.distillation.map(|_| teacher));
        let path = trainer.folder.join("result.json");
        if let Some(found) = self.result_before::<StageResult>(&path)? {
            trainer.load_best(network)?;
            self.tell_end(&found, observer)?;
            return Ok(found);
        }
        let Mode::Spiking { timesteps } = mode(phase.kind) else {
            return Err(Error::Checkpoint(format!(
                "stage {} does not spike",
                phase.name
            )));
        };
        if !trainer.has_begun()? {
            let limit = self.recipe.limits.batches;
            let monitor = probe(network, timesteps, self.data, limit, self.group)?;
            trainer.check_alive(network, &monitor)?;
            for message in monitor.warnings()? {
                observer.event(&Event::Warning {
                    phase: &phase.name,
                    message,
                })?;
            }
        }
        let progress = trainer.train(network, observer)?;
        let mut monitor = Monitor::new();
        let limit = self.recipe.limits.batches;
        let test = evaluate(
            network,
            mode(phase.kind),
            self.data,
            Split::Test,
            limit,
            self.group,
            Some(&mut monitor),
        )?;
        let val_accuracy = progress.best.map_or(0., |b| b.accuracy);
        let layers: Vec<LayerRates> = monitor
            .layers()?
            .into_iter()
            .map(LayerRates::from)
            .collect();
        let energy = energy(network, timesteps, &layers)?;
        let means = |pick: &dyn Fn(&fewstep_spiking::Neuron) -> Tensor| -> Result<Vec<f64>> {
            let neurons = network.units().iter().filter_map(|u| u.neuron.as_ref());
            neurons
                .map(|n| Ok(pick(n).f_mean(tch::Kind::Double)?.f_double_value(&[])?))
                .collect()
        };
        let found = StageResult {
            name: phase.name.clone(),
            timesteps,
            val_accuracy,
            test_accuracy: test.accuracy,
            val_accuracy_last: progress.last.map_or(0., |b| b.accuracy),
            spike_rate_mean: mean_rate(network, &layers),
            spike_rate_per_layer: layers.iter().map(|l| l.spike_rate).collect(),
            energy_ratio: energy.ratio,
            energy,
            epochs: progress.epochs_done,
            best_epoch: progress.best_epoch,
            train_seconds: progress.train_seconds,
            latency_ms: self.latency(network, mode(phase.kind))?,
            thresholds: means(&|n| n.threshold.shallow_clone())?,
            leaks: means(&|n| n.leak.shallow_clone())?,
            warnings: monitor.warnings()?,
            layers,
        };
        self.write_result(&path, &found)?;
        self.tell_end(&found, observer)?;
        Ok(found)
    }

    /// Told after a stage was trained, and again when a run resumes behind it.
    fn tell_end(&self, found: &StageResult, observer: &mut dyn Observer) -> Result<()> {
        for message in found.warnings.clone() {
            observer.event(&Event::Warning {
                phase: &found.name,
                message,
            })?;
        }
        observer.event(&Event::PhaseEnded {
            phase: &found.name,
            val_accuracy: found.val_accuracy,
            test_accuracy: found.test_accuracy,
        })
    }

    /// A converted network with fresh weights.
    fn fresh(&self) -> Result<Network> {
        let mut network = self.network()?;
        // Folded as the trained one was, so that it has the same biases (those of projections included).
        fold_batch_norm(&mut network)?;
        network.add_neurons(&self.recipe.neuron)?;
        Ok(network)
    }

    /// A converted network with the same values.
    fn copy(&self, network: &Network) -> Result<Network> {
        let mut other = self.fresh()?;
        let values = network.tensors().into_iter().collect();
        other.load(&values, "the converted network")?;
        Ok(other)
    }

    /// Measured by rank 0, while the others wait.
    fn latency(&self, network: &Network, mode: Mode) -> Result<LatencySummary> {
        self.group.told("the latency", || {
            let loader = self
                .data
                .evaluation(Split::Validation, 1, Shard::default())?;
            let batch = loader
                .epoch(0)
                .next()
                .ok_or_else(|| Error::Checkpoint("the validation split is empty".into()))??;
            latency(network, mode, &to_tensors(&batch, self.device)?.0)
        })
    }

    fn result_before<T: Serialize + DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        self.group.told("what is done", || read_result(path))
    }

    fn write_result(&self, path: &Path, result: &impl Serialize) -> Result<()> {
        if !self.group.leads() {
            return Ok(());
        }
        let text =
            serde_json::to_string_pretty(result).map_err(|e| Error::Checkpoint(e.to_string()))?;
        Ok(write_atomically(path, text.as_bytes())?)
    }
}

fn read_result<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::Checkpoint(format!(
                "{}: not a result of this version ({e}); delete it to evaluate that phase again",
                path.display()
            ))
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::Checkpoint(format!("{}: {e}", path.display()))),
    }
}
